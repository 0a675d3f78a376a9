"""Handshakes without the local OpenSSL's policy in between: a ClientHello by hand, and what the server says to it.

OpenSSL on this side would refuse to offer TLS 1.0, anonymous ciphers or export keys, and a verifier that cannot ask
always hears "no". A hello by hand also stops at the server's first record, which costs a fiftieth of a full handshake
in Python. Full handshakes are left to `ssl`, and to tlslite-ng where the inside of TLS 1.3 or a renegotiation has to
be seen.
"""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import threading
import time
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any

# Not in the functions that use it: its modules import each other in a circle, which breaks when two threads begin it.
from tlslite.constants import ContentType
from tlslite.errors import BaseTLSException, TLSAbruptCloseError, TLSClosedConnectionError
from tlslite.handshakesettings import HandshakeSettings
from tlslite.messages import Finished, Message
from tlslite.tlsconnection import TLSConnection
from tlslite.utils.keyfactory import parsePEMKey
from tlslite.x509 import X509
from tlslite.x509certchain import X509CertChain

from gatepost.verify.model import Line
from gatepost.verify.wire import ciphers
from gatepost.verify.wire.session import HANDSHAKE_SECONDS, Failure, Session, WireError, client_context

if TYPE_CHECKING:
    from gatepost.verify.wire.probe import Site

SSL30, TLS10, TLS11, TLS12, TLS13 = 0x0300, 0x0301, 0x0302, 0x0303, 0x0304
VERSION_NAMES = {SSL30: "SSLv3", TLS10: "TLSv1", TLS11: "TLSv1.1", TLS12: "TLSv1.2", TLS13: "TLSv1.3"}
MAX_FLIGHT = 131072  # bytes of a server's first flight that are read at most
# RFC 8446 §4.1.3: a ServerHello with this random is a HelloRetryRequest
_RETRY = bytes.fromhex("cf21ad74e59a6111be1d8c021e65b891c2a211167abb8c5e079e09e2c8a8339c")
_SIGNATURES = (0x0403, 0x0503, 0x0603, 0x0804, 0x0805, 0x0806, 0x0401, 0x0501, 0x0601, 0x0807, 0x0203, 0x0201, 0x0202)
_ALERTS = {
    0: "close_notify", 10: "unexpected_message", 20: "bad_record_mac", 40: "handshake_failure", 47: "illegal_parameter",
    70: "protocol_version", 71: "insufficient_security", 80: "internal_error", 86: "inappropriate_fallback",
    100: "no_renegotiation", 109: "missing_extension", 112: "unrecognized_name", 120: "no_application_protocol",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Offer:
    """What a ClientHello by hand offers."""

    version: int = TLS12
    suites: tuple[int, ...] = (*ciphers.ECDHE_AEAD, *ciphers.ECDHE_CBC, *ciphers.DHE_RSA, *ciphers.RSA_KEX)
    groups: tuple[int, ...] = (ciphers.X25519, ciphers.P256, ciphers.P384, 25, 30)
    server_name: str | None = ""  # "" means the target's hostname, None means no SNI
    deflate: bool = False
    whole_flight: bool = False  # read on to ServerHelloDone instead of stopping behind the ServerHello


@dataclass(frozen=True, slots=True)
class Heard:
    """What the server said to a ClientHello. `version` None: no ServerHello, and `refusal` says what came instead."""

    refusal: str = ""  # alert's name, or how the connection ended
    alert: int | None = None
    version: int | None = None
    suite: int | None = None
    group: int | None = None  # from HelloRetryRequest, key share or ServerKeyExchange
    dh_bits: int | None = None
    deflate: bool = False
    secure_renegotiation: bool = False
    asks_certificate: bool = False
    certificates: tuple[bytes, ...] = ()  # DER, as served, leaf first
    complete: bool = False  # the whole flight was read
    transcript: tuple[Line, ...] = ()

    @property
    def accepted(self) -> bool:
        """Whether the server went along."""
        return self.version is not None

    def __str__(self) -> str:
        if self.version is None:
            return self.refusal
        suite = "" if self.suite is None else f" with {ciphers.name(self.suite)}"
        return f"{VERSION_NAMES.get(self.version, hex(self.version))}{suite}"


def ask(site: Site, offer: Offer) -> Heard:
    """Offer a handshake on a connection of its own and return what the server said.

    Raises WireError when the way to the handshake failed (no connection, no STARTTLS): that is no answer to the offer.
    """
    with Session(site) as session:
        begin(session)
        session.note(f"ClientHello: {VERSION_NAMES.get(offer.version, 'SSLv2')}, {len(offer.suites)} cipher suites")
        server_name = site.target.hostname if offer.server_name == "" else offer.server_name
        heard = exchange(session.raw_socket, client_hello(offer, server_name), whole=offer.whole_flight)
        session.note(f"server: {heard}")
        if not heard.accepted and heard.refusal == str(Failure.TIMED_OUT):
            raise session.failure(Failure.TIMED_OUT, "no answer to a ClientHello")
        if heard.refusal.startswith(f"{Failure.LIMITED}: "):
            raise session.failure(Failure.LIMITED, heard.refusal.removeprefix(f"{Failure.LIMITED}: "))
        return replace(heard, transcript=session.transcript)


def begin(session: Session) -> None:
    """Go to where a ClientHello is due: connected, or behind the 220 to STARTTLS."""
    session.connect()
    if session.site.listener.is_implicit:
        return
    greeting = session.banner(again=True)
    if greeting.code != 220:
        raise session.failure(Failure.LIMITED if greeting.code == 421 else Failure.CLOSED, f"greeted with {greeting}")
    session.ehlo()
    reply = session.command("STARTTLS")
    if reply.code != 220:
        raise session.failure(Failure.TLS_FAILED, f"STARTTLS answered {reply}")


# -- writing a ClientHello ------------------------------------------------------------------------------------------


def client_hello(offer: Offer, server_name: str | None) -> bytes:
    """Return the record of a ClientHello (RFC 5246 §7.4.1.2, RFC 8446 §4.1.2); SSLv2's own form for version 2."""
    if offer.version == 2:
        specs = b"".join(s.to_bytes(3, "big") for s in offer.suites)
        body = b"\x01\x00\x02" + _u16(len(specs)) + _u16(0) + _u16(16) + specs + os.urandom(16)
        return _u16(0x8000 | len(body)) + body
    legacy = min(offer.version, TLS12)
    suites = b"".join(map(_u16, offer.suites))
    body = (
        _u16(legacy)
        + os.urandom(32)
        + b"\x00"
        + _vector(suites, 2)
        + (b"\x02\x01\x00" if offer.deflate else b"\x01\x00")
    )
    extensions = b""
    if offer.version > SSL30:
        if server_name:
            extensions += _extension(0, _vector(b"\x00" + _vector(server_name.encode("idna"), 2), 2))
        if offer.groups:
            extensions += _extension(10, _vector(b"".join(map(_u16, offer.groups)), 2)) + _extension(11, b"\x01\x00")
        if offer.version >= TLS12:
            extensions += _extension(13, _vector(b"".join(map(_u16, _SIGNATURES)), 2))
        if offer.version >= TLS13:
            # No key share: the server names its group in a HelloRetryRequest, and neither side computes one.
            extensions += (
                _extension(43, _vector(_u16(TLS13), 1)) + _extension(51, _vector(b"", 2)) + _extension(45, b"\x01\x01")
            )
        else:
            extensions += _extension(0xFF01, b"\x00")
        body += _vector(extensions, 2)
    message = b"\x01" + len(body).to_bytes(3, "big") + body
    return b"\x16" + _u16(min(legacy, TLS10) if offer.version > SSL30 else SSL30) + _vector(message, 2)


def _u16(number: int) -> bytes:
    return number.to_bytes(2, "big")


def _vector(data: bytes, size: int) -> bytes:
    return len(data).to_bytes(size, "big") + data


def _extension(number: int, data: bytes) -> bytes:
    return _u16(number) + _vector(data, 2)


# -- reading what comes back ----------------------------------------------------------------------------------------


class _Malformed(Exception):
    """Not TLS, or TLS that does not add up."""


class _InClear(Exception):
    """An SMTP reply in clear, where a ServerHello is due."""

    def __init__(self, data: bytes) -> None:
        super().__init__()
        self.said = data.split(b"\n")[0].strip().decode("ascii", "backslashreplace")[:200]


def _what_is_there(connection: socket.socket) -> bytes:
    connection.settimeout(0.2)
    try:
        return connection.recv(512)
    except OSError:
        return b""


class _Bytes:
    """A cursor over bytes that refuses to read beyond their end."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, count: int) -> bytes:
        if self.at + count > len(self.data):
            raise _Malformed("a message shorter than it says")
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")

    def vector(self, size: int) -> bytes:
        return self.take(self.number(size))

    @property
    def left(self) -> int:
        return len(self.data) - self.at


def exchange(connection: socket.socket, hello: bytes, *, whole: bool = False, seconds: float | None = None) -> Heard:
    """Send a ClientHello and read the server's answer to it: one ServerHello, or with `whole` the flight to its end."""
    seconds = HANDSHAKE_SECONDS if seconds is None else seconds
    deadline = time.monotonic() + seconds
    seen: dict[str, Any] = {}
    try:
        connection.settimeout(seconds)
        connection.sendall(hello)
        handshake = b""
        read = 0
        while True:
            head = _exactly(connection, 5, deadline)
            if hello[0] & 0x80 and head[0] & 0x80 and head[2] == 4:  # an SSLv2 SERVER-HELLO
                return Heard(version=2, transcript=())
            if not handshake and head[:3].isdigit():
                raise _InClear(head + _what_is_there(connection))
            kind, length = head[0], int.from_bytes(head[3:5], "big")
            if kind not in (20, 21, 22, 23) or head[1] != 3 or length > 18432:
                raise _Malformed(f"not a TLS record: {head!r}")
            payload = _exactly(connection, length, deadline)
            read += length
            if read > MAX_FLIGHT:
                raise _Malformed(f"more than {MAX_FLIGHT} bytes of handshake")
            if kind == 21:
                if length != 2:
                    raise _Malformed("an alert of a wrong length")
                if payload[0] == 1 and payload[1] in (112,):  # a warning only: unrecognized_name
                    continue
                name = _ALERTS.get(payload[1], str(payload[1]))
                if "version" in seen:  # it had already chosen: the choice is what was asked for
                    return Heard(refusal=f"alert {name} behind the ServerHello", alert=payload[1], **seen)
                return Heard(refusal=f"alert {name}", alert=payload[1])
            if kind != 22:
                raise _Malformed(f"a record of type {kind} in the handshake")
            handshake += payload
            while len(handshake) >= 4 and len(handshake) >= 4 + int.from_bytes(handshake[1:4], "big"):
                size = int.from_bytes(handshake[1:4], "big")
                done = _message(handshake[0], handshake[4 : 4 + size], seen)
                handshake = handshake[4 + size :]
                if done or ("version" in seen and not whole) or seen.get("version") == TLS13:
                    return Heard(complete=done, **seen)
    except _Malformed as error:
        return Heard(refusal=f"{Failure.GARBAGE}: {error}")
    except _InClear as error:
        limited = Failure.LIMITED if error.said.startswith("421") else Failure.GARBAGE
        return Heard(refusal=f"{limited}: greeted in clear instead of TLS with {error.said}")
    except TimeoutError:
        return Heard(refusal=str(Failure.TIMED_OUT))
    except ConnectionResetError:
        return Heard(refusal=str(Failure.RESET))
    except (EOFError, BrokenPipeError):
        return Heard(refusal=str(Failure.CLOSED))
    except OSError as error:
        return Heard(refusal=f"{Failure.RESET}: {error.strerror or error}")


def _exactly(connection: socket.socket, count: int, deadline: float) -> bytes:
    data = b""
    while len(data) < count:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        connection.settimeout(left)
        piece = connection.recv(count - len(data))
        if not piece:
            raise EOFError
        data += piece
    return data


def _message(kind: int, body: bytes, seen: dict[str, Any]) -> bool:
    """Take in one handshake message; return whether the flight ends with it."""
    reader = _Bytes(body)
    if kind == 2:
        version, random = reader.number(2), reader.take(32)
        reader.vector(1)
        suite, compression = reader.number(2), reader.number(1)
        seen.update(version=version, suite=suite, deflate=compression != 0)
        extensions = _Bytes(reader.vector(2)) if reader.left else _Bytes(b"")
        while extensions.left:
            number, data = extensions.number(2), _Bytes(extensions.vector(2))
            if number == 43:
                seen["version"] = data.number(2)
            elif number == 51:
                seen["group"] = data.number(2)
            elif number == 0xFF01:
                seen["secure_renegotiation"] = True
        return random == _RETRY
    if kind == 11:
        chain, found = _Bytes(reader.vector(3)), []
        while chain.left:
            found.append(chain.vector(3))
        seen["certificates"] = tuple(found)
    elif kind == 12:
        if seen.get("suite") in _DHE:
            seen["dh_bits"] = int.from_bytes(reader.vector(2), "big").bit_length()
        elif reader.number(1) == 3:  # named_curve
            seen["group"] = reader.number(2)
    elif kind == 13:
        seen["asks_certificate"] = True
    return kind == 14


_DHE = frozenset((*ciphers.DHE_RSA, *ciphers.ANONYMOUS[:13], 0x0016, 0x0013, 0x0044, 0x0045, 0x0087, 0x0088))


# -- full handshakes --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Handshake:
    """A full handshake, or why there was none."""

    offered: str
    version: str = ""
    cipher: str = ""
    failure: Failure | None = None
    detail: str = ""
    transcript: tuple[Line, ...] = ()

    def __str__(self) -> str:
        return (
            f"{self.version} with {self.cipher}" if self.version else f"{self.offered}: {self.failure}: {self.detail}"
        )


@dataclass(frozen=True, slots=True)
class Versions:
    """Full handshakes with the two versions that a server must speak."""

    tls13: Handshake
    tls12: Handshake


def versions(site: Site) -> Versions:
    """Shake hands with TLS 1.3 alone, and with TLS 1.2 alone."""
    return Versions(shake(site, ssl.TLSVersion.TLSv1_3), shake(site, ssl.TLSVersion.TLSv1_2))


def shake(site: Site, version: ssl.TLSVersion) -> Handshake:
    """Shake hands with one version. Raises WireError only where the port itself failed, not the handshake."""
    offered = version.name.replace("_", ".")
    context = client_context(site, verify=False)
    context.maximum_version = version
    context.minimum_version = version
    with Session(site) as session:
        try:
            begin(session)
            session.handshake(context=context)
        except WireError as error:
            if error.failure not in (
                Failure.TLS_FAILED,
                Failure.TLS_REJECTED,
                Failure.CLOSED,
                Failure.RESET,
                Failure.GARBAGE,
            ):
                raise
            return Handshake(offered, failure=error.failure, detail=error.detail, transcript=error.transcript)
        cipher = session.tls_socket.cipher()
        return Handshake(
            offered, session.tls_socket.version() or "", cipher[0] if cipher else "", transcript=session.transcript
        )


@dataclass(frozen=True, slots=True)
class Groups:
    """What became of each group offered: `good` by number, `weak` and `dhe` (finite-field only) as a whole."""

    good: tuple[tuple[int, Heard], ...]
    weak: Heard
    dhe: Heard


def groups(site: Site) -> Groups:
    """Offer each good group alone, the weak ones together, and finite-field Diffie-Hellman alone."""
    good = []
    for group in (ciphers.X25519, ciphers.P256, ciphers.P384):
        heard = ask(site, Offer(TLS13, ciphers.TLS13, (group,)))
        if not heard.accepted and heard.alert == 70:
            # TLS 1.2 wants the curve of an ECDSA certificate among the groups too (RFC 8422 §5.1.1).
            heard = ask(site, Offer(TLS12, ciphers.ECDHE_AEAD, (group, ciphers.P256), whole_flight=True))
        good.append((group, heard))
    weak = ask(site, Offer(TLS12, (*ciphers.ECDHE_AEAD, *ciphers.ECDHE_CBC), ciphers.WEAK_GROUPS, whole_flight=True))
    return Groups(tuple(good), weak, ask(site, Offer(TLS12, ciphers.DHE_RSA, (), whole_flight=True)))


@dataclass(frozen=True, slots=True)
class Tickets:
    """Session tickets of TLS 1.3 (RFC 8446 §4.6.1): lifetimes in seconds; whether any allows early data."""

    lifetimes: tuple[int, ...]
    early_data: bool


def tickets(site: Site) -> Tickets | None:
    """Return the tickets that come with a TLS 1.3 session, None where TLS 1.3 is not spoken."""
    with Session(site) as session:
        begin(session)
        connection = _tlslite(session, minimum=(3, 4), maximum=(3, 4))
        if connection is None:
            return None
        # What came until here counts, and tlslite raises many kinds on a closed connection.
        with contextlib.suppress(Exception):
            connection.write(b"NOOP\r\n")
            connection.read(max=512, min=1)
        found = connection.tickets
        early = any(getattr(e, "extType", None) == 42 for t in found for e in t.extensions)
        return Tickets(tuple(int(t.ticket_lifetime) for t in found), early)


def chain_of_tls13(site: Site) -> tuple[bytes, ...]:
    """Return the chain as served inside TLS 1.3, where it travels encrypted; empty where TLS 1.3 is not spoken."""
    with Session(site) as session:
        begin(session)
        connection = _tlslite(session, minimum=(3, 4), maximum=(3, 4))
        if connection is None or connection.session.serverCertChain is None:
            return ()
        return tuple(bytes(certificate.bytes) for certificate in connection.session.serverCertChain.x509List)


def renegotiation(site: Site) -> str | None:
    """Start a renegotiation inside TLS 1.2; return "" when the server went along, else its refusal.

    None: no TLS 1.2.
    """
    with Session(site) as session:
        begin(session)
        connection = _tlslite(session, minimum=(3, 3), maximum=(3, 3))
        if connection is None:
            return None
        return _renegotiate(connection)


def _tlslite(session: Session, *, minimum: tuple[int, int], maximum: tuple[int, int]) -> Any:
    """Return a tlslite connection after a full handshake, None when the handshake failed."""
    settings = HandshakeSettings()
    settings.minVersion, settings.maxVersion = minimum, maximum
    settings.minKeySize = 512
    bounded = _Bounded(session.raw_socket)
    connection = _recording()(bounded)
    connection.bounded = bounded
    try:
        connection.handshakeClientCert(settings=settings, serverName=session.site.target.hostname)
    except Exception as error:  # its parsers raise SyntaxError, IndexError and more on what is no certificate
        session.note(f"no handshake by hand: {type(error).__name__}: {error}"[:200])
        return None
    return connection


class _Bounded:
    """A socket for tlslite-ng, which has neither deadlines nor limits: both are given to the connection as a whole."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._deadline = time.monotonic() + 2 * HANDSHAKE_SECONDS  # the handshake, and what follows
        self._left = MAX_FLIGHT
        self.last = b""  # what was received last

    def recv(self, count: int) -> bytes:
        self._wait()
        data = self._socket.recv(min(count, max(1, self._left)))
        self._left -= len(data)
        self.last = data
        return data

    def send(self, data: bytes) -> int:
        self._wait()
        return self._socket.send(data)

    def sendall(self, data: bytes) -> None:
        self._wait()
        self._socket.sendall(data)

    def _wait(self) -> None:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("no end of it")
        if self._left <= 0:
            raise _Malformed(f"more than {MAX_FLIGHT} bytes")
        self._socket.settimeout(left)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._socket, name)


@cache
def _recording() -> Any:
    """Return a TLSConnection that keeps its Finished message, which a renegotiation has to quote (RFC 5746 §3.5)."""

    class Recording(TLSConnection):  # type: ignore[misc]  # tlslite has no types
        """Keeps the client's verify_data."""

        verify_data = b""
        bounded: _Bounded

        def _sendMsg(self, msg: Any, *rest: Any, **more: Any) -> Any:
            if isinstance(msg, Finished):
                self.verify_data = bytes(msg.verify_data)
            return super()._sendMsg(msg, *rest, **more)

    return Recording


def _renegotiate(connection: Any) -> str:
    record = client_hello(Offer(suites=ciphers.ECDHE_AEAD), None)
    hello = record[5:].replace(_extension(0xFF01, b"\x00"), _extension(0xFF01, _vector(connection.verify_data, 1)))
    # The quoted verify_data makes the extension, the list of extensions and the message longer.
    extensions = hello.index(_extension(10, _vector(b"".join(map(_u16, Offer().groups)), 2)))
    hello = hello[: extensions - 2] + _u16(len(hello) - extensions) + hello[extensions:]
    hello = hello[:1] + (len(hello) - 4).to_bytes(3, "big") + hello[4:]
    try:
        for _ in connection._sendMsg(Message(ContentType.handshake, bytearray(hello))):
            pass
        deadline = time.monotonic() + HANDSHAKE_SECONDS
        while time.monotonic() < deadline:
            for result in connection._getNextRecord():
                if result in (0, 1):
                    continue
                header, parser = result
                break
            if header.type == ContentType.alert:
                code = parser.bytes[1]
                return f"alert {_ALERTS.get(code, code)}"
            if header.type == ContentType.handshake and parser.bytes[0] == 2:
                return ""
        return "no answer to the new ClientHello"
    except TimeoutError:
        return "no answer to the new ClientHello"
    except (TLSAbruptCloseError, TLSClosedConnectionError, OSError) as error:
        return f"closed: {type(error).__name__}"
    except Exception as error:  # as above: what its parsers raise on garbage is anybody's guess
        if connection.bounded.last[:3].isdigit():  # GnuTLS leaves it to the application, and Exim gives TLS up
            return f"closed: TLS was given up with {_InClear(connection.bounded.last).said}"
        return f"no answer that could be read: {type(error).__name__}: {error}"[:200]


_once = threading.Lock()


def speaks_old_tls() -> str:
    """Return "" when our own TLS 1.0 and 1.1 hellos are understood by a server that speaks them, else what went
    wrong.

    The server is tlslite-ng's, in this process: it shows that a refusal elsewhere is the server's and not ours
    (VER-02).
    """
    with _once:  # several sites may ask at once
        return _speaks_old_tls()


@cache
def _speaks_old_tls() -> str:
    key, certificate = _throwaway_certificate()
    for version, number in (((3, 1), TLS10), ((3, 2), TLS11)):
        ours, theirs = socket.socketpair()
        settings = HandshakeSettings()
        settings.minVersion = settings.maxVersion = version

        def serve(end: socket.socket = theirs, how: Any = settings) -> None:
            chain = X509CertChain([X509().parse(certificate)])
            with contextlib.suppress(BaseTLSException, OSError):
                TLSConnection(end).handshakeServer(
                    certChain=chain, privateKey=parsePEMKey(key, private=True), settings=how
                )

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        with ours, theirs:
            heard = exchange(ours, client_hello(Offer(number, ciphers.OLD), "localhost"), seconds=5.0)
        thread.join(5.0)
        if heard.version != number:
            return f"our {VERSION_NAMES[number]} ClientHello was answered by {heard}"
    return ""


def _throwaway_certificate() -> tuple[str, str]:
    from datetime import UTC, datetime, timedelta

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder(
        name, name, key.public_key(), 1, now - timedelta(hours=1), now + timedelta(hours=1)
    )
    certificate = builder.sign(key, hashes.SHA256())
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return private.decode(), certificate.public_bytes(pem).decode()
