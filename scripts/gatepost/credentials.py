"""The environment's secrets: its SSH key, mailbox passwords and their hashes. All in files of mode 0600."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable
from dataclasses import dataclass

from gatepost import environment
from gatepost.errors import GatepostError
from gatepost.settings import Settings, User

BCRYPT_COST = 10  # 2^10 rounds: about 0.05 s per login; Dovecot's default for BLF-CRYPT is 5
# For the 144 random bits of a test account, which no rounds make safer. A verification logs in some 30 times, and
# Dovecot checks one password after the other while new clients on the implicit TLS port wait for its answer.
PROBE_BCRYPT_COST = 5
BCRYPT_BYTES = 72  # bcrypt ignores what follows, so it is refused


def ssh_public_key(settings: Settings) -> str:
    """Return the public key that machines are built with; make the pair (Ed25519) when there is none."""
    from cryptography.hazmat.primitives import serialization as form
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    private = environment.private_directory(settings.secrets) / "ssh_key"
    if private.exists():
        try:
            key = form.load_ssh_private_key(private.read_bytes(), password=None)
        except (ValueError, TypeError) as error:
            raise GatepostError(
                f"{private}: not a private SSH key without passphrase: {error}",
                next_step="Put back the key that the server knows, or remove the file and deploy a new server.",
            ) from error
    else:
        key = Ed25519PrivateKey.generate()
        pem = key.private_bytes(form.Encoding.PEM, form.PrivateFormat.OpenSSH, form.NoEncryption())
        environment.write(private, pem.decode())
    public = key.public_key().public_bytes(form.Encoding.OpenSSH, form.PublicFormat.OpenSSH).decode()
    line = f"{public} gatepost"
    if not (settings.secrets / "ssh_key.pub").exists():
        environment.write(settings.secrets / "ssh_key.pub", line + "\n", 0o644)
    return line


def make_probe_passwords(settings: Settings) -> None:
    """Make the test accounts' passwords where they are not there yet (144 random bits each)."""
    for user in settings.probes:
        assert user.password_file is not None
        if not user.password_file.exists():
            environment.private_directory(user.password_file.parent)
            environment.write(user.password_file, secrets.token_urlsafe(18) + "\n")


def password(user: User, warn: Callable[[str], None] | None = None) -> str:
    """Return the password in a user's `password_file`.

    Raises GatepostError when the file is missing, readable by others, or holds no password that bcrypt can take. With
    `warn` a readable file is told to it and used: the secret is out already, and a check can be run all the same.
    """
    path = user.password_file
    if path is None:
        raise GatepostError(f"{user.address}: only a hash is known, not the password")
    where = f"{user.address}: password_file {path}"
    try:
        readable = path.stat().st_mode & 0o077
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise GatepostError(
            f"{where}: {reason}",
            expected="a file with the password on its only line",
            next_step=f"(umask 077; read -rs p; printf '%s\\n' \"$p\" > {path})",
        ) from error
    if readable and warn is None:
        raise GatepostError(
            f"{where}: others than its owner can read it", expected="mode 0600", next_step=f"chmod 600 {path}"
        )
    if readable and warn is not None:
        warn(f"{where}: others than its owner can read it; chmod 600 {path}, and change the password")
    value = text.removesuffix("\n").removesuffix("\r")
    if not value or "\n" in value or "\0" in value:
        raise GatepostError(f"{where}: {'empty' if not value else 'more than one line'}", expected="one line")
    if len(value.encode()) > BCRYPT_BYTES:
        raise GatepostError(
            f"{where}: {len(value.encode())} bytes", expected=f"at most {BCRYPT_BYTES}, since bcrypt ignores the rest"
        )
    return value


@dataclass(frozen=True, slots=True)
class _Cached:
    hash: str
    stamp: list[int]  # of the password file: modification time in ns, size


def password_hashes(settings: Settings) -> dict[str, str]:
    """Return every mailbox's hash in Dovecot's form, by address.

    A hash is kept as long as its password is: bcrypt salts at random, so making it anew would change the server.
    """
    import bcrypt

    path = environment.private_directory(settings.secrets) / "password_hashes.json"
    try:
        cache = {address: _Cached(**entry) for address, entry in json.loads(path.read_text()).items()}
    except (OSError, ValueError, TypeError, AttributeError):
        cache = {}  # made anew from the password files
    fresh: dict[str, _Cached] = {}
    result: dict[str, str] = {}
    for user in settings.users:
        if user.password_hash is not None:
            result[user.address] = user.password_hash
            continue
        secret = password(user).encode()
        stamp = _stamp(user)
        known = cache.get(user.address)
        if known is not None and (known.stamp == stamp or bcrypt.checkpw(secret, known.hash.encode())):
            fresh[user.address] = _Cached(known.hash, stamp)
        else:
            cost = PROBE_BCRYPT_COST if user in settings.probes else BCRYPT_COST
            fresh[user.address] = _Cached(bcrypt.hashpw(secret, bcrypt.gensalt(cost)).decode(), stamp)
        result[user.address] = "{BLF-CRYPT}" + fresh[user.address].hash
    if fresh != cache:
        entries = {address: {"hash": c.hash, "stamp": c.stamp} for address, c in fresh.items()}
        environment.write(path, json.dumps(entries, indent=1) + "\n")
    return result


def _stamp(user: User) -> list[int]:
    assert user.password_file is not None
    found = user.password_file.stat()
    return [found.st_mtime_ns, found.st_size]
