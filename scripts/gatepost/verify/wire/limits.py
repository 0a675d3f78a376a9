"""Running into a server's limits, one after the other, so that none of them is taken for another one.

They are the run's last, from an address of their own where there is one: what they use up (logins in a minute,
connections) the other probes would miss. Nothing is delivered, and no password of a real account is sent.
"""

from __future__ import annotations

import contextlib
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from gatepost.verify.model import Line
from gatepost.verify.wire.probe import Failed, Phase, Probe, Site, is_limit
from gatepost.verify.wire.session import Answer, Ended, Failure, Session, WireError, plain

MAX_ERRORS = 25  # Postfix's own default for smtpd_hard_error_limit is 20
MIN_RECIPIENTS = 100  # RFC 5321 §4.5.3.1.8
MAX_RECIPIENTS = 1001  # Postfix's own default for smtpd_recipient_limit is 1000
MAX_CONNECTIONS = 60  # Postfix's own default for smtpd_client_connection_count_limit is 50
MAX_LOGINS = 64
_AT_ONCE = 12  # connections that try logins side by side: a failed one takes seconds
_PER_CONNECTION = 4  # failed logins: the limit of errors must not come first
_BATCH = 50  # RCPT commands in one segment
_LOGIN_SECONDS = 20.0
IDLE_SECONDS = 390.0  # RFC 5321 §4.5.3.2.7 asks servers to wait 300 s; the last phase ends after 420 s


@dataclass(frozen=True, slots=True)
class Limit:
    """How often the server went along, and what it then said; None: it never minded."""

    taken: int
    said: Answer | None
    transcript: tuple[Line, ...] = ()


@dataclass(frozen=True, slots=True)
class Limits:
    """One listener's limits: bad commands and recipients on one connection, connections at once, logins in a minute."""

    errors: Limit | Failed
    recipients: Limit | Failed
    connections: Limit | Failed
    logins: Limit | Failed


def _errors(site: Site) -> Limit:
    with Session(site, seconds=90.0) as session:
        session.open(tls=False)
        for count in range(MAX_ERRORS):
            try:
                reply = session.command("GTPS")
            except WireError as error:
                return Limit(count, Ended(error.failure, error.detail), session.transcript)
            if reply.code == 421:
                return Limit(count, reply, session.transcript)
        return Limit(MAX_ERRORS, None, session.transcript)


def _recipients(site: Site) -> Limit:
    target = site.target
    if site.listener.is_submission or not target.domains or target.outside_domain is None:
        raise WireError(Failure.NOT_TRIED, "needs a listener between servers, a domain of this one, and one outside")
    rcpt = f"RCPT TO:<postmaster@{site.domain}>\r\n".encode()
    with Session(site) as session:
        session.open(tls=False)
        reply = session.command(f"MAIL FROM:<gatepost-probe@{site.outside}>")
        if reply.code != 250:
            return Limit(0, reply, session.transcript)
        taken = 0
        while taken < MAX_RECIPIENTS:
            batch = min(_BATCH, MAX_RECIPIENTS - taken)
            session.send(rcpt * batch)
            for _ in range(batch):
                try:
                    reply = session.reply()
                except WireError as error:
                    return Limit(taken, Ended(error.failure, error.detail), session.transcript)
                if reply.code not in (250, 251):
                    return Limit(taken, reply, session.transcript)
                taken += 1
        return Limit(taken, None, session.transcript)


def _connections(site: Site) -> Limit:
    with contextlib.ExitStack() as stack:
        for count in range(MAX_CONNECTIONS):
            session = stack.enter_context(Session(site, seconds=90.0))
            try:
                session.connect()
                if site.listener.is_implicit:
                    session.handshake()
                greeting = session.banner()
            except WireError as error:
                return Limit(count, Ended(error.failure, error.detail), session.transcript)
            if greeting.code != 220:
                return Limit(count, greeting, session.transcript)
        return Limit(MAX_CONNECTIONS, None)


def _logins(site: Site) -> Limit:
    """Invented logins, until the server answers one by a limit."""
    if not site.listener.is_submission:
        raise WireError(Failure.NOT_TRIED, "nobody logs in here")
    lock, over = threading.Lock(), threading.Event()
    left, taken = MAX_LOGINS, 0
    said: Answer | None = None
    lines: tuple[Line, ...] = ()
    trouble: WireError | None = None

    def some() -> None:
        nonlocal left, taken, said, lines, trouble
        try:
            while not over.is_set():
                with Session(site, seconds=_PER_CONNECTION * _LOGIN_SECONDS + 20) as session:
                    session.open()
                    for _ in range(_PER_CONNECTION):
                        with lock:
                            if left == 0 or over.is_set():
                                return
                            left -= 1
                        invented = plain(f"gatepost-probe@{site.target.hostname}", secrets.token_hex(8))
                        reply = session.command(f"AUTH PLAIN {invented}", _LOGIN_SECONDS)
                        with lock:
                            if not is_limit(reply):
                                taken += 1
                                continue
                            if said is None:
                                said, lines = reply, session.transcript
                            over.set()
                            return
        except WireError as error:
            with lock:
                trouble = trouble or error
            over.set()

    with ThreadPoolExecutor(_AT_ONCE, "logins") as pool:
        for _ in range(_AT_ONCE):
            pool.submit(some)
    if said is None and trouble is not None:
        raise trouble
    return Limit(taken, said, lines)


def _settled(site: Site) -> None:
    """Wait until the server greets again: it learns late that connections are closed."""
    for _ in range(10):
        try:
            with Session(site) as session:
                session.open(tls=False)
                session.quit()
                return
        except WireError:
            if site.cancelled.wait(0.5):
                return


def _limits(site: Site) -> Limits:
    """In this order: each bad command and recipient on one connection, many connections, and at last many logins."""
    return Limits(*_in_turn(site, _errors, _recipients, _connections, _logins))


def _in_turn(site: Site, *ways: Callable[[Site], Limit]) -> Iterator[Limit | Failed]:
    for way in ways:
        try:
            yield way(site)
        except WireError as error:
            yield Failed(error.failure, error.detail, error.transcript)
        if way is _connections:
            _settled(site)


@dataclass(frozen=True, slots=True)
class Idle:
    """How a connection on which nothing was said came to its end."""

    seconds: float
    said: Answer | None  # None: it stood for all of IDLE_SECONDS
    transcript: tuple[Line, ...]


def _idle(site: Site) -> Idle:
    """Say EHLO, and then nothing."""
    with Session(site, seconds=IDLE_SECONDS + 20) as session:
        session.open(tls=False)
        began = time.monotonic()
        said: Answer | None
        try:
            said = session.reply(IDLE_SECONDS)
        except WireError as error:
            if error.failure is Failure.NOT_TRIED:
                raise
            said = None if error.failure is Failure.TIMED_OUT else Ended(error.failure, error.detail)
        return Idle(time.monotonic() - began, said, session.transcript)


LIMITS = Probe("limits", _limits, once=True, phase=Phase.LAST)
IDLE = Probe("idle", _idle, slow=True, once=True, phase=Phase.LAST)
