"""Chapter 2 of the policy, certificates (CRT)."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from functools import lru_cache
from typing import TYPE_CHECKING

from gatepost import RELEASED
from gatepost.verify.model import Finding, Severity, Verdict
from gatepost.verify.registry import (
    Need,
    NotObserved,
    Requirement,
    Scope,
    Seen,
    ServerProbe,
    Unobserved,
    failed,
    inconclusive,
    passed,
)
from gatepost.verify.wire.certificate import Clock, Served, clock, served
from gatepost.verify.wire.probe import Failed, Probe
from gatepost.verify.wire.session import Failure

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

CERTIFICATE: Probe[Served] = Probe("certificate", served)
FAIL_DAYS, WARN_DAYS = 14, 21
CLOCK_SECONDS = 600  # two clocks that differ by more: one of them is wrong


@lru_cache(maxsize=64)
def _read(der: bytes) -> Certificate:
    """Raises ValueError when it is no certificate."""
    from cryptography import x509

    return x509.load_der_x509_certificate(der)


def _leaf(seen: Seen) -> Certificate:
    return _read(seen[CERTIFICATE].chain[0])


def key_type(der: bytes) -> str:
    """Return RSA, EC, or the class of whatever else a certificate's key is."""
    from cryptography.hazmat.primitives.asymmetric import ec, rsa

    key = _read(der).public_key()
    return (
        "RSA"
        if isinstance(key, rsa.RSAPublicKey)
        else "EC"
        if isinstance(key, ec.EllipticCurvePublicKey)
        else type(key).__name__
    )


def dns_names(der: bytes) -> tuple[str, ...]:
    """Return the dNSName entries of a certificate's subjectAltName."""
    from cryptography import x509

    try:
        extension = _read(der).extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return ()
    return tuple(extension.value.get_values_for_type(x509.DNSName))


def covers(pattern: str, hostname: str) -> bool:
    """Whether a dNSName names a host: exactly, or by a whole left-most label `*` (RFC 9525 §6.3)."""
    pattern, hostname = pattern.lower().rstrip("."), hostname.lower().rstrip(".")
    if pattern.startswith("*.") and "." in pattern[2:]:
        return "." in hostname and hostname.split(".", 1)[1] == pattern[2:]
    return pattern == hostname


def chain(seen: Seen) -> Finding:
    """CRT-01. A port that ends every handshake serves no certificate that anyone could trust."""
    found = seen.attempt(CERTIFICATE)
    if isinstance(found, Failed):
        if found.failure in (Failure.TLS_FAILED, Failure.TLS_REJECTED, Failure.CLOSED, Failure.RESET):
            return failed(f"no certificate could be seen: {found}", transcript=found.transcript)
        raise NotObserved(found)
    count = f"{len(found.chain)} certificate(s) served"
    said = f"{found.trust} ({count})" if found.trust else f"trusted, {count}"
    of_dates = "expired" in found.trust or "not yet valid" in found.trust
    if of_dates or not found.trust:
        wrong = _clock_is_wrong(seen, found.when)
        if wrong:
            return inconclusive(f"{said}; {wrong}", transcript=found.transcript)
    if of_dates:
        said += f"; {_by_this_clock(found.when)}"
    return (failed if found.trust else passed)(said, transcript=found.transcript)


def name(seen: Seen) -> Finding:
    """CRT-02."""
    found = seen[CERTIFICATE]
    names = dns_names(found.chain[0])
    good = any(covers(n, seen.target.hostname) for n in names)
    said = f"subjectAltName: {', '.join(names[:10]) or 'no dNSName'}; clients are told {seen.target.hostname}"
    return (passed if good else failed)(said, transcript=found.transcript)


def dates(seen: Seen) -> Finding:
    """CRT-03."""
    leaf, now = _leaf(seen), seen[CERTIFICATE].when
    begins, ends = leaf.not_valid_before_utc, leaf.not_valid_after_utc
    said = f"valid from {begins:%Y-%m-%d %H:%M} to {ends:%Y-%m-%d %H:%M} UTC"
    wrong = _clock_is_wrong(seen, now)
    if wrong:
        return inconclusive(f"{said}; {wrong}")
    left = ends - now
    if begins > now or left <= timedelta(days=FAIL_DAYS):
        return failed(f"{said}; {_by_this_clock(now)}")
    if left <= timedelta(days=WARN_DAYS):
        return Finding(Verdict.FAIL, f"{left.days} days left: {said}; {_by_this_clock(now)}", severity=Severity.SHOULD)
    return passed(f"{said}; this computer's clock says {now:%Y-%m-%d %H:%M}")


def _by_this_clock(now: datetime) -> str:
    return f"this computer's clock says {now:%Y-%m-%d %H:%M} UTC; if that is wrong, so is this judgement"


def _clock_is_wrong(seen: Seen, now: datetime) -> str:
    """Return how one knows that this computer's clock is wrong; empty when nothing says so."""
    says = f"this computer's clock says {now:%Y-%m-%d %H:%M} UTC, and that is wrong"
    if now < RELEASED:
        return f"{says}: this version of Gatepost was made on {RELEASED:%Y-%m-%d}"
    try:
        other = seen[CLOCK]
    except (Unobserved, NotObserved):
        return ""
    if other is None or abs(other.ahead) <= CLOCK_SECONDS:
        return ""
    return f"{says}, or that of {other.login} is, which is {other.ahead / 3600:+.1f} h off"


def _clock(seen: Seen) -> Clock | None:
    """Ask a login for its time, but only where a certificate's dates do not please by our own clock."""
    doubtful = (
        isinstance(served, Served) and (_off(served) or "expired" in served.trust or "not yet" in served.trust)
        for _listener, _address, served in seen.everywhere(CERTIFICATE)
    )
    return clock(seen.target.via[0]) if any(doubtful) else None


def _off(served: Served) -> bool:
    leaf = _read(served.chain[0])
    return not leaf.not_valid_before_utc <= served.when < leaf.not_valid_after_utc - timedelta(days=FAIL_DAYS)


CLOCK: ServerProbe[Clock | None] = ServerProbe(
    "clock",
    _clock,
    needs=Need.VIA,
    about="By the login, where there is one and a certificate's dates are in doubt: date +%s, against our own clock.",
)


def key(seen: Seen) -> Finding:
    """CRT-04."""
    from cryptography.hazmat.primitives.asymmetric import ec, rsa

    public = _leaf(seen).public_key()
    if isinstance(public, rsa.RSAPublicKey):
        return (passed if public.key_size >= 2048 else failed)(f"RSA with {public.key_size} bits")
    if isinstance(public, ec.EllipticCurvePublicKey):
        return (passed if public.curve.name in ("secp256r1", "secp384r1") else failed)(f"ECDSA on {public.curve.name}")
    return failed(f"a key of type {type(public).__name__}")


def signatures(seen: Seen) -> Finding:
    """CRT-05: a self-signed last one is a trust anchor, whose signature nobody checks."""
    served_chain = [_read(der) for der in seen[CERTIFICATE].chain]
    counted = [c for i, c in enumerate(served_chain) if i == 0 or c.issuer != c.subject]
    used = [c.signature_hash_algorithm.name if c.signature_hash_algorithm else "EdDSA" for c in counted]
    weak = [u for u in used if u in ("sha1", "md5", "md4", "md2", "sha224")]
    return (failed if weak else passed)(f"signed with {', '.join(used)}")


def alternative_name(seen: Seen) -> Finding:
    """CRT-06."""
    names = dns_names(seen[CERTIFICATE].chain[0])
    return passed(f"dNSName: {', '.join(names[:10])}") if names else failed("no dNSName in subjectAltName")


def same_everywhere(seen: Seen) -> Finding:
    """CRT-07."""
    from cryptography.hazmat.primitives import hashes

    leaves: dict[bytes, list[str]] = {}
    missing = []
    for listener, address, found in seen.everywhere(CERTIFICATE):
        where = f"{listener.port} at {address}"
        if isinstance(found, Failed):
            missing.append(where)
        else:
            leaves.setdefault(found.chain[0], []).append(where)
    if len(leaves) > 1:
        prints = {_read(der).fingerprint(hashes.SHA256()).hex()[:16]: ", ".join(at) for der, at in leaves.items()}
        return failed("; ".join(f"{p}… on {at}" for p, at in prints.items()))
    if not leaves:
        return Finding(Verdict.NOT_RUN, "no certificate could be read anywhere (CRT-01)")
    if missing:
        return inconclusive(f"the same where it could be read; not readable on {', '.join(missing)}")
    return passed(f"the same certificate on {sum(map(len, leaves.values()))} listeners and addresses")


def usage(seen: Seen) -> Finding:
    """CRT-08."""
    from cryptography import x509
    from cryptography.x509.oid import ExtendedKeyUsageOID

    extensions = _leaf(seen).extensions
    try:
        uses = extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return failed("no extended key usage")
    try:
        is_ca = extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        is_ca = False
    good = ExtendedKeyUsageOID.SERVER_AUTH in uses and not is_ca
    said = ", ".join(u._name for u in uses)
    return (passed if good else failed)(f"extended key usage: {said}; CA: {'yes' if is_ca else 'no'}")


def must_staple(seen: Seen) -> Finding:
    """CRT-09."""
    from cryptography import x509

    try:
        found = _leaf(seen).extensions.get_extension_for_class(x509.TLSFeature)
    except x509.ExtensionNotFound:
        return passed("no must-staple in the certificate")
    asked = x509.TLSFeatureType.status_request in found.value
    return failed("the certificate says must-staple, and Postfix cannot staple") if asked else passed("no must-staple")


def _row(
    id: str,
    check: Callable[[Seen], Finding],
    title: str,
    expected: str,
    remedy: str,
    source: str,
    problem: str,
    risk: str,
    *,
    scope: Scope = Scope.ALL,
) -> Requirement:
    # Without a handshake CRT-01 says so, and the others have nothing to look at.
    needs_tls = check is not chain
    return Requirement(
        id,
        scope,
        title,
        expected,
        remedy,
        source,
        (CERTIFICATE, CLOCK) if check in (chain, dates) else (CERTIFICATE,),
        check,
        needs_tls=needs_tls,
        problem=problem,
        risk=risk,
    )


REQUIREMENTS = (
    _row(
        "CRT-01",
        chain,
        "The certificate is trusted as served",
        "leaf and intermediates that lead to the trust store, without fetching any",
        "smtpd_tls_chain_files = key, full chain: leaf first, then each intermediate; then postfix reload",
        "RFC 8314 §4.4, RFC 8446 §4.4.2",
        "The certificate cannot be traced to a CA that clients trust: self-signed, expired, or an intermediate is "
        "missing.",
        "Mail programs warn or refuse; users learn to click warnings away, and servers that demand a valid one "
        "(MTA-STS, DANE by PKIX) stop delivering.",
    ),
    _row(
        "CRT-02",
        name,
        "The certificate names this server",
        "a dNSName that matches the name that clients are told",
        "a certificate for that name in smtpd_tls_chain_files; no other one for it in tls_server_sni_maps",
        "RFC 7817 §3, RFC 9525",
        "The certificate is for another name than the one that clients connect to.",
        "Mail programs warn or refuse; a user who accepts it accepts an impostor's just as well.",
    ),
    _row(
        "CRT-03",
        dates,
        "The certificate is valid now and for two weeks more",
        f"begun, and more than {FAIL_DAYS} days left (a warning from {WARN_DAYS} days)",
        "renew it, and postfix reload as a hook of the renewal",
        "RFC 8314 §4.4",
        "The certificate has expired, is not valid yet, or will expire within two weeks.",
        "From that day mail programs warn or refuse, usually for all users at once. Under two weeks also means that "
        "the automatic renewal has failed.",
    ),
    _row(
        "CRT-04",
        key,
        "The certificate's key is strong",
        "RSA with 2048 bits or more, or ECDSA on P-256 or P-384",
        "a new key and certificate in smtpd_tls_chain_files",
        "RFC 9325 §4.5",
        "The certificate's key is too short.",
        "It can be computed from the certificate; many clients (OpenSSL at level 2, as on Debian) refuse the "
        "connection.",
    ),
    _row(
        "CRT-05",
        signatures,
        "Leaf and intermediates are signed with SHA-256 or better",
        "no SHA-1, no MD5",
        "a new certificate, from a CA that signs with SHA-256",
        "RFC 9155, RFC 9325 §4.5",
        "The certificate or an intermediate is signed with SHA-1 or MD5.",
        "Signatures of that kind can be forged, and current clients refuse them.",
    ),
    _row(
        "CRT-06",
        alternative_name,
        "The certificate has a subjectAltName",
        "at least one dNSName: the common name is ignored",
        "a new certificate with subjectAltName",
        "RFC 7817 §3, RFC 9525 §2",
        "The certificate names its server only in the common name, which clients no longer read.",
        "Current clients find no name in it and refuse the connection.",
    ),
    _row(
        "CRT-07",
        same_everywhere,
        "All listeners serve the same certificate",
        "byte-identical leaves",
        "one smtpd_tls_chain_files in main.cf, no -o in master.cf; postfix reload after a renewal",
        "operation",
        "The ports do not serve the same certificate.",
        "One of them was missed by a renewal, or not reloaded: it will expire while the others look well.",
        scope=Scope.SERVER,
    ),
    _row(
        "CRT-08",
        usage,
        "The certificate is a server's",
        "extended key usage serverAuth, and not a CA's",
        "a server certificate in smtpd_tls_chain_files",
        "RFC 5280 §4.2.1.12",
        "The certificate was made for something else than a server.",
        "Clients that check the purpose refuse it; a CA's certificate on a server puts the CA's key at risk.",
    ),
    _row(
        "CRT-09",
        must_staple,
        "The certificate does not demand stapling",
        "no must-staple extension (1.3.6.1.5.5.7.1.24)",
        "a certificate without must-staple: Postfix cannot staple",
        "RFC 7633",
        "The certificate demands a proof of freshness that Postfix cannot give.",
        "Clients that honour must-staple refuse every connection.",
    ),
)
