"""An environment's directory: made from the example, written atomically, and used by one run at a time."""

from __future__ import annotations

import contextlib
import fcntl
import getpass
import os
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from gatepost import settings
from gatepost.errors import GatepostError

CHECKOUT = Path(__file__).resolve().parents[2]  # where roles, playbooks and Terraform roots lie
EXAMPLE = CHECKOUT / "inventory.example"


def prepare(directory: Path) -> bool:
    """Copy the example there when the directory is not there or empty; return whether it did.

    Raises GatepostError when it is neither an environment nor empty, or cannot be written.
    """
    if (directory / settings.FILE_NAME).is_file():
        return False
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise GatepostError(
            f"{directory} is there, and has no {settings.FILE_NAME}",
            expected="an environment directory, or one that does not exist yet",
            next_step=f"Name another with INVENTORY=, or copy {EXAMPLE / settings.FILE_NAME} there.",
        )
    with _writing(directory):
        directory.parent.mkdir(parents=True, exist_ok=True)
        half = directory.with_name(f".{directory.name}.{os.getpid()}")
        shutil.copytree(EXAMPLE, half)  # whole, then renamed: a run cut short leaves no half environment
        half.rename(directory)
    return True


@contextlib.contextmanager
def lock(directory: Path, purpose: str) -> Iterator[None]:
    """Hold the environment for one run (flock), so that two deploys cannot mix.

    Raises GatepostError that says who holds it since when.
    """
    path = directory / "lock"
    with _writing(directory):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    with os.fdopen(descriptor, "r+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise GatepostError(
                f"{directory}: in use by {file.read().strip() or 'another run that has just started'}",
                expected="one run at a time in an environment",
                next_step="Wait until it has ended, or stop it with Ctrl-C where it runs.",
            ) from None
        file.truncate(0)
        file.write(
            f"gatepost {purpose}, process {os.getpid()}, {_user()}, since {datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC\n"
        )
        file.flush()
        yield


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # no name for this uid
        return f"uid {os.getuid()}"


def private_directory(path: Path) -> Path:
    """Make a directory that only its owner can enter (0700), and return it."""
    with _writing(path):
        path.mkdir(parents=True, exist_ok=True)
        if path.stat().st_mode & 0o077:
            path.chmod(0o700)
    return path


def write(path: Path, text: str, mode: int = 0o600) -> None:
    """Write a file in one step: readers see the old text or the new one, and `mode` holds from the start."""
    with _writing(path):
        half = path.with_name(f".{path.name}.{os.getpid()}")
        descriptor = os.open(half, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
        half.replace(path)


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise GatepostError(
            f"{error.filename or path}: cannot write: {error.strerror}",
            expected="an environment directory that you can write, on a disk with room",
            next_step="Check owner, mode and mount (ls -ld, df), or name another directory with INVENTORY=.",
        ) from error
