"""One SMTP connection with a reader of its own: every read has a deadline, memory is bounded, nothing is trusted.

`smtplib` hides what a verifier has to see (how a connection ended, bytes after a reply) and reads lines without a
limit.
"""

from __future__ import annotations

import base64
import contextlib
import enum
import re
import select
import socket
import ssl
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Self

from gatepost.verify.model import Account, Line

if TYPE_CHECKING:
    from gatepost.verify.wire.probe import Site

CONNECT_SECONDS = 3.0  # GEN-NET-01
BANNER_SECONDS = 5.0  # GEN-BAN-01
POSTSCREEN_SECONDS = 10.0  # after a first `220-` line: postscreen's greet_wait is 6 s, plus 2, plus slack
HANDSHAKE_SECONDS = 8.0  # a loaded server hashes passwords meanwhile, and greets on implicit TLS behind that
REPLY_SECONDS = 8.0
MAX_LINE = 4096  # RFC 5321 §4.5.3.1.5 asks for 512; more than this is garbage
MAX_REPLY = 32768  # an EHLO reply of Postfix has 300; many are kept until the report is made
MAX_LINES = 256  # of one reply
MAX_QUOTED = 300  # characters of a reply's first line in a sentence; the transcript has more
MAX_TRANSCRIPT = 400  # lines kept of one connection
MAX_SHOWN = 400  # characters kept of one transcript line

STOPPED = "the run was stopped before the server answered"

_REPLY_LINE = re.compile(rb"([2-5][0-9]{2})([ -])(.*)\Z", re.DOTALL)
_BARE_CODE = re.compile(rb"[2-5][0-9]{2}\Z")
_ENHANCED = re.compile(r"([245])\.(\d{1,3})\.(\d{1,3})(?= |\Z)")


class Stop(threading.Event):
    """The end of a run for its connections. Setting it shuts down the watched sockets, so that whatever waits on one,
    in Python, OpenSSL or tlslite-ng, ends at once."""

    def __init__(self) -> None:
        super().__init__()
        self._watched: weakref.WeakSet[socket.socket] = weakref.WeakSet()
        self._guard = threading.Lock()

    def watch(self, connection: socket.socket) -> None:
        """Shut this socket down when the run ends."""
        with self._guard:
            self._watched.add(connection)
        if self.is_set():
            _shut(connection)

    def set(self) -> None:
        """End everything."""
        super().set()
        with self._guard:
            for connection in tuple(self._watched):
                _shut(connection)


def _shut(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        # Past SSLSocket.shutdown(), which forgets its TLS and would let the next write through in clear.
        socket.socket.shutdown(connection, socket.SHUT_RDWR)


class Failure(enum.StrEnum):
    """How a connection or a read ended when it did not end in a reply."""

    REFUSED = "refused"  # RST to our SYN
    UNREACHABLE = "unreachable"  # ICMP, no route, no such address here
    TIMED_OUT = "timed out"  # nothing within the deadline
    CLOSED = "closed"  # end of file
    RESET = "reset"  # RST in the middle
    TLS_REJECTED = "TLS rejected"  # the server sent a TLS alert; `detail` names it
    TLS_FAILED = "TLS failed"  # the handshake ended otherwise, or we did not accept the certificate
    GARBAGE = "garbage"  # not SMTP, not TLS, or beyond our limits
    LOGIN_REFUSED = "login refused"  # the first account's, by 535: SUB-AUTH-05 says so
    LIMITED = "limited"  # the server answered by a limit of its own (421, too many …): says nothing about the question
    BUSY = "busy"  # something on this computer stands in the way
    NOT_TRIED = "not tried"  # by us, on purpose
    BROKEN = "broken"  # a mistake in this program


class WireError(Exception):
    """A connection that went another way than asked. `failure` classifies, `detail` quotes."""

    def __init__(self, failure: Failure, detail: str) -> None:
        super().__init__(f"{failure}: {detail}")
        self.failure = failure
        self.detail = detail
        self.transcript: tuple[Line, ...] = ()  # filled in by the session that raises


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole SMTP reply (RFC 5321 §4.2). `lines` are the texts behind the code, undecodable bytes escaped."""

    code: int
    lines: tuple[str, ...]
    seconds: float = 0.0  # from sending the command to the last byte of the reply

    @property
    def enhanced(self) -> str:
        """Return the enhanced status code of the first line (RFC 2034), or an empty string."""
        match = _ENHANCED.match(self.lines[0])
        return match.group(0) if match else ""

    @property
    def text(self) -> str:
        """Return the whole text, lines joined by a newline."""
        return "\n".join(self.lines)

    @property
    def keywords(self) -> tuple[str, ...]:
        """Return the lines behind the first one, as written: an EHLO reply's extensions."""
        return self.lines[1:]

    def keyword(self, name: str) -> str | None:
        """Return the parameters of an EHLO extension (empty string when it has none), None when it is not offered."""
        for line in self.keywords:
            word, _, rest = line.partition(" ")
            if word.upper() == name.upper():
                return rest.strip()
        return None

    def __str__(self) -> str:
        first = self.lines[0]
        quoted = first if len(first) <= MAX_QUOTED else f"{first[:MAX_QUOTED]} … ({len(first)} characters)"
        return f"{self.code} {quoted}" + (f" (+{len(self.lines) - 1} lines)" if len(self.lines) > 1 else "")


@dataclass(frozen=True, slots=True)
class Ended:
    """What stands in a reply's place when there was none."""

    failure: Failure
    detail: str
    seconds: float = 0.0

    def __str__(self) -> str:
        return f"{self.failure}: {self.detail}" if self.detail else str(self.failure)


Answer = Reply | Ended


class Session:
    """A connection to one listener. Use as a context manager; it closes without QUIT unless :meth:`quit` was called.

    Methods that read return a :class:`Reply` or raise :class:`WireError`, whose `transcript` is filled in.
    Credentials never reach the transcript: what follows an AUTH verb or a 334 is blanked there.
    """

    def __init__(self, site: Site, *, seconds: float = 60.0) -> None:
        self.site = site
        self.tls = False
        self.sent = ""  # what was sent last, as the transcript shows it
        self.teased = 0.0  # seconds between a greeting's first line, `220-`, and its last (postscreen's greet_wait)
        self._socket: socket.socket | ssl.SSLSocket | None = None
        self._buffer = bytearray()
        self._start = time.monotonic()
        self._end = self._start + seconds  # the whole connection's deadline
        self._lines: list[Line] = []
        self._challenged = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- transcript ------------------------------------------------------------------------------------------------

    @property
    def transcript(self) -> tuple[Line, ...]:
        """Return what was said so far."""
        return tuple(self._lines)

    def note(self, text: str) -> None:
        """Record a connection or TLS event."""
        self._record("note", text)

    def _record(self, direction: str, text: str) -> None:
        if len(self._lines) < MAX_TRANSCRIPT:
            self._lines.append(Line(round(time.monotonic() - self._start, 4), direction, shortened(text)))

    def failure(self, failure: Failure, detail: str) -> WireError:
        """Return the error to raise, noted in the transcript and carrying it."""
        if self.site.cancelled.is_set():  # then it is this side that ended the connection
            failure, detail = Failure.NOT_TRIED, STOPPED
        self.note(f"{failure}: {detail}" if detail else str(failure))
        error = WireError(failure, detail)
        error.transcript = self.transcript
        return error

    # -- connecting ------------------------------------------------------------------------------------------------

    def connect(self, timeout: float | None = None) -> None:
        """Open the TCP connection, from the target's source address where one is given."""
        site = self.site
        timeout = CONNECT_SECONDS if timeout is None else timeout
        if site.cancelled.is_set():
            raise self.failure(Failure.NOT_TRIED, STOPPED)
        source = (site.source, 0) if site.source else None
        try:
            self._socket = socket.create_connection((site.address, site.listener.port), timeout, source)
            with contextlib.suppress(OSError):  # a connection that was reset already: the first read says so
                self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            site.cancelled.watch(self._socket)
        except ConnectionRefusedError:
            raise self.failure(Failure.REFUSED, f"connection to {site} refused") from None
        except TimeoutError:
            raise self.failure(Failure.TIMED_OUT, f"no answer from {site} within {timeout:g} s") from None
        except OSError as error:
            raise self.failure(Failure.UNREACHABLE, f"{site}: {error.strerror or error}") from None
        self.note(f"connected to {site}")

    def banner(
        self,
        timeout: float | None = None,
        *,
        again: bool = False,
        meanwhile: Callable[[], None] | None = None,
        broken_off: bool = False,
    ) -> Reply:
        """Read the greeting; a first `220-` line (postscreen) earns the wait for the second one.

        `again`: this port has greeted before, and GEN-BAN-01 is judged; the wait is that for any reply. (On implicit
        TLS Postfix greets when Dovecot's one auth process has a moment; our own logins keep it busy with hashing.)
        `meanwhile` is called when that wait begins. With `broken_off` a greeting is whole where another reply begins:
        to a client that speaks too early postscreen never ends it.
        """
        timeout = (REPLY_SECONDS if again else BANNER_SECONDS) if timeout is None else timeout
        return self._read_reply(timeout, then=POSTSCREEN_SECONDS, meanwhile=meanwhile, broken_off=broken_off)

    def open(self, *, ehlo: str | None = None, tls: bool = True, verify: bool = False) -> Reply:
        """Connect and go as far as asked: TLS where `tls` (implicit listeners: always), banner, EHLO; return the last
        reply.

        `ehlo` is the name to say, the site's own by default. `verify` demands a certificate that the target's trust
        store and hostname accept, in this very handshake.
        """
        self.connect()
        if self.site.listener.is_implicit:
            self.handshake(verify=verify)
        greeting = self.banner(again=True)
        if greeting.code != 220:
            raise self.failure(Failure.LIMITED if greeting.code == 421 else Failure.CLOSED, f"greeted with {greeting}")
        reply = self.ehlo(ehlo)
        if tls and not self.tls:
            self.starttls(verify=verify)
            reply = self.ehlo(ehlo)
        return reply

    def ehlo(self, name: str | None = None) -> Reply:
        """Send EHLO."""
        return self.command(f"EHLO {name or self.site.ehlo}")

    def starttls(self, *, verify: bool = False) -> Reply:
        """Send STARTTLS and shake hands; raise unless both succeed. Bytes sent ahead by the server are garbage."""
        reply = self.command("STARTTLS")
        if reply.code != 220:
            raise self.failure(Failure.TLS_FAILED, f"STARTTLS answered {reply}")
        if self._buffer:
            raise self.failure(Failure.GARBAGE, "bytes in clear behind the 220 to STARTTLS")
        self.handshake(verify=verify)
        return reply

    def handshake(
        self, *, verify: bool = False, context: ssl.SSLContext | None = None, server_name: str | None = None
    ) -> None:
        """Shake hands on the open connection (TLS 1.2 or 1.3 by default; certificate judged only where `verify`).

        `server_name` is the name for SNI: the target's by default, an empty string sends none.
        """
        context = context or client_context(self.site, verify=verify)
        assert self._socket is not None
        self._socket.settimeout(max(0.01, min(HANDSHAKE_SECONDS, self._end - time.monotonic())))
        try:
            name = self.site.target.hostname if server_name is None else server_name or None
            # In two steps: while hands are shaken the socket is already watched, and a connection that was reset is
            # noticed (wrap_socket alone leaves it without TLS and says nothing).
            wrapped = context.wrap_socket(self._socket, server_hostname=name, do_handshake_on_connect=False)
            self._socket = wrapped
            self.site.cancelled.watch(wrapped)
            self._refused_in_clear(wrapped)
            wrapped.do_handshake()
        except TimeoutError:
            raise self.failure(Failure.TIMED_OUT, "no end of the TLS handshake") from None
        except ssl.SSLCertVerificationError as error:
            raise self.failure(Failure.TLS_FAILED, f"certificate not accepted: {error.verify_message}") from None
        except ssl.SSLError as error:
            reason = (error.reason or str(error)).replace("_", " ").lower()
            rejected = "alert" in reason
            raise self.failure(Failure.TLS_REJECTED if rejected else Failure.TLS_FAILED, reason) from None
        except ConnectionResetError:
            raise self.failure(Failure.RESET, "in the TLS handshake") from None
        except OSError as error:
            raise self.failure(Failure.CLOSED, f"in the TLS handshake: {error.strerror or error}") from None
        self.tls = True
        cipher = wrapped.cipher()
        self.note(f"{wrapped.version()} with {cipher[0] if cipher else 'no cipher'}")

    def _refused_in_clear(self, wrapped: ssl.SSLSocket) -> None:
        """Send the ClientHello, and raise when the answer is an SMTP reply in clear, as a server's that has too many
        connections already to shake hands on another one."""
        timeout = wrapped.gettimeout()
        wrapped.settimeout(0)
        with contextlib.suppress(ssl.SSLWantReadError, ssl.SSLWantWriteError):
            wrapped.do_handshake()
            return
        waiting = select.poll()
        waiting.register(wrapped, select.POLLIN)
        waiting.poll((timeout or 0) * 1000)
        with contextlib.suppress(BlockingIOError):
            # Not SSLSocket.recv(), which has no peeking.
            first = socket.socket.recv(wrapped, 512, socket.MSG_PEEK)
            if first[:3].isdigit():
                said = _printable(first.split(b"\n")[0].strip())
                limited = first.startswith(b"421")
                raise self.failure(
                    Failure.LIMITED if limited else Failure.GARBAGE, f"greeted in clear instead of TLS with {said}"
                )
        wrapped.settimeout(timeout)

    @property
    def tls_socket(self) -> ssl.SSLSocket:
        """Return the TLS socket, for what only it knows (version, cipher, session)."""
        assert isinstance(self._socket, ssl.SSLSocket)
        return self._socket

    @property
    def raw_socket(self) -> socket.socket:
        """Return the connected socket, for a handshake by hand (:mod:`gatepost.verify.wire.tls`)."""
        assert self._socket is not None
        return self._socket

    # -- speaking --------------------------------------------------------------------------------------------------

    def command(self, line: str, timeout: float | None = None) -> Reply:
        """Send one line (CRLF is added) and read its reply."""
        self.send(line.encode("utf-8", "surrogateescape") + b"\r\n")
        return self.reply(timeout)

    def send(self, data: bytes) -> None:
        """Send bytes as they are; the transcript shows them escaped, credentials blanked."""
        assert self._socket is not None
        self.sent = _shown(data, challenged=self._challenged)
        self._record("send", self.sent)
        self._challenged = False
        self._socket.settimeout(max(0.01, min(REPLY_SECONDS, self._end - time.monotonic())))
        try:
            self._socket.sendall(data)
        except TimeoutError:
            raise self.failure(Failure.TIMED_OUT, "the server takes no more bytes") from None
        except (BrokenPipeError, ConnectionResetError, ssl.SSLError):
            # What the server said before it closed may still be readable: the next read tells.
            self.note("the server had closed before this was sent")
        except OSError as error:
            raise self.failure(Failure.RESET, str(error.strerror or error)) from None

    def stream(self, data: bytes | Iterable[bytes]) -> None:
        """Send much, as a whole or in pieces made on the way, with only its size in the transcript; ends early when
        the server closes."""
        assert self._socket is not None
        sent = 0
        try:
            for piece in (data,) if isinstance(data, bytes) else data:
                view = memoryview(piece)
                while view and not self.site.cancelled.is_set():
                    self._socket.settimeout(max(0.01, min(REPLY_SECONDS, self._end - time.monotonic())))
                    # One TLS record: the time allowed counts for each of them anew.
                    self._socket.sendall(view[:16384])
                    sent += len(view[:16384])
                    view = view[16384:]
            self._record("send", f"({sent} octets)")
        except TimeoutError:
            raise self.failure(Failure.TIMED_OUT, f"the server takes no more bytes after {sent}") from None
        except OSError:
            self.note(f"the server closed after {sent} octets of a message")

    def reply(self, timeout: float | None = None) -> Reply:
        """Read one reply."""
        reply = self._read_reply(REPLY_SECONDS if timeout is None else timeout)
        self._challenged = reply.code == 334
        return reply

    def replies(self, quiet: float, most: int = 20) -> tuple[Answer, ...]:
        """Read replies until the server is silent for `quiet` seconds, or closes (the last element then says so)."""
        answers: list[Answer] = []
        while len(answers) < most:
            try:
                answers.append(self.reply(quiet))
            except WireError as error:
                if error.failure is not Failure.TIMED_OUT:
                    answers.append(Ended(error.failure, error.detail))
                break
        return tuple(answers)

    def read(self, timeout: float, most: int = 4096) -> bytes:
        """Read whatever comes first within `timeout` seconds: b"" when nothing did. Raise when the connection ends."""
        if not self._buffer:
            deadline = min(time.monotonic() + timeout, self._end)
            with contextlib.suppress(_Silence):
                while not self._buffer:
                    self._fill(deadline)
        data = bytes(self._buffer[:most])
        del self._buffer[:most]
        if data:
            self._record("recv", _printable(data))
        return data

    def login(self, account: Account) -> Reply:
        """AUTH PLAIN with an initial response (RFC 4616).

        Only inside TLS; the caller has judged the connection safe. What a listener once refused with 535 is not sent
        there again in this run: the same reply is returned.
        """
        if not self.tls:
            raise self.failure(Failure.TLS_FAILED, "a login outside TLS was asked for and not sent")
        command = f"AUTH PLAIN {plain(account.address, account.password)}"
        who = (self.site.listener.name, account.address)
        return self.site.logins.ask(who, lambda: self.command(command, 20.0), self.note)

    def quit(self) -> Reply:
        """Say QUIT and close."""
        reply = self.command("QUIT")
        self.close()
        return reply

    def close(self) -> None:
        """Close at once."""
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.close()

    # -- reading ---------------------------------------------------------------------------------------------------

    def _read_reply(
        self,
        timeout: float,
        then: float | None = None,
        meanwhile: Callable[[], None] | None = None,
        *,
        broken_off: bool = False,
    ) -> Reply:
        began = time.monotonic()
        deadline = min(began + timeout, self._end)
        lines: list[str] = []
        code, size, first = b"", 0, 0.0
        while True:
            try:
                line = self._line(deadline)
            except _Silence:
                seen = f" after {len(lines)} lines of a reply" if lines else ""
                raise self.failure(Failure.TIMED_OUT, f"no reply within {deadline - began:.1f} s{seen}") from None
            self._record("recv", _printable(line))
            size += len(line)
            match = _REPLY_LINE.match(line)
            if match:
                this, more, text = match.group(1), match.group(2) == b"-", match.group(3)
            elif _BARE_CODE.match(line):  # RFC 5321 §4.2.1 lets the text be missing
                this, more, text = line, False, b""
            else:
                raise self.failure(Failure.GARBAGE, f"not an SMTP reply: {_printable(line)[:80]!r}")
            if code and this != code and broken_off:
                self._buffer[:0] = line + b"\r\n"
                self._lines.pop()
                return Reply(int(code), tuple(lines), time.monotonic() - began)
            if code and this != code:
                raise self.failure(Failure.GARBAGE, f"one reply with two codes, {code.decode()} and {this.decode()}")
            if size > MAX_REPLY or len(lines) >= MAX_LINES:
                too_much = f"{MAX_REPLY} bytes" if size > MAX_REPLY else f"{MAX_LINES} lines"
                raise self.failure(Failure.GARBAGE, f"a reply of more than {too_much}")
            code = this
            lines.append(_printable(text))
            if not more:
                if first:
                    self.teased = time.monotonic() - first
                return Reply(int(code), tuple(lines), time.monotonic() - began)
            if then is not None:
                first = time.monotonic()
                if meanwhile is not None and b"\n" not in self._buffer:
                    meanwhile()
                deadline, then = min(time.monotonic() + then, self._end), None

    def _line(self, deadline: float) -> bytes:
        while True:
            end = self._buffer.find(b"\n")
            if end >= 0:
                line = bytes(self._buffer[:end])
                del self._buffer[: end + 1]
                return line.removesuffix(b"\r")
            if len(self._buffer) > MAX_LINE:
                raise self.failure(
                    Failure.GARBAGE, f"a line of more than {MAX_LINE} bytes: {_printable(self._buffer[:40])!r}"
                )
            self._fill(deadline)

    def _fill(self, deadline: float) -> None:
        assert self._socket is not None
        left = deadline - time.monotonic()
        if self.site.cancelled.is_set():
            raise self.failure(Failure.NOT_TRIED, STOPPED)
        if left <= 0:
            raise _Silence
        # Short slices, so that an interrupted run does not wait for a silent server.
        self._socket.settimeout(min(left, 0.25))
        try:
            data = self._socket.recv(4096)
        except TimeoutError:
            return
        except ConnectionResetError:
            raise self.failure(Failure.RESET, "the server reset the connection") from None
        except ssl.SSLError as error:
            reason = (error.reason or str(error)).replace("_", " ").lower()
            if "eof" in reason:
                raise self.failure(Failure.CLOSED, "the server closed the connection without a TLS close") from None
            raise self.failure(Failure.TLS_REJECTED if "alert" in reason else Failure.TLS_FAILED, reason) from None
        except OSError as error:
            raise self.failure(Failure.RESET, str(error.strerror or error)) from None
        if not data:
            raise self.failure(Failure.CLOSED, "the server closed the connection")
        self._buffer += data


class _Silence(Exception):
    """Nothing came within the deadline."""


def client_context(site: Site, *, verify: bool) -> ssl.SSLContext:
    """Return a TLS 1.2/1.3 context: `verify` judges certificate and name, else anything that can be read is
    accepted."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if verify:
        if site.target.ca_file is None:
            context.load_default_certs()
        else:
            context.load_verify_locations(cafile=str(site.target.ca_file))
    else:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        # To look at a server with a weak key or signature, this side must not be the one that refuses it.
        context.set_ciphers("ALL:@SECLEVEL=0")
    return context


def plain(user: str, password: str, authzid: str = "") -> str:
    """Return the base64 message of SASL PLAIN (RFC 4616 §2)."""
    return base64.b64encode(f"{authzid}\0{user}\0{password}".encode()).decode()


_AUTH = re.compile(rb"(?i)(^|\n)(AUTH +[^ \r\n]+ +)[^\r\n]+")


def _shown(data: bytes, *, challenged: bool) -> str:
    if challenged and data.strip() not in (b"*", b""):
        return "**** (credentials)"
    return _printable(_AUTH.sub(rb"\1\2****", data).removesuffix(b"\r\n"))


def _printable(data: bytes | bytearray) -> str:
    text = bytes(data).decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def shortened(text: str) -> str:
    """Return at most about MAX_SHOWN characters of a text, the end too: of a message it is what the server answers
    to."""
    if len(text) <= MAX_SHOWN:
        return text
    return f"{text[: MAX_SHOWN * 3 // 4]} … {text[-MAX_SHOWN // 4 :]} ({len(text)} characters)"


def answered(steps: Iterator[Answer]) -> tuple[Reply, ...]:
    """Return only the real replies."""
    return tuple(step for step in steps if isinstance(step, Reply))
