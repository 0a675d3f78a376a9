"""What a probe is, and dialogues: lists of SMTP commands whose replies many checks share.

A probe belongs to one listener at one address and returns one frozen observation. Most are dialogues, which are data:
:class:`Case` says what to send, :func:`dialogue` makes the probe that sends it, with few connections and without
meeting the server's error limits.
"""

from __future__ import annotations

import enum
import re
import socket
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Generic, TypeVar

from gatepost.listeners import Listener
from gatepost.verify.model import Line, Target
from gatepost.verify.wire.session import Answer, Ended, Failure, Reply, Session, Stop, WireError, shortened

T_co = TypeVar("T_co", covariant=True)

ERRORS_PER_CONNECTION = 4  # Postfix delays each further error by 1 s after smtpd_soft_error_limit (5 in hard settings)
LIMIT_PAUSE = 1.0  # seconds to wait when a server says 421 in its greeting
LIMIT_TRIES = 3  # so often, when one case is asked again
CASES_PER_CONNECTION = 10  # each ends with RSET, and smtpd_junk_command_limit counts those


class Logins:
    """The first login of each account on each listener, for which the others wait: a password that is wrong is shown
    once, and not as often as there are probes (servers count failed logins, and shut out who has too many)."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._first: dict[tuple[str, str], Future[Reply | None]] = {}
        self.one_at_a_time = threading.Lock()  # for logins whose time is taken

    def ask(self, who: tuple[str, str], log_in: Callable[[], Reply], note: Callable[[str], None]) -> Reply:
        """Log in, unless the first login answered 535: then return that reply, and note it."""
        with self._lock:
            first = self._first.get(who)
            if first is None:
                mine = self._first[who] = Future()
        if first is None:
            reply: Reply | None = None
            try:
                reply = log_in()
                return reply
            finally:
                mine.set_result(reply)
        earlier = first.result()
        if earlier is None or earlier.code != 535:
            return log_in()
        note(f"login as {who[1]} not tried again: it was refused before ({earlier})")
        return earlier


@dataclass(frozen=True, slots=True)
class Site:
    """One listener at one address of the target: what a probe is pointed at."""

    target: Target
    listener: Listener
    address: str
    cancelled: Stop = field(default_factory=Stop, compare=False, repr=False)  # the run, or its phase, was stopped
    logins: Logins = field(default_factory=Logins, compare=False, repr=False)  # of the run

    def __str__(self) -> str:
        return (
            f"[{self.address}]:{self.listener.port}" if ":" in self.address else f"{self.address}:{self.listener.port}"
        )

    @property
    def ehlo(self) -> str:
        """Return the name that we say in EHLO: a full one (RFC 5321 §4.1.1.1), under the outside domain where there
        is one."""
        return f"client.{self.target.outside_domain}" if self.target.outside_domain else _own_name()

    @property
    def domain(self) -> str:
        """DOM: a domain hosted here. Rows that use it carry Need.DOMAIN."""
        return self.target.domains[0]

    @property
    def outside(self) -> str:
        """OUT: a domain that exists and is not hosted here. Rows that use it carry Need.OUTSIDE."""
        assert self.target.outside_domain is not None
        return self.target.outside_domain

    @property
    def address_literal(self) -> str:
        """Return the server's address as in a mail address (RFC 5321 §4.1.3): [192.0.2.1] or [IPv6:2001:db8::1]."""
        return _literal(self.address)

    @property
    def source(self) -> str | None:
        """Return the address to connect from: the target's source address of this family, where there is one."""
        family = ":" in self.address
        return next((source for source in self.target.source_addresses if (":" in source) == family), None)

    @property
    def own_literal(self) -> str:
        """Return our own address in the same form, as this machine's routing chooses it."""
        return _literal(self.source or own_address(self.address))


@cache
def own_address(address: str) -> str:
    """Return where a datagram to `address` would come from; none is sent. Once per run, so that checks may ask too.

    Raises OSError where this computer has no route there.
    """
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((address, 9))
        return str(probe.getsockname()[0])


def _literal(address: str) -> str:
    return f"[IPv6:{address}]" if ":" in address else f"[{address}]"


@cache
def _own_name() -> str:
    name = socket.getfqdn()
    return name if "." in name and not name.endswith((".localdomain", ".arpa")) else "client.example.net"


class Phase(enum.IntEnum):
    """When a probe runs: every phase ends before the next begins."""

    MAIN = 0
    AFTER = 1  # looks at what MAIN left on the server: reads delivered messages back, and removes them
    LAST = 2  # runs into the server's limits


@dataclass(frozen=True)
class Probe(Generic[T_co]):
    """A named way to look at a site. Compared by name; names are unique.

    `account` is the index in `target.accounts` that it logs in as, on submission listeners: the runner starts it only
    after CRT-01 and CRT-02 passed on the same site (or in the lab). `slow` ones are started first. `once` ones run on
    one address per listener (failed logins are budgeted). `about` and `cases` are for docs/checks.md.
    """

    name: str
    run: Callable[[Site], T_co] = field(compare=False)
    account: int | None = field(default=None, compare=False)
    slow: bool = field(default=False, compare=False)
    once: bool = field(default=False, compare=False)
    phase: Phase = field(default=Phase.MAIN, compare=False)
    about: str = field(default="", compare=False)
    cases: Callable[[Site], Iterable[Case]] | None = field(default=None, compare=False)

    def account_at(self, site: Site) -> int | None:
        """Return the account that this probe shows to a site: none on a relay, where nobody logs in."""
        return self.account if site.listener.is_submission else None


@dataclass(frozen=True, slots=True)
class Send:
    """One thing to send. A str is a line (CRLF added), bytes go as they are.

    `quiet` None reads `replies` replies; a number of seconds reads replies until the server is silent that long.
    `vital`: when it is refused (4xx, 5xx), the rest of its case makes no sense and is left out.
    """

    data: str | bytes
    quiet: float | None = None
    timeout: float | None = None  # seconds; None: the session's own
    vital: bool = False
    replies: int = 1  # more, where `data` holds several commands


@dataclass(frozen=True, slots=True)
class Case:
    """Commands that belong together, in one transaction state of their own (RSET is sent behind).

    `ends` says that the server may close in the course of it, so that a closed connection is an answer and not a
    reason to try again. `stop_on_error` leaves out the commands behind a 4xx or 5xx.
    """

    label: str
    sends: tuple[Send, ...]
    ends: bool = False
    stop_on_error: bool = False


def case(label: str, *commands: str | bytes | Send, ends: bool = False, stop_on_error: bool = False) -> Case:
    """Return a case of plain commands."""
    return Case(label, tuple(c if isinstance(c, Send) else Send(c) for c in commands), ends, stop_on_error)


@dataclass(frozen=True, slots=True)
class Step:
    """What one Send led to. `answers` has one element, or as many as came where `quiet` was given (none: silence)."""

    sent: str
    answers: tuple[Answer, ...]

    @property
    def answer(self) -> Answer:
        """Return the first answer."""
        return self.answers[0] if self.answers else Ended(Failure.TIMED_OUT, "no reply")

    @property
    def is_data(self) -> bool:
        """Whether the server now waits for a message."""
        return any(isinstance(answer, Reply) and answer.code == 354 for answer in self.answers[-1:])

    def __str__(self) -> str:
        return f"{self.sent} → " + (" | ".join(map(str, self.answers)) or "silence")


@dataclass(frozen=True, slots=True)
class Told:
    """One case with its answers, in the order of its sends.

    Fewer steps than sends: the server ended it, or it stopped.
    """

    label: str
    steps: tuple[Step, ...]
    transcript: tuple[Line, ...] = ()
    retried: bool = False  # met a limit on its first connection, and was asked again on a new one (VER-05)

    @property
    def last(self) -> Answer:
        """Return the last answer."""
        return (
            self.steps[-1].answers[-1]
            if self.steps and self.steps[-1].answers
            else Ended(Failure.TIMED_OUT, "no reply")
        )

    @property
    def codes(self) -> tuple[int, ...]:
        """Return all reply codes; 0 stands for a connection that ended."""
        return tuple(a.code if isinstance(a, Reply) else 0 for step in self.steps for a in step.answers)

    @property
    def was_limited(self) -> bool:
        """Whether the server answered by a limit (421, or 450/454 that speak of rates) instead of to the question."""
        return any(is_limit(a) for step in self.steps for a in step.answers)

    def __str__(self) -> str:
        return "; ".join(map(str, self.steps))


@dataclass(frozen=True, slots=True)
class Dialogue:
    """The observation of a dialogue: EHLO replies and the cases by label."""

    greeting: Reply
    ehlo_clear: Reply | None  # None on implicit TLS
    ehlo_tls: Reply | None  # None where TLS was not asked for
    told: tuple[Told, ...]
    login: Answer | None = None

    def __getitem__(self, label: str) -> Told:
        for told in self.told:
            if told.label == label:
                return told
        raise KeyError(label)


@dataclass(frozen=True, slots=True)
class Failed:
    """Stands for an observation that did not come about."""

    failure: Failure
    detail: str
    transcript: tuple[Line, ...] = ()

    def __str__(self) -> str:
        return f"{self.failure}: {self.detail}"


_LIMIT = re.compile(r"(?i)\b(too many(?! hops)|too much|rate|limit)\b")  # a loop is no limit of ours


def is_limit(answer: Answer) -> bool:
    """Whether a reply means a limit of the server's: 421, a 4xx that speaks of rate, "too many" or "too much", or that
    of postscreen."""
    if not isinstance(answer, Reply):
        return False
    spoken = answer.code in (450, 451, 454) and _LIMIT.search(answer.text) is not None
    return answer.code == 421 or spoken or is_put_off(answer)


def is_put_off(answer: Answer) -> bool:
    """Whether a reply is that of postscreen's deep tests: the client shall come again."""
    return isinstance(answer, Reply) and answer.code == 450 and answer.enhanced == "4.3.2"


def dialogue(
    name: str,
    cases: Callable[[Site], Iterable[Case]],
    *,
    tls: bool = True,
    ehlo: Callable[[Site], str] | None = None,
    account: int | None = None,
    greet_only: bool = False,
    slow: bool = False,
    once: bool = False,
) -> Probe[Dialogue]:
    """Return the probe that tells these cases to a site.

    `tls` False stays in clear on STARTTLS listeners (implicit ones always speak TLS). `greet_only` stops behind the
    banner: no EHLO, no STARTTLS. `account` logs in first. A connection carries at most four errors; a case that met
    421 or a closed connection because of what went before is told again on a new connection (VER-05).
    """

    def run(site: Site) -> Dialogue:
        return tell(
            site, tuple(cases(site)), tls=tls, ehlo=ehlo(site) if ehlo else None, account=account, greet_only=greet_only
        )

    where = "Before EHLO" if greet_only else "Inside TLS" if tls else "In clear"
    login = "" if account is None else f", after a login as the {('first', 'second')[account]} account"
    return Probe(name, run, account=account, slow=slow, once=once, about=f"{where}{login}.", cases=cases)


def tell(
    site: Site,
    cases: tuple[Case, ...],
    *,
    tls: bool = True,
    ehlo: str | None = None,
    account: int | None = None,
    greet_only: bool = False,
) -> Dialogue:
    """Tell the cases, see :func:`dialogue`. Raise WireError when not even the way to the first case worked."""
    left = list(cases)
    told: list[Told] = []
    opened: Opened | None = None
    waited = False
    while left or opened is None:
        with Session(site) as session:
            try:
                this = open_session(session, tls=tls, ehlo=ehlo, account=account, greet_only=greet_only)
            except WireError as error:
                if error.failure is Failure.LIMITED and not waited:
                    waited = True
                    site.cancelled.wait(LIMIT_PAUSE)
                    continue
                if opened is None:
                    raise
                ended = (Ended(error.failure, f"on a new connection: {error.detail}"),)
                told += [Told(c.label, (Step(_first(c), ended),), error.transcript) for c in left]
                break
            opened = opened or this
            errors = fresh = 0
            while left and errors < ERRORS_PER_CONNECTION and fresh < CASES_PER_CONNECTION:
                done, alive = tell_case(session, left[0])
                spoilt = done.was_limited or (
                    not alive and not left[0].ends and Ended in map(type, done.steps[-1].answers)
                )
                if spoilt and fresh:
                    left[0:1] = []
                    told.append(
                        _again(site, cases, done.label, tls=tls, ehlo=ehlo, account=account, greet_only=greet_only)
                    )
                    break
                left.pop(0)
                told.append(done)
                fresh += 1
                errors += sum(400 <= code < 600 for code in done.codes)
                if not alive:
                    break
    return Dialogue(opened.greeting, opened.clear, opened.tls, tuple(told), opened.login)


@dataclass(frozen=True, slots=True)
class Opened:
    """What was said on the way to the first case."""

    greeting: Reply
    clear: Reply | None
    tls: Reply | None
    login: Answer | None


def open_session(session: Session, *, tls: bool, ehlo: str | None, account: int | None, greet_only: bool) -> Opened:
    """Go as far as asked. Raises WireError; a 421 greeting and a refused login are failures."""
    target = session.site.target
    verify = account is not None and session.site.listener.is_submission and not target.lab
    session.connect()
    if session.site.listener.is_implicit:
        session.handshake(verify=verify)
    greeting = session.banner(again=True)
    if greeting.code == 421:
        raise session.failure(Failure.LIMITED, f"greeted with {greeting}")
    # A 554 greeting goes on: what such a server answers to EHLO is what a client would see.
    clear = inside = None
    login: Answer | None = None
    if not greet_only:
        if session.tls:
            inside = session.ehlo(ehlo)
        else:
            clear = session.ehlo(ehlo)
            if tls:
                session.starttls(verify=verify)
                inside = session.ehlo(ehlo)
        if account is not None and session.site.listener.is_submission:
            login = session.login(target.accounts[account])
            if login.code != 235:
                refused = Failure.LOGIN_REFUSED if (account, login.code) == (0, 535) else Failure.CLOSED
                raise session.failure(
                    Failure.LIMITED if is_limit(login) else refused,
                    f"login as {target.accounts[account].address} answered {login}",
                )
    return Opened(greeting, clear, inside, login)


def _first(this: Case) -> str:
    data = this.sends[0].data
    return data if isinstance(data, str) else data.decode("utf-8", "backslashreplace").rstrip()


def tell_case(session: Session, this: Case, *, rset: bool = True) -> tuple[Told, bool]:
    """Tell one case on an open connection; return what came of it, and whether the connection still stands."""
    before = len(session.transcript)
    steps: list[Step] = []
    alive = True
    for send in this.sends:
        data = send.data if isinstance(send.data, bytes) else send.data.encode("utf-8", "surrogateescape") + b"\r\n"
        answers: tuple[Answer, ...]
        try:
            session.send(data)
            answers = _counted(session, send) if send.quiet is None else session.replies(send.quiet)
        except WireError as error:
            answers = (Ended(error.failure, error.detail),)
        steps.append(Step(shortened(session.sent), answers))
        alive = not any(isinstance(a, Ended) or a.code in (421, 221, 521) for a in answers)
        last = answers[-1] if answers else None
        if not alive or ((this.stop_on_error or send.vital) and isinstance(last, Reply) and last.code >= 400):
            break
    transcript = session.transcript[before:]
    if alive and rset and steps and steps[-1].is_data:
        alive = False  # RSET would be content. What ends here, without an end of data, delivers nothing.
    if alive and rset:
        try:
            alive = session.command("RSET").code == 250
        except WireError:
            alive = False
    return Told(this.label, tuple(steps), transcript), alive


def _counted(session: Session, send: Send) -> tuple[Answer, ...]:
    answers: list[Answer] = [session.reply(send.timeout)]
    while len(answers) < send.replies:
        try:
            answers.append(session.reply(send.timeout))
        except WireError as error:
            return (*answers, Ended(error.failure, error.detail))
    return tuple(answers)


def _again(site: Site, cases: tuple[Case, ...], label: str, **how: Any) -> Told:
    """Tell one case on a connection of its own."""
    this = next(c for c in cases if c.label == label)
    tries = LIMIT_TRIES
    while True:
        with Session(site) as session:
            try:
                open_session(session, **how)
            except WireError as error:
                if error.failure is Failure.LIMITED and tries and not site.cancelled.wait(LIMIT_PAUSE):
                    tries -= 1
                    continue
                ended = Ended(error.failure, f"on a new connection: {error.detail}")
                return Told(label, (Step(_first(this), (ended,)),), error.transcript, retried=True)
            told, _ = tell_case(session, this)
            return Told(told.label, told.steps, told.transcript, retried=True)
