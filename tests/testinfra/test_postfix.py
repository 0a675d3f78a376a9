"""HST-CFG, HST-KEY, HST-CHROOT, HST-MAP, HST-PERM: Postfix's configuration as Postfix reads it."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from testinfra.host import Host

from gatepost.listeners import Listener


@dataclass(frozen=True)
class Service:
    """One line of master.cf with its -o overrides (master(5))."""

    name: str
    kind: str
    chroot: str
    command: str
    overrides: dict[str, str]


@dataclass(frozen=True)
class Postfix:
    """main.cf and master.cf as Postfix itself reads them (postconf(1))."""

    parameters: dict[str, str]  # explicit ones, unexpanded
    services: tuple[Service, ...]
    stderr: str

    def inet(self, port: int) -> Service:
        names = {25: ("25", "smtp"), 587: ("587", "submission"), 465: ("465", "submissions", "smtps")}.get(
            port, (str(port),)
        )
        for service in self.services:
            if service.kind == "inet" and service.name.rsplit(":", 1)[-1] in names:
                return service
        raise AssertionError(f"master.cf has no inet service for port {port}; it has {[s.name for s in self.services]}")


@pytest.fixture(scope="module")
def postfix(host: Host) -> Postfix:
    main, master, overrides = host.run("postconf -n"), host.run("postconf -M"), host.run("postconf -P")
    assert main.rc == master.rc == overrides.rc == 0, main.stderr + master.stderr + overrides.stderr
    per_service: dict[str, dict[str, str]] = {}
    for line in overrides.stdout.splitlines():
        key, _, value = line.partition(" = ")
        service, _, parameter = key.rpartition("/")
        per_service.setdefault(service, {})[parameter] = value
    services = []
    for line in master.stdout.splitlines():
        fields = line.split(None, 7)
        name, kind, chroot, command = fields[0], fields[1], fields[4], fields[7]
        services.append(Service(name, kind, chroot, command.split()[0], per_service.get(f"{name}/{kind}", {})))
    parameters = dict(re.findall(r"^(\S+) = ?(.*)$", main.stdout, re.MULTILINE))
    return Postfix(parameters, tuple(services), main.stderr + master.stderr + overrides.stderr)


def _words(postfix: Postfix, overrides: dict[str, str], main: str) -> list[str]:
    """Return a restriction list, given as an -o or as main.cf has it, with $names put in."""
    effective = {**postfix.parameters, **overrides}
    while (after := re.sub(r"\$\{?(\w+)\}?", lambda m: effective.get(m[1], ""), main)) != main:
        main = after
    return [word for word in re.split(r"[,\s]+", main) if word]


def test_hst_cfg_03_each_listener_has_what_its_purpose_demands(
    postfix: Postfix, listeners: tuple[Listener, ...]
) -> None:
    wrong = []
    for row in listeners:
        overrides = postfix.inet(row.port).overrides
        effective = {**postfix.parameters, **overrides}
        auth = effective.get("smtpd_sasl_auth_enable", "no")
        level = effective.get("smtpd_tls_security_level", "")
        wrapper = effective.get("smtpd_tls_wrappermode", "no")
        expected = {"auth": "yes", "level": "encrypt"} if row.is_submission else {"auth": "no", "level": "may"}
        if auth != expected["auth"]:
            wrong.append(f"{row.port}: smtpd_sasl_auth_enable={auth}")
        if level != expected["level"] and not row.is_implicit:
            wrong.append(f"{row.port}: smtpd_tls_security_level={level}")
        if wrapper != ("yes" if row.is_implicit else "no"):
            wrong.append(f"{row.port}: smtpd_tls_wrappermode={wrapper}")
    assert wrong == []


def test_hst_cfg_03_who_may_send_what_by_each_listener(
    postfix: Postfix, listeners: tuple[Listener, ...], value: Callable[[str], str]
) -> None:
    """Submission: logins alone, and under their own senders; relay: to the hosted domains alone."""
    wrong = []
    main = {name: value(f"smtpd_{name}_restrictions") for name in ("relay", "recipient", "sender")}
    for row in listeners:
        overrides = postfix.inet(row.port).overrides
        relay, recipient, sender = (
            _words(postfix, overrides, overrides.get(f"smtpd_{name}_restrictions", main[name])) for name in main
        )
        if not row.is_submission:
            if "reject_unauth_destination" not in relay + recipient:
                wrong.append(f"{row.port}: nothing that says reject_unauth_destination")
            continue
        for name, words in (("relay", relay), ("recipient", recipient)):
            permits = [word for word in words if word.startswith("permit") or word.upper() == "OK"]
            if permits != ["permit_sasl_authenticated"] or words[-1:] != ["reject"]:
                wrong.append(f"{row.port}: smtpd_{name}_restrictions={', '.join(words)}")
        logins = sender.index("permit_sasl_authenticated") if "permit_sasl_authenticated" in sender else len(sender)
        if not {"reject_sender_login_mismatch", "reject_authenticated_sender_login_mismatch"} & set(sender[:logins]):
            wrong.append(f"{row.port}: smtpd_sender_restrictions={', '.join(sender)}")
    assert wrong == []


def test_hst_cfg_02_submission_listeners_differ_in_name_only(postfix: Postfix, listeners: tuple[Listener, ...]) -> None:
    """2525 is 587 by another number: every -o the same, but for the log name."""
    rows = [row for row in listeners if row.is_submission and not row.is_implicit]
    settings = []
    for row in rows:
        overrides = dict(postfix.inet(row.port).overrides)
        overrides.pop("syslog_name", None)
        settings.append(overrides)
    assert all(one == settings[0] for one in settings)


def test_hst_cfg_04_postconf_has_nothing_to_say(postfix: Postfix) -> None:
    """A misspelt parameter is only a warning to Postfix."""
    assert postfix.stderr == ""


def test_hst_cfg_05_postfix_check_is_silent(host: Host) -> None:
    check = host.run("postfix check")
    assert (check.rc, check.stdout + check.stderr) == (0, "")


@pytest.mark.parametrize("program", ["postdrop", "postqueue"])
def test_hst_cfg_05_setgid_postdrop(host: Host, program: str) -> None:
    file = host.file(host.check_output("postconf -xh command_directory") + "/" + program)
    assert file.group == "postdrop"
    assert file.mode & 0o2000


def test_hst_cfg_06_compatibility_level_is_explicit(host: Host, postfix: Postfix) -> None:
    level = postfix.parameters.get("compatibility_level", "0")
    assert tuple(int(part) for part in level.split(".")) >= (3, 6)
    assert "backwards-compatible default" not in host.check_output(
        "journalctl -q --no-pager -o cat -t postfix/postfix-script"
    )


def test_hst_cfg_07_only_loopback_is_trusted(value: Callable[[str], str]) -> None:
    networks = [n for n in re.split(r"[,\s]+", value("mynetworks")) if n]
    assert [
        n
        for n in networks
        if not re.fullmatch(r"127\.\d+\.\d+\.\d+(/\d+)?|\[::1\](/128)?|\[::ffff:127\.0\.0\.0\]/104", n)
    ] == []


def _chain_files(value: Callable[[str], str]) -> list[str]:
    files = [f for f in re.split(r"[,\s]+", value("smtpd_tls_chain_files")) if f]
    return files or [value("smtpd_tls_key_file"), value("smtpd_tls_cert_file")]


def test_hst_key_01_private_key_is_private(host: Host, value: Callable[[str], str]) -> None:
    keys = [f for f in _chain_files(value) if host.run("grep -q 'PRIVATE KEY' %s", f).rc == 0]
    assert keys
    for path in keys:
        file = host.file(path)
        assert file.user == "root"
        assert (file.group, file.mode) in {("root", 0o600), ("root", 0o400), ("ssl-cert", 0o640)}
        assert not host.file(path.rpartition("/")[0]).mode & 0o026, "its directory can be read or written by others"


def test_hst_key_02_key_and_chain_belong_together(host: Host, value: Callable[[str], str]) -> None:
    """Order: key, leaf, intermediates (postconf(5), smtpd_tls_chain_files); each certificate issued by the next."""
    bundle = " ".join(_chain_files(value))
    key = host.check_output("cat " + bundle + " | openssl pkey -pubout")
    leaf = host.check_output("cat " + bundle + " | openssl x509 -noout -pubkey")
    assert key == leaf
    names = host.check_output(
        "cat " + bundle + " | openssl crl2pkcs7 -nocrl -certfile /dev/stdin | openssl pkcs7 -print_certs -noout"
    )
    pairs = re.findall(r"subject=(.*)\n\s*issuer=(.*)", names)
    assert pairs
    for (_, issuer), (subject, _) in itertools.pairwise(pairs):
        assert issuer == subject


def test_hst_chroot_01_smtpd_is_chrooted(postfix: Postfix, listeners: tuple[Listener, ...]) -> None:
    assert {row.port: postfix.inet(row.port).chroot for row in listeners} == {row.port: "y" for row in listeners}


@pytest.mark.parametrize("name", ["resolv.conf", "services", "hosts", "nsswitch.conf", "localtime"])
def test_hst_chroot_02_copies_are_current(host: Host, name: str) -> None:
    queue = host.check_output("postconf -xh queue_directory")
    if not host.file(f"/etc/{name}").exists:
        pytest.skip(f"this host has no /etc/{name}")
    assert host.run("cmp -s %s %s", f"/etc/{name}", f"{queue}/etc/{name}").rc == 0


def test_hst_map_01_databases_are_current(host: Host, value: Callable[[str], str]) -> None:
    """Every hash: and lmdb: table that main.cf names: not older than its source, and with the same content."""
    names = host.check_output(
        "postconf -n | cut -d= -f2- | grep -oE '(hash|lmdb|btree):[^ ,{}]+' | sort -u || true"
    ).split()
    names += [n for n in re.split(r"[,\s]+", value("alias_database")) if n]
    stale = []
    for table in sorted(set(names)):
        kind, _, path = table.partition(":")
        built = f"{path}.{'lmdb' if kind == 'lmdb' else 'db'}"
        if host.run("test -e %s && ! test %s -nt %s", built, path, built).rc != 0:
            stale.append(f"{built} is missing or older than {path}")
            continue
        if table in value("alias_database"):
            continue  # postmap -s cannot be compared with the aliases(5) syntax line by line
        dumped = sorted(re.sub(r"\s+", " ", line) for line in host.check_output("postmap -s %s", table).splitlines())
        source = host.check_output("cat %s", path)
        logical = re.sub(
            r"\n[ \t]+", " ", "\n".join(line for line in source.splitlines() if line.strip() and line[0] != "#")
        )
        wanted = sorted(re.sub(r"\s+", " ", line.strip()) for line in logical.splitlines())
        if dumped != [re.sub(r"^(\S+)", lambda m: m[1].lower(), line) for line in wanted]:
            stale.append(f"{built} does not hold what {path} says")
    assert stale == []


def test_hst_map_02_role_addresses_reach_a_mailbox(host: Host, value: Callable[[str], str]) -> None:
    """RFC 2142, RFC 5321 §4.5.1: somebody reads what is sent to these."""
    domains = [d for d in re.split(r"[,\s]+", value("virtual_mailbox_domains")) if d]
    if not domains or any(":" in d for d in domains):
        pytest.skip("the hosted domains are in a table, not listed in virtual_mailbox_domains")

    def look_up(parameter: str, key: str) -> str:
        for table in (t for t in re.split(r"[,\s]+", value(parameter)) if t):
            answer = host.run("postmap -q %s %s", key, table)
            if answer.rc == 0:
                return str(answer.stdout).strip()
        return ""

    def reaches(address: str, depth: int = 0) -> bool:
        if depth < 8 and (targets := look_up("virtual_alias_maps", address)):
            return all(reaches(t, depth + 1) for t in re.split(r"[,\s]+", targets) if t)
        return bool(look_up("virtual_mailbox_maps", address))

    lost = [
        f"{local}@{domain}"
        for domain in domains
        for local in ("postmaster", "abuse", "root", "mailer-daemon")
        if not reaches(f"{local}@{domain}")
    ]
    assert lost == []


def test_hst_perm_01_only_root_writes_the_configuration(host: Host) -> None:
    directory = host.check_output("postconf -xh config_directory")
    assert host.check_output("find %s ! -type l \\( -perm /022 -o ! -user root \\)", directory) == ""


def test_lim_05_idle_clients_are_let_go(postfix: Postfix, listeners: tuple[Listener, ...], host: Host) -> None:
    """RFC 5321 §4.5.3.2.7 asks for five minutes at least (SHOULD), and nobody may stay for hours."""
    general = host.check_output("postconf -xh smtpd_timeout")
    for row in listeners:
        value = postfix.inet(row.port).overrides.get("smtpd_timeout", general)
        number, unit = re.fullmatch(r"(\d+)([smhdw]?)", value).groups()
        seconds = int(number) * {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}[unit]
        assert 60 <= seconds <= 3600, f"{row.port}: smtpd_timeout={value}"
