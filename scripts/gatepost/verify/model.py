"""What a verification run is made of: target, observations' judgement, results.

The wire layer produces observations, checks are pure functions from observations to :class:`Finding`, the runner adds
where and when and makes :class:`Result`, and the reports read nothing but :class:`Report`.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from gatepost.listeners import Listener


class Verdict(enum.StrEnum):
    """How a requirement was judged. Unknown is never ``pass``."""

    PASS = "pass"
    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"  # tried, could not be judged: the reason is in `found`
    NOT_RUN = "not-run"  # not tried: no account, port dead, left out by the user
    NOT_APPLICABLE = "not-applicable"
    INFO = "info"  # recorded only


class Severity(enum.StrEnum):
    """What a failed requirement does to the run (listener-policy.md, Conventions)."""

    MUST = "must"  # fails the run
    SHOULD = "should"  # warns
    INFO = "info"  # is recorded


class ExitCode(enum.IntEnum):
    """Exit codes of `gatepost verify`, and of every command that ends in a verification."""

    PASSED = 0  # every MUST that applies passed
    FAILED = 1  # a MUST failed
    USAGE = 2  # wrong use, bad table or settings
    INCONCLUSIVE = 3  # none failed, but something could not be judged, or the run was cut short


@dataclass(frozen=True, slots=True)
class Account:
    """A mailbox to log in with. `password` never leaves the process except inside TLS that was judged safe."""

    address: str
    password: str = field(repr=False)
    alias: str | None = None  # another address that this account may send as


@dataclass(frozen=True, slots=True)
class Login:
    """A host that one can log in to with OpenSSH: the server itself, or any other (`--via ssh://[USER@]HOST[:PORT]`).

    Nothing is installed or changed there but the removal of our own test messages.
    """

    url: str  # as given, and as shown in reports
    command: tuple[str, ...]  # the whole ssh(1) command line in front of what is to be run there


@dataclass(frozen=True, slots=True)
class Target:
    """The server to judge and what the caller knows of it."""

    hostname: str  # the name that clients are told: banner, EHLO, certificate
    addresses: tuple[str, ...]  # IPv4 and IPv6, as connected to
    listeners: tuple[Listener, ...]
    listeners_file: Path
    listeners_digest: str  # sha256 of the table as read
    domains: tuple[str, ...] = ()  # hosted here; the first one is used as DOM
    outside_domain: str | None = None  # resolves, is not hosted here (OUT)
    accounts: tuple[Account, ...] = ()  # none, one or two
    ca_file: Path | None = None  # None: the system's trust store
    lab: bool = False  # a machine of the local lab: real credentials may be shown to it in clear
    source_addresses: tuple[str, ...] = ()  # bind to the one of the connection's family before connecting
    limit_addresses: tuple[str, ...] = ()  # the same for the checks of limits, which spoil an address for a minute
    via: tuple[Login, ...] = ()  # further vantage points; where one is the server itself, mail is read back there
    sink: tuple[str, ...] = ()  # addresses of this computer to which the outside domain's mail is delivered, port 25
    slow: bool = False  # checks that take long or cost many failed logins were asked for
    limits: bool = False  # checks that run into the server's limits were asked for


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a transcript; credentials are already blanked."""

    seconds: float  # since the start of the exchange
    direction: str  # "send", "recv", or "note" (connection and TLS events)
    text: str


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check says. The texts are for people: `found` quotes what was seen."""

    verdict: Verdict
    found: str
    transcript: tuple[Line, ...] = ()
    severity: Severity | None = (
        None  # when milder than the row's: a certificate with 20 days left warns, with 10 it fails
    )


@dataclass(frozen=True, slots=True)
class Result:
    """One requirement judged on one listener and address (both None for requirements of the whole server)."""

    id: str
    listener: str | None
    port: int | None
    address: str | None
    severity: Severity
    verdict: Verdict
    title: str  # the requirement in one short sentence
    found: str
    expected: str
    remedy: str  # what to do, naming the Postfix parameter
    source: str  # RFC section or policy
    seconds: float
    transcript: tuple[Line, ...] = ()
    problem: str = ""  # what is wrong when it fails, in plain words
    risk: str = ""  # what then goes wrong, and for whom


class Layer(enum.StrEnum):
    """What stops a connection, from the daemon outwards."""

    DAEMON = "the daemon does not listen"
    HOST_FIREWALL = "the host's firewall"
    CLOUD_FIREWALL = "a firewall in front of the host"
    OWN_NETWORK = "the network you are in"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Sight:
    """What one vantage point sees of one port."""

    vantage: str  # "here", or the login's URL
    listener: str
    port: int
    address: str
    reached: bool
    found: str  # the greeting, or how the connection failed
    seconds: float


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """Why one port cannot be reached from here. `found` says by what this is known."""

    listener: str
    port: int
    address: str
    layer: Layer
    found: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Report:
    """A whole run. `interrupted` marks a partial one."""

    target: Target
    started: datetime  # UTC
    seconds: float
    results: tuple[Result, ...]
    gatepost_version: str
    interrupted: bool = False
    only: tuple[str, ...] = ()  # ids asked for; none: all
    skipped: tuple[str, ...] = ()  # ids left out on request
    allowed: tuple[str, ...] = ()  # ids that may be inconclusive without changing the exit code
    sights: tuple[Sight, ...] = ()
    diagnoses: tuple[Diagnosis, ...] = ()

    def of(self, verdict: Verdict, severity: Severity | None = None) -> tuple[Result, ...]:
        """Return the results with this verdict, and severity where given."""
        return tuple(r for r in self.results if r.verdict is verdict and severity in (None, r.severity))

    @property
    def exit_code(self) -> ExitCode:
        """Return the exit code that this report means."""
        if self.of(Verdict.FAIL, Severity.MUST):
            return ExitCode.FAILED
        unknown = self.of(Verdict.INCONCLUSIVE, Severity.MUST)
        if self.interrupted or any(result.id not in self.allowed for result in unknown):
            return ExitCode.INCONCLUSIVE
        return ExitCode.PASSED
