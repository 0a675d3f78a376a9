"""What must come from Debian."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass

from gatepost.errors import GatepostError


@dataclass(frozen=True, slots=True)
class Tool:
    """A command that a Debian package brings, and what it is for."""

    command: str
    package: str
    purpose: str


SSH = Tool("ssh", "openssh-client", "logs in to the server")
LAB = (
    SSH,
    Tool("systemd-nspawn", "systemd-container", "runs the lab's machines"),
    Tool("mmdebstrap", "mmdebstrap", "builds their Debian image"),
    Tool("nft", "nftables", "is the lab's firewall"),
    Tool("dnsmasq", "dnsmasq-base", "is the lab's resolver"),
    Tool("ip", "iproute2", "makes the lab's network"),
)
# /usr/sbin is missing from many users' PATH, and holds nft and dnsmasq.
_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin"])


def require(tools: tuple[Tool, ...], say: Callable[[str], None]) -> None:
    """Install what is missing when running as root on Debian; otherwise raise GatepostError with the exact apt line."""
    missing = [tool for tool in tools if shutil.which(tool.command, path=_PATH) is None]
    if not missing:
        return
    packages = sorted({tool.package for tool in missing})
    reasons = ", ".join(f"{tool.package} ({tool.purpose})" for tool in missing)
    line = f"apt-get install --no-install-recommends {shlex.join(packages)}"
    if os.geteuid() != 0 or shutil.which("apt-get", path=_PATH) is None:
        raise GatepostError(
            f"not installed: {reasons}",
            expected="these Debian packages on this computer",
            next_step=f"As root: {line}",
        )
    say(f"Installing from Debian: {reasons}.")
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    install = f"apt-get -qq -y -o DPkg::Lock::Timeout=120 {line.removeprefix('apt-get ')}"
    done = _run(install, env)
    if done.returncode and (done := _run("apt-get -qq update", env)).returncode == 0:  # lists too old, or none yet
        done = _run(install, env)
    if done.returncode:
        raise GatepostError(
            f"apt-get could not install {', '.join(packages)}:\n  "
            + "\n  ".join(done.stderr.strip().splitlines()[-5:]),
            next_step=f"Mend that, then as root: {line}",
        )


def _run(command: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    # A session of its own: Ctrl-C must not break dpkg halfway.
    return subprocess.run(
        shlex.split(command),
        env=env,
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )
