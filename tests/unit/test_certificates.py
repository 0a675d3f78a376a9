"""Certificates that the user brings are looked at before anything is changed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives import serialization as form
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from gatepost import certificates
from gatepost.errors import GatepostError
from gatepost.settings import Certificate

HOST = "mx.example.test"
NOW = datetime.now(UTC)


def make(names: list[str], *, start: datetime = NOW - timedelta(days=1), days: int = 30) -> tuple[str, str]:
    """Return certificate and key in PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, HOST)])
    builder = x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(start).not_valid_after(start + timedelta(days=days))
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(n) for n in names]), critical=False)
    pem = builder.sign(key, hashes.SHA256()).public_bytes(form.Encoding.PEM).decode()
    return pem, key.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption()).decode()


def files(directory: Path, chain: str, key: str) -> Certificate:
    (directory / "chain.pem").write_text(chain)
    (directory / "key.pem").write_text(key)
    return Certificate("files", directory / "chain.pem", directory / "key.pem")


@pytest.mark.parametrize("names", [[HOST], ["other.test", HOST], ["*.example.test"], ["MX.Example.test"]])
def test_a_good_certificate_passes(tmp_path: Path, names: list[str]) -> None:
    certificates.check(files(tmp_path, *make(names)), HOST)


@pytest.mark.parametrize(
    ("names", "shown"),
    [
        (["other.test"], "other.test"),
        (["*.test"], "*.test"),
        (["*.mx.example.test"], "*.mx"),
        ([], "no DNS name at all"),
    ],
)
def test_a_certificate_for_another_name_is_refused(tmp_path: Path, names: list[str], shown: str) -> None:
    """The common name does not count (RFC 9525 §2), and a wildcard stands for one label."""
    with pytest.raises(GatepostError) as caught:
        certificates.check(files(tmp_path, *make(names)), HOST)
    assert shown in caught.value.found and HOST in caught.value.expected


def test_a_key_of_another_certificate_is_refused(tmp_path: Path) -> None:
    chain, _ = make([HOST])
    _, key = make([HOST])
    with pytest.raises(GatepostError, match="is not the key of the first certificate"):
        certificates.check(files(tmp_path, chain, key), HOST)


def test_a_chain_in_the_wrong_order_is_explained(tmp_path: Path) -> None:
    chain, key = make([HOST])
    with pytest.raises(GatepostError) as caught:
        certificates.check(files(tmp_path, make(["ca.test"])[0] + chain, key), HOST)
    assert "belongs to certificate 2" in caught.value.next_step


def test_an_expired_certificate_is_refused_with_its_date(tmp_path: Path) -> None:
    with pytest.raises(GatepostError, match="expired on 20"):
        certificates.check(files(tmp_path, *make([HOST], start=NOW - timedelta(days=60))), HOST)


def test_an_expired_intermediate_is_refused(tmp_path: Path) -> None:
    chain, key = make([HOST])
    with pytest.raises(GatepostError, match=r"certificate 2 .* expired"):
        certificates.check(files(tmp_path, chain + make(["ca"], start=NOW - timedelta(days=60))[0], key), HOST)


def test_a_certificate_of_the_future_is_refused(tmp_path: Path) -> None:
    with pytest.raises(GatepostError, match="not valid before") as caught:
        certificates.check(files(tmp_path, *make([HOST], start=NOW + timedelta(days=1))), HOST)
    assert "clock" in caught.value.next_step


@pytest.mark.parametrize(("which", "text"), [("chain.pem", "nothing"), ("key.pem", "nothing"), ("key.pem", "")])
def test_what_is_no_pem_is_named(tmp_path: Path, which: str, text: str) -> None:
    given = files(tmp_path, *make([HOST]))
    (tmp_path / which).write_text(text)
    with pytest.raises(GatepostError, match=which):
        certificates.check(given, HOST)


def test_a_key_with_a_passphrase_is_named(tmp_path: Path) -> None:
    chain, pem = make([HOST])
    key = form.load_pem_private_key(pem.encode(), None)
    locked = key.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.BestAvailableEncryption(b"x"))
    with pytest.raises(GatepostError) as caught:
        certificates.check(files(tmp_path, chain, locked.decode()), HOST)
    assert "without a passphrase" in caught.value.expected


@pytest.mark.parametrize("which", ["chain.pem", "key.pem"])
def test_a_missing_file_is_named(tmp_path: Path, which: str) -> None:
    given = files(tmp_path, *make([HOST]))
    (tmp_path / which).unlink()
    with pytest.raises(GatepostError, match=f"{which}: cannot read"):
        certificates.check(given, HOST)
