"""What goes to a server out of turn: commands hidden in a message, ahead of TLS, or ahead of the greeting.

Nothing of it is delivered by a server that counts hops: each message has more Received lines than RFC 5321 §6.3 asks a
server to take, so that its end brings a refusal. A server that takes it all the same delivers it to U.
"""

from __future__ import annotations

from dataclasses import dataclass

from gatepost.verify.model import Line
from gatepost.verify.wire import message as messages
from gatepost.verify.wire.probe import Probe, Site
from gatepost.verify.wire.session import Answer, Ended, Reply, Session, WireError

HOPS = 110  # Postfix's hopcount_limit is 50, OpenSMTPD's 100; RFC 5321 §6.3: normally at least 100
_RECEIVED = "Received: from gatepost.invalid by gatepost.invalid; Thu, 1 Jan 1970 00:00:00 +0000"


def looping(site: Site, kind: str, recipient: str) -> bytes:
    """Return a message to `recipient` that has gone round too often, up to and without the end of its last line."""
    sender = f"gatepost-probe@{site.target.hostname}"
    body = b"A probe by Gatepost, which this server should not take."
    return messages.message(site, kind, sender=sender, recipient=recipient, headers=(_RECEIVED,) * HOPS, body=body)


@dataclass(frozen=True, slots=True)
class Early:
    """A whole session sent at once: what came back, as far as the reply to DATA."""

    answers: tuple[Answer, ...]  # greeting, EHLO, MAIL, RCPT, DATA; the last one may be how it ended
    handed_over: bool  # a greeting in two parts was ended: postscreen let this client through
    transcript: tuple[Line, ...]


def early(site: Site, recipient: str, *, message: bool) -> Early:
    """Send a session before the greeting has come, with its message or up to DATA, and read the replies up to DATA's.

    Without the message the connection is closed behind a 354.
    """
    commands = f"EHLO {site.ehlo}\r\nMAIL FROM:<>\r\nRCPT TO:<{recipient}>\r\nDATA\r\n".encode()
    content = looping(site, "before-the-greeting", recipient) + b"\r\n.\r\nQUIT\r\n" if message else b""
    answers: list[Answer] = []
    handed_over = False
    with Session(site) as session:
        session.connect()
        if site.listener.is_implicit:
            session.handshake()
        session.send(commands + content)
        try:
            answers.append(session.banner(broken_off=True))
            handed_over = session.teased > 0
            while len(answers) < 5 and not _is_final(answers[-1]):
                answers.append(session.reply())
        except WireError as error:
            answers.append(Ended(error.failure, error.detail))
        return Early(tuple(answers), handed_over, session.transcript)


def _is_final(answer: Answer) -> bool:
    return not isinstance(answer, Reply) or answer.code in (221, 354, 421, 521)


@dataclass(frozen=True, slots=True)
class Ahead:
    """STARTTLS and commands in one segment: the reply to STARTTLS, and what came inside TLS up to the end of QUIT."""

    starttls: Answer
    inside: tuple[Answer, ...]  # the last element is how it ended, or the 221 to QUIT
    transcript: tuple[Line, ...]


def _ahead(site: Site) -> Ahead:
    """Send `STARTTLS`, `EHLO injected` and `RSET` in one segment, shake hands, send QUIT and read to the end."""
    with Session(site) as session:
        session.open(tls=False)
        session.send(b"STARTTLS\r\nEHLO injected.invalid\r\nRSET\r\n")
        inside: list[Answer] = []
        try:
            starttls: Answer = session.reply()
        except WireError as error:
            return Ahead(Ended(error.failure, error.detail), (), session.transcript)
        if isinstance(starttls, Reply) and starttls.code == 220:
            try:
                session.handshake()
                session.send(b"QUIT\r\n")
                while len(inside) < 5 and not (inside and _is_final(inside[-1])):
                    inside.append(session.reply())
            except WireError as error:
                inside.append(Ended(error.failure, error.detail))
        return Ahead(starttls, tuple(inside), session.transcript)


AHEAD = Probe("starttls-injected", _ahead)
