"""The certificates that a listener serves, and whether this machine's OpenSSL trusts them."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime

from gatepost.verify.model import Line, Login
from gatepost.verify.wire import ssh
from gatepost.verify.wire.probe import Site
from gatepost.verify.wire.session import Failure, Session, WireError, client_context
from gatepost.verify.wire.tls import Offer, ask, begin, chain_of_tls13


@dataclass(frozen=True, slots=True)
class Served:
    """A chain as served.

    `trust` is empty when it leads to the trust store without any fetching, else OpenSSL's reason.
    """

    chain: tuple[bytes, ...]  # DER, leaf first
    trust: str
    when: datetime  # UTC, by this machine's clock
    transcript: tuple[Line, ...] = ()


def served(site: Site) -> Served:
    """Return what a client that names the target's hostname is served."""
    heard = ask(site, Offer(whole_flight=True))
    chain = heard.certificates or chain_of_tls13(site)
    if not chain:
        raise WireError(Failure.TLS_FAILED, f"no certificate to look at: {heard}")
    unreadable = _unreadable(chain)
    if unreadable:
        error = WireError(Failure.TLS_FAILED, f"what is served is no certificate that can be read: {unreadable}")
        error.transcript = heard.transcript
        raise error
    return Served(chain, _trust(site), datetime.now(UTC), heard.transcript)


@dataclass(frozen=True, slots=True)
class Clock:
    """Another computer's clock."""

    login: str
    ahead: float  # seconds before ours, give or take the way there


def clock(login: Login) -> Clock:
    """Return how a login's clock differs from ours."""
    said = ssh.run(login, "date +%s").strip()
    if not said.isdecimal():
        raise WireError(Failure.GARBAGE, f"{login.url}: date +%s says {said[:80]!r}")
    return Clock(login.url, int(said) - time.time())


def _unreadable(chain: tuple[bytes, ...]) -> str:
    """Return why one of the certificates cannot be read, empty when all can, as far as the checks read them."""
    from cryptography import x509

    for number, der in enumerate(chain, 1):
        try:
            certificate = x509.load_der_x509_certificate(der)
            _ = (certificate.subject, certificate.issuer, certificate.signature_hash_algorithm)
            if number == 1:
                _ = (certificate.not_valid_before_utc, certificate.not_valid_after_utc)
                _ = (certificate.public_key(), *certificate.extensions)
        except Exception as error:  # its parsers are lazy, and raise more than ValueError
            return f"number {number} of {len(chain)}: {type(error).__name__}: {error}"[:200]
    return ""


def _trust(site: Site) -> str:
    context = client_context(site, verify=True)
    context.check_hostname = False  # the name is CRT-02's question
    # By its own level, not the distribution's: 112 bits, so neither SHA-1 nor RSA under 2048.
    context.set_ciphers("DEFAULT:@SECLEVEL=2")
    with Session(site) as session:
        begin(session)
        try:
            session.handshake(context=context)
        except WireError as error:
            if error.failure in (Failure.TLS_FAILED, Failure.TLS_REJECTED):
                return error.detail
            raise
    return ""
