"""The listener table: which port serves which purpose, with which TLS, for whom.

The table is one YAML file that Postfix's role, both firewalls and the verifier read. See `docs/ports.md`.
"""

from __future__ import annotations

import hashlib
import ipaddress
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Literal

from gatepost import documents
from gatepost.errors import GatepostError

KEY = "postfix_listeners"


@dataclass(frozen=True, slots=True)
class Listener:
    """One row of the table.

    `purpose` carries the policy: *relay* offers TLS and never demands it and knows no AUTH; *submission* demands both
    (RFC 3207 §4, RFC 6409 §4.3, RFC 8314 §3.3).
    """

    name: str
    port: int
    purpose: Literal["relay", "submission"]
    tls: Literal["starttls", "implicit"]
    sources: tuple[str, ...]  # CIDRs, IPv4 and IPv6, that may connect

    @property
    def is_submission(self) -> bool:
        """Whether mail clients log in here."""
        return self.purpose == "submission"

    @property
    def is_implicit(self) -> bool:
        """Whether TLS starts with the first byte."""
        return self.tls == "implicit"

    @property
    def policy(self) -> str:
        """Return in a few words what the row asks of clients."""
        tls = "TLS from the first byte" if self.is_implicit else "STARTTLS"
        return f"{tls}, AUTH required" if self.is_submission else f"{tls} offered, no AUTH"


@dataclass(frozen=True, slots=True)
class ListenerTable:
    """The rows, with the path and sha256 digest of the file that they were read from."""

    path: Path
    digest: str
    listeners: tuple[Listener, ...]


def default_path() -> Path:
    """Return the table of this checkout, or the copy inside the installed package."""
    in_checkout = Path(__file__).resolve().parents[2] / "roles/postfix/defaults/main/listeners.yml"
    if in_checkout.is_file():
        return in_checkout
    return Path(str(resources.files("gatepost").joinpath("data/listeners.yml")))


def load(path: Path | None = None) -> ListenerTable:
    """Read and validate a listener table.

    Raises GatepostError naming the file, the row and the field when the table is not one.
    """
    path = path or default_path()
    document, raw = documents.read(
        path,
        "listeners",
        what="the listener table",
        next_step=f"Check LISTENERS= or --listeners, or copy {default_path()} there.",
    )
    listeners = tuple(
        Listener(
            name=row["name"],
            port=row["port"],
            purpose=row["purpose"],
            tls=row["tls"],
            sources=tuple(str(ipaddress.ip_network(source)) for source in row["sources"]),
        )
        for row in document[KEY]
    )
    _unique(path, listeners, "port", "Change or remove one of the two: no two rows can listen on the same port.")
    _unique(path, listeners, "name", "Rename one of the two rows.")
    return ListenerTable(path.resolve(), hashlib.sha256(raw).hexdigest(), listeners)


def _unique(path: Path, listeners: tuple[Listener, ...], field: str, next_step: str) -> None:
    seen: dict[object, int] = {}
    for number, listener in enumerate(listeners, start=1):
        value = getattr(listener, field)
        if value in seen:
            raise GatepostError(
                f"{path}: rows {seen[value]} and {number} both have {field} {value}",
                expected=f"every row a {field} of its own",
                next_step=next_step,
            )
        seen[value] = number
