"""The sink: where mail for the outside domain arrives while a run lasts, so that no third party is ever written to."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from aiosmtpd.smtp import SMTP, Envelope, Session

from gatepost.verify.wire.session import Failure, WireError

PORT = socket.getservbyname("smtp", "tcp")
LARGEST = 1_000_000  # octets of one message
MOST = 200  # messages kept
WAIT_SECONDS = 20.0  # for another run's sink to go away


@dataclass(frozen=True, slots=True)
class Taken:
    """A message that the sink took."""

    peer: str  # address that delivered it
    mail_from: str
    rcpt_to: tuple[str, ...]
    content: bytes  # dots unstuffed, line ends as they came


class Sink:
    """Takes mail for one domain and keeps it. Made by :func:`listen`."""

    def __init__(self, domain: str) -> None:
        self._domain = domain.lower()
        self._lock = threading.Lock()
        self._taken: list[Taken] = []

    @property
    def taken(self) -> tuple[Taken, ...]:
        """Return what arrived so far."""
        with self._lock:
            return tuple(self._taken)

    # aiosmtpd calls these two by their names, when a command of theirs came.

    async def handle_RCPT(
        self, _server: SMTP, _session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        """Take recipients in the domain only."""
        if address.rpartition("@")[2].lower() != self._domain:
            return "550 5.1.1 this is the sink of another domain"
        envelope.rcpt_tos.append(address)
        envelope.rcpt_options.extend(options)
        return "250 2.1.5 OK"

    async def handle_DATA(self, _server: SMTP, session: Session, envelope: Envelope) -> str:
        """Keep the message."""
        content = envelope.original_content or b""
        taken = Taken(str((session.peer or ("",))[0]), envelope.mail_from or "", tuple(envelope.rcpt_tos), content)
        with self._lock:
            if len(self._taken) >= MOST:
                return "452 4.3.1 the sink is full"
            self._taken.append(taken)
        return "250 2.0.0 taken"


@contextlib.contextmanager
def listen(addresses: Sequence[str], domain: str, *, port: int = PORT) -> Iterator[Sink]:
    """Take the domain's mail on these addresses until the block ends.

    Raises WireError when that is not possible. A port that another run's sink holds is waited for.
    """
    sink = Sink(domain)
    loop = asyncio.new_event_loop()

    def serve() -> SMTP:
        return SMTP(
            sink, data_size_limit=LARGEST, enable_SMTPUTF8=True, hostname=f"sink.{domain}", loop=loop, timeout=60
        )

    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        try:
            server = loop.run_until_complete(loop.create_server(serve, list(addresses), port))
            break
        except OSError as error:
            if error.errno == errno.EADDRINUSE and time.monotonic() < deadline:
                time.sleep(0.5)
                continue
            loop.close()
            detail = f"no sink on port {port} of {', '.join(addresses)}: {error.strerror or error}"
            raise WireError(Failure.BUSY, detail) from None
    thread = threading.Thread(target=loop.run_forever, name="sink", daemon=True)
    thread.start()
    try:
        yield sink
    finally:

        async def end() -> None:
            server.close()
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                task.cancel()

        asyncio.run_coroutine_threadsafe(end(), loop).result(5)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(5)
        loop.close()
