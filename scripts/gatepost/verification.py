"""What `gatepost verify` judges and where its reports lie: from an environment, or from the command line alone."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import json
import os
import socket
import tempfile
import time
import urllib.parse
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gatepost import credentials, environment, inventory, listeners
from gatepost.errors import GatepostError
from gatepost.settings import Settings, User
from gatepost.verify.model import Account, ExitCode, Login, Report, Target

REPORTS_KEPT = 20
PAIR_SECONDS = 3.1  # a run takes more, so that each finds the next pair; twenty of them last for more than a minute
LIMIT_PAIR_SECONDS = 10  # a run that meets the limits takes longer; the lab's ten pairs last for more than a minute


def table_of(
    directory: Path, given: Path | None, standing: inventory.Standing | None = None
) -> listeners.ListenerTable:
    """Return the table to go by: the one given, else the one deployed, else the environment's own, else the default."""
    own = directory / "listeners.yml"
    path = given or (standing.listeners_file if standing else own if own.is_file() else None)
    return listeners.load(path)


def target_of(
    settings: Settings,
    standing: inventory.Standing,
    table: listeners.ListenerTable,
    server: inventory.Server | None = None,
) -> Target:
    """Return one of the environment's servers, the first by default, as something to judge."""
    server = server or standing.servers[0]
    login = tuple(inventory.ssh_command(settings, server))
    source_addresses, limit_addresses = _vantage(settings, standing)
    return Target(
        hostname=server.fqdn,
        addresses=server.addresses,
        listeners=table.listeners,
        listeners_file=table.path,
        listeners_digest=table.digest,
        domains=settings.domains,
        outside_domain=settings.outside_domain,
        accounts=tuple(_account(user) for user in settings.probes),
        ca_file=settings.client_ca_file,
        lab=settings.cloud == "local",
        source_addresses=source_addresses,
        limit_addresses=limit_addresses,
        via=(Login(f"ssh://{server.ssh_user}@{server.address}:{server.ssh_port}", login),),
        sink=tuple(standing.vantage.get("sink", ())),
    )


def _vantage(settings: Settings, standing: inventory.Standing) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the lab addresses to connect from, another pair than the last run's, and those for the checks of limits.

    The server counts logins per client and minute (anvil(8)), so two runs from one address would limit each other. They
    go by the clock, since runs of a few checks leave no report.
    """
    pairs = list(zip(standing.vantage.get("ipv4", ()), standing.vantage.get("ipv6", ()), strict=False))
    if not pairs:
        return (), ()
    spare = len(pairs) // 3  # a run that meets the limits spoils its pair for a minute, for any other run
    own, limits = pairs[: len(pairs) - spare], pairs[len(pairs) - spare :]
    try:
        last_pair = tuple(json.loads((settings.reports / "last.json").read_text())["target"]["source_addresses"])
    except (OSError, ValueError, KeyError, TypeError):
        last_pair = ()
    number = int(time.time() / PAIR_SECONDS) % len(own)
    if own[number] == last_pair:
        number = (number + 1) % len(own)
    return own[number], limits[int(time.time() / LIMIT_PAIR_SECONDS) % spare] if spare else ()


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
            f"--via {url if not (host and parts.password) else f'ssh://{parts.username}:…@{host}'}: not a login",
            expected="ssh://[USER@]HOST[:PORT], without a password: keys come from your ssh-agent or ~/.ssh/config",
        )
    where = ["-p", str(port)] if port else []
    who = f"{parts.username}@{host}" if parts.username else host
    return Login(url, ("ssh", *where, "--", who))


def check_sink(address: str) -> str:
    """Return the address when the sink can listen there; raise GatepostError otherwise."""
    from gatepost.verify.wire import sink

    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((address, sink.PORT))
    except OSError as error:
        raise GatepostError(
            f"--sink {address}: cannot listen on port {sink.PORT}: {error.strerror or error}",
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


def account_from(
    address: str | None, password_file: Path | None, option: str, warn: Callable[[str], None]
) -> Account | None:
    """Return the account that two command line options name, or None when neither is there.

    `warn` is told of a password file that others can read.
    """
    if address is None and password_file is None:
        return None
    if address is None or password_file is None:
        missing = option if address is None else option.replace("account", "password-file")
        raise GatepostError(f"{missing} is missing", expected="an address and the file with its password, together")
    return Account(address, credentials.password(User(address, password_file), warn))


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


def judge_all(
    targets: Sequence[Target],
    *,
    only: Collection[str] = (),
    skip: Collection[str] = (),
    allowed: Collection[str] = (),
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Report, ...]:
    """Run the checks of one server, or of several side by side. `progress` counts probes, or servers."""
    if len(targets) == 1:
        return (judge(targets[0], only=only, skip=skip, allowed=allowed, progress=progress),)
    from gatepost.verify import hosts

    return hosts.run(targets, only=only, skip=skip, allowed=allowed, progress=progress)


# -- What is judged ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Subject:
    """One server of a run."""

    name: str  # as given, or as the inventory calls it; unique in a run
    target: Target
    kept: Path | None = None  # where the environment keeps its reports


def vantage(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return from the options of `verify` the Target's fields that say from where one looks, and how far.

    Raises GatepostError for an address that is not of this computer, and for a login that is none.
    """
    sources = tuple(check_source(address) for address in given["source_addresses"])
    families = [[a for a in sources if (":" in a) == six] for six in (False, True)]
    return {
        "source_addresses": tuple(a for family in families for a in family[:1]),
        "limit_addresses": tuple(a for family in families for a in family[1:2]),
        "via": tuple(login_at(url) for url in given["via"]),
        "sink": tuple(check_sink(address) for address in given["sinks"]),
        "slow": given["slow"],
        "limits": given["limits"],
    }


def servers(settings: Settings, listeners_file: Path | None, vantage: Mapping[str, Any]) -> tuple[Subject, ...]:
    """Return the environment's servers. What `vantage` says is added to what the environment knows."""
    standing = inventory.read(settings)
    table = table_of(settings.directory, listeners_file, standing)
    subjects = []
    for server in standing.servers:
        target = target_of(settings, standing, table, server)
        target = replace(
            target,
            via=target.via + vantage["via"],
            **{name: vantage[name] or getattr(target, name) for name in vantage if name != "via"},
        )
        alone = len(standing.servers) == 1
        subjects.append(Subject(server.name, target, settings.reports / ("" if alone else server.name)))
    return tuple(subjects)


def host(name: str, listeners_file: Path | None, hostname: str | None, common: Mapping[str, Any]) -> Subject:
    """Return any server, by name or address; `common` are further fields of the Target.

    Raises GatepostError when it has no address, or when it is an address and `hostname` does not say what its
    certificate names.
    """
    table = listeners.load(listeners_file)
    if hostname is None:
        with contextlib.suppress(ValueError):
            ipaddress.ip_address(name)
            raise GatepostError(
                f"HOST is the address {name}",
                expected="a name, which its certificate is held against",
                next_step="Say with --hostname which name its certificate has.",
            )
    target = Target(
        hostname=hostname or name,
        addresses=resolve(name),
        listeners=table.listeners,
        listeners_file=table.path,
        listeners_digest=table.digest,
        **common,
    )
    return Subject(name, target)


# -- What is written ---------------------------------------------------------------------------------------------------


def worst(reports: Iterable[Report]) -> ExitCode:
    """Return the exit code of a run of several servers: failed before inconclusive before passed."""
    codes = {report.exit_code for report in reports}
    return next(c for c in (ExitCode.FAILED, ExitCode.INCONCLUSIVE, ExitCode.PASSED) if c in codes)


def outcome(report: Report) -> str:
    """Return one server's outcome in a line."""
    from gatepost.verify.report import digest

    return f"{digest.OUTCOME[report.exit_code].upper()}: {digest.conclusion(report)}"


def document(reports: Sequence[Report]) -> str:
    """Return the JSON document of a run: the report itself, or one that holds several under `reports`."""
    from gatepost.verify.report import as_json

    return as_json.to_json(reports[0]) if len(reports) == 1 else as_json.several_to_json(reports)


class Before:
    """Earlier reports to compare with, by server. Read and checked when it is made: before the run."""

    def __init__(self, path: Path | None, subjects: Sequence[Subject]) -> None:
        self._reports: dict[str, Report] = {}
        if path is None:
            return
        from gatepost.verify.report import as_json

        option = f"--compare {path}"
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
            raise GatepostError(f"{option}: {reason}", expected="what gatepost verify --json wrote") from error
        with contextlib.suppress(ValueError):
            several = json.loads(text)
            if isinstance(several, dict) and isinstance(several.get("reports"), list):
                texts = [json.dumps(one) for one in several["reports"]]
                self._reports = {r.target.hostname: r for r in (as_json.from_json(t, option) for t in texts)}
        if not self._reports:
            report = as_json.from_json(text, option)
            self._reports = {report.target.hostname: report}
        missing = [s.target.hostname for s in subjects if self.of(s) is None]
        if missing:
            raise GatepostError(
                f"{option}: a report of {', '.join(self._reports)}, and none of {', '.join(missing)}",
                expected="an earlier report of the same server",
            )

    def of(self, subject: Subject) -> Report | None:
        """Return the earlier report of a server, None where nothing is compared."""
        return self._reports.get(subject.target.hostname)


class Files:
    """The report files that were asked for. That they can be written is tried when it is made: before the run.

    Of several servers, each has files of its own, in the directories that the options then name.
    """

    def __init__(self, subjects: Sequence[Subject], asked: Mapping[str, Path | None]) -> None:
        self._paths: dict[tuple[str, str], Path] = {}  # by format and subject
        for form, given in asked.items():
            if given is None:
                continue
            if len(subjects) == 1:
                self._paths[form, subjects[0].name] = _writable(given, f"--{form}")
                continue
            with _reports(f"--{form} {given}", "a directory: there are several servers, and each has a file"):
                given.mkdir(exist_ok=True)
            for subject in subjects:
                path = given / f"{subject.name}.{_ENDINGS[form]}"
                self._paths[form, subject.name] = _writable(path, f"--{form}")

    def write(self, subject: Subject, report: Report, old: Report | None) -> None:
        """Write what was asked for of one server, each file in one step."""
        for (form, name), path in self._paths.items():
            if name == subject.name:
                environment.write(path, _rendered(form, report, old), 0o644)


_ENDINGS = {"html": "html", "junit": "xml", "prometheus": "prom"}


def _rendered(form: str, report: Report, old: Report | None) -> str:
    if form == "html":
        from gatepost.verify.report import html

        return html.render(report, old)
    if form == "junit":
        from gatepost.verify.report import junit

        return junit.render(report)
    from gatepost.verify.report import prometheus

    return prometheus.render(report)


@contextlib.contextmanager
def _reports(what: str, expected: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise GatepostError(
            f"{what}: {error.strerror}",
            expected=expected,
            next_step="Nothing was sent. Make the directory, or name another path.",
        ) from error


def _writable(path: Path, option: str) -> Path:
    """Return the path, links followed, when a report can be put there; raise GatepostError otherwise."""
    what, expected = f"{option} {path}", "a file that can be written, in a directory that is there"
    with _reports(what, expected):
        whole = path.resolve()
        if whole.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if whole.exists() and not whole.is_file():  # it would be replaced, and with it /dev/null
            raise OSError(errno.EINVAL, "neither a file nor a new name")
        # Really, since neither mode bits nor mount options say it all. A report is a new file beside the old one.
        with tempfile.TemporaryFile(dir=whole.parent):
            pass
    return whole


def keep(report: Report, directory: Path, old: Report | None = None) -> Path:
    """Write the report as JSON and HTML under its time and as last.json and last.html; return the latter's path."""
    from gatepost.verify.report import as_json

    environment.private_directory(directory)
    name = f"{report.started:%Y%m%dT%H%M%SZ}"
    page = _rendered("html", report, old)
    for ending, text, mode in (("json", as_json.to_json(report), 0o600), ("html", page, 0o644)):
        environment.write(directory / f"{name}.{ending}", text, mode)
        environment.write(directory / f"last.{ending}", text, mode)
        for outdated in sorted(directory.glob(f"[0-9]*.{ending}"))[:-REPORTS_KEPT]:
            outdated.unlink(missing_ok=True)
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
