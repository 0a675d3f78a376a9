"""Certificates with one thing wrong each, signed by the environment's CA unless that is what is wrong."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID


def make(directory: Path, hostname: str, ca_dir: Path) -> None:
    """Write NAME.key and NAME-chain.pem for each kind into `directory`, a second root and the CA below it."""
    ca = x509.load_pem_x509_certificate((ca_dir / "ca.pem").read_bytes())
    ca_key = serialization.load_pem_private_key((ca_dir / "ca.key").read_bytes(), None)
    root_key = ec.generate_private_key(ec.SECP256R1())
    rsa_key = rsa.generate_private_key(65537, 2048)
    now, day = datetime.now(UTC), timedelta(days=1)
    good: dict[str, Any] = {
        "start": now - day,
        "end": now + 80 * day,
        "name": hostname,
        "san": [hostname],
        "eku": ExtendedKeyUsageOID.SERVER_AUTH,
        "issuer": ca.subject,
        "signer": ca_key,
    }
    # The environment's CA may not have another below it, so there is a second root, which clients trust as well.
    above = {**good, "san": [], "eku": None, "is_ca": True, "issuer": _name("Second Root"), "signer": root_key}
    root = _certificate(root_key, {**above, "name": "Second Root"})
    issuer = _certificate(rsa_key, {**above, "name": "Intermediate"})
    (directory / "root.pem").write_bytes(_pem(root))
    (directory / "issuer.pem").write_bytes(_pem(issuer))
    below = {"issuer": issuer.subject, "signer": rsa_key}
    kinds: dict[str, dict[str, Any]] = {
        "expired": {"start": now - 90 * day, "end": now - day},
        "future": {"start": now + 5 * day, "end": now + 95 * day},
        "soon": {"end": now + 5 * day},
        "wrongname": {"san": ["mail.other.test"]},
        "parentname": {"san": [hostname.partition(".")[2]]},
        "selfsigned": {"issuer": _name(hostname), "signer": None},
        "stranger": {"signer": ec.generate_private_key(ec.SECP256R1())},
        "intermediate": {**below, "chain": [issuer]},
        "leafonly": below,
        "rsa1024": {"key": rsa.generate_private_key(65537, 1024)},
        "rsa2048": {"key": rsa_key},
        "sha1": {**below, "chain": [issuer], "sha1": True},
        "cnonly": {"san": []},
        "clientonly": {"eku": ExtendedKeyUsageOID.CLIENT_AUTH},
        "isca": {"is_ca": True},
        "muststaple": {"must_staple": True},
    }
    for kind, change in kinds.items():
        wanted = {**good, **change}
        key = wanted.get("key") or ec.generate_private_key(ec.SECP256R1())
        chain = [_certificate(key, wanted), *wanted.get("chain", ())]
        (directory / f"{kind}-chain.pem").write_bytes(b"".join(map(_pem, chain)))
        (directory / f"{kind}.key").write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )


def _certificate(key: Any, wanted: dict[str, Any]) -> x509.Certificate:
    builder = (
        x509.CertificateBuilder()
        .subject_name(_name(wanted["name"]))
        .issuer_name(wanted["issuer"])
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(wanted["start"])
        .not_valid_after(wanted["end"])
        .add_extension(x509.BasicConstraints(ca=wanted.get("is_ca", False), path_length=None), critical=True)
    )
    if wanted["eku"]:
        builder = builder.add_extension(x509.ExtendedKeyUsage([wanted["eku"]]), critical=False)
    if wanted["san"]:
        names = x509.SubjectAlternativeName([x509.DNSName(name) for name in wanted["san"]])
        builder = builder.add_extension(names, critical=False)
    if wanted.get("must_staple"):
        builder = builder.add_extension(x509.TLSFeature([x509.TLSFeatureType.status_request]), critical=False)
    certificate = builder.sign(wanted["signer"] or key, hashes.SHA256())
    return _with_sha1(certificate, wanted["signer"]) if wanted.get("sha1") else certificate


def _with_sha1(certificate: x509.Certificate, key: rsa.RSAPrivateKey) -> x509.Certificate:
    """Sign again with SHA-1, which the library only reads. The two identifiers (RFC 8017 §A.2.4) differ in a byte."""
    sha256, sha1 = bytes.fromhex("2a864886f70d01010b"), bytes.fromhex("2a864886f70d010105")
    tbs = certificate.tbs_certificate_bytes.replace(sha256, sha1)
    der = certificate.public_bytes(serialization.Encoding.DER).replace(sha256, sha1)
    signature = key.sign(tbs, padding.PKCS1v15(), hashes.SHA1())
    return x509.load_der_x509_certificate(der.replace(certificate.signature, signature))


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)
