"""A port as a mail client meets it: connect, TLS with a certificate that must be good, and what is offered for AUTH."""

from __future__ import annotations

import time
from dataclasses import dataclass

from gatepost.verify.wire.probe import Site
from gatepost.verify.wire.session import Failure, Reply, Session, WireError

_WORDS = {
    Failure.TIMED_OUT: "timeout",
    Failure.LIMITED: "limited for now, try again in a minute",
    Failure.TLS_REJECTED: "TLS",
    Failure.TLS_FAILED: "TLS",
}


@dataclass(frozen=True, slots=True)
class Visit:
    """How far a mail client comes at one port. Times are whole milliseconds from the start of the connection."""

    site: Site
    failure: Failure | None = None  # what stopped it, None when it came to the EHLO inside TLS
    detail: str = ""
    connect_ms: int | None = None  # None: not connected
    ready_ms: int | None = None  # the EHLO reply inside TLS was there
    version: str = ""
    cipher: str = ""
    certificate: str = ""  # "good", why it is not, or empty when none was seen
    mechanisms: tuple[str, ...] = ()  # offered for AUTH inside TLS
    auth_in_clear: bool = False

    @property
    def answers(self) -> bool:
        """Whether something that speaks SMTP is there."""
        return self.ready_ms is not None

    @property
    def works(self) -> bool:
        """Whether a mail program can log in here, safely."""
        return self.site.listener.is_submission and not self.problem

    @property
    def problem(self) -> str:
        """Return what stops a mail program here; empty when nothing does, and where none should log in anyway."""
        if self.failure is not None:
            return f"{_WORDS.get(self.failure, self.failure)}: {self.detail}"
        if self.certificate != "good":
            return f"certificate: {self.certificate}"
        if not self.site.listener.is_submission:
            return ""
        if self.auth_in_clear:
            return "login: offered without TLS too, so that passwords can be stolen on the way"
        if not {"PLAIN", "LOGIN"} & set(self.mechanisms):
            return f"login: not offered inside TLS{f' but by {self.mechanisms}' if self.mechanisms else ''}"
        return ""


def visit(site: Site) -> Visit:
    """Go as far as a mail client goes before it logs in; once more with any certificate where it is not good."""
    seen = _visit(site, verify=True)
    if seen.certificate in ("", "good"):
        return seen
    again = _visit(site, verify=False)
    return Visit(
        site,
        again.failure,
        again.detail,
        again.connect_ms,
        again.ready_ms,
        again.version,
        again.cipher,
        seen.certificate,
        again.mechanisms,
        again.auth_in_clear,
    )


def _visit(site: Site, *, verify: bool) -> Visit:
    began = time.monotonic()

    def since() -> int:
        return round((time.monotonic() - began) * 1000)

    connected: int | None = None
    in_clear = False
    with Session(site, seconds=20.0) as session:
        try:
            session.connect()
            connected = since()
            if site.listener.is_implicit:
                session.handshake(verify=verify)
            greeting = session.banner()
            if greeting.code != 220:
                kind = Failure.LIMITED if greeting.code in (421, 450) else Failure.CLOSED
                raise session.failure(kind, f"greeted with {greeting}")
            reply = session.ehlo()
            if not session.tls:
                in_clear = bool(_mechanisms(reply))
                if reply.keyword("STARTTLS") is None:
                    raise session.failure(Failure.TLS_FAILED, "STARTTLS is not offered")
                session.starttls(verify=verify)
                reply = session.ehlo()
            ready = since()
            cipher = session.tls_socket.cipher()
            return Visit(
                site,
                connect_ms=connected,
                ready_ms=ready,
                version=session.tls_socket.version() or "",
                cipher=cipher[0] if cipher else "",
                certificate="good" if verify else "",
                mechanisms=_mechanisms(reply),
                auth_in_clear=in_clear,
            )
        except WireError as error:
            refused = error.detail.partition("certificate not accepted: ")[2]
            return Visit(site, error.failure, error.detail, connected, certificate=refused, auth_in_clear=in_clear)


def _mechanisms(reply: Reply) -> tuple[str, ...]:
    return tuple((reply.keyword("AUTH") or "").upper().split())
