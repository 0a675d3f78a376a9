import pytest
from observations import judge
from test_verify_certificate import GOOD, served

from gatepost.verify.checks import tls
from gatepost.verify.checks.certificate import CERTIFICATE
from gatepost.verify.model import Severity, Verdict
from gatepost.verify.wire import ciphers
from gatepost.verify.wire.session import Failure
from gatepost.verify.wire.tls import TLS10, TLS12, TLS13, Groups, Handshake, Heard, Tickets, Versions

NO = Heard(refusal="alert handshake_failure", alert=40)
GARBAGE = Heard(refusal="garbage: not a TLS record: b'HTTP/'")
LEAF, OTHER = b"leaf", b"another"
FLIGHT = Heard(
    version=TLS12, suite=0xC02C, group=29, secure_renegotiation=True, certificates=(LEAF, b"ca"), complete=True
)


def yes(suite=0xC02C, version=TLS12, **more):
    return Heard(version=version, suite=suite, **more)


def spoken(version, cipher="TLS_AES_256_GCM_SHA384"):
    return Handshake(version, version, cipher)


def unspoken(version):
    return Handshake(version, failure=Failure.TLS_REJECTED, detail="tlsv1 alert protocol version")


def groups(**changes):
    good = {n: yes(0x1301, TLS13, group=n) for n in (ciphers.X25519, ciphers.P256, ciphers.P384)}
    good |= {getattr(ciphers, k): v for k, v in changes.items() if hasattr(ciphers, k)}
    return Groups(tuple(good.items()), changes.get("weak", NO), changes.get("dhe", yes(0x009F, dh_bits=2048)))


REFUSED = (tls.TLS_1_0, tls.TLS_1_1, tls.SSL_2, tls.SSL_3, tls.FALLBACK, tls.BROKEN, tls.RSA, tls.UNCOMMON, tls.CBC)
SOUND = dict.fromkeys(REFUSED, NO) | {
    tls.VERSIONS: Versions(spoken("TLSv1.3"), spoken("TLSv1.2")),
    tls.BASELINE: FLIGHT,
    tls.NO_NAME: FLIGHT,
    tls.OTHER_NAME: FLIGHT,
    tls.AES128_FIRST: yes(),
    tls.AES256_FIRST: yes(),
    tls.DEFLATE: yes(),
    tls.GROUPS: groups(),
    tls.RENEGOTIATION: "alert no_renegotiation",
    tls.TICKETS: Tickets((7200,), early_data=False),
    CERTIFICATE: served(),
}

BROKEN = [
    ("TLS-VER-01", {tls.VERSIONS: Versions(unspoken("TLSv1.3"), spoken("TLSv1.2"))}, "alert protocol version"),
    ("TLS-VER-02", {tls.VERSIONS: Versions(spoken("TLSv1.3"), unspoken("TLSv1.2"))}, "alert protocol version"),
    ("TLS-VER-03", {tls.TLS_1_0: yes(0xC014, TLS10)}, "TLS 1.0 → TLSv1 with"),
    ("TLS-VER-03", {tls.TLS_1_1: yes(0xC014, 0x0302)}, "TLS 1.1 → TLSv1.1 with"),
    ("TLS-VER-04", {tls.SSL_3: yes(0x0035, 0x0300)}, "SSLv3 → SSLv3"),
    ("TLS-VER-04", {tls.SSL_2: Heard(version=2)}, "SSLv2"),
    ("TLS-VER-05", {tls.FALLBACK: yes(0xC014, 0x0302)}, "FALLBACK"),
    ("TLS-CIPH-01", {tls.BROKEN: yes(0x00A7)}, "TLS_DH_ANON_WITH_AES_256_GCM_SHA384"),
    ("TLS-CIPH-02", {tls.RSA: yes(0x009D)}, "TLS_RSA_WITH_AES_256_GCM_SHA384"),
    ("TLS-CIPH-03", {tls.UNCOMMON: yes(0xC073)}, "C073"),
    ("TLS-CIPH-04", {tls.AES128_FIRST: yes(0xC02B)}, "AES_128"),
    ("TLS-CIPH-05", {tls.CBC: yes(0xC024)}, "CBC"),
    ("TLS-GRP-01", {tls.GROUPS: groups(P384=NO)}, "P-384 → alert"),
    ("TLS-GRP-01", {tls.GROUPS: groups(weak=yes(group=19))}, "under 224 bits → TLSv1.2"),
    ("TLS-GRP-01", {tls.GROUPS: groups(dhe=yes(0x009F, dh_bits=1024))}, "1024 bits"),
    ("TLS-REN-01", {tls.RENEGOTIATION: ""}, "ServerHello"),
    ("TLS-REN-02", {tls.BASELINE: yes()}, "no"),
    ("TLS-COMP-01", {tls.DEFLATE: yes(deflate=True)}, "DEFLATE chosen"),
    ("TLS-0RTT-01", {tls.TICKETS: Tickets((7200,), early_data=True)}, "early data"),
    ("TLS-CCERT-01", {tls.BASELINE: yes(asks_certificate=True, complete=True)}, "CertificateRequest sent"),
    ("TLS-SNI-01", {tls.NO_NAME: yes(certificates=(OTHER,))}, "without SNI: another certificate"),
    ("TLS-SNI-01", {tls.OTHER_NAME: Heard(refusal="alert unrecognized_name", alert=112)}, "unrecognized_name"),
]
IDS = [row.id for row in tls.REQUIREMENTS]


@pytest.mark.parametrize("identifier", [i for i in IDS if i != "TLS-TICK-01"])
def test_passes_on_sound_observations(identifier):
    finding = judge(identifier, SOUND | {CERTIFICATE: served("rsa")}, kind="submission")
    assert finding.verdict is Verdict.PASS, finding.found


@pytest.mark.parametrize(("identifier", "broken", "quoted"), BROKEN, ids=lambda value: str(value)[:40])
def test_fails_and_quotes_what_is_broken(identifier, broken, quoted):
    finding = judge(identifier, SOUND | broken, kind="submission")
    assert finding.verdict is Verdict.FAIL, finding.found
    assert quoted in finding.found


def test_every_requirement_has_a_failing_case():
    assert set(IDS) == {identifier for identifier, *_ in BROKEN} | {"TLS-TICK-01"}


def test_tickets_are_recorded():
    finding = judge("TLS-TICK-01", SOUND)
    assert (finding.verdict, finding.severity) == (Verdict.INFO, Severity.INFO) and "7200 s" in finding.found


@pytest.mark.parametrize("identifier", ["TLS-VER-03", "TLS-VER-04", "TLS-VER-05", "TLS-CIPH-01", "TLS-CIPH-03"])
def test_garbage_is_no_refusal(identifier):
    garbage = dict.fromkeys((tls.TLS_1_0, tls.SSL_2, tls.FALLBACK, tls.BROKEN, tls.UNCOMMON), GARBAGE)
    assert judge(identifier, SOUND | garbage, kind="submission").verdict is Verdict.INCONCLUSIVE


def test_rsa_key_exchange_needs_an_rsa_key_to_be_refused():
    assert GOOD["ec"] and judge("TLS-CIPH-02", SOUND, kind="submission").verdict is Verdict.NOT_APPLICABLE


def test_a_handshake_is_needed_for_negative_checks_to_mean_anything():
    assert all(row.needs_tls for row in tls.REQUIREMENTS if row.id not in ("TLS-VER-01", "TLS-VER-02"))


def test_what_is_about_tls_1_2_does_not_apply_without_it():
    only13 = SOUND | {
        tls.VERSIONS: Versions(spoken("TLSv1.3"), unspoken("TLSv1.2")),
        tls.BASELINE: NO, tls.NO_NAME: NO, tls.OTHER_NAME: NO, tls.RENEGOTIATION: None,
        tls.AES128_FIRST: NO, tls.AES256_FIRST: NO,
    }  # fmt: skip
    for identifier in ("TLS-CIPH-04", "TLS-REN-01", "TLS-REN-02", "TLS-SNI-01"):
        assert judge(identifier, only13, kind="submission").verdict is Verdict.NOT_APPLICABLE
    assert judge("TLS-CCERT-01", only13, kind="submission").verdict is Verdict.INCONCLUSIVE


def test_what_is_about_tls_1_3_does_not_apply_without_it():
    for identifier in ("TLS-TICK-01", "TLS-0RTT-01"):
        assert judge(identifier, SOUND | {tls.TICKETS: None}).verdict is Verdict.NOT_APPLICABLE


def test_silence_after_a_renegotiation_is_inconclusive():
    assert judge("TLS-REN-01", SOUND | {tls.RENEGOTIATION: "no answer to the new ClientHello"}).verdict is (
        Verdict.INCONCLUSIVE
    )
