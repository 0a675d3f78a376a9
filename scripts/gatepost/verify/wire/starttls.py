"""The step from clear to TLS inside one connection (RFC 3207), watched closely."""

from __future__ import annotations

from dataclasses import dataclass

from gatepost.verify.model import Line
from gatepost.verify.wire.probe import Probe, Site
from gatepost.verify.wire.session import Answer, Ended, Failure, Reply, Session, WireError

CLOSE_SECONDS = 4.0  # Postfix closes at once when a handshake fails
MOST_SAID = 16384  # bytes


@dataclass(frozen=True, slots=True)
class Upgrade:
    """A STARTTLS that succeeded, a MAIL sent before the new EHLO, and that EHLO."""

    starttls: Reply
    early_mail: Answer
    ehlo: Answer
    transcript: tuple[Line, ...]


def _upgrade(site: Site) -> Upgrade:
    """Send STARTTLS, shake hands, send MAIL at once, then EHLO."""
    with Session(site) as session:
        session.open(tls=False)
        starttls = session.starttls()
        early = _ask(session, "MAIL FROM:<>")
        ehlo = _ask(session, f"EHLO {site.ehlo}")
        return Upgrade(starttls, early, ehlo, session.transcript)


@dataclass(frozen=True, slots=True)
class Spoilt:
    """What the server said after a 220 to STARTTLS was followed by text in clear: replies that look like SMTP."""

    said: str  # readable lines only; a TLS alert is none
    mail: Answer | None  # to a second MAIL in clear, where the connection still stood
    closed: bool
    transcript: tuple[Line, ...]


def _spoil(site: Site) -> Spoilt:
    """Send STARTTLS, then MAIL in clear instead of a handshake, then MAIL again where the connection still stands."""
    with Session(site) as session:
        session.open(tls=False)
        reply = session.command("STARTTLS")
        if reply.code != 220:
            raise WireError(Failure.TLS_FAILED, f"STARTTLS answered {reply}")
        session.send(b"MAIL FROM:<>\r\n")
        said = bytearray()
        try:
            said += session.read(CLOSE_SECONDS)
            while len(said) < MOST_SAID and (more := session.read(0.5)) != b"":
                said += more
            session.send(b"MAIL FROM:<>\r\n")
            mail: Answer | None = _reply(session)
            closed = isinstance(mail, Ended) and mail.failure is not Failure.TIMED_OUT
        except WireError as error:
            mail, closed = None, error.failure in (Failure.CLOSED, Failure.RESET)
        lines = [line for line in said.split(b"\n") if line[:3].isdigit()]
        text = b" ".join(lines).decode("ascii", "backslashreplace").strip()
        return Spoilt(text, mail, closed, session.transcript)


def _ask(session: Session, line: str) -> Answer:
    try:
        return session.command(line)
    except WireError as error:
        return Ended(error.failure, error.detail)


def _reply(session: Session) -> Answer:
    try:
        return session.reply(CLOSE_SECONDS)
    except WireError as error:
        return Ended(error.failure, error.detail)


UPGRADE = Probe("starttls-upgrade", _upgrade)
SPOILT = Probe("starttls-spoilt", _spoil)
