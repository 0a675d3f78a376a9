"""Running a script at a host that one can log in to, by OpenSSH. Nothing is installed there."""

from __future__ import annotations

import shlex
import subprocess

from gatepost.verify.model import Login
from gatepost.verify.wire.session import Failure, WireError

CONNECT_SECONDS = 10
# A password or a host key that would have to be asked for is a failure, since nobody is there to answer.
_OPTIONS = ("-T", "-o", "BatchMode=yes", "-o", f"ConnectTimeout={CONNECT_SECONDS}", "-o", "LogLevel=ERROR")


def run(login: Login, script: str, *, root: bool = False, seconds: float = 30.0) -> str:
    """Run a bash script there and return its standard output, whatever its exit code; raise WireError otherwise.

    `root` runs it by `sudo -n` unless the login is root's. The script goes over standard input, so that nothing of it
    shows in a process list there.
    """
    as_root = '[ "$(id -u)" = 0 ] && exec bash -s || exec sudo -n bash -s'
    shell = f"bash -c {shlex.quote(as_root)}" if root else "bash -s"
    try:
        done = subprocess.run(
            [login.command[0], *_OPTIONS, *login.command[1:], shell],
            input=script.encode(),
            capture_output=True,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise WireError(Failure.TIMED_OUT, f"{login.url}: no end within {seconds:g} s") from None
    except OSError as error:
        raise WireError(Failure.BUSY, f"ssh does not start: {error.strerror or error}") from None
    said = done.stderr.decode("utf-8", "backslashreplace").strip()
    if done.returncode == 255:  # ssh(1), EXIT STATUS
        raise WireError(Failure.UNREACHABLE, f"{login.url}: {said or 'ssh failed'}")
    if root and done.returncode != 0 and "sudo:" in said:
        raise WireError(Failure.NOT_TRIED, f"{login.url}: not root there, and sudo wants a password: {said}")
    return done.stdout.decode("utf-8", "backslashreplace")
