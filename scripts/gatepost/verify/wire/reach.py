"""The first look at a port: does it answer, does it greet, and with what."""

from __future__ import annotations

import time
from dataclasses import dataclass

from gatepost.verify.model import Line
from gatepost.verify.wire.probe import Probe, Site
from gatepost.verify.wire.session import Answer, Ended, Failure, Session, WireError


@dataclass(frozen=True, slots=True)
class Reached:
    """How far a first connection came. `answer` is the greeting, or how it ended before one."""

    seconds: float  # of the TCP handshake
    connected: bool
    tls: bool  # implicit TLS came about
    answer: Answer
    waited: float  # from connected (implicit: from TLS) to the greeting
    more: bytes  # what came behind the greeting without being asked for
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
    """Connect, shake hands where TLS is implicit, read the greeting. Never raises WireError."""
    with Session(site) as session:
        began = time.monotonic()
        seconds = waited = 0.0
        connected, more = False, b""
        answer: Answer
        try:
            session.connect()
            connected, seconds = True, time.monotonic() - began
            if site.listener.is_implicit:
                session.handshake()
            answer = session.banner()
            waited = answer.seconds
            more = session.read(0.1)
        except WireError as error:
            if "answer" not in locals():
                answer = Ended(error.failure, error.detail, time.monotonic() - began)
        return Reached(
            seconds, connected, session.tls, answer, waited, more, session.transcript, site.listener.is_implicit
        )


REACH = Probe("reach", reach)
