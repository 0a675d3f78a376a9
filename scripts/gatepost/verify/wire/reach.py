"""The first look at a port: does it answer, does it greet, and with what."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass

from gatepost.verify.model import Line
from gatepost.verify.wire.probe import Probe, Site
from gatepost.verify.wire.session import Answer, Ended, Failure, Reply, Session, WireError


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

    Never raises WireError.
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
        return Reached(
            seconds, connected, session.tls, answer, more, second, session.transcript, site.listener.is_implicit
        )


def _greeting(session: Session) -> Answer:
    if session.site.listener.is_implicit:
        session.handshake()
    return session.banner()


REACH = Probe("reach", reach)
