"""Servers that are not Postfix and not ours: no crash, and each finding true.

What each server fails was checked by hand once, with openssl s_client and typed SMTP, and is kept in
foreign/expected.yml with the reason. A difference is either a change of that server or a false finding of ours.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import socket
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult, Envelope, LoginPassword, Session
from bare import Bare
from environments import GATEPOST

pytestmark = pytest.mark.lab

FOREIGN = Path(__file__).parent / "foreign"
EXPECTED = yaml.safe_load((FOREIGN / "expected.yml").read_text())
HOST, DOMAIN, USER = "mx.example.test", "example.test", "anna@example.test"
EC = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
INSTALL = {
    "exim": """
        apt-get install -qy --no-install-recommends exim4-daemon-heavy
        chgrp Debian-exim key.pem users; chmod 640 key.pem users
        cp exim.conf /etc/exim4/exim4.conf
        systemctl restart exim4
    """,
    "opensmtpd": """
        apt-get install -qy --no-install-recommends opensmtpd
        chmod 600 key.pem; chmod 644 users
        cp opensmtpd.conf /etc/smtpd.conf
        systemctl restart opensmtpd
    """,
}


class Identity:
    """A CA of our own with a certificate for the host, and an account."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.password = directory, secrets.token_hex(12)
        subprocess.run(
            ["openssl", "req", "-x509", *EC, "-keyout", "ca.key", "-out", "ca.pem", "-days", "90", "-subj", "/CN=ca"],
            cwd=directory, check=True, capture_output=True,
        )  # fmt: skip
        extensions = (f"subjectAltName=DNS:{HOST}", "basicConstraints=critical,CA:FALSE", "extendedKeyUsage=serverAuth")
        subprocess.run(
            ["openssl", "req", "-x509", "-CA", "ca.pem", "-CAkey", "ca.key", *EC, "-keyout", "key.pem", "-out",
             "chain.pem", "-days", "80", "-subj", f"/CN={HOST}", *(a for e in extensions for a in ("-addext", e))],
            cwd=directory, check=True, capture_output=True,
        )  # fmt: skip
        hashed = subprocess.run(
            ["openssl", "passwd", "-6", "-stdin"], input=self.password, capture_output=True, text=True, check=True
        ).stdout.strip()
        (directory / "users").write_text(f"{USER}\t{hashed}\n")
        (directory / "password").touch(0o600)
        (directory / "password").write_text(self.password + "\n")

    def verify(self, host: str, *arguments: str) -> dict[str, Any]:
        done = subprocess.run(
            [GATEPOST, "verify", host, "--hostname", HOST, "--domain", DOMAIN, "--outside-domain", "remote.test",
             "--account", USER, "--password-file", self.directory / "password", "--ca-file", self.directory / "ca.pem",
             "--json", *arguments],
            capture_output=True, text=True, timeout=240, check=False,
        )  # fmt: skip
        assert done.returncode in (0, 1, 3), done.stderr
        report: dict[str, Any] = json.loads(done.stdout)
        return report


@pytest.fixture(scope="module")
def identity(tmp_path_factory: pytest.TempPathFactory) -> Identity:
    return Identity(tmp_path_factory.mktemp("identity"))


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory, identity: Identity) -> Iterator[Bare]:
    with Bare(tmp_path_factory.mktemp("foreign")) as bare:
        files = ["-C", str(identity.directory), "chain.pem", "key.pem", "users", "-C", str(FOREIGN)]
        packed = subprocess.run(
            ["tar", "c", *files, "exim.conf", "opensmtpd.conf"], capture_output=True, check=True
        ).stdout
        bare.ssh(
            "mkdir /etc/gatepost-test; tar x --no-same-owner -C /etc/gatepost-test; apt-get update -q", stdin=packed
        )
        yield bare


def findings(report: dict[str, Any]) -> dict[str, str]:
    """Return {id: verdict} of what failed or could not be judged, on any port."""
    bad = [r for r in report["results"] if r["verdict"] in ("fail", "inconclusive")]
    assert not [r for r in bad if "broke" in r["found"]]
    return {r["id"]: r["verdict"] for r in bad}


def as_expected(report: dict[str, Any], server: str) -> None:
    found = findings(report)
    expected = {i: "inconclusive" if why.startswith("unknown:") else "fail" for i, why in EXPECTED[server].items()}
    said = {r["id"]: r["found"] for r in report["results"] if r["id"] in found}
    difference = set(found.items()) ^ set(expected.items())
    assert not difference, {i: (found.get(i), expected.get(i), said.get(i)) for i, _ in difference}
    assert not report["interrupted"]
    assert report["counts"]["pass"] > 100


# OpenSMTPD second: its package replaces Exim's.
@pytest.mark.parametrize("server", INSTALL)
def test_every_finding_about_a_foreign_server_is_true(machine: Bare, identity: Identity, server: str) -> None:
    machine.ssh(f"cd /etc/gatepost-test; export DEBIAN_FRONTEND=noninteractive; set -e; {INSTALL[server]}")
    vantage = machine.network.vantage_ipv4[list(INSTALL).index(server)]
    as_expected(identity.verify(machine.machine.ipv4, "--source-address", vantage), server)


class Mail:
    """aiosmtpd's handler: mail for one mailbox here, and from who logged in to anywhere."""

    async def handle_RCPT(
        self, server: Any, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        known = {f"{name}@{DOMAIN}" for name in ("anna", "postmaster", "abuse", "fbl")} | {"postmaster"}
        if not session.authenticated and address.lower() not in known:
            return "550 5.1.1 no such user" if address.lower().endswith(f"@{DOMAIN}") else "554 5.7.1 no relaying"
        envelope.rcpt_tos.append(address)
        return "250 2.1.5 OK"

    async def handle_DATA(self, server: Any, session: Session, envelope: Envelope) -> str:
        return "250 2.0.0 dropped"


def test_every_finding_about_aiosmtpd_is_true(identity: Identity, tmp_path: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(identity.directory / "chain.pem", identity.directory / "key.pem")

    def log_in(_server: Any, _session: Any, _envelope: Any, _mechanism: str, data: Any) -> AuthResult:
        good = isinstance(data, LoginPassword) and (data.login, data.password) == (
            USER.encode(),
            identity.password.encode(),
        )
        return AuthResult(success=good, handled=False)

    common: dict[str, Any] = {"hostname": "127.0.0.1", "server_hostname": HOST, "ident": "ESMTP"}
    login: dict[str, Any] = {"authenticator": log_in, "auth_required": True}
    servers: dict[str, dict[str, Any]] = {
        "relay": {"tls_context": context},
        "submission": {"tls_context": context, "require_starttls": True, **login},
        "submissions": {"ssl_context": context, "auth_require_tls": False, **login},
    }
    rows = []
    with contextlib.ExitStack() as stack:
        for name, how in servers.items():
            with socket.create_server(("127.0.0.1", 0)) as taken:
                port = taken.getsockname()[1]
            controller = Controller(Mail(), port=port, **how, **common)
            controller.start()
            stack.callback(controller.stop)
            tls = "implicit" if name == "submissions" else "starttls"
            row = {"name": name, "port": port, "purpose": name.removesuffix("s"), "tls": tls, "sources": ["0.0.0.0/0"]}
            rows.append(row)
        table = tmp_path / "listeners.yml"
        table.write_text(yaml.safe_dump({"postfix_listeners": rows}))
        as_expected(identity.verify("127.0.0.1", "--listeners", str(table)), "aiosmtpd")
