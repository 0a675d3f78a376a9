"""What `gatepost verify` judges and where its reports lie: from an environment, or from the command line alone."""

from __future__ import annotations

import json
import socket
import urllib.parse
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gatepost import credentials, environment, inventory, listeners
from gatepost.errors import GatepostError
from gatepost.settings import Settings, User
from gatepost.verify.model import Account, ExitCode, Login, Report, Target

REPORTS_KEPT = 20
SINK_PORT = socket.getservbyname("smtp", "tcp")


def table_of(
    directory: Path, given: Path | None, standing: inventory.Standing | None = None
) -> listeners.ListenerTable:
    """Return the table to go by: the one given, else the one deployed, else the environment's own, else the default."""
    own = directory / "listeners.yml"
    path = given or (standing.listeners_file if standing else own if own.is_file() else None)
    return listeners.load(path)


def target_of(settings: Settings, standing: inventory.Standing, table: listeners.ListenerTable) -> Target:
    """Return the environment's server as something to judge."""
    server = standing.servers[0]
    login = tuple(inventory.ssh_command(settings, server))
    return Target(
        hostname=settings.hostname,
        addresses=server.addresses,
        listeners=table.listeners,
        listeners_file=table.path,
        listeners_digest=table.digest,
        domains=settings.domains,
        outside_domain=settings.outside_domain,
        accounts=tuple(_account(user) for user in settings.probes),
        ca_file=settings.client_ca_file,
        lab=settings.cloud == "local",
        source_addresses=_vantage(settings, standing),
        via=(Login(f"ssh://{server.ssh_user}@{server.address}:{server.ssh_port}", login),),
        sink=tuple(standing.vantage.get("sink", ())),
    )


def _vantage(settings: Settings, standing: inventory.Standing) -> tuple[str, ...]:
    """Return the lab addresses to connect from: the pair after the last run's.

    The server counts logins per client and minute (anvil(8)), so two runs from one address would limit each other.
    """
    pairs = list(zip(standing.vantage.get("ipv4", ()), standing.vantage.get("ipv6", ()), strict=False))
    if not pairs:
        return ()
    try:
        last_pair = tuple(json.loads((settings.reports / "last.json").read_text())["target"]["source_addresses"])
    except (OSError, ValueError, KeyError, TypeError):
        last_pair = ()
    return pairs[(pairs.index(last_pair) + 1) % len(pairs) if last_pair in pairs else 0]


def login_at(url: str) -> Login:
    """Return the login that `ssh://[USER@]HOST[:PORT]` names; raise GatepostError when it is no such URL."""
    try:
        parts = urllib.parse.urlsplit(url)
        port, host = parts.port, parts.hostname
    except ValueError:
        port, host = None, None
    extra = host and (parts.path.strip("/") or parts.query or parts.fragment or parts.password)
    if not host or parts.scheme != "ssh" or extra or host.startswith("-") or (parts.username or "").startswith("-"):
        raise GatepostError(
            f"--via {url}: not a login",
            expected="ssh://[USER@]HOST[:PORT], without a password: keys come from your ssh-agent or ~/.ssh/config",
        )
    where = ["-p", str(port)] if port else []
    who = f"{parts.username}@{host}" if parts.username else host
    return Login(url, ("ssh", *where, "--", who))


def check_sink(address: str) -> str:
    """Return the address when the sink can listen there; raise GatepostError otherwise."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((address, SINK_PORT))
    except OSError as error:
        raise GatepostError(
            f"--sink {address}: cannot listen on port {SINK_PORT}: {error.strerror or error}",
            expected="an IP address of this computer, whose port 25 is free and may be opened (by root)",
            next_step="ip -brief address lists addresses, ss -Hltnp 'sport = :25' what holds the port.",
        ) from error
    return address


def check_source(address: str) -> str:
    """Return the address when this computer has it; raise GatepostError otherwise."""
    try:
        with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.bind((address, 0))
    except OSError as error:
        raise GatepostError(
            f"--source-address {address}: {error.strerror or error}",
            expected="an IP address of this computer",
            next_step="ip -brief address lists them.",
        ) from error
    return address


def _account(user: User) -> Account:
    return Account(user.address, credentials.password(user), next(iter(user.aliases), None))


def account_from(address: str | None, password_file: Path | None, option: str) -> Account | None:
    """Return the account that two command line options name, or None when neither is there."""
    if address is None and password_file is None:
        return None
    if address is None or password_file is None:
        missing = option if address is None else option.replace("account", "password-file")
        raise GatepostError(f"{missing} is missing", expected="an address and the file with its password, together")
    return Account(address, credentials.password(User(address, password_file)))


def resolve(host: str) -> tuple[str, ...]:
    """Return the IP addresses of a host, IPv4 first; raise GatepostError when it has none."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise GatepostError(
            f"{host}: no address: {reason}",
            expected="a host name with an A or AAAA record, or an IP address",
            next_step="Check the name and this computer's resolver: getent ahosts " + host,
        ) from error
    addresses = dict.fromkeys(str(entry[4][0]) for entry in found)
    return tuple(sorted(addresses, key=lambda address: ":" in address))


def judge(
    target: Target,
    *,
    only: Collection[str] = (),
    skip: Collection[str] = (),
    allowed: Collection[str] = (),
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Run the checks. Ctrl-C gives a partial report."""
    from gatepost.verify import runner

    return runner.run(target, only=only, skip=skip, allowed=allowed, progress=progress)


def write_html(report: Report, path: Path) -> None:
    """Write the HTML page."""
    from gatepost.verify.report import html

    environment.write(path, html.render(report), 0o644)


def keep(report: Report, directory: Path) -> Path:
    """Write the report as JSON and HTML under its time and as last.json and last.html; return the latter's path."""
    from gatepost.verify.report import as_json

    environment.private_directory(directory)
    name = f"{report.started:%Y%m%dT%H%M%SZ}"
    for ending, text in (("json", as_json.to_json(report)),):
        environment.write(directory / f"{name}.{ending}", text)
        environment.write(directory / f"last.{ending}", text)
    for path in (directory / f"{name}.html", directory / "last.html"):
        write_html(report, path)
    for ending in ("json", "html"):
        for old in sorted(directory.glob(f"[0-9]*.{ending}"))[:-REPORTS_KEPT]:
            old.unlink(missing_ok=True)
    return directory / "last.html"


@dataclass(frozen=True, slots=True)
class LastReport:
    """The last verification of an environment."""

    verdict: str
    exit_code: ExitCode
    started: str  # ISO 8601, UTC
    json_file: Path
    html_file: Path


def last(directory: Path) -> LastReport | None:
    """Return the last report of an environment, or None when there is none that can be read."""
    path = directory / "last.json"
    try:
        document: dict[str, Any] = json.loads(path.read_text())
        return LastReport(
            document["verdict"], ExitCode(document["exit_code"]), document["started"], path, directory / "last.html"
        )
    except (OSError, ValueError, KeyError):
        return None
