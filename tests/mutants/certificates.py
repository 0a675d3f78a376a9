"""Certificates with one thing wrong each, signed by the environment's CA unless that is what is wrong."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPrivateKeyTypes
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID


def make(directory: Path, hostname: str, ca_dir: Path) -> None:
    """Write NAME.key and NAME-chain.pem for each kind into `directory`."""
    ca = x509.load_pem_x509_certificate((ca_dir / "ca.pem").read_bytes())
    ca_key = serialization.load_pem_private_key((ca_dir / "ca.key").read_bytes(), None)
    stranger_key = ec.generate_private_key(ec.SECP256R1())
    now, day = datetime.now(UTC), timedelta(days=1)
    good = {"start": now - day, "end": now + 80 * day, "san": hostname, "eku": ExtendedKeyUsageOID.SERVER_AUTH}
    kinds: dict[str, dict] = {
        "expired": {"start": now - 90 * day, "end": now - day},
        "future": {"start": now + 5 * day, "end": now + 95 * day},
        "soon": {"end": now + 5 * day},
        "wrongname": {"san": "mail.other.test"},
        "selfsigned": {"issuer": "self"},
        "stranger": {"issuer": "stranger"},
        "rsa1024": {"key": rsa.generate_private_key(65537, 1024)},
        "rsa2048": {"key": rsa.generate_private_key(65537, 2048)},
        "cnonly": {"san": None},
        "clientonly": {"eku": ExtendedKeyUsageOID.CLIENT_AUTH},
    }
    for kind, change in kinds.items():
        wanted = good | change
        key = wanted.get("key") or ec.generate_private_key(ec.SECP256R1())
        signer: CertificateIssuerPrivateKeyTypes = {"self": key, "stranger": stranger_key}.get(
            wanted.get("issuer"), ca_key
        )
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, hostname)])
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject if wanted.get("issuer") == "self" else ca.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(wanted["start"])
            .not_valid_after(wanted["end"])
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage([wanted["eku"]]), critical=False)
        )
        if wanted["san"]:
            builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(wanted["san"])]), critical=False)
        certificate = builder.sign(signer, hashes.SHA256())
        (directory / f"{kind}.key").write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        (directory / f"{kind}-chain.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
