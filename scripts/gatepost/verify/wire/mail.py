"""MAIL parameters and the size limit, on one connection: the limit is known only from its EHLO."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from gatepost.verify.wire.probe import Case, Dialogue, Site, Step, Told, case, open_session, tell_case
from gatepost.verify.wire.session import Answer, Ended, Session, WireError

LARGEST = 64 * 1024 * 1024  # octets: a limit above this is not tried out


@dataclass(frozen=True, slots=True)
class Mail:
    """The cases by label, and the limit that they aimed at (None: not announced)."""

    limit: int | None
    dialogue: Dialogue


def mail(site: Site) -> Mail:
    """Try MAIL parameters, then announce and then send one octet more than the SIZE limit. Logs in on submission."""
    with Session(site, seconds=90.0) as session:
        opened = open_session(session, tls=True, ehlo=None, account=0, greet_only=False)
        size = opened.tls.keyword("SIZE") if opened.tls else None
        limit = int(size) if size and size.isdecimal() and len(size) < 16 and int(size) > 0 else None
        sender = site.target.accounts[0].address if site.listener.is_submission else ""
        told = []
        # What a server may count as errors of syntax comes last: Exim closes at the fourth (smtp_max_synprot_errors).
        if limit is not None:
            told.append(tell_case(session, case("SIZE", f"MAIL FROM:<{sender}> SIZE={limit + 1}"))[0])
            if limit <= LARGEST:
                told.append(_oversized(session, sender, limit))
        told += [
            tell_case(session, this)[0]
            for this in (
                case("DSN", f"MAIL FROM:<{sender}> RET=HDRS", f"RCPT TO:<postmaster@{site.domain}> NOTIFY=SUCCESS"),
                case("BODY=BINARYMIME", f"MAIL FROM:<{sender}> BODY=BINARYMIME"),
                case("REQUIRETLS", f"MAIL FROM:<{sender}> REQUIRETLS"),
                case("FOO=bar", f"MAIL FROM:<{sender}> FOO=bar"),
            )
        ]
        return Mail(limit, Dialogue(opened.greeting, opened.clear, opened.tls, tuple(told), opened.login))


def _oversized(session: Session, sender: str, limit: int) -> Told:
    to = f"postmaster@{session.site.domain}"
    before = len(session.transcript)
    begun, alive = tell_case(
        session,
        Case("DATA", case("", f"MAIL FROM:<{sender}>", f"RCPT TO:<{to}>", "DATA").sends, stop_on_error=True),
        rset=False,
    )
    if alive and begun.codes[-1:] != (354,):
        tell_case(session, case("", "RSET"), rset=False)
    if not alive or begun.codes[-1:] != (354,):
        return begun
    answer: Answer
    octets = limit + 1 + limit // 900  # a server that counts the end of a line as one octet (Exim) has to see it too
    try:
        session.stream(_message(octets))
        answer = session.reply(30.0)
    except WireError as error:
        answer = Ended(error.failure, error.detail)
    steps = (*begun.steps, Step(f"({octets} octets)", (answer,)))
    return Told("DATA", steps, session.transcript[before:])


def _message(octets: int) -> Iterator[bytes]:
    """Make a message of so many octets, line by line: a server may announce a limit that is large for this side."""
    line = b"Subject: Gatepost probe of message_size_limit; not to be delivered\r\n\r\n"
    octets -= 2
    while octets > 0:
        yield line[:octets]
        octets -= len(line)
        line = _LINES
    yield b"\r\n.\r\n"


_LINES = (b"x" * 998 + b"\r\n") * 64
