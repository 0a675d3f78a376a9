"""Logging in: the three ways that mail clients use, ways that must not work, and how long a failure takes.

All connections that are shown a password accept only the target's own certificate, save in the lab.
"""

from __future__ import annotations

import base64
import contextlib
import math
import secrets
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from gatepost.verify.model import Account, Line
from gatepost.verify.wire.probe import Case, Phase, Probe, Site, Step, Told, is_limit, tell_case
from gatepost.verify.wire.session import Answer, Ended, Reply, Session, WireError, plain, shortened

LOGIN_SECONDS = 20.0  # a server may delay, and its password hash may be costly


@dataclass(frozen=True, slots=True)
class Attempt:
    """One way to log in, and the reply that ended it."""

    way: str
    answer: Answer
    transcript: tuple[Line, ...]


def _initial(session: Session, account: Account) -> Answer:
    return session.login(account)


def _prompted(session: Session, account: Account) -> Answer:
    reply = session.command("AUTH PLAIN")
    return session.command(plain(account.address, account.password), LOGIN_SECONDS) if reply.code == 334 else reply


def _login(session: Session, account: Account) -> Answer:
    reply = session.command("AUTH LOGIN")
    for secret in (account.address, account.password):
        if reply.code != 334:
            break
        reply = session.command(base64.b64encode(secret.encode()).decode(), LOGIN_SECONDS)
    return reply


WAYS: tuple[tuple[str, Callable[[Session, Account], Answer]], ...] = (
    ("AUTH PLAIN with initial response", _initial),
    ("AUTH PLAIN, then the response", _prompted),
    ("AUTH LOGIN", _login),
)


def _logins(site: Site) -> tuple[Attempt, ...]:
    """Log in as the first account: AUTH PLAIN with an initial response, AUTH PLAIN without, AUTH LOGIN."""
    attempts = []
    for way, log_in in WAYS:
        with Session(site) as session:
            session.open(verify=not site.target.lab)
            try:
                answer = log_in(session, site.target.accounts[0])
            except WireError as error:
                answer = Ended(error.failure, error.detail)
            attempts.append(Attempt(way, answer, session.transcript))
        if isinstance(answer, Reply) and answer.code == 535:
            break  # the other ways would be two more failed logins, for the same answer
    return tuple(attempts)


LOGINS = Probe("logins", _logins, account=0, once=True)


def side_by_side(name: str, cases: Callable[[Site], Iterable[Case]]) -> Probe[tuple[Told, ...]]:
    """Return the probe that sends each case (one command) on a connection of its own, all at the same time: a server
    takes seconds to refuse a login, and as long for several.

    They may hold the first account's password.
    """

    def run(site: Site) -> tuple[Told, ...]:
        with contextlib.ExitStack() as stack:
            asked = []
            for this in cases(site):
                session = stack.enter_context(Session(site))
                session.open(verify=not site.target.lab)
                asked.append((this, session))
            before = [len(session.transcript) for _, session in asked]
            for this, session in asked:
                data = this.sends[0].data
                session.send(data if isinstance(data, bytes) else data.encode() + b"\r\n")
            told = []
            for (this, session), start in zip(asked, before, strict=True):
                try:
                    answer: Answer = session.reply(this.sends[0].timeout)
                except WireError as error:
                    answer = Ended(error.failure, error.detail)
                lines = session.transcript[start:]
                told.append(Told(this.label, (Step(shortened(session.sent), (answer,)),), lines))
            return tuple(told)

    about = "Inside TLS, each on a connection of its own."
    return Probe(name, run, account=0, slow=True, once=True, about=about, cases=cases)


def patiently(
    name: str, cases: Callable[[Site], Iterable[Case]], account: int | None = None
) -> Probe[tuple[Told, ...]]:
    """Return the probe that tells the cases one after the other, each on a connection of its own, when the others are
    done, and waits while the server counts too many logins in a minute.

    They may hold the password of `account`, an index in the target's.
    """

    def run(site: Site) -> tuple[Told, ...]:
        told = []
        for this in cases(site):
            for _ in range(1 + RATE_TRIES):
                with Session(site) as session:
                    session.open(verify=not site.target.lab)
                    one, _alive = tell_case(session, this, rset=False)
                if not one.was_limited or site.cancelled.wait(RATE_PAUSE):
                    break
            told.append(one)
        return tuple(told)

    about = "Inside TLS, each on a connection of its own, when the others are done."
    return Probe(name, run, account=account, slow=True, once=True, phase=Phase.AFTER, about=about, cases=cases)


PAIRS = 9
QUICK_SECONDS = 1.0
TICK_SECONDS = 0.5
SIGNIFICANCE = 0.01
MIN_GAP_SECONDS = 0.030
RATE_PAUSE = 10.0  # seconds between tries while the server counts too many logins in a minute
RATE_TRIES = 7
_PER_CONNECTION = 4  # failed logins: Postfix slows down what comes after smtpd_soft_error_limit


@dataclass(frozen=True, slots=True)
class Gap:
    """How two samples of times differ."""

    known: float  # medians, in seconds
    unknown: float
    p: float  # of the Mann–Whitney test

    @classmethod
    def between(cls, known: Sequence[float], unknown: Sequence[float]) -> Gap:
        """Compare failed logins of a user that exists, and of nobody."""
        return cls(statistics.median(known), statistics.median(unknown), mann_whitney(known, unknown))

    @property
    def seconds(self) -> float:
        """Return by how much a wrong password takes longer than an unknown user."""
        return self.known - self.unknown

    @property
    def is_suspect(self) -> bool:
        """Whether more samples are worth their time."""
        return self.p <= 10 * SIGNIFICANCE and abs(self.seconds) >= MIN_GAP_SECONDS

    @property
    def is_apart(self) -> bool:
        """Whether the samples can be told from each other."""
        return self.p <= SIGNIFICANCE and abs(self.seconds) >= MIN_GAP_SECONDS

    def __str__(self) -> str:
        return (
            f"a wrong password takes {self.known:.3f} s, an unknown user {self.unknown:.3f} s (medians); "
            f"{abs(self.seconds) * 1000:.0f} ms apart, p = {self.p:.4f}"
        )


def mann_whitney(a: Sequence[float], b: Sequence[float]) -> float:
    """Return the two-sided p-value of the Mann–Whitney U test, by the normal approximation, corrected for continuity
    and for ties."""
    ranks: dict[float, float] = {}
    ties, below = 0, 0
    for value, same in groupby(sorted((*a, *b))):
        count = len(list(same))
        ranks[value] = below + (count + 1) / 2
        below += count
        ties += count**3 - count
    n, m, total = len(a), len(b), len(a) + len(b)
    u = sum(ranks[value] for value in a) - n * (n + 1) / 2
    variance = n * m / 12 * (total + 1 - ties / (total * (total - 1)))
    if variance <= 0:
        return 1.0
    return math.erfc(max(0.0, abs(u - n * m / 2) - 0.5) / math.sqrt(2 * variance))


@dataclass(frozen=True, slots=True)
class Timing:
    """How long failed logins took, in seconds, from the command to the reply: pair by pair."""

    known: tuple[float, ...]  # a wrong password of a user that exists
    unknown: tuple[float, ...]
    stopped: Answer | None  # what came in place of 535, before there were enough of them
    transcript: tuple[Line, ...]


def _timing(site: Site) -> Timing:
    """Fail to log in as U and as nobody, in turns, one after the other: PAIRS of them, and as many again where the
    first ones look apart."""
    user = site.target.accounts[0].address
    domain = user.rpartition("@")[2]
    # ABBA, so that a server that gets slower by the minute does so for both alike.
    turns = [known for pair in range(PAIRS) for known in ((True, False) if pair % 2 == 0 else (False, True))]
    left = list(turns)
    times: dict[bool, list[float]] = {True: [], False: []}
    lines: list[Line] = []
    pauses = 0
    while left:
        with Session(site, seconds=_PER_CONNECTION * LOGIN_SECONDS + 20) as session:
            answer: Answer
            try:
                session.open()
                for _ in range(min(_PER_CONNECTION, len(left))):
                    name = user if left[0] else f"gatepost-{secrets.token_hex(6)}@{domain}"
                    # A server that delays failures gives the same time to all. One that does not shows how long it
                    # worked, and that must not be for another listener's login.
                    pair = times[True] and times[False]
                    quick = not pair or min(*times[True], *times[False]) < QUICK_SECONDS
                    with site.logins.one_at_a_time if quick else contextlib.nullcontext():
                        # Dovecot answers failures twice a second: right behind one of them, what takes less than half
                        # a second takes half a second. So each pair begins a little later than the last.
                        site.cancelled.wait(len(times[left[0]]) % PAIRS * TICK_SECONDS / PAIRS)
                        answer = session.command(f"AUTH PLAIN {plain(name, secrets.token_hex(12))}", LOGIN_SECONDS)
                    if answer.code != 535:
                        break
                    times[left.pop(0)].append(answer.seconds)
            except WireError as error:
                answer = Ended(error.failure, error.detail)
            lines += session.transcript
        if isinstance(answer, Reply) and answer.code == 535:
            if not left and len(times[True]) == PAIRS and Gap.between(times[True], times[False]).is_suspect:
                left = list(turns)
            continue
        if is_limit(answer) and pauses < RATE_TRIES and not site.cancelled.wait(RATE_PAUSE):
            pauses += 1
            continue
        return Timing(tuple(times[True]), tuple(times[False]), answer, tuple(lines))
    return Timing(tuple(times[True]), tuple(times[False]), None, tuple(lines))


TIMING = Probe("failed-logins-timed", _timing, slow=True, once=True, phase=Phase.AFTER)
