"""Test messages (RFC 5322): known again by a token of the run, and taken for nobody's real mail."""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from datetime import UTC, datetime
from email.utils import format_datetime
from functools import cache

from gatepost.verify.wire.probe import Site

BODY = b"A probe by Gatepost. It removes this message when it can.\r\n"
HEADER = "X-Gatepost-Probe"  # its value is "TOKEN KIND"


@cache
def token() -> str:
    """Return what marks the messages of this process: 16 hexadecimal digits that nobody can know beforehand."""
    return secrets.token_hex(8)


def written() -> bool:
    """Whether this process has written any message, so that one may lie at a server."""
    return token.cache_info().currsize > 0


def message(
    site: Site,
    kind: str,
    *,
    sender: str,
    recipient: str,
    headers: Iterable[str] = (),
    body: bytes = BODY,
) -> bytes:
    """Return a message as it goes behind DATA, without the end-of-data line.

    `kind` tells the messages of a run apart. `headers` are whole lines without CRLF, put on top; `body` goes as it is,
    so that odd line ends reach the server.
    """
    identity = f"{token()}.{kind}.{secrets.token_hex(4)}@{site.ehlo}"
    lines = (
        *headers,
        f"From: <{sender}>",
        f"To: <{recipient}>",
        f"Subject: gatepost-probe {kind}",
        f"Date: {format_datetime(datetime.now(UTC))}",
        f"Message-ID: <{identity}>",
        f"{HEADER}: {token()} {kind}",
    )
    return "".join(f"{line}\r\n" for line in lines).encode() + b"\r\n" + body
