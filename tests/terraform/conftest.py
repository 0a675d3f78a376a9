"""A copy of terraform/local with a state of its own, run by the real Terraform against the real lab."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from footprint import Footprint

REPOSITORY = Path(__file__).resolve().parents[2]


class Root:
    """One root module with its variables; `name` is the lab's name."""

    def __init__(self, directory: Path, **variables: Any) -> None:
        self.directory = directory / "terraform/local"
        self.key = directory / "key"
        if not self.directory.exists():
            shutil.copytree(
                REPOSITORY / "terraform/local",
                self.directory,
                ignore=shutil.ignore_patterns(".terraform*", "*.tfstate*", "tests"),
            )
            # The pattern above would drop the plugins too, were they not one directory further down.
            shutil.copytree(
                REPOSITORY / "terraform/local/terraform.d", self.directory / "terraform.d", dirs_exist_ok=True
            )
            table = Path("roles/postfix/defaults/main/listeners.yml")
            (directory / table).parent.mkdir(parents=True)
            shutil.copy(REPOSITORY / table, directory / table)
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.key)], check=True)
        self.variables: dict[str, Any] = {
            "name": "t" + secrets.token_hex(3),
            "hostname": "mx.example.test",
            "domains": ["example.test"],
            "ssh_sources": ["198.18.0.0/15", "fd00::/8"],
            "ssh_public_key": self.key.with_suffix(".pub").read_text(),
            **variables,
        }
        self.write()

    @property
    def name(self) -> str:
        return str(self.variables["name"])

    def write(self, **variables: Any) -> None:
        """Write terraform.tfvars.json, with some variables changed."""
        self.variables |= variables
        (self.directory / "terraform.tfvars.json").write_text(json.dumps(self.variables))

    def environment(self) -> Mapping[str, str]:
        return {
            **os.environ,
            "GATEPOST_PYTHON": sys.executable,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",  # terraform may be the venv's
            "PYTHONPATH": str(REPOSITORY / "scripts"),
            "TF_IN_AUTOMATION": "1",
            "TF_CLI_CONFIG_FILE": os.devnull,
        }

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["terraform", *arguments],
            cwd=self.directory,
            env=self.environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def run(self, *arguments: str, ok: bool = True) -> str:
        process = self.start(*arguments)
        output = process.communicate(timeout=300)[0]
        assert (process.returncode == 0) is ok, output
        return output

    def init(self) -> Root:
        self.run("init", "-no-color")
        return self

    def apply(self, *, ok: bool = True) -> str:
        return self.run("apply", "-no-color", "-auto-approve", ok=ok)

    def destroy(self, *, ok: bool = True) -> str:
        return self.run("destroy", "-no-color", "-auto-approve", ok=ok)

    def plan(self) -> dict[str, list[str]]:
        """Return what a plan would do: resource address → actions, without those that stay as they are."""
        self.run("plan", "-no-color", "-out=plan.bin")
        changes = json.loads(self.run("show", "-json", "plan.bin"))["resource_changes"]
        return {c["address"]: c["change"]["actions"] for c in changes if c["change"]["actions"] != ["no-op"]}

    def outputs(self) -> dict[str, Any]:
        return {name: output["value"] for name, output in json.loads(self.run("output", "-json")).items()}

    def server(self) -> dict[str, Any]:
        return dict(self.outputs()["servers"][self.name])

    def ssh(self, command: str, *, family: str = "ipv4") -> str:
        """Run a command on the server, whose host key must be the one that Terraform gave."""
        server = self.server()
        known = self.directory / "known_hosts"
        known.write_text(f"{server[family]} {server['ssh_host_key']}\n")
        done = subprocess.run(
            [
                "ssh", "-F", "none", "-i", str(self.key), "-o", f"UserKnownHostsFile={known}",
                "-o", "StrictHostKeyChecking=yes", "-o", "BatchMode=yes", "-o", "ConnectTimeout=10",
                f"{server['ssh_user']}@{server[family]}", command,
            ],
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture
def new_root(tmp_path: Path) -> Iterator[Callable[..., Root]]:
    """Make roots of one test's own; they are destroyed at its end, and nothing may be left."""
    before = Footprint()
    roots: list[Root] = []

    def make(**variables: Any) -> Root:
        directory = tmp_path / str(len(roots))
        directory.mkdir()
        roots.append(Root(directory, **variables).init())
        return roots[-1]

    yield make
    for root in roots:
        root.destroy()
    assert before.left() == []


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Root]:
    """One applied lab for a whole module; each test leaves it as it found it."""
    before = Footprint()
    root = Root(tmp_path_factory.mktemp("lab")).init()
    root.apply()
    yield root
    root.destroy()
    assert before.left() == []


def wait(condition: Callable[[], Any], *, seconds: float = 60) -> None:
    """Wait for something that must happen; the deadline is against hanging."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
