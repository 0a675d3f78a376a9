"""A mail server on the loopback that does what the policy asks, save what a test breaks: real sockets, real TLS.

`broken` maps a pattern to the reply that is given instead (None: the connection is closed). Patterns are searched in
`PHASE COMMAND`, PHASE being clear, tls or login; a RCPT is followed by ` from <sender> as EHLO-NAME`, and whatever
comes before EHLO by ` before EHLO`; a message is `PHASE (message)`, or `PHASE (message with bare LF)`.
`ends` are the octets that end a message; a server that is not `orderly` takes commands in any bunch, one that is not
`forgetful` obeys inside TLS what came before it, and one with `postscreen` tests a client's first visits.
"""

from __future__ import annotations

import base64
import contextlib
import datetime
import re
import select
import socket
import ssl
import threading
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from gatepost.listeners import Listener
from gatepost.verify.model import Account, Target
from gatepost.verify.runner import run

HOST, DOMAIN, OUTSIDE = "mx.example.test", "example.test", "remote.test"
ALICE = Account(f"alice@{DOMAIN}", "Corr3ct-horse", f"alice.alias@{DOMAIN}")
BOB = Account(f"bob@{DOMAIN}", "B4ttery-staple")
LOCAL = {ALICE.address, ALICE.alias, BOB.address, *(f"{name}@{DOMAIN}" for name in ("postmaster", "abuse", "fbl"))}
BEFORE_TLS = ("EHLO", "NOOP", "QUIT", "STARTTLS")
UNSYNCHRONIZED = "554 5.5.0 Error: SMTP protocol synchronization"


@cache
def tls_context() -> ssl.SSLContext:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, HOST)])
    now = datetime.datetime.now(datetime.UTC)
    day = datetime.timedelta(days=1)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), 1, now - day, now + 60 * day)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(HOST)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with TemporaryDirectory() as directory:
        pem = Path(directory) / "chain.pem"
        pem.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
            + certificate.public_bytes(serialization.Encoding.PEM)
        )
        context.load_cert_chain(pem)
    return context


class Server:
    def __init__(
        self,
        purpose="relay",
        tls="starttls",
        broken=None,
        greets_in_clear=False,
        ends=(b"\r\n.\r\n",),
        orderly=True,
        forgetful=True,
        postscreen=False,
    ):
        self.purpose, self.tls, self.greets_in_clear = purpose, tls, greets_in_clear
        self.ends, self.orderly, self.forgetful = ends, orderly, forgetful
        self.stranger = ["before the greeting", "in the dialogue"] if postscreen else []  # what is still tested
        self.broken = [(re.compile(pattern), reply) for pattern, reply in (broken or {}).items()]
        self.commands = []  # every command seen, with its phase
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._listening.close()

    def target(self, **fields):
        listener = Listener("probe", self.port, self.purpose, self.tls, ("0.0.0.0/0",))
        values = {
            "hostname": HOST,
            "addresses": ("127.0.0.1",),
            "listeners": (listener,),
            "listeners_file": Path("listeners.yml"),
            "listeners_digest": "0" * 64,
            "domains": (DOMAIN,),
            "outside_domain": OUTSIDE,
            "accounts": (ALICE, BOB),
            "lab": True,
        }
        return Target(**(values | fields))

    def judge(self, *only, **fields):
        """Run the real verifier against this server and return {id: result}."""
        return {result.id: result for result in run(self.target(**fields), only=only).results}

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listening.accept()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection):
        with contextlib.suppress(OSError, ConnectionError):
            Conversation(self, connection).hold()
        connection.close()


class Conversation:
    def __init__(self, server, connection):
        self.server, self.connection = server, connection
        self.phase, self.ehlo, self.sender, self.recipients = "clear", None, None, 0
        self.buffer, self.extended = bytearray(), False

    def hold(self):
        if self.server.tls == "implicit" and not self.server.greets_in_clear:
            self._handshake()
        self.early = "before the greeting" in self.server.stranger and self._teased()
        if not self.early:
            self._send(f"220 {HOST} ESMTP")
        while (line := self._line()) is not None:
            reply = self._reply(line)
            if reply is None:
                return
            self._send(reply)
            if line.upper().startswith("STARTTLS") and reply.startswith("220"):
                self._handshake()
            if reply[:3] in ("221", "421", "521") or reply == UNSYNCHRONIZED:
                return

    def _teased(self):
        """As postscreen does: half a greeting, a wait, and whether the client spoke in it."""
        self._send(f"220-{HOST} ESMTP")
        early, _, _ = select.select([self.connection], [], [], 1.1)
        if not early:
            self.server.stranger[:] = ["in the dialogue"]
        return bool(early)

    def _handshake(self):
        if self.server.forgetful:
            self.buffer = bytearray()
        self.connection = tls_context().wrap_socket(self.connection, server_side=True)
        self.phase, self.ehlo, self.sender = "tls", None, None

    def _until(self, *ends):
        """Return what comes before the first of these, and take both from the buffer; None when the client is gone."""
        seen = 0
        while not (found := [(at, end) for end in ends if (at := self.buffer.find(end, seen)) >= 0]):
            more = self.connection.recv(65536)
            if not more:
                return None
            seen = max(0, len(self.buffer) - 8)  # no end is longer
            self.buffer += more
        at, end = min(found, key=lambda this: (this[0], -len(this[1])))
        taken = bytes(self.buffer[:at])
        del self.buffer[: at + len(end)]
        return taken

    def _line(self):
        line = self._until(b"\n")
        return None if line is None else line.decode("utf-8", "replace").removesuffix("\r")

    def _send(self, reply):
        self.connection.sendall(reply.replace("\n", "\r\n").encode() + b"\r\n")

    def _reply(self, line):
        seen = f"{self.phase} {line}"
        if line.upper().startswith("RCPT"):
            seen += f" from {self.sender} as {self.ehlo}"
        if self.ehlo is None:
            seen += " before EHLO"
        self.server.commands.append(seen)
        for pattern, reply in self.server.broken:
            if pattern.search(seen):
                if line.upper().startswith("MAIL") and reply and reply.startswith("250"):
                    self.sender = line.partition(":")[2]
                if line.upper().startswith("EHLO"):
                    self.ehlo = line.partition(" ")[2]
                return reply
        verb = line.split(" ")[0].upper()
        if verb == "RCPT" and self.early:
            return "550 5.5.1 Protocol error"
        if verb == "RCPT" and "in the dialogue" in self.server.stranger:
            self.server.stranger.clear()
            return "450 4.3.2 Service currently unavailable"
        alone = verb in ("EHLO", "HELO", "DATA") or not self.extended
        if self.server.orderly and not self.early and alone and self.buffer and verb != "STARTTLS":
            return UNSYNCHRONIZED
        if self.server.purpose == "submission" and self.phase == "clear" and verb not in BEFORE_TLS:
            return "530 5.7.0 Must issue a STARTTLS command first"
        handler = getattr(self, f"_{verb.lower()}", None)
        return handler(line) if handler else "502 5.5.2 Error: command not recognized"

    def _ehlo(self, line):
        self.ehlo, self.extended = line.partition(" ")[2], True
        lines = [HOST, "PIPELINING", "SIZE 10485760"]
        if self.phase == "clear" and self.server.tls == "starttls":
            lines.append("STARTTLS")
        if self.phase != "clear" and self.server.purpose == "submission":
            lines.append("AUTH PLAIN LOGIN")
        return "\n".join(f"250-{text}" for text in lines) + "\n250 SMTPUTF8"

    def _helo(self, line):
        self.ehlo, self.extended = line.partition(" ")[2], False
        return f"250 {HOST}"

    def _noop(self, _):
        return "250 2.0.0 Ok"

    def _rset(self, _):
        self.sender = None
        return "250 2.0.0 Ok"

    def _quit(self, _):
        return "221 2.0.0 Bye"

    def _starttls(self, line):
        if line.strip().upper() != "STARTTLS":
            return "501 5.5.4 Syntax: STARTTLS"
        return "220 2.0.0 Ready to start TLS" if self.phase == "clear" else "554 5.5.1 Error: TLS already active"

    def _auth(self, line):
        if self.server.purpose == "relay":
            return "503 5.5.1 Error: authentication not enabled"
        if self.ehlo is None or self.phase == "login" or self.sender is not None:
            return "503 5.5.1 Error: bad sequence"
        mechanism, _, response = line.partition(" ")[2].partition(" ")
        if mechanism == "PLAIN":
            response = response or self._ask("")
            if response == "*":
                return "501 5.7.0 Authentication aborted"
            for pattern, reply in self.server.broken:
                if pattern.search(f"{self.phase} response {response}"):
                    return reply
            if len(response) > 12_288:
                return "500 5.5.6 SASL response limit exceeded"
            try:
                authzid, user, password, *more = f"{base64.b64decode(response, validate=True).decode()}\0".split("\0")
            except ValueError:
                return "535 5.7.8 Error: authentication failed: Invalid base64 data in initial response"
            if authzid not in ("", user) or more != [""]:
                return "535 5.7.8 Error: authentication failed: (reason unavailable)"
        elif mechanism == "LOGIN":
            user, password = (base64.b64decode(self._ask(text)).decode() for text in ("VXNlcm5hbWU6", "UGFzc3dvcmQ6"))
        else:
            return "535 5.7.8 Error: authentication failed: Invalid authentication mechanism"
        for account in (ALICE, BOB):
            if (user.lower(), password) == (account.address, account.password):
                self.phase, self.account = "login", account
                return "235 2.7.0 Authentication successful"
        return "535 5.7.8 Error: authentication failed: (reason unavailable)"

    def _ask(self, text):
        self._send(f"334 {text}")
        response = self._line() or ""
        self.server.commands.append(f"{self.phase} {response}")
        return response

    def _mail(self, line):
        if self.ehlo is None:
            return "503 5.5.1 Error: send HELO/EHLO first"
        match = re.fullmatch(r"(<[^\s\0>]*>)((?: [A-Z]+=[^\s\0]*)*)", line.partition(":")[2])
        if match is None:
            return "501 5.1.7 Bad sender address syntax"
        if not set(match[2].split()) <= {"BODY=8BITMIME", "BODY=7BIT"}:
            return f"555 5.5.4 Unsupported option: {match[2].strip()}"
        self.sender, self.recipients = match[1], 0
        return "250 2.1.0 Ok"

    def _rcpt(self, line):
        to = line.partition(":")[2]
        if self.sender is None:
            return "503 5.5.1 Error: need MAIL command"
        if not to.startswith("<"):
            return "501 5.1.3 Bad recipient address syntax"
        address = to.strip("<>").lower()
        address = address if "@" in address else f"{address}@{DOMAIN}"
        if self.server.purpose == "submission":
            if self.phase != "login":
                return f"554 5.7.1 {to}: Recipient address rejected: Access denied"
            if self.sender.strip("<>") not in (self.account.address, self.account.alias, ""):
                return f"553 5.7.1 {self.sender}: Sender address rejected: not owned by user"
            if address.endswith(f"@{DOMAIN}") and address not in LOCAL:
                return f"550 5.1.1 {to}: Recipient address rejected: User unknown"
            self.recipients += 1
            return "250 2.1.5 Ok"
        refusal = self._strict()
        if refusal:
            return refusal
        if re.sub(r"\+[^@]*", "", address) in LOCAL:
            self.recipients += 1
            return "250 2.1.5 Ok"
        if re.fullmatch(rf"(@{OUTSIDE}:)?[a-z0-9-]+@{DOMAIN}", address):
            return f"550 5.1.1 {to}: Recipient address rejected: User unknown"
        return f"554 5.7.1 {to}: Relay access denied"

    def _strict(self):
        domain = self.sender.strip("<>").rpartition("@")[2]
        if self.sender != "<>" and "." not in domain:
            return f"504 5.5.2 {self.sender}: Sender address rejected: need fully-qualified address"
        if domain.endswith(".invalid"):
            return f"450 4.1.8 {self.sender}: Sender address rejected: Domain not found"
        if domain == DOMAIN:
            return f"554 5.7.1 {self.sender}: Sender address rejected"
        if "." not in self.ehlo:
            return f"504 5.5.2 <{self.ehlo}>: Helo command rejected: need fully-qualified hostname"
        if not re.fullmatch(r"[A-Za-z0-9.:\[\]-]+", self.ehlo):
            return f"501 5.5.2 <{self.ehlo}>: Helo command rejected: Invalid name"
        return None

    def _data(self, _):
        if not self.recipients:
            return "503 5.5.1 Error: need RCPT command"
        if self.sender == "<>" and self.recipients > 1:
            return "550 5.5.3 <DATA>: Data command rejected: Multi-recipient bounce"
        self._send("354 End data with <CR><LF>.<CR><LF>")
        message = self._until(*self.server.ends)
        if message is None:
            return None
        self.sender, self.recipients = None, 0
        bare = " with bare LF" if re.search(rb"(?<!\r)\n", message) else ""
        seen = f"{self.phase} (message{bare})"
        self.server.commands.append(seen)
        for pattern, reply in self.server.broken:
            if pattern.search(seen):
                return reply
        if len(message) > 10485760:
            return "552 5.3.4 Error: message file too big"
        hops = len(re.findall(rb"(?:^|\n)Received:", message))
        return "554 5.4.0 Error: too many hops" if hops > 50 else "250 2.0.0 Ok: queued"
