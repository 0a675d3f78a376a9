"""Chapter 2 of the policy, handshakes (TLS)."""

from __future__ import annotations

from gatepost.verify.checks.certificate import CERTIFICATE, key_type
from gatepost.verify.model import Finding, Severity, Verdict
from gatepost.verify.registry import Requirement, Scope, Seen, failed, inconclusive, passed
from gatepost.verify.wire import ciphers
from gatepost.verify.wire.probe import Failed, Probe
from gatepost.verify.wire.session import Failure
from gatepost.verify.wire.tls import (
    SSL30,
    TLS10,
    TLS11,
    Handshake,
    Heard,
    Offer,
    ask,
    groups,
    renegotiation,
    tickets,
    versions,
)


def _hello(name: str, offer: Offer) -> Probe[Heard]:
    about = f"A ClientHello by hand ({name.replace('-', ' ')}); the server's answer to it is the end."
    return Probe(f"hello-{name}", lambda site: ask(site, offer), about=about)


VERSIONS = Probe("tls-versions", versions)
BASELINE = _hello("baseline", Offer(whole_flight=True))
TLS_1_0 = _hello("tls-1.0", Offer(TLS10, ciphers.OLD))
TLS_1_1 = _hello("tls-1.1", Offer(TLS11, ciphers.OLD))
SSL_2 = _hello("ssl-2", Offer(2, ciphers.SSL2))
SSL_3 = _hello("ssl-3", Offer(SSL30, ciphers.OLD))
FALLBACK = _hello("fallback", Offer(TLS11, (*ciphers.OLD, ciphers.FALLBACK)))
BROKEN = _hello("broken-ciphers", Offer(suites=ciphers.BROKEN))
RSA = _hello("rsa-key-exchange", Offer(suites=ciphers.RSA_KEX))
UNCOMMON = _hello("uncommon-ciphers", Offer(suites=ciphers.UNCOMMON))
CBC = _hello("cbc", Offer(suites=ciphers.ECDHE_CBC))
_AES128, _AES256 = (0xC02B, 0xC02F), (0xC02C, 0xC030)
AES128_FIRST = _hello("aes128-first", Offer(suites=(*_AES128, *_AES256)))
AES256_FIRST = _hello("aes256-first", Offer(suites=(*_AES256, *_AES128)))
DEFLATE = _hello("deflate", Offer(deflate=True))
NO_NAME = _hello("no-sni", Offer(server_name=None, whole_flight=True))
OTHER_NAME = _hello("other-sni", Offer(server_name="unknown.invalid", whole_flight=True))
GROUPS = Probe("tls-groups", groups)
RENEGOTIATION = Probe("renegotiation", renegotiation)
TICKETS = Probe("tickets", tickets)


def has_tls(seen: Seen) -> bool:
    """Whether a TLS 1.2 or 1.3 handshake succeeded here: what a negative check needs to mean anything (VER-03)."""
    found = seen.attempt(VERSIONS)
    return not isinstance(found, Failed) and bool(found.tls13.version or found.tls12.version)


def _spoken(handshake: Handshake) -> Finding:
    if handshake.version:
        return passed(str(handshake), transcript=handshake.transcript)
    return failed(f"no handshake: {handshake}", transcript=handshake.transcript)


def tls13(seen: Seen) -> Finding:
    """TLS-VER-01."""
    return _spoken(seen[VERSIONS].tls13)


def tls12(seen: Seen) -> Finding:
    """TLS-VER-02."""
    return _spoken(seen[VERSIONS].tls12)


def _refused(*answers: tuple[str, Heard]) -> Finding:
    """Pass when every offer met an alert or a closed connection; garbage in its place is no refusal that can be
    trusted."""
    transcript = tuple(line for _, heard in answers for line in heard.transcript)
    found = "; ".join(f"{offered} → {heard}" for offered, heard in answers)
    if any(heard.accepted for _, heard in answers):
        return failed(found, transcript=transcript)
    if any(heard.refusal.startswith(Failure.GARBAGE) for _, heard in answers):
        return inconclusive(found, transcript=transcript)
    return passed(found, transcript=transcript)


def old_tls(seen: Seen) -> Finding:
    """TLS-VER-03."""
    return _refused(("TLS 1.0", seen[TLS_1_0]), ("TLS 1.1", seen[TLS_1_1]))


def ssl(seen: Seen) -> Finding:
    """TLS-VER-04."""
    return _refused(("SSLv2", seen[SSL_2]), ("SSLv3", seen[SSL_3]))


def fallback(seen: Seen) -> Finding:
    """TLS-VER-05."""
    return _refused(("TLS 1.1 with TLS_FALLBACK_SCSV", seen[FALLBACK]))


def broken_ciphers(seen: Seen) -> Finding:
    """TLS-CIPH-01."""
    return _refused(("anonymous, NULL, EXPORT, DES, 3DES and RC4 suites alone", seen[BROKEN]))


def rsa_key_exchange(seen: Seen) -> Finding:
    """TLS-CIPH-02: only a server with an RSA key could accept."""
    finding = _refused(("RSA key exchange alone", seen[RSA]))
    if finding.verdict is Verdict.PASS and key_type(seen[CERTIFICATE].chain[0]) != "RSA":
        return Finding(
            Verdict.NOT_APPLICABLE, "the certificate's key is not RSA, so that RSA key exchange cannot happen"
        )
    return finding


def uncommon_ciphers(seen: Seen) -> Finding:
    """TLS-CIPH-03."""
    return _refused(("CAMELLIA, ARIA, SEED and IDEA suites alone", seen[UNCOMMON]))


def preference(seen: Seen) -> Finding:
    """TLS-CIPH-04."""
    first, second = seen[AES128_FIRST], seen[AES256_FIRST]
    found = f"AES-128 first → {first}; AES-256 first → {second}"
    if first.suite is None or second.suite is None:
        if not seen[VERSIONS].tls12.version:
            return Finding(Verdict.NOT_APPLICABLE, "no TLS 1.2 here (TLS-VER-02), which this is about")
        return inconclusive(found, transcript=first.transcript + second.transcript)
    judge = passed if first.suite == second.suite else failed
    return judge(found, transcript=first.transcript + second.transcript)


def cbc(seen: Seen) -> Finding:
    """TLS-CIPH-05."""
    return _refused(("CBC suites alone", seen[CBC]))


def key_exchange_groups(seen: Seen) -> Finding:
    """TLS-GRP-01."""
    found = seen[GROUPS]
    bad = []
    said = []
    for number, heard in found.good:
        chosen = "accepted" if heard.group == number else "another one chosen"
        said.append(f"{ciphers.GROUPS[number]} → {chosen if heard.accepted else heard}")
        if not heard.accepted:
            bad.append(ciphers.GROUPS[number])
    said.append(f"curves under 224 bits → {found.weak}")
    dh = f"{found.dhe.dh_bits} bits" if found.dhe.dh_bits else str(found.dhe)
    said.append(f"finite-field Diffie-Hellman → {dh}")
    small = found.dhe.dh_bits is not None and found.dhe.dh_bits < 2048
    transcript = tuple(line for _, heard in found.good for line in heard.transcript)
    return (failed if bad or found.weak.accepted or small else passed)("; ".join(said), transcript=transcript)


def no_renegotiation(seen: Seen) -> Finding:
    """TLS-REN-01."""
    answer = seen[RENEGOTIATION]
    if answer is None:
        return Finding(Verdict.NOT_APPLICABLE, "no TLS 1.2 here, and TLS 1.3 has no renegotiation")
    if answer.startswith("no answer"):
        return inconclusive(answer)
    return passed(f"a second ClientHello → {answer}") if answer else failed("a second ClientHello → ServerHello")


def secure_renegotiation(seen: Seen) -> Finding:
    """TLS-REN-02."""
    heard = seen[BASELINE]
    if not heard.accepted:
        return Finding(Verdict.NOT_APPLICABLE, f"no TLS 1.2 here ({heard}), and TLS 1.3 has no renegotiation")
    judge = passed if heard.secure_renegotiation else failed
    return judge(
        f"renegotiation_info in the ServerHello: {'yes' if heard.secure_renegotiation else 'no'}",
        transcript=heard.transcript,
    )


def compression(seen: Seen) -> Finding:
    """TLS-COMP-01."""
    heard = seen[DEFLATE]
    judge = failed if heard.deflate else passed
    return judge(
        f"DEFLATE offered → {'DEFLATE chosen' if heard.deflate else f'not chosen ({heard})'}",
        transcript=heard.transcript,
    )


def session_tickets(seen: Seen) -> Finding:
    """TLS-TICK-01: recorded only."""
    found = seen[TICKETS]
    if found is None:
        return Finding(Verdict.NOT_APPLICABLE, "no TLS 1.3 here")
    lifetimes = ", ".join(f"{s} s" for s in found.lifetimes) or "none"
    return Finding(Verdict.INFO, f"TLS 1.3 session tickets, lifetime: {lifetimes}", severity=Severity.INFO)


def early_data(seen: Seen) -> Finding:
    """TLS-0RTT-01: a server that takes early data says so in its tickets (RFC 8446 §4.6.1)."""
    found = seen[TICKETS]
    if found is None:
        return Finding(Verdict.NOT_APPLICABLE, "no TLS 1.3 here")
    if found.early_data:
        return failed("a session ticket allows early data")
    return passed(f"no early data allowed in {len(found.lifetimes)} session ticket(s)")


def client_certificate(seen: Seen) -> Finding:
    """TLS-CCERT-01."""
    heard = seen[BASELINE]
    if not heard.complete:
        return inconclusive(f"the handshake could not be read to its end: {heard}", transcript=heard.transcript)
    judge = failed if heard.asks_certificate else passed
    return judge(
        "CertificateRequest sent" if heard.asks_certificate else "no CertificateRequest", transcript=heard.transcript
    )


def server_name(seen: Seen) -> Finding:
    """TLS-SNI-01."""
    named, unnamed, other = seen[BASELINE], seen[NO_NAME], seen[OTHER_NAME]
    transcript = named.transcript + unnamed.transcript + other.transcript
    if not named.certificates:
        if not seen[VERSIONS].tls12.version:
            return Finding(Verdict.NOT_APPLICABLE, "no TLS 1.2 here (TLS-VER-02), where certificates can be compared")
        return inconclusive(f"no certificate seen with the server's own name: {named}", transcript=transcript)
    bad = []
    for label, heard in (("without SNI", unnamed), ("with an unknown name", other)):
        if not heard.certificates:
            bad.append(f"{label}: {heard}")
        elif heard.certificates[0] != named.certificates[0]:
            bad.append(f"{label}: another certificate")
    return (
        failed("; ".join(bad), transcript=transcript)
        if bad
        else passed("the same certificate each time", transcript=transcript)
    )


_PROTOCOLS = (
    "smtpd_tls_protocols (where smtpd_tls_security_level is may: relay) and smtpd_tls_mandatory_protocols (where it is "
    "encrypt: submission) = >=TLSv1.2, since Postfix's own default still allows TLS 1.0"
)

REQUIREMENTS = (
    Requirement(
        id="TLS-VER-01",
        scope=Scope.ALL,
        title="TLS 1.3 is spoken",
        expected="a handshake with TLSv1.3",
        remedy="smtpd_tls_protocols and smtpd_tls_mandatory_protocols = >=TLSv1.2, without an upper bound; a key "
        "that fits the certificate in smtpd_tls_chain_files",
        problem="The current version of TLS does not work on this port.",
        risk="Clients negotiate an older version, or none at all when key and certificate do not fit; then nobody can "
        "log in.",
        source="RFC 9325 §3.1.1",
        probes=(VERSIONS,),
        check=tls13,
    ),
    Requirement(
        id="TLS-VER-02",
        scope=Scope.ALL,
        title="TLS 1.2 is spoken",
        expected="a handshake with TLSv1.2",
        remedy="smtpd_tls_protocols and smtpd_tls_mandatory_protocols = >=TLSv1.2; a key that fits the certificate in "
        "smtpd_tls_chain_files",
        problem="TLS 1.2, which older clients and servers need, does not work on this port.",
        risk="They cannot connect; other servers then deliver in clear or not at all.",
        source="RFC 9325 §3.1.1",
        probes=(VERSIONS,),
        check=tls12,
    ),
    Requirement(
        id="TLS-VER-03",
        scope=Scope.ALL,
        title="TLS 1.0 and 1.1 are refused",
        expected="an alert (protocol_version or handshake_failure) and no ServerHello",
        remedy=_PROTOCOLS,
        problem="The server still speaks TLS 1.0 or 1.1, which were withdrawn.",
        risk="Someone on the path can push clients down to protocols with known attacks (SHA-1 signatures, CBC); "
        "audits such as PCI DSS fail.",
        source="RFC 8996 §4 and §5, RFC 8997",
        probes=(TLS_1_0, TLS_1_1),
        check=old_tls,
        needs_tls=True,
    ),
    Requirement(
        id="TLS-VER-04",
        scope=Scope.ALL,
        title="SSLv2 and SSLv3 are refused",
        expected="no ServerHello",
        remedy=_PROTOCOLS,
        problem="The server still speaks SSL, which was broken years ago.",
        risk="Passwords and mail can be read by someone on the path (POODLE, DROWN).",
        source="RFC 6176, RFC 7568",
        probes=(SSL_2, SSL_3),
        check=ssl,
        needs_tls=True,
    ),
    Requirement(
        id="TLS-VER-05",
        scope=Scope.ALL,
        title="A downgraded client is turned away",
        expected="an alert: inappropriate_fallback or protocol_version",
        remedy=f"{_PROTOCOLS}; and a current OpenSSL",
        problem="The server accepts a client that has visibly been pushed to an older version.",
        risk="Someone on the path who breaks the first handshakes gets the connection down to the weakest version "
        "both sides know.",
        source="RFC 7507",
        probes=(FALLBACK,),
        check=fallback,
        needs_tls=True,
    ),
    Requirement(
        id="TLS-CIPH-01",
        scope=Scope.ALL,
        title="No anonymous, NULL, export, DES, 3DES or RC4 cipher is accepted",
        expected="an alert (handshake_failure)",
        remedy="smtpd_tls_exclude_ciphers and smtpd_tls_mandatory_exclude_ciphers = aNULL, eNULL, EXPORT, DES, 3DES, "
        "RC4, MD5, PSK, SRP, DSS (Postfix's lists contain anonymous ciphers by design)",
        problem="The server agrees to encryption that is anonymous, broken or none at all.",
        risk="Someone on the path can pose as the server (anonymous) or read what is sent (NULL, export, RC4), "
        "passwords included.",
        source="RFC 9325 §4.1",
        probes=(BROKEN,),
        check=broken_ciphers,
        needs_tls=True,
    ),
    Requirement(
        id="TLS-CIPH-02",
        scope=Scope.SUBMISSION,
        title="No static RSA key exchange",
        expected="an alert (handshake_failure)",
        remedy="smtpd_tls_mandatory_exclude_ciphers: add kRSA",
        problem="The server accepts a key exchange whose secrecy hangs on its certificate's key alone.",
        risk="Whoever gets that key later can read all connections recorded before, passwords included.",
        source="RFC 9325 §4.1",
        probes=(RSA, CERTIFICATE),
        check=rsa_key_exchange,
        needs_tls=True,
    ),
    Requirement(
        id="TLS-CIPH-03",
        scope=Scope.SUBMISSION,
        title="No CAMELLIA, ARIA, SEED or IDEA cipher is accepted",
        expected="an alert (handshake_failure)",
        remedy="smtpd_tls_mandatory_exclude_ciphers: add CAMELLIA, ARIA, SEED, IDEA; and smtpd_tls_security_level = "
        "encrypt, so that the mandatory lists apply",
        problem="The server accepts rarely used ciphers that the recommendations leave out.",
        risk="They are little tested and give nothing that AES and ChaCha20 do not give; on submission it also shows "
        "that TLS may be optional.",
        source="RFC 9325 §4.2",
        probes=(UNCOMMON,),
        check=uncommon_ciphers,
        needs_tls=True,
    ),
    Requirement(
        id="TLS-CIPH-04",
        scope=Scope.ALL,
        title="The server chooses the cipher",
        expected="the same cipher whatever the client's order",
        remedy="tls_preempt_cipherlist = yes",
        problem="The client's order of ciphers decides, not the server's.",
        risk="A badly configured client gets the weakest cipher that both know.",
        source="RFC 9325 §4.2.1",
        probes=(AES128_FIRST, AES256_FIRST, VERSIONS),
        check=preference,
        needs_tls=True,
    ),
    Requirement(
        id="TLS-CIPH-05",
        scope=Scope.SUBMISSION,
        title="CBC ciphers are refused",
        expected="an alert (handshake_failure)",
        remedy="smtpd_tls_mandatory_exclude_ciphers: add SHA1, SHA256, SHA384, which leaves AEAD suites only",
        problem="Ciphers in CBC mode are accepted.",
        risk="Their padding has been attacked again and again (Lucky 13); every client of today has something better.",
        source="RFC 9325 §4.2, RFC 7366",
        probes=(CBC,),
        check=cbc,
        needs_tls=True,
        severity=Severity.SHOULD,
    ),
    Requirement(
        id="TLS-GRP-01",
        scope=Scope.ALL,
        title="Good key-exchange groups only",
        expected="X25519, P-256, P-384 accepted; curves under 224 and finite-field groups under 2048 bits refused",
        remedy="smtpd_tls_eecdh_grade = auto, tls_eecdh_auto_curves with X25519, prime256v1 and secp384r1; "
        "smtpd_tls_dh1024_param_file empty",
        problem="Key exchange works with groups that are too weak, or not with those that clients use.",
        risk="Weak groups can be broken by someone who records the traffic; missing ones make modern clients fail or "
        "fall back.",
        source="RFC 9325 §4.2 and §4.5",
        probes=(GROUPS,),
        check=key_exchange_groups,
        needs_tls=True,
    ),
    Requirement(
        id="TLS-REN-01",
        scope=Scope.ALL,
        title="A client cannot renegotiate",
        expected="no_renegotiation, or the connection closed",
        remedy="tls_ssl_options = NO_RENEGOTIATION; look for a TLS proxy in front of Postfix",
        problem="A client can have the keys renegotiated over and over in one connection.",
        risk="One client with little bandwidth keeps a CPU busy: denial of service.",
        source="CVE-2011-1473, RFC 9325 §3.5",
        probes=(RENEGOTIATION,),
        check=no_renegotiation,
        needs_tls=True,
    ),
    Requirement(
        id="TLS-REN-02",
        scope=Scope.ALL,
        title="Secure renegotiation is announced",
        expected="renegotiation_info in the ServerHello of TLS 1.2",
        remedy="a current OpenSSL; look for a TLS proxy in front of Postfix",
        problem="The server does not announce the repaired form of renegotiation.",
        risk="Someone on the path can put commands of his own before those of a user (CVE-2009-3555); careful clients "
        "refuse to connect.",
        source="RFC 5746",
        probes=(BASELINE,),
        check=secure_renegotiation,
        needs_tls=True,
    ),
    Requirement(
        id="TLS-COMP-01",
        scope=Scope.ALL,
        title="TLS compression is off",
        expected="DEFLATE is not chosen when offered",
        remedy="tls_ssl_options = NO_COMPRESSION",
        problem="TLS compresses what it encrypts.",
        risk="Lengths give away secrets such as passwords bit by bit (CRIME).",
        source="RFC 9325 §3.3, CVE-2012-4929",
        probes=(DEFLATE,),
        check=compression,
        needs_tls=True,
    ),
    Requirement(
        id="TLS-TICK-01",
        scope=Scope.ALL,
        title="Lifetime of session tickets",
        expected="recorded only",
        remedy="smtpd_tls_session_cache_timeout = 3600s",
        problem="How long a session can be resumed is recorded here.",
        risk="None in the usual range; very long lifetimes weaken forward secrecy.",
        source="RFC 9325 §3.4",
        probes=(TICKETS,),
        check=session_tickets,
        needs_tls=True,
        severity=Severity.INFO,
    ),
    Requirement(
        id="TLS-0RTT-01",
        scope=Scope.ALL,
        title="Early data is not accepted",
        expected="no session ticket allows early data",
        remedy="Postfix never enables it: look for a TLS proxy in front of it",
        problem="The server accepts data before the handshake is finished.",
        risk="Such data can be replayed: the same message would be handed in twice by someone on the path.",
        source="RFC 8446 §8",
        probes=(TICKETS,),
        check=early_data,
        needs_tls=True,
    ),
    Requirement(
        id="TLS-CCERT-01",
        scope=Scope.SUBMISSION,
        title="No client certificate is asked for",
        expected="no CertificateRequest in the handshake",
        remedy="smtpd_tls_ask_ccert = no and smtpd_tls_req_ccert = no: some mail programs prompt or fail otherwise",
        problem="The server asks mail programs for a certificate of their own.",
        risk="Some ask the user to choose one, some (Outlook, Android) fail to connect.",
        source="RFC 8314 §4.2",
        probes=(BASELINE,),
        check=client_certificate,
        needs_tls=True,
    ),
    Requirement(
        id="TLS-SNI-01",
        scope=Scope.ALL,
        title="The server name in the handshake changes nothing",
        expected="the same certificate with the server's name, without a name and with an unknown one",
        remedy="tls_server_sni_maps empty",
        problem="Which certificate is served, or whether one is served at all, depends on the name that the client "
        "asks for.",
        risk="Clients that send no name, or another one (many servers do), get a wrong certificate or an error.",
        source="RFC 7817 §3, RFC 6066 §3",
        probes=(BASELINE, NO_NAME, OTHER_NAME, VERSIONS),
        check=server_name,
        needs_tls=True,
    ),
)
