"""A machine of the lab with nothing but Debian on it, and the playbooks run over it without the glue."""

from __future__ import annotations

import json
import os
import re
import secrets
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bcrypt
import yaml

from gatepost.lab import machine, network

REPOSITORY = Path(__file__).resolve().parents[1]
SITE = REPOSITORY / "playbooks/site.yml"
PASSWORD = "correct horse"


@dataclass(frozen=True)
class Run:
    """What ansible-playbook did to the one host."""

    code: int
    changed: int
    seconds: float
    output: str

    @property
    def said(self) -> str:
        """The text on one line, without Ansible's wrapping and quoting."""
        return re.sub(r"\s+", " ", self.output.replace("\\n", " "))


class Bare:
    """A fresh machine, its network and an inventory of its own; use it in a `with` statement."""

    def __init__(self, directory: Path, release: int = 13) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory, self.release = directory, release
        self.name = "t" + secrets.token_hex(3)

    def __enter__(self) -> Bare:
        key = self.directory / "key"
        if not key.exists():
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
        self.network = network.create(self.name, outside_domain="remote.test")
        try:
            spec = machine.Spec(
                name=self.name,
                fqdn="mx.example.test",
                network=self.name,
                ssh_public_key=key.with_suffix(".pub").read_text().strip(),
                mx_for=("example.test",),
                release=self.release,
            )
            self.machine = machine.create(spec)
        except BaseException:
            self.__exit__()
            raise
        known = self.directory / f"{self.name}.known_hosts"
        known.write_text(f"{self.machine.ipv4} {self.machine.ssh_host_key}\n")
        self.login = ["-i", str(key), "-o", f"UserKnownHostsFile={known}", "-o", "StrictHostKeyChecking=yes"]
        return self

    def __exit__(self, *_: object) -> None:
        if found := _described(self.name):
            machine.destroy(self.name, found.uuid)
        network.destroy(self.name, self.network.uuid)

    @property
    def variables(self) -> dict[str, Any]:
        """What site.yml needs, as the glue would write it."""
        hashed = "{BLF-CRYPT}" + bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(4, b"2b")).decode()
        return {
            "mail_hostname": "mx.example.test",
            "mail_domains": ["example.test"],
            "mail_users": [
                {"address": "anna@example.test", "password_hash": hashed, "aliases": ["sales@example.test"]},
                {"address": "Ben@example.test", "password_hash": hashed, "may_send_as": ["news@example.test"]},
            ],
            "mail_postmaster": "anna@example.test",
            "certificate_source": "lab_ca",
            "certificate_ca_dir": str(self.directory / "ca"),
            "ssh_sources": ["198.18.0.0/15", "fd00::/8"],
            "mail_ssh_port": 22,
        }

    @property
    def inventory(self) -> Path:
        """The inventory file, written once, so that hashes stay the same from run to run."""
        path = self.directory / f"{self.name}.yml"
        if not path.exists():
            host = {
                "ansible_host": self.machine.ipv4,
                "ansible_user": "gatepost",
                "ansible_ssh_common_args": " ".join(self.login),
            }
            group = {"mailservers": {"hosts": {"mx": host}, "vars": self.variables}}
            path.write_text(yaml.safe_dump(group, sort_keys=False))
        return path

    def play(
        self, *arguments: str, playbook: Path = SITE, config: Path = REPOSITORY / "ansible.cfg", **changes: Any
    ) -> Run:
        """Run a playbook; `changes` replace variables. Whether it succeeded is the caller's to judge."""
        command = [str(Path(sys.executable).parent / "ansible-playbook"), "-i", str(self.inventory), str(playbook)]
        if changes:
            command += ["-e", json.dumps(changes)]
        started = time.monotonic()
        done = subprocess.run(
            [*command, *arguments],
            env={**os.environ, "ANSIBLE_CONFIG": str(config), "ANSIBLE_NOCOLOR": "1", "ANSIBLE_FORCE_COLOR": "0"},
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=600,
            check=False,
        )
        seconds = time.monotonic() - started
        changed = re.search(r"^mx\s+: .*changed=(\d+)", done.stdout, re.MULTILINE)
        return Run(done.returncode, int(changed[1]) if changed else 0, seconds, done.stdout + done.stderr)

    def ssh(self, script: str, *, stdin: bytes = b"", check: bool = True) -> subprocess.CompletedProcess[bytes]:
        """Run a shell script as root on the machine; `stdin` is what it reads."""
        done = subprocess.run(
            ["ssh", "-q", *self.login, f"gatepost@{self.machine.ipv4}", "sudo", "bash", "-c", _quoted(script)],
            input=stdin,
            capture_output=True,
            timeout=300,
            check=False,
        )
        assert not check or done.returncode == 0, f"{script}\nexit code {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def text(self, script: str) -> str:
        """Return what a shell script prints, run as root on the machine."""
        return self.ssh(script).stdout.decode().strip()


def _quoted(script: str) -> str:
    return "'" + script.replace("'", "'\\''") + "'"


def _described(name: str) -> machine.Machine | None:
    from gatepost.lab import store

    return machine.describe(name) if name in store.read()["machines"] else None
