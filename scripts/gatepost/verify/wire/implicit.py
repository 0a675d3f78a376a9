"""What only a listener with implicit TLS has: silence before the handshake (RFC 8314 §3.3), SNI and ALPN at will."""

from __future__ import annotations

from dataclasses import dataclass

from gatepost.verify.model import Line
from gatepost.verify.wire.probe import Probe, Site
from gatepost.verify.wire.session import Answer, Ended, Failure, Session, WireError, client_context

SILENCE_SECONDS = 2.5
ANSWER_SECONDS = 2.5
PROTOCOLS = ("http/1.1", "smtp")


@dataclass(frozen=True, slots=True)
class Clear:
    """A connection in clear: what came unasked, what came to an EHLO, and how it ended (None: it did not)."""

    unasked: bytes
    answer: bytes
    ended: Failure | None
    transcript: tuple[Line, ...]


def _in_clear(site: Site) -> Clear:
    """Connect, say nothing for a while, then send EHLO in clear."""
    with Session(site) as session:
        session.connect()
        unasked = answer = b""
        ended: Failure | None = None
        try:
            unasked = session.read(SILENCE_SECONDS)
            session.send(f"EHLO {site.ehlo}\r\n".encode())
            answer = session.read(ANSWER_SECONDS)
            session.read(ANSWER_SECONDS)
        except WireError as error:
            ended = error.failure
        return Clear(unasked, answer, ended, session.transcript)


@dataclass(frozen=True, slots=True)
class Hello:
    """A handshake with another ClientHello than usual, and the first reply inside it."""

    chosen: str | None  # ALPN protocol
    banner: Answer
    transcript: tuple[Line, ...]


def _hello(site: Site, *, server_name: str | None = None, protocol: str | None = None) -> Hello:
    with Session(site) as session:
        session.connect()
        context = client_context(site, verify=False)
        if protocol is not None:
            context.set_alpn_protocols([protocol])
        session.handshake(context=context, server_name=server_name)
        chosen = session.tls_socket.selected_alpn_protocol()
        try:
            banner: Answer = session.banner(again=True)
        except WireError as error:
            banner = Ended(error.failure, error.detail)
        return Hello(chosen, banner, session.transcript)


def _alpn(site: Site) -> tuple[tuple[str, Hello | Ended], ...]:
    """Shake hands with the ALPN protocol http/1.1, and with smtp, and read the greeting."""
    tried: list[tuple[str, Hello | Ended]] = []
    for protocol in PROTOCOLS:
        try:
            tried.append((protocol, _hello(site, protocol=protocol)))
        except WireError as error:
            tried.append((protocol, Ended(error.failure, error.detail)))
    return tuple(tried)


IN_CLEAR = Probe("implicit-in-clear", _in_clear, slow=True)
WITHOUT_SNI = Probe(
    "implicit-without-sni",
    lambda site: _hello(site, server_name=""),
    about="Shake hands without naming the server, and read the greeting.",
)
ALPN = Probe("implicit-alpn", _alpn)
