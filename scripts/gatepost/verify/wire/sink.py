"""The sink: where mail for the outside domain arrives while a run lasts, so that no third party is ever written to."""

from __future__ import annotations

import asyncio
import errno
import socket
import threading
import time
from collections.abc import Sequence
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
    """Takes mail for one domain on these addresses and keeps it, until it is closed.

    Raises WireError when that is not possible. A port that another run's sink holds is waited for.
    """

    def __init__(self, addresses: Sequence[str], domain: str, *, port: int = PORT) -> None:
        self._domain = domain.lower()
        self._lock = threading.Lock()
        self._taken: list[Taken] = []
        self._loop = asyncio.new_event_loop()
        deadline = time.monotonic() + WAIT_SECONDS
        while True:
            try:
                self._server = self._loop.run_until_complete(self._listen(addresses, port))
                break
            except OSError as error:
                if error.errno == errno.EADDRINUSE and time.monotonic() < deadline:
                    time.sleep(0.5)
                    continue
                self._loop.close()
                detail = f"no sink on port {port} of {', '.join(addresses)}: {error.strerror or error}"
                raise WireError(Failure.BUSY, detail) from None
        self._thread = threading.Thread(target=self._loop.run_forever, name="sink", daemon=True)
        self._thread.start()

    async def _listen(self, addresses: Sequence[str], port: int) -> asyncio.Server:
        def serve() -> SMTP:
            name = f"sink.{self._domain}"
            return SMTP(self, data_size_limit=LARGEST, enable_SMTPUTF8=True, hostname=name, loop=self._loop, timeout=60)

        return await self._loop.create_server(serve, list(addresses), port)

    def close(self) -> None:
        """Stop listening, and end what is connected."""

        async def end() -> None:
            self._server.close()
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                task.cancel()

        asyncio.run_coroutine_threadsafe(end(), self._loop).result(5)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()

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
        sender = (envelope.mail_from or "").strip("<>")
        taken = Taken(str((session.peer or ("",))[0]), sender, tuple(envelope.rcpt_tos), content)
        with self._lock:
            if len(self._taken) >= MOST:
                return "452 4.3.1 the sink is full"
            self._taken.append(taken)
        return "250 2.0.0 taken"
