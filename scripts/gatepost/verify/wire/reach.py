"""The first look at a port: does it answer, does it greet, and with what."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass

from gatepost.verify.model import Line
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
    first_visit: tuple[Answer, ...] = ()  # to RCPT, behind a teaser; a second one where the first was 450 4.3.2

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

    Behind a teaser a recipient is named, so that postscreen's deep tests, where they are on, defer this visit and not
    a probe's (POSTSCREEN_README, "Tests after the 220 SMTP server greeting"). Never raises WireError.
    """
    began = time.monotonic()
    with Session(site) as session, Session(site) as another:
        seconds, more = 0.0, b""
        second: Answer | None = None
        connected = False
        try:
            session.connect()
            connected, seconds = True, time.monotonic() - began
            answer = _greeting(session)
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
        first_visit: tuple[Answer, ...] = ()
        transcript = session.transcript
        if session.teased >= TEASER_SECONDS:
            first_visit, told = _first_visit(site)
            transcript += told
        return Reached(
            seconds,
            connected,
            session.tls,
            answer,
            more,
            second,
            transcript,
            site.listener.is_implicit,
            session.teased,
            first_visit,
        )


def _first_visit(site: Site) -> tuple[tuple[Answer, ...], tuple[Line, ...]]:
    """Name a recipient; once more where the first visit is put off."""
    answers: list[Answer] = []
    transcript: tuple[Line, ...] = ()
    host = site.target.domains[0] if site.target.domains else site.target.hostname
    while len(answers) < 2 and (not answers or is_put_off(answers[-1])):
        with Session(site) as session:
            try:
                session.open(tls=False)
                session.command("MAIL FROM:<>")
                answers.append(session.command(f"RCPT TO:<postmaster@{host}>"))
                session.quit()
            except WireError as error:
                if not answers:
                    answers.append(Ended(error.failure, error.detail))
                transcript += session.transcript
                break
            transcript += session.transcript
    return tuple(answers), transcript


def _greeting(session: Session) -> Answer:
    if session.site.listener.is_implicit:
        session.handshake()
    return session.banner()


REACH = Probe("reach", reach)
