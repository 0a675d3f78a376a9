"""An environment under test."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

REPOSITORY = Path(__file__).resolve().parents[1]
GATEPOST = Path(sys.executable).parent / "gatepost"
MINUTES = 60  # in a deadline, in seconds


class Environment:
    """An environment directory of its own, driven by the `gatepost` command as a person drives it."""

    def __init__(self, directory: Path, **changes: Any) -> None:
        self.directory = directory
        directory.mkdir(parents=True)
        settings = yaml.safe_load((REPOSITORY / "inventory.example/settings.yml").read_text())
        (directory / "settings.yml").write_text(yaml.safe_dump({**settings, **changes}))

    def gatepost(self, command: str, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run `gatepost COMMAND` here; with `check`, an exit code other than 0 fails the test with what it said."""
        done = subprocess.run(
            [GATEPOST, command, "--inventory", self.directory, *arguments],
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=20 * MINUTES,
            check=False,
        )
        said = f"{command}: exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert not check or done.returncode == 0, said
        return done

    @property
    def info(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(self.gatepost("info", "--json").stdout)
        return document

    def ssh(self, script: str, *, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a shell script as root on the server."""
        [server] = self.info["servers"]
        done = subprocess.run(
            [*server["ssh"]["command"], "sudo", "bash", "-s"],
            input=script,
            capture_output=True,
            text=True,
            timeout=2 * MINUTES,
            check=False,
        )
        assert not check or done.returncode == 0, f"{script}\nexit code {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def verify(self, *arguments: str) -> dict[str, Any]:
        """Return the report of `gatepost verify`, whatever it judged."""
        document: dict[str, Any] = json.loads(self.gatepost("verify", "--json", *arguments, check=False).stdout)
        return document
