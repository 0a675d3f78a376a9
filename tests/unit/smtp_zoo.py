"""Mail servers that no standard foresaw, on the loopback, each in a process of its own together with the verifier.

A beast is a :class:`smtp_loopback.Conversation` that misbehaves at one place and does everything else as the policy
asks, so that a run comes as far as the misbehaviour. :func:`meet` judges one beast on three listeners (relay,
submission with STARTTLS, submission with implicit TLS) by the real runner, and returns what is left to assert on.
"""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import os
import random
import socket
import ssl
import struct
import time
from pathlib import Path

from smtp_loopback import Conversation, Server, tls_context
from tlslite.api import HandshakeSettings, TLSConnection, X509CertChain, parsePEMKey
from tlslite.messages import HelloRequest, NewSessionTicket
from tlslite.x509 import X509

from gatepost.listeners import Listener
from gatepost.verify import runner
from gatepost.verify.checks import submission
from gatepost.verify.registry import requirements
from gatepost.verify.report import as_json, html
from gatepost.verify.wire import implicit, login, probe, session, starttls, tls

PROCESS_SECONDS = 150.0  # a run that takes longer hangs
MANY = 100 * 1024 * 1024
NOTHING, CLEAR, TLS = "nothing", "clear", "tls"  # how far a run can come


class Beast(Conversation):
    """`comes` says how far a run can come, `says` what some finding has to quote, `healthy` that nothing may fail."""

    comes, says, healthy, patient = TLS, (), False, False
    greeted, stage = False, ""
    chance = random.Random(4711)

    def _ehlo(self, line):  # a small limit: what is sent to exceed it costs time
        return super()._ehlo(line).replace("SIZE 10485760", "SIZE 50000")

    def silent(self):
        """Take no notice of anything until the client leaves."""
        with contextlib.suppress(OSError):
            while self.connection.recv(65536):
                pass

    def flood(self, piece, limit=MANY):
        """Send a piece again and again, as long as the client takes it."""
        piece *= max(1, 65536 // len(piece))
        sent = 0
        while sent < limit:
            self.connection.sendall(piece)
            sent += len(piece)

    def reset(self):
        """End the connection by RST."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        raise ConnectionError

    @property
    def implicit(self):
        return self.server.tls == "implicit"


ZOO = {}
_KEY, _CERTIFICATE = tls._throwaway_certificate()


def beast(kind):
    """Enter a class, or what makes several, into the zoo."""
    ZOO[kind.__name__] = kind
    return kind


def at(stage, act, **fields):
    """Return a beast that acts instead of replying to the first command which begins so; `banner` and `handshake` are
    stages too."""

    class There(Beast):
        def _send(self, reply):
            if stage == "banner" and not self.greeted:
                act(self)
                raise ConnectionError
            self.greeted = True
            super()._send(reply)

        def _handshake(self):
            if stage == "handshake":
                act(self)
                raise ConnectionError
            super()._handshake()

        def _reply(self, line):
            if f"{self.phase} {line}".upper().startswith(stage.upper()):
                act(self)
                raise ConnectionError
            return super()._reply(line)

    for name, value in ({"stage": stage} | fields).items():
        setattr(There, name, value)
    return There


# -- Speed and size ----------------------------------------------------------------------------------------------------


@beast
class Tame(Beast):
    """Everything right: what the healthy ones are compared with."""

    healthy = patient = True


@beast
class ByteByByte(Beast):
    """Everything right, in pieces of one byte."""

    healthy = patient = True

    def _send(self, reply):
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in reply.replace("\n", "\r\n").encode() + b"\r\n":
            self.connection.sendall(bytes((byte,)))


@beast
class BareLineFeeds(Beast):
    """Everything right, without a single CR."""

    healthy = patient = True

    def _send(self, reply):
        self.connection.sendall(reply.encode() + b"\n")


def drip(text, seconds):
    def act(self):
        while True:
            for byte in text:
                self.connection.sendall(bytes((byte,)))
                time.sleep(seconds)

    return act


def ever(line, seconds=0.0):
    def act(self):
        while True:
            self.connection.sendall(line)
            time.sleep(seconds)

    return act


ZOO |= {
    "EndlessBanner": at("banner", lambda b: b.flood(b"220-mx.example.test and more\r\n"), comes=NOTHING,
                        says=("more than",)),
    "SlowEndlessBanner": at("banner", ever(b"220-still here\r\n", 0.2), comes=NOTHING, says=("no reply within",)),
    "DrippingBanner": at("banner", drip(b"220 mx.example.test ESMTP and a very long line to it", 0.1), comes=NOTHING,
                         says=("no reply within",)),
    "DrippingEhlo": at("clear EHLO", drip(b"250-mx.example.test\r\n", 0.1), comes=CLEAR, says=("no reply within",)),
    "OneLineOf100MB": at("banner", lambda b: b.flood(b"220 xxx"), comes=NOTHING, says=("a line of more than 4096",)),
    "OneLineOf100MBInTls": at("tls EHLO", lambda b: b.flood(b"250 xxx"), says=("a line of more than 4096",)),
    "ManyLines": at("tls EHLO", lambda b: b.flood(b"250-X\r\n"), says=("a reply of more than 256 lines",)),
    "LongLines": at("clear EHLO", lambda b: b.flood(b"250-" + b"X" * 3000 + b"\r\n"), comes=CLEAR,
                    says=("a reply of more than 32768 bytes",)),
    "FloodOfReplies": at("clear STARTTLS", lambda b: b.flood(b"220 2.0.0 go\r\n"), comes=CLEAR, says=("in clear",)),
    "FloodAfterTls": at("tls RCPT", lambda b: b.flood(b"250 2.1.5 Ok\r\n")),
    "SilentFromTheStart": at("banner", Beast.silent, comes=NOTHING, says=("no reply within",)),
    "SilentToEhlo": at("clear EHLO", Beast.silent, comes=CLEAR, says=("no reply within",)),
    "SilentInTls": at("tls EHLO", Beast.silent, says=("no reply within",)),
    "SilentToRcpt": at("tls RCPT", Beast.silent, says=("no reply within",)),
    "SilentToAuth": at("tls AUTH", Beast.silent, says=("no reply within",)),
    "SilentToData": at("login DATA", Beast.silent),
    "SilentHandshake": at("handshake", Beast.silent, comes=CLEAR, says=("no end of the TLS handshake",)),
}  # fmt: skip


@beast
class ReadsNoData(Beast):
    """Announces 64 MB, asks for the message, and never reads it."""

    def _ehlo(self, line):
        return super()._ehlo(line).replace("SIZE 50000", "SIZE 67108864")

    def _data(self, _):
        self._send("354 go ahead")
        time.sleep(30)
        raise ConnectionError


@beast
class SlowAnswers(Beast):
    """Answers everything, just within the time allowed: only the run's own limit ends this."""

    says = ("the run's time limit",)

    def _send(self, reply):
        time.sleep(1.0)
        super()._send(reply)


# -- Endings -----------------------------------------------------------------------------------------------------------


def half_close(self):
    self.connection.shutdown(socket.SHUT_WR)
    if isinstance(self.connection, ssl.SSLSocket):
        return
    self.silent()


ZOO |= {
    f"{name}{label}": at(stage, act, comes=comes)
    for name, act in (("HalfClosed", half_close), ("Reset", Beast.reset))
    for label, stage, comes in (
        ("AtBanner", "banner", NOTHING),
        ("AtEhlo", "clear EHLO", CLEAR),
        ("AtHandshake", "handshake", CLEAR),
        ("InTls", "tls EHLO", TLS),
        ("AtMail", "tls MAIL", TLS),
        ("AtRcpt", "tls RCPT", TLS),
        ("AtAuth", "tls AUTH", TLS),
        ("AtData", "login DATA", TLS),
    )
}


def reset_after_hello(self):
    self.connection.recv(4096)
    self.reset()


ZOO["ResetAfterClientHello"] = at("handshake", reset_after_hello, comes=CLEAR)


@beast
class CutsOffTls(Beast):
    """Closes every TLS connection after its third command, without a close_notify."""

    count = 0

    def _reply(self, line):
        self.count += self.phase != "clear"
        if self.count > 3:
            raise ConnectionError
        return super()._reply(line)


# -- What is no SMTP ---------------------------------------------------------------------------------------------------


@beast
class Noise(Beast):
    """8-bit noise behind every code."""

    def _send(self, reply):
        noise = bytes(self.chance.choice(range(128, 256)) for _ in range(40))
        lines = [line.encode() + b" " + noise for line in reply.split("\n")]
        self.connection.sendall(b"\r\n".join(lines) + b"\r\n")


@beast
class Nuls(Beast):
    """NULs, escapes and control characters in every reply."""

    says = ("\\x00",)

    def _send(self, reply):
        lines = [line.encode() + b"\0\x1b[2J\x07\r\x08\0" for line in reply.split("\n")]
        self.connection.sendall(b"\r\n".join(lines) + b"\r\n")


def says(text):
    def act(self):
        self.connection.sendall(text)
        self.silent()

    return act


def echo(self):
    while data := self.connection.recv(4096):
        self.connection.sendall(data)


def stage_of_tls(data, then=Beast.silent):
    def act(self):
        self.connection.recv(4096)
        self.connection.sendall(data)
        then(self)

    return act


def half_a_handshake(self):
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    shaking = tls_context().wrap_bio(incoming, outgoing, server_side=True)
    incoming.write(self.connection.recv(16384))
    with contextlib.suppress(ssl.SSLError):
        shaking.do_handshake()
    flight = outgoing.read()
    self.connection.sendall(flight[: len(flight) // 2])
    self.silent()


def record(kind, payload):
    return b"".join(
        bytes((kind, 3, 3)) + len(part).to_bytes(2, "big") + part
        for part in (payload[i : i + 16384] for i in range(0, len(payload), 16384))
    )


def message(kind, body):
    return bytes((kind,)) + len(body).to_bytes(3, "big") + body


SERVER_HELLO = message(2, b"\x03\x03" + bytes(32) + b"\0" + b"\xc0\x2b" + b"\0" + b"\0\5\xff\1\0\1\0")


def chain(*certificates):
    """Return a TLS 1.2 server's flight as far as its certificates."""
    vector = b"".join(len(c).to_bytes(3, "big") + c for c in certificates)
    flight = SERVER_HELLO + message(11, len(vector).to_bytes(3, "big") + vector) + message(14, b"")
    return record(22, flight)


GARBAGE = random.Random(1).randbytes(3000)
ZOO |= {
    "Http": at("banner", says(b"HTTP/1.1 400 Bad Request\r\nServer: x\r\n\r\n"), comes=NOTHING,
               says=("not an SMTP reply",)),
    "Ssh": at("banner", says(b"SSH-2.0-OpenSSH_9.2\r\n"), comes=NOTHING, says=("SSH-2.0",)),
    "Echo": at("banner", echo, comes=NOTHING),
    "CodeWithoutText": at("banner", says(b"220\r\n"), comes=CLEAR),
    "StrangeCode": at("banner", says(b"999 mx.example.test\r\n"), comes=NOTHING, says=("999 mx.example.test",)),
    "TwoCodes": at("clear EHLO", says(b"250-mx.example.test\r\n550 no\r\n"), comes=CLEAR, says=("two codes",)),
    "AnsweredBeforeAsked": at("banner", says(b"220 mx.example.test ESMTP\r\n" + b"250 2.0.0 Ok\r\n" * 40), comes=CLEAR),
    "GreetsWith554": at("banner", says(b"554 5.7.1 no service here\r\n"), comes=CLEAR, says=("554 5.7.1 no service",)),
    "GreetsWith421": at("banner", says(b"421 4.7.0 too many connections\r\n"), comes=CLEAR, says=("421 4.7.0",)),
    "GarbageForTls": at("handshake", stage_of_tls(GARBAGE), comes=CLEAR),
    "GarbageRecord": at("handshake", stage_of_tls(record(22, GARBAGE)), comes=CLEAR),
    "RecordThatNeverComes": at("handshake", stage_of_tls(b"\x16\x03\x03\x41\x00"), comes=CLEAR),
    "RecordBeyondTheLimit": at("handshake", stage_of_tls(b"\x16\x03\x03\xff\xff" + bytes(70000)), comes=CLEAR),
    "MessageThatNeverEnds": at("handshake", stage_of_tls(record(22, b"\x02\xff\xff\xff" + bytes(500000))), comes=CLEAR),
    "HalfAHandshake": at("handshake", half_a_handshake, comes=CLEAR),
    "EndlessAlerts": at("handshake", lambda b: b.flood(b"\x15\x03\x03\x00\x02\x01\x70"), comes=CLEAR),
    "EndlessCcs": at("handshake", lambda b: b.flood(b"\x14\x03\x03\x00\x01\x01"), comes=CLEAR),
    "EmptyRecords": at("handshake", lambda b: b.flood(b"\x16\x03\x03\x00\x00"), comes=CLEAR),
    "CertificateOfGarbage": at("handshake", stage_of_tls(chain(GARBAGE)), comes=CLEAR),
    "CertificateOfNothing": at("handshake", stage_of_tls(chain(b"")), comes=CLEAR),
    "NoCertificate": at("handshake", stage_of_tls(chain()), comes=CLEAR),
    "ChainOf1MB": at("handshake", stage_of_tls(chain(*(GARBAGE[:2900] for _ in range(360)))), comes=CLEAR),
}  # fmt: skip


@beast
class OtherCertificateToHandMade(Beast):
    """Right to OpenSSL, and a certificate of garbage to a ClientHello without the ticket extension."""

    served = (GARBAGE,)

    def _handshake(self):
        hello = self.connection.recv(4096, socket.MSG_PEEK)
        if hello and b"\x00\x23\x00\x00" not in hello:
            stage_of_tls(chain(*self.served))(self)
            raise ConnectionError
        super()._handshake()


@beast
class TwistedCertificates(OtherCertificateToHandMade):
    """Real certificates with some bytes changed, another one on each connection."""

    number = 0

    def _handshake(self):
        der = bytearray(ssl.PEM_cert_to_DER_cert(_CERTIFICATE))
        for _ in range(3):
            der[self.chance.randrange(4, len(der))] = self.chance.randrange(256)
        self.served = (bytes(der),)
        super()._handshake()


# -- Replies that are SMTP, and make no sense --------------------------------------------------------------------------


@beast
class BusyAtRandom(Beast):
    """421 in the place of one reply in six, and closes."""

    def _send(self, reply):
        if self.chance.random() < 1 / 6:
            super()._send("421 4.3.2 come again")
            raise ConnectionError
        super()._send(reply)


@beast
class AnyReplyAtRandom(Beast):
    """Another reply than the right one, one time in four."""

    others = ("250 2.0.0 Ok", "354 go on", "334 ", "235 2.7.0 Ok", "550 5.0.0 no", "451 4.0.0", "220 2.0.0",
              "334 \x00\xff", "250-a\n250-b\n250 c", "250 5.7.1 denied")  # fmt: skip

    def _send(self, reply):
        if self.chance.random() < 0.25 and not reply.startswith("220"):
            reply = self.chance.choice(
                (
                    "250 2.0.0 Ok",
                    "354 go on",
                    "334 ",
                    "235 2.7.0 Ok",
                    "550 5.0.0 no",
                    "451 4.0.0",
                    "220 2.0.0",
                    "334 \x00\xff",
                    "250-a\n250-b\n250 c",
                    "250 5.7.1 denied",
                )
            )
        super()._send(reply)


def always(reply, **fields):
    class Always(Beast):
        def _reply(self, line):
            if line.upper().startswith(("EHLO", "STARTTLS", "QUIT")):
                return super()._reply(line)
            return reply

    for name, value in fields.items():
        setattr(Always, name, value)
    return Always


def ehlo(*keywords):
    class Ehlo(Beast):
        def _ehlo(self, line):
            lines = super()._ehlo(line).split("\n")
            return "\n".join([*lines[:-1], *(f"250-{k}" for k in keywords), lines[-1]])

    return Ehlo


ZOO |= {
    "AlwaysYes": always("250 2.0.0 Ok"),
    "AlwaysNo": always("550 5.7.1 no"),
    "AlwaysLater": always("450 4.7.1 later"),
    "AlwaysData": always("354 go on"),
    "AlwaysIn": always("235 2.7.0 you are in"),
    "AuthForEver": always("334 VXNlcm5hbWU6"),
    "ChallengeOfGarbage": always("334 \x00\x01 not base64 \x7f"),
    "HugeEhlo": ehlo(*(f"X-EXTENSION-{n} {'y' * 80}" for n in range(200))),
    "ManyMechanisms": ehlo("AUTH " + " ".join(f"MECH-{n}" for n in range(300)), "AUTH=LOGIN", "AUTH"),
    "StrangeSizes": ehlo("SIZE", "SIZE -1", "SIZE 99999999999999999999", "SIZE 1e9", "SIZE ٣٣"),
    "EverySort": ehlo("STARTTLS", "CHUNKING", "BINARYMIME", "LIMITS RCPTMAX=0 MAILMAX=0", "SIZE 0", "XCLIENT ADDR",
                      "AUTH XOAUTH2 OAUTHBEARER SCRAM-SHA-256 CRAM-MD5 EXTERNAL ANONYMOUS GSSAPI"),
}  # fmt: skip


# -- TLS that does not leave it at one handshake -----------------------------------------------------------------------


class _Restless(Beast):
    """A full handshake by tlslite-ng, and then messages of the handshake for ever."""

    version = (3, 3)

    def _handshake(self):
        settings = HandshakeSettings()
        settings.minVersion = settings.maxVersion = self.version
        connection = TLSConnection(self.connection)
        certificates = X509CertChain([X509().parse(_CERTIFICATE)])
        try:
            connection.handshakeServer(certChain=certificates, privateKey=parsePEMKey(_KEY, private=True),
                                       settings=settings)  # fmt: skip
            while True:
                for _ in connection._sendMsg(self.another()):
                    pass
        except Exception as error:  # of many kinds, when the client leaves
            raise ConnectionError from error


@beast
class RenegotiatesForEver(_Restless):
    def another(self):
        return HelloRequest().create()


@beast
class TicketsForEver(_Restless):
    version = (3, 4)

    def another(self):
        return NewSessionTicket().create(7200, 1, b"n", os.urandom(100), [])


# -- The cage ----------------------------------------------------------------------------------------------------------


class Cage(Server):
    """A server of the loopback whose conversations are a beast's."""

    def __init__(self, kind, purpose, mode):
        self.kind = kind
        super().__init__(purpose, mode)

    def _serve(self, connection):
        with contextlib.suppress(Exception):
            self.kind(self, connection).hold()
        with contextlib.suppress(OSError):
            connection.close()


@dataclasses.dataclass
class Met:
    """What came of one run. `peak` is the growth of the process's memory in bytes."""

    name: str
    seconds: float
    peak: int
    interrupted: bool
    results: list  # of Result, without transcripts


def _hurry():
    """Shorter deadlines: what a server does not do within them it never does here."""
    for module, name, value in (
        (session, "CONNECT_SECONDS", 2.0), (session, "BANNER_SECONDS", 1.5), (session, "POSTSCREEN_SECONDS", 1.5),
        (session, "HANDSHAKE_SECONDS", 2.0), (tls, "HANDSHAKE_SECONDS", 2.0), (session, "REPLY_SECONDS", 1.5),
        (implicit, "SILENCE_SECONDS", 0.5), (implicit, "ANSWER_SECONDS", 0.5), (starttls, "CLOSE_SECONDS", 1.0),
        (submission, "FAILED_LOGIN_SECONDS", 1.5), (login, "LOGIN_SECONDS", 1.5), (probe, "LIMIT_PAUSE", 0.1),
        (runner, "REACH_SECONDS", 10.0),
        (runner, "PHASE_SECONDS", dict(zip(probe.Phase, (20.0, 8.0, 8.0), strict=True))),
    ):  # fmt: skip
        assert hasattr(module, name), name
        setattr(module, name, value)


def _memory(field):
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in status if line.startswith(field))


def _meet(name, pipe, fields):
    kind = ZOO[name]
    if not kind.patient:
        _hurry()
    tls_context()
    before = _memory("VmRSS")
    kinds = (("relay", "starttls"), ("submission", "starttls"), ("submission", "implicit"))
    cages = [Cage(kind, purpose, mode) for purpose, mode in kinds]
    listeners = tuple(Listener(f"{c.purpose}-{c.tls}", c.port, c.purpose, c.tls, ("0.0.0.0/0",)) for c in cages)
    began = time.monotonic()
    report = runner.run(cages[0].target(listeners=listeners, **fields))
    seconds = time.monotonic() - began
    assert as_json.to_json(report) and html.render(report)
    results = [dataclasses.replace(r, transcript=()) for r in report.results]
    pipe.send(Met(name, seconds, _memory("VmHWM") - before, report.interrupted, results))
    pipe.close()


_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload(["smtp_zoo"])


def meet(name, **fields):
    """Judge one beast in a process of its own; raise AssertionError when it hangs or dies.

    The process has to end by itself: a thread that is still waiting for the server would hold it.
    """
    ours, theirs = _processes.Pipe(duplex=False)
    process = _processes.Process(target=_meet, args=(name, theirs, fields))
    process.start()
    theirs.close()
    try:
        if not ours.poll(PROCESS_SECONDS):
            raise AssertionError(f"{name}: no end of the run within {PROCESS_SECONDS:g} s")
        try:
            met = ours.recv()
        except EOFError:
            process.join(5)
            raise AssertionError(f"{name}: the process ended with {process.exitcode}, without a report") from None
        process.join(30)
        assert process.exitcode == 0, f"{name}: the process did not end after its report ({process.exitcode})"
        return met
    finally:
        if process.is_alive():
            process.kill()


requirements()  # imports the checks, once for all processes
