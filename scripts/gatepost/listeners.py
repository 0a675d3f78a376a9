"""The listener table: which port serves which purpose, with which TLS, for whom.

The table is one YAML file that Postfix's role, both firewalls and the verifier read. See `docs/ports.md`.
"""

from __future__ import annotations

import difflib
import hashlib
import ipaddress
import re
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import yaml

from gatepost.errors import GatepostError

KEY = "postfix_listeners"
FIELDS = ("name", "port", "purpose", "tls", "sources")
PURPOSES = ("relay", "submission")
TLS_MODES = ("starttls", "implicit")
_NAME = re.compile(r"[a-z][a-z0-9-]{0,30}")
_DECIMAL = re.compile(r"[1-9][0-9]{0,4}")


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


class _Integer(str):
    """An unquoted integer as it was written."""


class _LexicalLoader(yaml.SafeLoader):
    """Keeps integers as written, since YAML 1.1 makes 22:25 into 1345 and 025 into 21, and Terraform's YAML does not."""


_LexicalLoader.add_constructor("tag:yaml.org,2002:int", lambda _loader, node: _Integer(node.value))


def load(path: Path | None = None) -> ListenerTable:
    """Read and validate a listener table.

    Raises GatepostError naming the file, the row and the field when the table is not one.
    """
    path = path or default_path()
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise GatepostError(
            f"{path}: cannot read the listener table: {error.strerror}",
            next_step=f"Check LISTENERS= or --listeners, or copy {default_path()} there.",
        ) from error
    try:
        document = yaml.load(raw, Loader=_LexicalLoader)  # noqa: S506 - a SafeLoader subclass
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise GatepostError(f"{path}: not YAML: {error}", expected=f"one key, {KEY}, holding a list of rows") from error
    if not isinstance(document, dict) or set(document) != {KEY}:
        found = ", ".join(map(str, document)) if isinstance(document, dict) else type(document).__name__
        raise GatepostError(f"{path}: found {found or 'nothing'} at the top", expected=f"one key: {KEY}")
    rows = document[KEY]
    if not isinstance(rows, list) or not rows:
        raise GatepostError(f"{path}: {KEY} is empty or not a list", expected="at least one row")
    listeners = tuple(_row(path, number, row) for number, row in enumerate(rows, start=1))
    _unique(path, listeners, "port")
    _unique(path, listeners, "name")
    return ListenerTable(path.resolve(), hashlib.sha256(raw).hexdigest(), listeners)


def _unique(path: Path, listeners: tuple[Listener, ...], field: str) -> None:
    seen: dict[object, int] = {}
    for number, listener in enumerate(listeners, start=1):
        value = getattr(listener, field)
        if value in seen:
            raise GatepostError(
                f"{path}: rows {seen[value]} and {number} both have {field} {value}",
                expected=f"every row a {field} of its own",
                next_step=f"Change or remove one of the two rows; port is what Postfix listens on, so no two can share it."
                if field == "port"
                else "Rename one of the two rows.",
            )
        seen[value] = number


def _row(path: Path, number: int, row: Any) -> Listener:
    where = f"{path}: row {number}"
    if not isinstance(row, dict):
        raise GatepostError(f"{where}: found {row!r}", expected="a mapping with " + ", ".join(FIELDS))
    for key in row:
        if key not in FIELDS:
            close = difflib.get_close_matches(str(key), FIELDS, n=1)
            raise GatepostError(
                f"{where}: unknown key {key!r}",
                expected="only " + ", ".join(FIELDS),
                next_step=f"Did you mean {close[0]!r}?" if close else "Remove the key.",
            )
    for key in FIELDS:
        if key not in row:
            raise GatepostError(f"{where}: {key} is missing", expected="all of " + ", ".join(FIELDS))
    name = row["name"]
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise GatepostError(
            f"{where}: name {name!r}",
            expected="a lower-case letter, then letters, digits and hyphens, 31 characters at most",
            next_step="It becomes part of Postfix's log name (postfix/NAME) and of firewall rule names.",
        )
    where = f"{where} ({name})"
    return Listener(
        name=name,
        port=_port(where, row["port"]),
        purpose=_choice(where, "purpose", row["purpose"], PURPOSES),
        tls=_choice(where, "tls", row["tls"], TLS_MODES),
        sources=_sources(where, row["sources"]),
    )


def _port(where: str, value: Any) -> int:
    if not isinstance(value, _Integer) or not _DECIMAL.fullmatch(value) or int(value) > 65535:
        raise GatepostError(
            f"{where}: port {value}",
            expected="a plain decimal number from 1 to 65535, without quotes, leading zero or colon",
            next_step="YAML parsers disagree on 0465 and 22:25, so those are refused.",
        )
    return int(value)


def _choice(where: str, field: str, value: Any, choices: tuple[str, ...]) -> Any:
    if value not in choices:
        raise GatepostError(f"{where}: {field} {value!r}", expected=" or ".join(choices))
    return value


def _sources(where: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not value:
        raise GatepostError(
            f"{where}: sources {value!r}",
            expected='a list of CIDRs, such as ["0.0.0.0/0", "::/0"]',
            next_step="A listener that nobody may reach is better removed from the table.",
        )
    return tuple(parse_cidr(f"{where}: sources", cidr) for cidr in value)


def parse_cidr(where: str, value: Any) -> str:
    """Return the CIDR in canonical form, or raise GatepostError that names the way out."""
    try:
        if not isinstance(value, str) or "/" not in value:
            raise ValueError("no prefix length")
        return str(ipaddress.ip_network(value, strict=True))
    except ValueError as error:
        hint = ""
        try:
            hint = f"Did you mean {ipaddress.ip_network(value, strict=False)}?"
        except ValueError:
            pass
        raise GatepostError(
            f"{where}: {value!r} is not a CIDR: {error}", expected="such as 203.0.113.0/24 or 2001:db8::/32", next_step=hint
        ) from error
