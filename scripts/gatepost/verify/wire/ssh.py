"""Running a script at a host that one can log in to, by OpenSSH. Nothing is installed there."""

from __future__ import annotations

import ipaddress
import shlex
import socket
import subprocess
from dataclasses import dataclass

from gatepost.verify.model import Login, Target
from gatepost.verify.wire.session import Failure, WireError

CONNECT_SECONDS = 10
# A password or a host key that would have to be asked for is a failure, since nobody is there to answer.
_OPTIONS = ("-T", "-o", "BatchMode=yes", "-o", f"ConnectTimeout={CONNECT_SECONDS}", "-o", "LogLevel=ERROR")
_PATH = "export LC_ALL=C PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin\n"  # users other than root often lack them


def run(login: Login, script: str, *, root: bool = False, seconds: float = 30.0) -> str:
    """Run a bash script there and return its standard output, whatever its exit code; raise WireError otherwise.

    `root` runs it by `sudo -n` unless the login is root's. The script goes over standard input, so that nothing of it
    shows in a process list there. The client gets a session of its own: Ctrl-C must not cut off a cleaning-up.
    """
    as_root = '[ "$(id -u)" = 0 ] && exec bash -s || exec sudo -n bash -s'
    shell = f"bash -c {shlex.quote(as_root)}" if root else "bash -s"
    try:
        done = subprocess.run(
            [login.command[0], *_OPTIONS, *login.command[1:], shell],
            input=f"{_PATH}{script}".encode(),
            capture_output=True,
            timeout=seconds,
            check=False,
            start_new_session=True,
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


def _addresses(login: Login) -> set[str]:
    """Return the addresses that ssh would connect to, by its own configuration (ssh(1), -G)."""
    try:
        done = subprocess.run(
            [login.command[0], "-G", *login.command[1:]], capture_output=True, text=True, timeout=10, check=False
        )
        host = next((line[9:] for line in done.stdout.splitlines() if line.startswith("hostname ")), "")
        return {str(entry[4][0]) for entry in socket.getaddrinfo(host, None)} if host else set()
    except (OSError, UnicodeError, subprocess.TimeoutExpired):
        return set()


@dataclass(frozen=True, slots=True)
class Place:
    """Where a login leads. The Postfix parameters are empty where there is no Postfix."""

    login: Login
    home: str  # by what it is known to be the server itself; empty: another host
    myhostname: str
    mynetworks: str
    exceptions: str  # smtpd_client_event_limit_exceptions
    doveadm: bool
    client: str  # the address that SSH sees us come from


_WHERE = """
set -- $SSH_CONNECTION
echo "client $1"
for name in myhostname mynetworks smtpd_client_event_limit_exceptions; do
  echo "$name $(postconf -xh $name 2>/dev/null | tr '\\n' ' ')"
done
command -v doveadm >/dev/null && echo "doveadm yes"
ip -o addr show | sed -n 's/.* inet6\\{0,1\\} \\([0-9a-fA-F.:]*\\).*/address \\1/p'
:
"""


def place(login: Login, target: Target) -> Place:
    """Return where a login leads; raise WireError when it cannot be used."""
    said: dict[str, list[str]] = {}
    for line in run(login, _WHERE).splitlines():
        key, _, value = line.partition(" ")
        said.setdefault(key, []).append(value.strip())
    one = {key: values[0] for key, values in said.items()}
    # The loopback's addresses are on every host.
    own = [a for a in target.addresses if a in said.get("address", ()) and not ipaddress.ip_address(a).is_loopback]
    myhostname = one.get("myhostname", "")
    home = ""
    if own:
        home = f"it has the address {own[0]}"
    elif myhostname.lower() == target.hostname.lower() and _addresses(login) & set(target.addresses):
        # Behind a NAT. The name alone would be that of a copy of the server, too.
        home = f"its Postfix is {myhostname}, and SSH goes to the same address"
    return Place(
        login,
        home,
        myhostname,
        one.get("mynetworks", ""),
        one.get("smtpd_client_event_limit_exceptions", ""),
        "doveadm" in one,
        one.get("client", ""),
    )
