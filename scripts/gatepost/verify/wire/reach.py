"""The first look at a port: does it answer, does it greet, and with what."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass

from gatepost.verify.model import Line
from gatepost.verify.wire.injection import Early, early
from gatepost.verify.wire.probe import Probe, Site, is_put_off
from gatepost.verify.wire.session import Answer, Ended, Failure, Reply, Session, WireError

TEASER_SECONDS = 1.0  # longer than any network keeps two lines apart, shorter than postscreen_greet_wait (6 s, 2 s)


@dataclass(frozen=True, slots=True)
class Reached:
    """How far a first connection came. `answer` is the greeting, or how it ended before one."""

    seconds: float  # of the TCP handshake
    connected: bool
    tls: bool  # implicit TLS came about
    answer: Answer
    more: bytes  # what came behind the greeting without being asked for
    second: Answer | None  # greeting of a second connection while the first one stood; None: not tried
    transcript: tuple[Line, ...]
    implicit: bool
    teased: float = 0.0  # seconds between the greeting's first line, `220-`, and its last
    early: Early | None = None  # a connection that spoke too early while the greeting's end was awaited
    first_visit: tuple[Answer, ...] = ()  # to RCPT, then; a second one where the first was 450 4.3.2

    @property
    def postscreen(self) -> bool:
        """Whether the greeting came in two parts, as Postfix's postscreen(8) does for an address it does not know."""
        return self.teased >= TEASER_SECONDS

    @property
    def dead(self) -> str:
        """Return why nothing more can be asked here, empty when something can.

        On implicit TLS a handshake that failed is still worth looking at; on STARTTLS a port without a greeting is not.
        """
        if not isinstance(self.answer, Ended):
            return ""
        gone = not self.connected or not self.implicit or self.answer.failure is Failure.TIMED_OUT
        return str(self.answer) if gone else ""


def reach(site: Site) -> Reached:
    """Connect, shake hands where TLS is implicit, read the greeting; then once more side by side.

    A greeting in two parts is postscreen's, for an address that it does not know yet. The wait is the one chance to
    speak too early to it (RFC 5321 §4.3.1). Behind it a recipient is named, so that its deep tests, where they are on,
    put off this visit and not a probe's (POSTSCREEN_README, "Tests after the 220 SMTP server greeting"). Never raises
    WireError.
    """
    began = time.monotonic()
    with Session(site) as session, Session(site) as another:
        seconds, more = 0.0, b""
        second: Answer | None = None
        connected = False
        spoken: list[Early] = []
        try:
            session.connect()
            connected, seconds = True, time.monotonic() - began
            answer = _greeting(session, lambda: spoken.append(early(site, _someone(site), message=False)))
        except WireError as error:
            answer = Ended(error.failure, error.detail, time.monotonic() - began)
        if isinstance(answer, Reply):
            try:
                another.connect()
                second = _greeting(another)
            except WireError as error:
                second = Ended(error.failure, error.detail)
            with contextlib.suppress(WireError):
                more = session.read(0.02)
        first_visit, told = _first_visit(site) if session.teased >= TEASER_SECONDS else ((), ())
        return Reached(
            seconds,
            connected,
            session.tls,
            answer,
            more,
            second,
            session.transcript + told,
            site.listener.is_implicit,
            session.teased,
            spoken[0] if spoken else None,
            first_visit,
        )


def _first_visit(site: Site) -> tuple[tuple[Answer, ...], tuple[Line, ...]]:
    """Name a recipient; once more where the first visit is put off."""
    answers: list[Answer] = []
    told: tuple[Line, ...] = ()
    while len(answers) < 2 and (not answers or is_put_off(answers[-1])):
        with Session(site) as session:
            try:
                session.open(tls=False)
                session.command("MAIL FROM:<>")
                answers.append(session.command(f"RCPT TO:<{_someone(site)}>"))
                session.quit()
            except WireError as error:
                answers.append(Ended(error.failure, error.detail))
            told += session.transcript
    return tuple(answers), told


def _someone(site: Site) -> str:
    """Return an address that must exist (RFC 5321 §4.5.1)."""
    return f"postmaster@{site.target.domains[0] if site.target.domains else site.target.hostname}"


def _greeting(session: Session, meanwhile: Callable[[], None] | None = None) -> Answer:
    if session.site.listener.is_implicit:
        session.handshake()
    return session.banner(meanwhile=meanwhile)


REACH = Probe("reach", reach)
