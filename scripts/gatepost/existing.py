"""`cloud: existing`: a server that stands already, and whose host key must be known before anyone logs in."""

from __future__ import annotations

import base64
import hashlib
import ipaddress
import subprocess
from pathlib import Path

from gatepost.errors import GatepostError
from gatepost.inventory import Server
from gatepost.settings import Existing, Settings
from gatepost.verification import resolve

PREFERRED = ("ssh-ed25519", "ecdsa-sha2-nistp256", "ssh-rsa")


def server_of(settings: Settings) -> Server:
    """Return the server that the settings name, with the host key that the user vouches for.

    Raises GatepostError when it has no address, or when nothing says which host key is the right one.
    """
    existing = settings.existing
    assert existing is not None
    addresses = resolve(existing.address)
    return Server(
        name="existing",
        fqdn=settings.hostname,
        ipv4=next((a for a in addresses if ipaddress.ip_address(a).version == 4), None),
        ipv6=next((a for a in addresses if ipaddress.ip_address(a).version == 6), None),
        ssh_user=existing.ssh_user,
        ssh_port=existing.ssh_port,
        ssh_host_key=_host_key(existing),
        ssh_key_file=existing.ssh_key_file,
    )


def _host_key(existing: Existing) -> str:
    given = existing.ssh_host_key
    if given is not None and not given.startswith("SHA256:"):
        return " ".join(given.split()[:2])
    known = _known_to_user(existing)
    if given is None and known is not None:
        return known
    offered = _scan(existing)
    if given is not None:
        for key in offered:
            if fingerprint(key) == given:
                return key
        raise GatepostError(
            f"{existing.address} shows other host keys than settings.yml expects ({given}):\n  " + _listed(offered),
            expected="the key with that fingerprint",
            next_step="If the server was installed anew, compare with what `ssh-keygen -lf "
            "/etc/ssh/ssh_host_ed25519_key.pub` prints on its console, and correct existing.ssh_host_key. "
            "Otherwise somebody may sit in between.",
        )
    raise GatepostError(
        f"the host key of {existing.address} is not known yet; it shows\n  " + _listed(offered),
        expected="existing.ssh_host_key in settings.yml, or the key in your ~/.ssh/known_hosts",
        next_step="Compare with what `ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub` prints on its console, then "
        f'write into settings.yml under existing: ssh_host_key: "{fingerprint(offered[0])}"',
    )


def fingerprint(key: str) -> str:
    """Return the fingerprint of a public key line ("ssh-ed25519 AAAA…") as ssh-keygen -l prints it."""
    digest = hashlib.sha256(base64.b64decode(key.split()[1])).digest()
    return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")


def _listed(keys: list[str]) -> str:
    return "\n  ".join(f"{fingerprint(key)} ({key.split()[0]})" for key in keys)


def _by_preference(lines: str) -> list[str]:
    keys = [" ".join(line.split()[1:3]) for line in lines.splitlines() if line and not line.startswith(("#", "@"))]
    known = [key for key in dict.fromkeys(keys) if key.split()[0] in PREFERRED]
    return sorted(known, key=lambda key: PREFERRED.index(key.split()[0]))


def _known_to_user(existing: Existing) -> str | None:
    file = Path("~/.ssh/known_hosts").expanduser()
    if not file.is_file():
        return None
    name = existing.address if existing.ssh_port == 22 else f"[{existing.address}]:{existing.ssh_port}"
    done = subprocess.run(["ssh-keygen", "-F", name, "-f", str(file)], capture_output=True, text=True, check=False)
    keys = _by_preference(done.stdout)
    return keys[0] if keys else None


def _scan(existing: Existing) -> list[str]:
    command = ["ssh-keyscan", "-T", "10", "-p", str(existing.ssh_port), existing.address]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    keys = _by_preference(done.stdout)
    if not keys:
        raise GatepostError(
            f"{existing.address} port {existing.ssh_port}: no SSH server answers",
            expected="an SSH server that this computer can reach",
            next_step="Check existing.address and existing.ssh_port, and firewalls in between.",
        )
    return keys
