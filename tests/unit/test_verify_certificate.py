import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import cache

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from observations import ADDRESS, HOST, LISTENERS, judge, target

from gatepost import RELEASED
from gatepost.verify import wire
from gatepost.verify.checks import certificate
from gatepost.verify.checks.certificate import CERTIFICATE, CLOCK, covers
from gatepost.verify.model import Login, Severity, Verdict
from gatepost.verify.registry import NotObserved, Seen
from gatepost.verify.wire.certificate import Served
from gatepost.verify.wire.probe import Failed, Site
from gatepost.verify.wire.session import Failure

NOW = datetime(2026, 11, 24, tzinfo=UTC)


@cache
def key(kind):
    return {
        "ec": lambda: ec.generate_private_key(ec.SECP256R1()),
        "p192": lambda: ec.generate_private_key(ec.SECP192R1()),
        "ed": ed25519.Ed25519PrivateKey.generate,
        "rsa": lambda: rsa.generate_private_key(65537, 2048),
        "rsa1024": lambda: rsa.generate_private_key(65537, 1024),
    }[kind]()


def leaf(kind="ec", *, names=(HOST,), begins=-1, days=80, usage=True, ca=False, staple=False, digest=None):
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, HOST)])
    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "CA")])
    begin = NOW + timedelta(days=begins)
    builder = x509.CertificateBuilder(issuer, subject, key(kind).public_key(), 1, begin, begin + timedelta(days=days))
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(n) for n in names]), critical=False)
    if usage:
        uses = [ExtendedKeyUsageOID.SERVER_AUTH if usage is True else usage]
        builder = builder.add_extension(x509.ExtendedKeyUsage(uses), critical=False)
    builder = builder.add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
    if staple:
        builder = builder.add_extension(x509.TLSFeature([x509.TLSFeatureType.status_request]), critical=False)
    return builder.sign(key("rsa"), digest or hashes.SHA256()).public_bytes(serialization.Encoding.DER)


GOOD = {"ec": leaf(), "rsa": leaf("rsa")}


def served(der=GOOD["ec"], trust="", *more):
    return Served((GOOD.get(der, der), *more), trust, NOW)


# Requirement, what is served, what the finding must quote.
BROKEN = [
    ("CRT-01", served(trust="unable to get local issuer certificate"), "local issuer"),
    ("CRT-01", Failed(Failure.TLS_REJECTED, "sslv3 alert handshake failure"), "no certificate could be seen"),
    ("CRT-02", served(leaf(names=("mail.other.test",))), "mail.other.test"),
    ("CRT-02", served(leaf(names=())), "no dNSName"),
    ("CRT-03", served(leaf(begins=-90, days=89)), "2026-11-23"),
    ("CRT-03", served(leaf(begins=5)), "2026-11-29"),
    ("CRT-03", served(leaf(days=14)), "2026-12-07"),
    ("CRT-04", served(leaf("rsa1024")), "1024 bits"),
    ("CRT-04", served(leaf("p192")), "secp192r1"),
    ("CRT-04", served(leaf("ed")), "Ed25519"),
    ("CRT-05", served(leaf(digest=hashes.SHA224())), "sha224"),
    ("CRT-06", served(leaf(names=())), "no dNSName"),
    ("CRT-08", served(leaf(usage=False)), "no extended key usage"),
    ("CRT-08", served(leaf(usage=ExtendedKeyUsageOID.CLIENT_AUTH)), "clientAuth"),
    ("CRT-08", served(leaf(ca=True)), "CA: yes"),
    ("CRT-09", served(leaf(staple=True)), "must-staple"),
]
IDS = [row.id for row in certificate.REQUIREMENTS]


@pytest.mark.parametrize("kind", ["ec", "rsa"])
@pytest.mark.parametrize("identifier", IDS)
def test_passes_on_a_good_certificate(identifier, kind):
    finding = judge(identifier, {CERTIFICATE: served(kind)})
    assert finding.verdict is Verdict.PASS, finding.found


@pytest.mark.parametrize(("identifier", "found", "quoted"), BROKEN, ids=lambda value: str(value)[:20])
def test_fails_and_quotes_what_is_broken(identifier, found, quoted):
    finding = judge(identifier, {CERTIFICATE: found})
    assert finding.verdict is Verdict.FAIL and finding.severity is None, finding.found
    assert quoted in finding.found


def test_every_requirement_has_a_failing_case():
    assert set(IDS) == {identifier for identifier, *_ in BROKEN} | {"CRT-07"}


def test_listeners_with_different_certificates():
    finding = judge("CRT-07", {CERTIFICATE: served("ec")}, others=[("submission", {CERTIFICATE: served("rsa")})])
    assert finding.verdict is Verdict.FAIL and "10025" in finding.found and "10587" in finding.found
    unseen = [("submission", {CERTIFICATE: Failed(Failure.TIMED_OUT, "…")})]
    assert judge("CRT-07", {CERTIFICATE: served("ec")}, others=unseen).verdict is Verdict.INCONCLUSIVE
    assert judge("CRT-07", {}).verdict is Verdict.NOT_RUN


def test_three_weeks_before_its_end_a_certificate_warns():
    finding = judge("CRT-03", {CERTIFICATE: served(leaf(days=20))})
    assert (finding.verdict, finding.severity) == (Verdict.FAIL, Severity.SHOULD) and "19 days left" in finding.found
    assert judge("CRT-03", {CERTIFICATE: served(leaf(days=23))}).verdict is Verdict.PASS


def test_a_connection_that_never_came_about_says_nothing_of_trust():
    with pytest.raises(NotObserved):
        judge("CRT-01", {CERTIFICATE: Failed(Failure.TIMED_OUT, "no reply")})


def test_the_signature_of_a_root_that_is_served_too_does_not_count():
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "CA")])
    root = x509.CertificateBuilder(name, name, key("rsa").public_key(), 1, NOW, NOW + timedelta(days=1))
    der = root.sign(key("rsa"), hashes.SHA224()).public_bytes(serialization.Encoding.DER)
    assert judge("CRT-05", {CERTIFICATE: served("ec", "", der)}).verdict is Verdict.PASS
    assert judge("CRT-05", {CERTIFICATE: served("ec", "", leaf(digest=hashes.SHA224()))}).verdict is Verdict.FAIL


@pytest.mark.parametrize(
    ("pattern", "hostname", "covered"),
    [
        ("mx.example.test", "MX.example.test.", True),
        ("*.example.test", "mx.example.test", True),
        ("*.example.test", "a.mx.example.test", False),
        ("*.example.test", "example.test", False),
        ("*.test", "example.test", False),
        ("m*.example.test", "mx.example.test", False),
        ("mail.example.test", "mx.example.test", False),
    ],
)
def test_names_match_as_rfc_9525_says(pattern, hostname, covered):
    assert covers(pattern, hostname) is covered


def test_dates_that_do_not_please_name_the_clock_they_were_judged_by():
    for found in (
        judge("CRT-03", {CERTIFICATE: served(leaf(begins=5))}),
        judge("CRT-01", {CERTIFICATE: served(trust="certificate is not yet valid")}),
        judge("CRT-01", {CERTIFICATE: served(trust="certificate has expired")}),
    ):
        assert found.verdict is Verdict.FAIL
        assert "this computer's clock says 2026-11-24 00:00 UTC; if that is wrong, so is this judgement" in found.found
    other = judge("CRT-01", {CERTIFICATE: served(trust="unable to get local issuer certificate")})
    assert "clock" not in other.found


@pytest.mark.parametrize("trust", ["", "certificate is not yet valid"])
def test_a_clock_from_before_the_release_judges_no_dates(trust):
    early = replace(served(trust=trust), when=RELEASED - timedelta(days=1))
    for identifier in ("CRT-01", "CRT-03"):
        found = judge(identifier, {CERTIFICATE: early})
        assert found.verdict is Verdict.INCONCLUSIVE
        assert "clock says" in found.found and "this version of Gatepost was made on" in found.found
    untrusted = judge("CRT-01", {CERTIFICATE: replace(early, trust="self-signed certificate")})
    assert untrusted.verdict is Verdict.FAIL  # whatever the time


def test_a_login_whose_clock_differs_is_named(monkeypatch):
    expired = served(leaf(begins=-90, days=89))
    whole = target(via=(Login("ssh://mx.example.test", ("ssh", "mx.example.test")),))
    asked = []

    def ask(login, script):
        asked.append(script)
        return f"{int(time.time()) - 86400 * 30}\n"

    monkeypatch.setattr(wire.ssh, "run", ask)
    seen = Seen(whole, None, {("relay", ADDRESS, CERTIFICATE.name): served()})
    assert CLOCK.run(seen) is None and not asked  # the dates are good: nobody is asked
    seen = Seen(whole, None, {("relay", ADDRESS, CERTIFICATE.name): expired})
    clock = CLOCK.run(seen)
    assert asked == ["date +%s"]
    site = Site(whole, LISTENERS["relay"], ADDRESS)
    observations = {("relay", ADDRESS, CERTIFICATE.name): expired, ("", "", CLOCK.name): clock}
    found = certificate.dates(Seen(whole, site, observations))
    assert found.verdict is Verdict.INCONCLUSIVE
    assert "ssh://mx.example.test" in found.found and "-720.0 h" in found.found
    observations["", "", CLOCK.name] = replace(clock, ahead=5.0)
    assert certificate.dates(Seen(whole, site, observations)).verdict is Verdict.FAIL
