"""The verifier's command line against a real server, as docs/verify.md shows it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from environments import GATEPOST, REPOSITORY, Environment

pytestmark = pytest.mark.lab


@dataclass
class Desk:
    """Where somebody sits who knows the server by name only: hosts file, ssh, CA and passwords of their own."""

    environment: Environment
    directory: Path
    lab: dict[str, list[str]]  # this computer's addresses on the lab's network
    used: int = 0

    def sources(self) -> list[str]:
        """Addresses that no run has used of late, for the server counts logins and connections of each (anvil(8)).

        Runs of the environment take one pair after the other, those of limits from the last third.
        """
        pairs = list(zip(self.lab["ipv4"], self.lab["ipv6"], strict=True))
        pairs = pairs[: len(pairs) - len(pairs) // 3]
        last = json.loads((self.environment.directory / "reports/last.json").read_text())["target"]["source_addresses"]
        self.used += 1
        return list(pairs[(pairs.index(tuple(last)) + len(pairs) // 2 + self.used) % len(pairs)])

    def sh(self, script: str) -> subprocess.CompletedProcess[str]:
        """Run a shell script here, in which `gatepost verify` comes from addresses of its own."""
        for _ in range(script.count("gatepost verify mx")):
            given = " ".join(f"--source-address {address}" for address in self.sources())
            script = script.replace("gatepost verify mx", f"gatepost verify {given} --ca-file ca.pem mx", 1)
        script = script.replace("gatepost which-port mx", "gatepost which-port --ca-file ca.pem mx")
        # A mount namespace of its own, so that the names and the ssh configuration are seen by nobody else.
        mounts = "mount --bind hosts /etc/hosts && mount --bind ssh_config /etc/ssh/ssh_config"
        return subprocess.run(
            ["unshare", "--mount", "bash", "-ec", f"{mounts}\n{script}"],
            cwd=self.directory,
            env={**os.environ, "PATH": f"{GATEPOST.parent}:{os.environ['PATH']}"},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )


@pytest.fixture(scope="module")
def desk(server13: Environment, tmp_path_factory: pytest.TempPathFactory) -> Desk:
    directory = tmp_path_factory.mktemp("desk")
    info = server13.info
    (server,) = info["servers"]
    shutil.copy(info["ca_file"], directory / "ca.pem")
    for name, account in zip(("alice", "bob"), info["test_accounts"], strict=True):
        shutil.copy(account["password_file"], directory / f"{name}.password")
        (directory / f"{name}.password").chmod(0o600)
    names = f"{server['fqdn']} mx2.example.test"
    hosts = Path("/etc/hosts").read_text() + f"{server['ipv4']} {names}\n{server['ipv6']} {names}\n"
    (directory / "hosts").write_text(hosts)
    (directory / "ssh_config").write_text(
        f"Host mx.example.test\n User {server['ssh']['user']}\n Port {server['ssh']['port']}\n"
        f" IdentityFile {server['ssh']['key_file']}\n UserKnownHostsFile {server['ssh']['known_hosts_file']}\n"
    )
    lab = yaml.safe_load((server13.directory / "hosts.yml").read_text())["mailservers"]["vars"]["gatepost_vantage"]
    return Desk(server13, directory, lab)


def test_the_documents_commands(desk: Desk) -> None:
    text = (REPOSITORY / "docs/verify.md").read_text()
    blocks = re.findall(r"```sh\n(.*?)\n```", text, re.DOTALL)
    assert len(blocks) == 7
    accounts = [account["address"] for account in desk.environment.info["test_accounts"]]
    for name, real in (
        ("alice@example.org", accounts[0]),
        ("bob@example.org", accounts[1]),
        ("root@mx.example.org", "mx.example.test"),
        ("example.org", "example.test"),
        ("example.net", "remote.test"),
    ):
        blocks = [block.replace(name, real) for block in blocks]
    said = {}
    for block in blocks:
        done = desk.sh(block)
        # The second name is not in the certificate, and that is all that fails.
        if "mx2" in block:
            assert done.returncode == 1, done.stdout + done.stderr
            assert re.search(r"^mx\.example\.test +PASSED", done.stdout, re.MULTILINE), done.stdout
            assert re.search(r"^mx2\.example\.test +FAILED", done.stdout, re.MULTILINE)
        else:
            assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"
        assert done.stderr == ""
        said[block] = done.stdout
    everything = next(out for block, out in said.items() if "--via" in block)
    assert "--sink" in everything and "no login at the server" not in everything  # the sink was not given
    assert "<testsuites" in (desk.directory / "report.xml").read_text()
    assert (desk.directory / "report.html").read_text().lower().startswith("<!doctype html>")
    assert "gatepost_verify_exit_code" in (desk.directory / "gatepost.prom").read_text()


def test_a_wrong_password_costs_one_failed_login_a_port(desk: Desk) -> None:
    (desk.directory / "wrong").write_text("not-her-password\n")
    (desk.directory / "wrong").chmod(0o644)
    account = desk.environment.info["test_accounts"][0]["address"]
    since = desk.environment.ssh("date '+%Y-%m-%d %H:%M:%S'").stdout.strip()
    done = desk.sh(
        f"gatepost verify mx.example.test --domain example.test --account {account} --password-file wrong --json"
    )
    assert done.returncode == 1, done.stderr
    assert "others than its owner can read it" in done.stderr
    results = json.loads(done.stdout)["results"]
    told = [r for r in results if r["id"] == "SUB-AUTH-05"]
    assert len(told) == 3 and all(r["verdict"] == "fail" and account in r["found"] for r in told)
    failed = {r["id"] for r in results if r["verdict"] == "fail" and r["severity"] == "must"}
    assert failed == {"SUB-AUTH-05"}, failed
    unknown = {(r["id"], r["found"]) for r in results if r["verdict"] == "inconclusive"}
    assert not unknown, unknown
    # 10 are wrong on purpose, whatever the password is; two show it: the first login, and SUB-AUTH-16's. Without an end
    # after the first, the login in each way and each probe that sends mail came on top.
    log = desk.environment.ssh(f"journalctl --no-pager -u 'postfix*' --since '{since}'").stdout
    services = Counter(re.findall(r"postfix/(\S+)\[\d+\]: .*SASL \S+ authentication failed", log))
    assert len(services) == 3 and max(services.values()) <= 12, services


def test_stopping_a_run_leaves_a_partial_report(desk: Desk) -> None:
    page = desk.directory / "partial.html"
    command = [GATEPOST, "verify", "--inventory", desk.environment.directory, "--json", "--html", page]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while (
            f"pid={process.pid},"
            not in subprocess.run(["ss", "-Htnp"], capture_output=True, text=True, check=True).stdout
        ):
            assert process.poll() is None, "it ended before it was stopped"
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        out, error = process.communicate(timeout=60)
    report = json.loads(out)
    assert process.returncode == report["exit_code"] == 3, error
    assert report["interrupted"] and "Traceback" not in error
    assert "cut short" in page.read_text()
    last = json.loads((desk.environment.directory / "reports/last.json").read_text())
    assert not last["interrupted"]  # a partial one does not take its place


@contextlib.contextmanager
def blocked(environment: Environment, port: int, how: str) -> Iterator[None]:
    """Have the server's firewall stop a port."""
    environment.ssh(f"nft 'add table inet t_cli; add chain inet t_cli in {{ type filter hook input priority -50; }}; "
                    f"add rule inet t_cli in tcp dport {port} {how}'")  # fmt: skip
    try:
        yield
    finally:
        environment.ssh("nft delete table inet t_cli")


@pytest.mark.parametrize(("how", "says"), [("drop", "timeout"), ("reject with tcp reset", "refused")])
def test_which_port_names_what_is_in_the_way_and_goes_on_to_the_next(desk: Desk, how: str, says: str) -> None:
    ports = {row["name"]: row for row in desk.environment.info["listeners"]}
    implicit = next(row["port"] for row in ports.values() if row["tls"] == "implicit")
    with blocked(desk.environment, implicit, how):
        done = desk.sh("gatepost which-port mx.example.test --json")
    answer: dict[str, Any] = json.loads(done.stdout)
    assert done.returncode == answer["exit_code"] == 0, done.stderr
    assert answer["recommendation"] == {
        "server": "mx.example.test",
        "port": ports["submission"]["port"],
        "security": "STARTTLS",
        "user_name": "your full mail address",
        "authentication": "normal password",
    }
    for row in answer["ports"]:
        if row["port"] == implicit:
            assert says in row["problem"] and not row["reached"] and row["stopped_by"]
        else:
            assert row["problem"] == "" and row["certificate"] == "good" and row["tls_version"] == "TLSv1.3"
            assert row["works"] == (row["purpose"] == "submission")
            assert row["auth"] == (["PLAIN", "LOGIN"] if row["works"] else []) and not row["auth_in_clear"]


def test_a_clock_that_is_wrong_is_said_to_be(desk: Desk) -> None:
    """A time namespace shifts only the monotonic clocks, so the wall clock is set back inside Python."""
    code = (
        "import sys, datetime\n"
        "from gatepost.verify.wire import certificate\n"
        "class Past(datetime.datetime):\n"
        "    @classmethod\n"
        "    def now(cls, tz=None): return datetime.datetime(2020, 1, 1, tzinfo=tz)\n"
        "certificate.datetime = Past\n"
        "from gatepost import cli; cli.main(sys.argv[1:])\n"
    )
    done = subprocess.run(
        [
            *(sys.executable, "-c", code, "verify", "--inventory", desk.environment.directory),
            *("--only", "CRT-01", "--only", "CRT-03", "--json"),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    report = json.loads(done.stdout)
    assert done.returncode == 3, done.stderr
    assert {r["verdict"] for r in report["results"]} == {"inconclusive"}
    assert all("clock says 2020-01-01 00:00 UTC, and that is wrong" in r["found"] for r in report["results"])
