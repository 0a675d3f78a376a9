"""The lab's book: which networks, firewalls and machines of this host are ours. One JSON file, written whole."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
from collections.abc import Iterator
from typing import Any

from gatepost.errors import GatepostError
from gatepost.lab import host

FORMAT = 1
Book = dict[str, Any]
_NAME = re.compile(r"[a-z]([a-z0-9-]{0,29}[a-z0-9])?")


def read() -> Book:
    """Return the book as it stands, without waiting for a writer.

    Keys: `networks`, `firewalls`, `machines` (name → record; every record has a `uuid`) and `sysctls` (key → value
    before the first network came).
    """
    path = host.DIRECTORY / "state.json"
    try:
        book = json.loads(path.read_text())
    except FileNotFoundError:
        return {"format": FORMAT, "networks": {}, "firewalls": {}, "machines": {}, "sysctls": {}}
    except (OSError, ValueError) as error:
        raise GatepostError(
            f"{path}: cannot read what the lab knows about itself: {error}",
            next_step="Run as root; if the file is damaged, see docs/lab.md on how to start over.",
        ) from error
    if book.get("format") != FORMAT:
        raise GatepostError(
            f"{path}: format {book.get('format')!r}",
            expected=f"format {FORMAT}",
            next_step="Use the Gatepost version that made this lab to destroy it, then go on with this one.",
        )
    return dict(book)


@contextlib.contextmanager
def edit() -> Iterator[Book]:
    """Give the book to change, under the host-wide lock; it is written when the block ends, also by an exception.

    Whoever changes devices, addresses or nft tables does so inside of this block, so that two runs never interleave.
    """
    with host.lock("host", what="the lab of this host"):
        book = read()
        before = json.dumps(book)
        try:
            yield book
        finally:
            if json.dumps(book) != before:
                _write(book)


def _write(book: Book) -> None:
    path = host.DIRECTORY / "state.json"
    temporary = path.with_suffix(".new")
    try:
        host.DIRECTORY.mkdir(mode=0o711, parents=True, exist_ok=True)
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            json.dump(book, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise disk_error(error) from error


def disk_error(error: OSError) -> GatepostError:
    """Return the error for a directory of the lab that cannot be written, with the way out."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return GatepostError(
        f"{host.DIRECTORY}: cannot write: {error.strerror or error}" + (" (the disk is full)" if full else ""),
        next_step=f"Free space on the file system of {host.DIRECTORY}, then run this again."
        if full
        else "Check its rights.",
    )


def check_name(kind: str, name: str) -> None:
    """Raise GatepostError when a name cannot be one of ours."""
    if not _NAME.fullmatch(name):
        raise GatepostError(
            f"{kind} name {name!r}",
            expected="a lower-case letter, then letters, digits and hyphens, 31 at most, no hyphen at the end",
            next_step="Choose another name.",
        )


def device(prefix: str, name: str) -> str:
    """Return the network device for a name: the kernel allows 15 characters, so a longer one ends in a digest of it."""
    whole = f"{prefix}-{name}"
    if len(whole) <= 15:
        return whole
    import hashlib

    return f"{prefix}-{name[:5]}~{hashlib.sha256(name.encode()).hexdigest()[:5]}"
