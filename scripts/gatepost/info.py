"""What stands in an environment, for scripts (`schemas/info.json`) and for people."""

from __future__ import annotations

import platform
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from gatepost import inventory, verification
from gatepost.errors import GatepostError
from gatepost.listeners import Listener, ListenerTable
from gatepost.settings import Settings
from gatepost.verify.model import Report, Severity, Verdict


def gather(settings: Settings, given: Path | None = None) -> dict[str, Any]:
    """Return the document that `gatepost info --json` prints."""
    try:
        standing = inventory.read(settings)
    except GatepostError:
        if settings.hosts_file.exists():
            raise
        standing = None
    table = verification.table_of(settings.directory, given, standing)
    last = verification.last(settings.reports)
    return {
        "schema_version": 1,
        "environment": str(settings.directory),
        "cloud": settings.cloud,
        "hostname": settings.hostname,
        "domains": list(settings.domains),
        "servers": [
            {
                "name": server.name,
                "fqdn": server.fqdn,
                "ipv4": server.ipv4,
                "ipv6": server.ipv6,
                "ssh": {
                    "user": server.ssh_user,
                    "port": server.ssh_port,
                    "key_file": _text(server.ssh_key_file),
                    "known_hosts_file": str(settings.known_hosts),
                    "command": inventory.ssh_command(settings, server),
                },
            }
            for server in (standing.servers if standing else ())
        ],
        "listeners_file": str(table.path),
        "listeners": [
            {
                "name": row.name,
                "port": row.port,
                "purpose": row.purpose,
                "tls": row.tls,
                "sources": list(row.sources),
                "policy": row.policy,
            }
            for row in table.listeners
        ],
        "ca_file": _text(settings.client_ca_file),
        "test_accounts": [
            {"address": user.address, "aliases": list(user.aliases), "password_file": str(user.password_file)}
            for user in settings.probes
        ],
        "last_report": None
        if last is None
        else {
            "verdict": last.verdict,
            "exit_code": int(last.exit_code),
            "started": last.started,
            "json_file": str(last.json_file),
            "html_file": str(last.html_file),
        },
    }


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


def for_people(document: dict[str, Any]) -> str:
    """Return `gather`'s document as text."""
    lines = [f"environment  {document['environment']} (cloud: {document['cloud']})"]
    for server in document["servers"]:
        addresses = ", ".join(a for a in (server["ipv4"], server["ipv6"]) if a)
        lines += [f"server       {server['fqdn']}  {addresses}", f"ssh          {shlex.join(server['ssh']['command'])}"]
    if not document["servers"]:
        lines.append("server       none yet: make deploy")
    lines.append(f"domains      {', '.join(document['domains'])}")
    lines += [f"port {row['port']:<6}  {row['policy']}" for row in document["listeners"]]
    lines.append(f"CA file      {document['ca_file'] or 'a public one: clients need none'}")
    for account in document["test_accounts"]:
        lines.append(f"test account {account['address']}  password in {account['password_file']}")
    last = document["last_report"]
    lines.append(
        f"last verify  {last['verdict']}, {last['started']}, {last['html_file']}" if last else "last verify  none yet"
    )
    return "\n".join(lines)


def summary(settings: Settings, table: ListenerTable, report: Report, make: str) -> str:
    """Return what a person sees at the end of a deploy. `make` ends a make command for this environment."""
    server = inventory.read(settings).servers[0]
    lines = ["", f"{server.fqdn}  {', '.join(server.addresses)}", ""]
    lines += [f"  {row.port:<5} {row.purpose:<11} {row.policy:<38} {_verdict(report, row)}" for row in table.listeners]
    if settings.probes:
        lines += ["", "Test accounts (their passwords are in these files):"]
        lines += [f"  {user.address}  {_short(user.password_file)}" for user in settings.probes]
    lines += ["", f"Report: {settings.reports / 'last.html'}"]
    first_mail = _first_mail(settings, table, server)
    if first_mail:
        lines += ["", "Send a first mail (apt-get install swaks):", f"  {first_mail}"]
        sudo = "" if server.ssh_user == "root" else "sudo "
        reader = settings.probes[1].address
        where = (
            ""
            if settings.directory == Path.cwd() / "inventory"
            else f"--inventory {shlex.quote(str(settings.directory))} "
        )
        gatepost = _short(Path(sys.prefix) / "bin/gatepost")
        lines += ["Read it:", f"  {gatepost} ssh {where}{sudo}doveadm fetch -u {reader} text mailbox INBOX"]
    lines += ["", f"Log in: make ssh{make}"]
    if settings.cloud != "existing":
        lines.append(f"Remove all of it: make destroy{make}")
    return "\n".join(lines)


def _short(path: Path | None) -> str:
    here = Path.cwd()
    return str(path.relative_to(here)) if path is not None and path.is_relative_to(here) else str(path)


def _verdict(report: Report, row: Listener) -> str:
    results = [r for r in report.results if r.listener == row.name]
    failed = [r for r in results if r.verdict is Verdict.FAIL and r.severity is Severity.MUST]
    if failed:
        return f"FAILED: {', '.join(sorted({r.id for r in failed}))}"
    if any(r.verdict is Verdict.INCONCLUSIVE for r in results):
        return "inconclusive"
    passed = sum(r.verdict is Verdict.PASS for r in results)
    return f"ok, {passed} checks passed" if passed else "not judged"


def _first_mail(settings: Settings, table: ListenerTable, server: inventory.Server) -> str:
    """Return a command that logs in and sends a mail; swaks reads the password from its file."""
    rows = [row for row in table.listeners if row.is_submission]
    if not rows or len(settings.probes) < 2:
        return ""
    row = min(rows, key=lambda row: row.is_implicit)
    sender, reader = settings.probes[:2]
    words = ["swaks", "--server", server.address, "--port", str(row.port)]
    words += ["--tls-on-connect" if row.is_implicit else "--tls", "--tls-verify"]
    if _swaks_year() >= 2024:  # before, it checked the chain and never the name
        words += ["--tls-verify-target", settings.hostname]
    if settings.client_ca_file:
        words += ["--tls-ca-path", str(settings.client_ca_file)]
    words += ["--from", sender.address, "--to", reader.address]
    words += ["--auth", "PLAIN", "--auth-user", sender.address, "--auth-hide-password", "--auth-password"]
    return f"{shlex.join(words)} < {shlex.quote(str(sender.password_file))}"


def _swaks_year() -> int:
    """Return the year of the swaks that is installed, or of the one that this Debian would install."""
    try:
        said = subprocess.run(["swaks", "--version"], capture_output=True, text=True, check=False).stdout
    except OSError:
        said = ""
    found = re.search(r"version (20\d\d)", said)
    if found:
        return int(found[1])
    try:
        release = platform.freedesktop_os_release().get("VERSION_ID", "")
    except OSError:
        release = ""
    return 2020 if release == "12" else 2024
