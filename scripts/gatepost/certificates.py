"""Looks at a certificate that the user brings, before anything is changed."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from gatepost.errors import GatepostError
from gatepost.settings import Certificate

if TYPE_CHECKING:
    from cryptography import x509


def check(certificate: Certificate, hostname: str, *, now: datetime | None = None) -> None:
    """Check that chain and key can serve `hostname`: they match, are valid now, and name it (RFC 9525 §6.3).

    Raises GatepostError that says which of it does not hold.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives import serialization as form
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    assert certificate.chain_file is not None and certificate.key_file is not None
    chain_file, key_file = certificate.chain_file, certificate.key_file
    try:
        chain = x509.load_pem_x509_certificates(_read(chain_file))
    except ValueError as error:
        raise GatepostError(
            f"{chain_file}: no certificates in it: {error}",
            expected="PEM: the server's certificate first, then the intermediates",
        ) from error
    try:
        key = form.load_pem_private_key(_read(key_file), password=None)
    except (ValueError, TypeError) as error:
        raise GatepostError(
            f"{key_file}: no private key that can be read: {error}", expected="a PEM private key without a passphrase"
        ) from error
    leaf = chain[0]

    def spki(of: object) -> bytes:
        return of.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)  # type: ignore[attr-defined, no-any-return] # every public key class has it

    if spki(leaf.public_key()) != spki(key.public_key()):
        hint = next((n for n, c in enumerate(chain) if spki(c.public_key()) == spki(key.public_key())), None)
        raise GatepostError(
            f"{key_file} is not the key of the first certificate in {chain_file} ({leaf.subject.rfc4514_string()})",
            expected="the private key that belongs to it",
            next_step=f"The key belongs to certificate {hint + 1} of the file: put that first."
            if hint
            else "Name the key that the certificate was requested with.",
        )
    now = now or datetime.now(UTC)
    for number, item in enumerate(chain, start=1):
        which = f"{chain_file}: certificate {number} ({item.subject.rfc4514_string()})"
        if item.not_valid_after_utc <= now:
            raise GatepostError(
                f"{which} expired on {item.not_valid_after_utc:%Y-%m-%d %H:%M} UTC",
                expected="a certificate that is valid now",
                next_step="Renew it.",
            )
        if item.not_valid_before_utc > now:
            raise GatepostError(
                f"{which} is not valid before {item.not_valid_before_utc:%Y-%m-%d %H:%M} UTC",
                expected="a certificate that is valid now",
                next_step="Check this computer's clock.",
            )
    names = _names(leaf)
    if not any(_matches(name, hostname) for name in names):
        raise GatepostError(
            f"{chain_file}: the certificate names {', '.join(names) or 'no DNS name at all'}",
            expected=f"hostname {hostname} among its subjectAltName entries (RFC 9525 §6.3)",
            next_step="Request one for this name, or set hostname to a name that it has.",
        )
    if certificate.ca_file is not None:
        try:
            x509.load_pem_x509_certificates(_read(certificate.ca_file))
        except ValueError as error:
            raise GatepostError(f"{certificate.ca_file}: no certificates in it: {error}", expected="PEM") from error


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise GatepostError(
            f"{path}: cannot read: {error.strerror}",
            expected="a readable file, named relative to the environment directory or absolutely",
            next_step="Correct the path under certificate: in settings.yml.",
        ) from error


def _names(leaf: x509.Certificate) -> list[str]:
    from cryptography import x509

    try:
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return []
    return names.value.get_values_for_type(x509.DNSName)


def _matches(name: str, hostname: str) -> bool:
    name, hostname = name.lower(), hostname.lower()
    if name.startswith("*."):
        return hostname.partition(".")[2] == name[2:]
    return name == hostname
