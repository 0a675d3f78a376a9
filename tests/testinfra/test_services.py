"""HST-PKG, HST-SVC, HST-SOCK, HST-LOG, HST-TIME: what is installed, runs, listens and logs."""

from __future__ import annotations

import re

import pytest
from testinfra.host import Host

from gatepost.listeners import Listener

UNITS = ("postfix", "dovecot", "nftables")


@pytest.mark.parametrize("package", ["postfix", "postfix-pcre", "dovecot-core", "dovecot-lmtpd", "nftables"])
def test_hst_pkg_01_installed(host: Host, package: str) -> None:
    assert host.package(package).is_installed


def test_hst_pkg_01_smuggling_fix_is_in_the_binary(host: Host) -> None:
    """Distributions backport CVE-2023-51764, so the binary is asked and not the version."""
    daemons = host.check_output("postconf -xh daemon_directory")
    assert host.run("postconf -d smtpd_forbid_bare_newline").stderr == ""
    assert host.run("grep -q normalize %s/smtpd", daemons).rc == 0


def _postfix_units(host: Host) -> list[str]:
    """Debian 12's postfix.service is a oneshot of /bin/true, the daemon is postfix@-; Debian 13 has the real one."""
    oneshot = host.check_output("systemctl show -P Type postfix") == "oneshot"
    return ["postfix", "postfix@-"] if oneshot else ["postfix"]


@pytest.mark.parametrize("unit", UNITS)
def test_hst_svc_01_enabled_and_active(host: Host, unit: str) -> None:
    assert host.check_output("systemctl is-enabled %s || true", unit) == "enabled"
    for name in _postfix_units(host) if unit == "postfix" else [unit]:
        assert host.check_output("systemctl is-active %s || true", name) == "active"


def test_hst_svc_02_nothing_failed(host: Host) -> None:
    assert host.check_output("systemctl --failed --plain --no-legend") == ""


def test_hst_svc_02_master_is_alive(host: Host) -> None:
    pid_file = host.check_output("postconf -xh queue_directory") + "/pid/master.pid"
    pid = host.check_output("cat %s", pid_file).strip()
    assert host.run("readlink /proc/%s/exe", pid).stdout.strip().endswith("/master")


def test_hst_svc_02_no_fatal_in_the_log_since_start(host: Host) -> None:
    unit = _postfix_units(host)[-1]
    started = host.check_output("systemctl show -P ActiveEnterTimestamp %s", unit)
    log = host.check_output("journalctl -q --no-pager -o cat -t postfix/smtpd -t postfix/master --since %s", started)
    log += host.check_output("journalctl -q --no-pager -o cat -u %s --since %s", unit, started)
    bad = [line for line in log.splitlines() if re.search(r"\b(fatal|panic): |bad command startup", line)]
    assert bad == []


def test_hst_sock_01_exactly_the_tables_ports(host: Host, listeners: tuple[Listener, ...]) -> None:
    expected = {row.port for row in listeners}
    found: dict[int, set[str]] = {}
    strangers = []
    for line in host.check_output("ss -Hltnp").splitlines():
        address, _, port = line.split()[3].rpartition(":")
        address = address.strip("[]").partition("%")[0]
        owners = set(re.findall(r'"([^"]+)",pid=', line))  # smtpd inherits the socket from master
        if address.startswith("127.") or address == "::1":
            continue
        if "master" in owners:
            found.setdefault(int(port), set()).add(address)
        elif not owners & {"sshd", "systemd"}:
            strangers.append(f"{', '.join(owners) or 'a program'} on {address}:{port}")
    assert found.keys() == expected
    assert len(set(map(frozenset, found.values()))) == 1, f"not all on the same addresses: {found}"
    assert strangers == []


def test_hst_log_01_tls_is_logged_and_logs_arrive(host: Host) -> None:
    assert host.check_output("postconf -xh smtpd_tls_loglevel") == "1"
    assert host.check_output(
        "journalctl -q --no-pager -o cat -n 1 -t postfix/master -t postfix/postfix-script -t postfix/smtpd"
    )


def test_hst_time_01_clock_is_synchronised(host: Host) -> None:
    if host.run("systemd-detect-virt --container --quiet").rc == 0:
        pytest.skip("a container has the clock of its host")
    assert host.check_output("timedatectl show -P NTPSynchronized") == "yes"
