"""Bad input while a server stands: a clear error, nothing changed, nothing lost. (Without a server: tests/unit.)"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from environments import GATEPOST, Environment

from gatepost import listeners

pytestmark = pytest.mark.lab

FILES = (
    "find /etc/postfix /etc/dovecot /etc/ssl/gatepost /etc/nftables.conf -type f -exec sha256sum {} + | sort; "
    "nft list ruleset"
)


@pytest.fixture
def unharmed(server13: Environment) -> Iterator[Environment]:
    """The shared server; afterwards the same as before, on the machine and in its environment."""

    def look() -> tuple[str, ...]:
        kept = ("hosts.yml", "secrets/known_hosts", "terraform/terraform.tfstate", "secrets/password_hashes.json")
        return (server13.ssh(FILES).stdout, *((server13.directory / name).read_text() for name in kept))

    path = server13.directory / "settings.yml"
    text, before = path.read_text(), look()
    yield server13
    path.write_text(text)
    assert look() == before


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"hostname": "mx.example..test"}, "hostname: found 'mx.example..test'"),
        ({"hostname": "mx.other.test"}, "not under a domain hosted here"),
        ({"domains": ["example test"]}, "domains[1]: found 'example test'"),
        ({"ssh_sources": ["192.0.2.0/24"]}, "shuts out 198.18."),
        ({"ssh_sources": ["192.0.2.7/24"]}, "not a CIDR"),
        ({"users": [{"address": "alice@example.test"}]}, "no password"),
        ({"users": [{"address": "alice@example.test", "password_file": "nowhere"}]}, "No such file"),
        ({"users": [{"address": "alice@other.test", "password_file": "x"}]}, "not hosted here"),
        ({"hostnaem": "x"}, "Did you mean 'hostname'?"),
        (
            {"certificate": {"source": "files", "chain_file": "none.pem", "key_file": "none.key"}},
            "none.pem: cannot read",
        ),
        (
            {"certificate": {"source": "files", "chain_file": "secrets/ca/ca.pem", "key_file": "secrets/ca/ca.key"}},
            "names",
        ),
    ],
)
def test_bad_settings(unharmed: Environment, changes: dict[str, object], found: str) -> None:
    path = unharmed.directory / "settings.yml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **changes}))
    done = unharmed.gatepost("deploy", check=False)
    assert done.returncode == 2, done.stderr
    assert found in done.stderr
    assert "Next: " in done.stderr or "Expected: " in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("old", "new", "found"),
    [
        ("port: 465", "port: 0465", "port: found 0465"),
        ("port: 465", "port: 22:25", "port: found 22:25"),
        ("port: 465", "port: 70000", "port: found 70000"),
        ("port: 465", "port: 587", "both have port 587"),
        ("port: 465", "port: 22", "where SSH listens"),
        ("name: submissions", "name: relay", "both have name relay"),
        ("purpose: relay", "purpose: smtp", "purpose: found 'smtp'"),
        ("tls: implicit", "tsl: implicit", "unknown key 'tsl'"),
    ],
)
def test_bad_tables(unharmed: Environment, tmp_path: Path, old: str, new: str, found: str) -> None:
    table = tmp_path / "listeners.yml"
    text = listeners.default_path().read_text()
    assert old in text
    table.write_text(text.replace(old, new))
    for command in ("deploy", "plan", "converge", "verify"):
        done = unharmed.gatepost(command, "--listeners", str(table), check=False)
        if command == "verify" and "SSH" in found:
            continue  # judging such a table does no harm
        assert done.returncode == 2, f"{command}: {done.stderr}"
        assert found in done.stderr


@pytest.mark.parametrize("mount", ["mount --bind -o ro {0} {0}", "mount -t tmpfs -o size=4k,nr_inodes=8 none {0}/logs"])
def test_an_environment_that_cannot_be_written(unharmed: Environment, mount: str) -> None:
    """Read-only, or on a disk without room: mounted so in a namespace of its own."""
    where = unharmed.directory
    bind = mount.format(where)
    if "-o ro" in bind:  # a bind mount becomes read-only only when it is mounted again
        bind = f"mount --bind {where} {where}; mount -o remount,bind,ro {where}"
    else:
        bind += f"; head -c 100000 /dev/zero > {where}/logs/full 2>/dev/null || true"
    script = f"{bind}; exec {GATEPOST} deploy --inventory {where}"
    done = subprocess.run(["unshare", "--mount", "sh", "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "cannot write" in done.stderr and "INVENTORY=" in done.stderr and "Traceback" not in done.stderr


def test_a_host_key_that_changed_stops_everything(unharmed: Environment) -> None:
    """Somebody in between: the known key is another one than the server shows."""
    known = unharmed.directory / "secrets/known_hosts"
    text = known.read_text()
    known.write_text(text.replace("AAAAC3NzaC1lZDI1NTE5AAAAI", "AAAAC3NzaC1lZDI1NTE5AAAAJ"))
    try:
        done = unharmed.gatepost("ssh", "true", check=False)
        assert done.returncode == 255 and "verification failed" in done.stderr
    finally:
        known.write_text(text)
