"""The requirements, as rows: id → where it applies → what it needs → which probes it looks at → who judges.

The rows stand beside their check functions in `checks/`; here they are put together in the policy's order. Adding a
check is one function, one row and one failing fixture.
"""

from __future__ import annotations

import difflib
import enum
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from gatepost.errors import GatepostError
from gatepost.listeners import Listener
from gatepost.verify.model import Finding, Severity, Target, Verdict
from gatepost.verify.wire.probe import Failed, Phase, Probe, Site

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
Key = tuple[str, str, str]  # listener, address, probe; the first two are empty for a ServerProbe


class Scope(enum.Enum):
    """Which listeners a requirement is about. They follow purpose and TLS, never port numbers."""

    ALL = "every listener"
    RELAY = "relay"
    SUBMISSION = "submission"
    STARTTLS = "every listener with STARTTLS"
    RELAY_STARTTLS = "relay with STARTTLS"
    SUBMISSION_STARTTLS = "submission with STARTTLS"
    IMPLICIT = "every listener with implicit TLS"
    RELAY_OR_IMPLICIT = "relay, and implicit TLS"
    SERVER = "the server as a whole"

    def covers(self, listener: Listener) -> bool:
        """Whether a listener is meant. False for SERVER, which is judged once over all of them."""
        relay, implicit = not listener.is_submission, listener.is_implicit
        return {
            Scope.ALL: True,
            Scope.RELAY: relay,
            Scope.SUBMISSION: not relay,
            Scope.STARTTLS: not implicit,
            Scope.RELAY_STARTTLS: relay and not implicit,
            Scope.SUBMISSION_STARTTLS: not relay and not implicit,
            Scope.IMPLICIT: implicit,
            Scope.RELAY_OR_IMPLICIT: relay or implicit,
            Scope.SERVER: False,
        }[self]


class Need(enum.Flag):
    """What the caller must have given for a requirement to be judged at all."""

    NOTHING = 0
    DOMAIN = enum.auto()
    OUTSIDE = enum.auto()
    ACCOUNT = enum.auto()
    SECOND_ACCOUNT = enum.auto()
    ALIAS = enum.auto()
    LOGIN = enum.auto()  # an account, but only on submission listeners: on a relay there is nothing to log in to
    VIA = enum.auto()  # a login at a host by SSH
    SINK = enum.auto()
    SLOW = enum.auto()
    LIMITS = enum.auto()

    def missing(self, target: Target, listener: Listener | None = None) -> str:
        """Return why this cannot be judged, as a reason for people; empty when everything is there."""
        account = len(target.accounts) >= 1
        wanted = (
            (Need.DOMAIN, bool(target.domains), "no domain of this server was given (--domain)"),
            (Need.OUTSIDE, target.outside_domain is not None, "no outside domain was given (--outside-domain)"),
            (Need.ACCOUNT, account, "no account was given (--account)"),
            (Need.LOGIN, account or not (listener and listener.is_submission), "no account was given (--account)"),
            (Need.SECOND_ACCOUNT, len(target.accounts) >= 2, "no second account was given (--second-account)"),
            (Need.ALIAS, any(a.alias for a in target.accounts[:1]), "the account has no second address to send as"),
            (Need.VIA, bool(target.via), "no login at the server was given (--via)"),
            (Need.SINK, bool(target.sink), "no sink for the outside domain's mail was given (--sink)"),
            (Need.SLOW, target.slow, "only with --slow"),
            (Need.LIMITS, target.limits, "only with --limits"),
        )
        return next((why for need, there, why in wanted if need in self and not there), "")


@dataclass(frozen=True)
class ServerProbe(Generic[T_co]):
    """A named way to look at the server as a whole, once per run: by its login, or at what the other probes saw.

    `run` is given what was seen so far (`Seen` without a site) and raises WireError when it cannot look. It is run only
    when the target has what `needs` says.
    """

    name: str
    run: Callable[[Seen], T_co] = field(compare=False)
    needs: Need = field(default=Need.NOTHING, compare=False)
    phase: Phase = field(default=Phase.AFTER, compare=False)
    about: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Seen:
    """What a check may look at: observations by (listener name, address, probe name).

    `seen[PROBE]` is the observation of the check's own site. It raises NotObserved when the probe failed; the runner
    makes that inconclusive with the failure's words. A check for which the failure is the answer uses
    `seen.attempt(PROBE)`.
    """

    target: Target
    site: Site | None  # None for requirements of the whole server
    observations: Mapping[Key, Any]
    sites: tuple[Site, ...] = ()  # the run's, for a ServerProbe that goes to them itself

    def __getitem__(self, probe: Probe[T] | ServerProbe[T]) -> T:
        result = self.attempt(probe)
        if isinstance(result, Failed):
            raise NotObserved(result)
        return result

    def attempt(self, probe: Probe[T] | ServerProbe[T]) -> T | Failed:
        """Return the observation, or how the probe failed."""
        try:
            found: T | Failed = self.observations[key(self.site, probe)]
        except KeyError:
            raise Unobserved(probe.name) from None
        return found

    def everywhere(self, probe: Probe[T]) -> tuple[tuple[Listener, str, T | Failed], ...]:
        """Return (listener, address, observation or failure) of every site that the probe ran on, in the table's
        order."""
        return tuple(
            (listener, address, self.observations[(listener.name, address, probe.name)])
            for listener in self.target.listeners
            for address in self.target.addresses
            if (listener.name, address, probe.name) in self.observations
        )

    @property
    def here(self) -> Site:
        """Return the site of a requirement that has one."""
        assert self.site is not None
        return self.site


def key(site: Site | None, probe: Probe[Any] | ServerProbe[Any]) -> Key:
    """Return under what an observation is kept."""
    if isinstance(probe, ServerProbe):
        return ("", "", probe.name)
    assert site is not None
    return (site.listener.name, site.address, probe.name)


class Unobserved(Exception):
    """A probe that a check relies on never ran: the run was cut short."""


class NotObserved(Exception):
    """A probe that a check relies on failed."""

    def __init__(self, failed: Failed) -> None:
        super().__init__(str(failed))
        self.failed = failed


@dataclass(frozen=True, slots=True)
class Requirement:
    """One row of the policy. The texts are for people; `remedy` names the Postfix parameter.

    `needs_tls` rows count only after a positive TLS handshake on the same site (VER-03): a dead port passes every
    negative test. `once` rows are judged on the first reachable address of a listener only.
    """

    id: str
    scope: Scope
    title: str
    expected: str
    remedy: str
    source: str
    probes: tuple[Probe[Any] | ServerProbe[Any], ...]
    check: Callable[[Seen], Finding]
    severity: Severity = Severity.MUST
    needs: Need = Need.NOTHING
    needs_tls: bool = False
    once: bool = False
    over: Scope = Scope.ALL  # which listeners the probes of a Scope.SERVER row look at
    problem: str = ""  # what is wrong when it fails, in words for people who do not know SMTP
    risk: str = ""  # what then goes wrong, and for whom

    def looks_at(self, listener: Listener) -> bool:
        """Whether the row's probes run on a listener."""
        return self.over.covers(listener) if self.scope is Scope.SERVER else self.scope.covers(listener)


def passed(found: str, *, transcript: tuple[Any, ...] = ()) -> Finding:
    """Return a pass that quotes what was seen."""
    return Finding(Verdict.PASS, found, transcript)


def failed(found: str, *, transcript: tuple[Any, ...] = ()) -> Finding:
    """Return a failure that quotes what was seen."""
    return Finding(Verdict.FAIL, found, transcript)


def inconclusive(found: str, *, transcript: tuple[Any, ...] = ()) -> Finding:
    """Return that it could not be judged, and why."""
    return Finding(Verdict.INCONCLUSIVE, found, transcript)


def check_ids(identifiers: Iterable[str]) -> None:
    """Raise GatepostError, with ids that look alike, for one that no requirement has."""
    known = list(dict.fromkeys(row.id for row in requirements()))
    unknown = sorted(set(identifiers) - set(known))
    if not unknown:
        return
    alike = dict.fromkeys(c for i in unknown for c in difflib.get_close_matches(i.upper(), known, n=3))
    raise GatepostError(
        f"no such requirement: {', '.join(unknown)}",
        expected=f"perhaps {', '.join(alike)}" if alike else "ids as in the listener policy, such as GEN-NET-01",
        next_step="gatepost verify --list names all of them.",
    )


def requirements() -> tuple[Requirement, ...]:
    """Return every row, in the policy's order.

    Imports the checks, and with them ssl and cryptography, only when called.
    """
    from gatepost.verify.checks import (
        certificate,
        delivery,
        general,
        implicit,
        injection,
        limits,
        relay,
        submission,
        tls,
        verifier,
    )

    return (
        *verifier.REQUIREMENTS,
        *general.REQUIREMENTS,
        *tls.REQUIREMENTS,
        *certificate.REQUIREMENTS,
        *relay.REQUIREMENTS,
        *injection.POSTSCREEN,
        *submission.REQUIREMENTS,
        *implicit.REQUIREMENTS,
        *injection.REQUIREMENTS,
        *limits.REQUIREMENTS,
        *delivery.REQUIREMENTS,
    )
