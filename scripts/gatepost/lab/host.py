"""The host that the lab stands on: its tools, locks, processes, and whether it can carry a lab at all."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shlex
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path

from gatepost.errors import GatepostError

DIRECTORY = Path("/var/lib/gatepost/lab")  # the truth about what is ours; survives a reboot
LOCKS = Path("/run/lock/gatepost-lab")

REBOOT = 133  # exit status of systemd-nspawn --keep-unit when the machine reboots: start it again

# Command → Debian package that brings it.
_TOOLS = {
    "systemd-nspawn": "systemd-container",
    "mmdebstrap": "mmdebstrap",
    "nft": "nftables",
    "dnsmasq": "dnsmasq-base",
    "ip": "iproute2",
    "ss": "iproute2",
    "mount": "mount",
}
_WAY_OUT = "or use a server that you have (`cloud: existing` in settings.yml) or a cloud instead of the lab."


class CommandError(GatepostError):
    """A command of the host failed; `output` is what it said."""

    def __init__(self, argv: Sequence[str], status: int | str, output: str) -> None:
        said = output.strip() or "it said nothing"
        super().__init__(f"`{' '.join(argv)}` failed ({status}): {said}")
        self.output = output


def run(*argv: str, stdin: str | None = None, timeout: float = 60) -> str:
    """Run a command and return its standard output; `timeout` in seconds. Raise CommandError when it fails.

    The child gets a session of its own: a Ctrl-C on the terminal reaches the whole foreground process group, and nft or
    ip must not die halfway through.
    """
    try:
        done = subprocess.run(
            argv,
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            text=True,
            timeout=timeout,
            start_new_session=True,
            env=_environment(),
        )
    except FileNotFoundError as error:
        package = _TOOLS.get(argv[0], argv[0])
        raise GatepostError(f"{argv[0]} is not installed", next_step=f"apt-get install {package}") from error
    except subprocess.TimeoutExpired as error:
        raise CommandError(argv, f"still running after {timeout:.0f} s", str(error.stderr or "")) from error
    if done.returncode:
        raise CommandError(argv, done.returncode, done.stderr or done.stdout)
    return done.stdout


def _environment() -> dict[str, str]:
    # /usr/sbin is not in every user's PATH under sudo or su; messages are parsed in English.
    return {
        **os.environ,
        "LC_ALL": "C.UTF-8",
        "PATH": f"{os.environ.get('PATH', '')}:/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin",
    }


@cache
def has_systemd() -> bool:
    """Whether PID 1 is systemd, so that transient units can be had (sd_booted(3))."""
    return Path("/run/systemd/system").is_dir()


def check() -> None:
    """Raise one GatepostError naming everything that keeps this host from carrying a lab, and the way out."""
    if os.geteuid() != 0:
        raise GatepostError(
            f"the local lab needs root, and this runs as user id {os.geteuid()}",
            expected="root, since the lab makes network devices, mounts and containers",
            next_step=f"Run the same command with sudo or as root, {_WAY_OUT}",
        )
    path = _environment()["PATH"]
    missing = sorted({package for tool, package in _TOOLS.items() if not shutil.which(tool, path=path)})
    if missing:
        raise GatepostError(
            f"the local lab needs packages that are not installed: {', '.join(missing)}",
            next_step=f"apt-get install --no-install-recommends {' '.join(missing)} — {_WAY_OUT}",
        )
    for what, argv in {
        "namespaces": ("unshare", "--mount", "--net", "--pid", "--fork", "true"),
        "nftables": ("nft", "list", "tables"),
    }.items():
        try:
            run(*argv)
        except CommandError as error:
            raise GatepostError(
                f"the local lab needs {what}, and this machine does not allow them: {error.found}",
                expected="a Linux machine or virtual machine of its own, or a container with full privileges",
                next_step=f"Run it there, {_WAY_OUT}",
            ) from error
    if "overlay" not in Path("/proc/filesystems").read_text():
        try:
            run("modprobe", "overlay")
        except GatepostError as error:
            raise GatepostError(
                f"the local lab needs the overlay file system: {error.found}",
                next_step=f"Use a kernel with overlayfs, {_WAY_OUT}",
            ) from error


@contextlib.contextmanager
def lock(name: str, *, what: str, timeout: float = 60) -> Iterator[None]:
    """Hold a lock that excludes other processes and other threads of this one; `timeout` in seconds.

    A lock file outlives its holder, the lock does not (flock(2)): whoever gets it knows that no one else is at work.
    """
    LOCKS.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = LOCKS / f"{name}.lock"
    with path.open("a+") as file:
        deadline = time.monotonic() + timeout
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    file.seek(0)
                    holder = file.read().strip() or "unknown"
                    raise GatepostError(
                        f"{what} is held by another run (process {holder}) since more than {timeout:.0f} s: {path}",
                        next_step="Let the other run end, or end it, then run this again.",
                    ) from None
                time.sleep(0.02)
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def wait_for(
    condition: Callable[[], bool], *, timeout: float, cancelled: threading.Event | None = None, interval: float = 0.02
) -> bool:
    """Poll until the condition holds; give False after `timeout` seconds or as soon as `cancelled` is set."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline or (cancelled and cancelled.is_set()):
            return False
        time.sleep(interval)
    return True


def processes(argument: str) -> list[int]:
    """Return the ids of living processes that have exactly this argument on their command line.

    The lab's programs are found by the path of ours that they were started with: a pid file can be stale, its number
    used again by a stranger.
    """
    found = []
    needle = argument.encode()
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                arguments = (entry / "cmdline").read_bytes().split(b"\0")  # empty for a zombie
            except OSError:
                continue
            if needle in arguments:
                found.append(int(entry.name))
    return found


def machine_leaders(root: Path, namespace: Path) -> list[int]:
    """Return the process ids, here, of the init of a container with this root directory or network namespace.

    Both are asked for, because either can have been taken away under a living machine.
    """
    marks = []
    for path in (root, namespace):
        with contextlib.suppress(OSError):
            status = path.stat()
            marks.append((status.st_dev, status.st_ino))
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            for link in ("root", "ns/net"):
                status = (entry / link).stat()
                if (status.st_dev, status.st_ino) in marks and _is_init(entry):
                    found.append(int(entry.name))
                    break
        except OSError:
            continue
    return found


def _is_init(process: Path) -> bool:
    for line in (process / "status").read_text().splitlines():
        if line.startswith("NSpid:"):
            inner = line.split()[1:]
            return len(inner) > 1 and inner[-1] == "1"
    return False


def end(pids: Sequence[int], *, how: signal.Signals = signal.SIGKILL, timeout: float = 20) -> bool:
    """Send a signal and wait until the processes are gone, their open files and sockets too; give False after
    `timeout`.

    A dying process loses its memory, and so its command line, before it closes its sockets: a zombie or nothing at all
    is the end.
    """
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, how)
    return wait_for(lambda: all(map(_ended, pids)), timeout=timeout, interval=0.005)


def _ended(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in ("Z", "X")
    except OSError:
        return True


def spawn(name: str, argv: Sequence[str], log: Path, *, forks: bool = False) -> None:
    """Start a program that outlives this process and the login; its output goes to `log`.

    `forks`: the program goes into the background by itself once it is ready (the return status then tells).
    """
    if has_systemd():
        run(
            *("systemd-run", "--quiet", "--collect", f"--unit=gatepost-lab-{name}"),
            *(
                f"--property=Type={'forking' if forks else 'exec'}",
                "--property=KillMode=mixed",
                "--property=Delegate=yes",
            ),
            *(f"--property=StandardOutput=append:{log}", f"--property=StandardError=append:{log}"),
            f"--property=RestartForceExitStatus={REBOOT}",
            f"--property=SuccessExitStatus={REBOOT}",
            "--setenv=SYSTEMD_NSPAWN_API_VFS_WRITABLE=network",
            "--",
            shutil.which(argv[0], path=_environment()["PATH"]) or argv[0],
            *argv[1:],
        )
    elif forks:
        run(*argv)
    else:
        # The shell enters the cgroups, since a preexec_fn would run Python in a fork of a process with threads
        # (gRPC's).
        enter = "".join(f"echo 0 > {shlex.quote(str(group))}/cgroup.procs && " for group in _own_cgroups(name))
        loop = f'while ({enter}exec "$@"); [ $? -eq {REBOOT} ]; do :; done'
        with log.open("ab") as output:
            subprocess.Popen(
                ("sh", "-c", loop, "sh", *argv),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                env={**_environment(), "SYSTEMD_NSPAWN_API_VFS_WRITABLE": "network"},
            )


def _own_cgroups(name: str) -> list[Path]:
    """Make a cgroup for one program where no systemd does.

    Two containers that are started from the same cgroup share one `payload` group (--keep-unit), and the two systemd
    then wait for each other's processes.
    """
    groups = []
    for mount in _cgroup_mounts():
        group = mount / f"gatepost-lab-{name}"
        try:
            group.mkdir(exist_ok=True)
        except OSError as error:
            raise GatepostError(
                f"{group}: cannot make a cgroup: {error.strerror}",
                expected="a writable cgroup file system, which a container without privileges does not have",
                next_step=f"Run the lab on a machine of its own, {_WAY_OUT}",
            ) from error
        groups.append(group)
    return groups


def _cgroup_mounts() -> list[Path]:
    mounts = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        kind, _, options = after.split(" ", 2)
        if kind == "cgroup2" or (kind == "cgroup" and "name=systemd" in options):
            mounts.append(Path(before.split()[4]))
    return mounts


def members(name: str) -> list[int]:
    """Return the living processes in the cgroup, or the systemd unit, of a spawned program: all of a machine's."""
    mine = re.compile(rf"/gatepost-lab-{re.escape(name)}(\.service)?(/|$)", re.MULTILINE)
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):
                if mine.search((entry / "cgroup").read_text()) and not _ended(int(entry.name)):
                    found.append(int(entry.name))
    return found


def remove_cgroups(name: str) -> None:
    """Remove the cgroups that `spawn` and the container in it made; the processes must have ended."""
    for mount in _cgroup_mounts():
        top = mount / f"gatepost-lab-{name}"

        def gone(top: Path = top) -> bool:
            for directory, _, _ in os.walk(top, topdown=False):
                with contextlib.suppress(OSError):  # a process that has just ended still holds it for a moment
                    os.rmdir(directory)  # noqa: PTH106 - a path from os.walk
            return not top.exists()

        if not wait_for(gone, timeout=5):
            raise GatepostError(
                f"{top} cannot be removed: processes are left in it", next_step="Look at its cgroup.procs, end them."
            )
