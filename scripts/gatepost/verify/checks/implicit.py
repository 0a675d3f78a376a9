"""Chapter 5 of the policy: where TLS starts with the first byte, nothing is said in clear (IMP)."""

from __future__ import annotations

import re

from gatepost.verify.checks.answers import extensions
from gatepost.verify.checks.submission import INSIDE, MECHANISMS, starttls_inside
from gatepost.verify.model import Finding, Severity, Verdict
from gatepost.verify.registry import NotObserved, Requirement, Scope, Seen, failed, inconclusive, passed
from gatepost.verify.wire.implicit import ALPN, IN_CLEAR, SILENCE_SECONDS, WITHOUT_SNI, Hello
from gatepost.verify.wire.probe import Failed
from gatepost.verify.wire.session import Failure, Reply

_SMTP_REPLY = re.compile(rb"(^|\n)[2-5][0-9][0-9]")
_TLS_ALERT = b"\x15\x03"


def silent_before_tls(seen: Seen) -> Finding:
    """IMP-TLS-01. Silence proves nothing on a port that does not speak TLS either."""
    observed = seen[IN_CLEAR]
    if observed.unasked:
        return failed(f"unasked, in clear: {observed.unasked[:80]!r}", transcript=observed.transcript)
    inside = seen[INSIDE]
    found = f"no byte in clear within {SILENCE_SECONDS:g} s; inside TLS: {inside.greeting}"
    return passed(found, transcript=observed.transcript)


def no_smtp_in_clear(seen: Seen) -> Finding:
    """IMP-TLS-02."""
    observed = seen[IN_CLEAR]
    if _SMTP_REPLY.search(observed.unasked + b"\n" + observed.answer):
        found = f"EHLO in clear answered {observed.answer[:80] or observed.unasked[:80]!r}"
        return failed(found, transcript=observed.transcript)
    said = "a TLS alert" if observed.answer.startswith(_TLS_ALERT) else f"{observed.answer[:80]!r}"
    found = f"EHLO in clear: {said if observed.answer else 'no byte'}, then {observed.ended or 'still open'}"
    if observed.answer and not observed.answer.startswith(_TLS_ALERT):
        return failed(found, transcript=observed.transcript)
    if observed.ended is None:
        return inconclusive(f"{found}: neither answered nor closed", transcript=observed.transcript)
    return passed(f"{found}; inside TLS: {seen[INSIDE].greeting}", transcript=observed.transcript)


def greets_inside(seen: Seen) -> Finding:
    """IMP-TLS-03."""
    observed = seen.attempt(INSIDE)
    if isinstance(observed, Failed):
        if observed.failure in (Failure.TIMED_OUT, Failure.LIMITED, Failure.NOT_TRIED):
            raise NotObserved(observed)
        return failed(f"no greeting inside TLS: {observed}", transcript=observed.transcript)
    greeting = observed.greeting
    named = greeting.text.split(" ", 1)[0].rstrip(".").lower() == seen.target.hostname.lower()
    return (passed if greeting.code == 220 and named else failed)(f"inside TLS: {greeting}")


def offers_inside(seen: Seen) -> Finding:
    """IMP-TLS-04."""
    reply = seen[INSIDE].ehlo_tls
    assert reply is not None
    found = f"EHLO offers {extensions(reply)}"
    if reply.keyword("STARTTLS") is not None:
        return failed(found)
    if seen.here.listener.is_submission and not set((reply.keyword("AUTH") or "").upper().split()) >= MECHANISMS:
        return failed(found)
    return passed(found)


def no_web_inside(seen: Seen) -> Finding:
    """IMP-TLS-06: recorded only."""
    lines = []
    for protocol, hello in seen[ALPN]:
        if isinstance(hello, Hello):
            lines.append(f"ALPN {protocol}: {hello.chosen or 'ignored'}, then {hello.banner}")
            if not isinstance(hello.banner, Reply) and "HTTP" in hello.banner.detail:
                return failed("\n".join(lines), transcript=hello.transcript)
        else:
            lines.append(f"ALPN {protocol}: {hello}")
    return Finding(Verdict.INFO, "\n".join(lines))


def works_without_sni(seen: Seen) -> Finding:
    """IMP-TLS-07."""
    observed = seen.attempt(WITHOUT_SNI)
    if isinstance(observed, Hello):
        good = isinstance(observed.banner, Reply) and observed.banner.code == 220
        return (passed if good else inconclusive)(f"greeted with {observed.banner}", transcript=observed.transcript)
    return failed(f"handshake without SNI: {observed}", transcript=observed.transcript)


REQUIREMENTS = (
    Requirement(
        id="IMP-TLS-01",
        scope=Scope.IMPLICIT,
        title="Not a byte before the TLS handshake",
        expected=f"silence for {SILENCE_SECONDS:g} s after connecting",
        remedy="-o smtpd_tls_wrappermode=yes on this service",
        problem="The server speaks in clear on a port where TLS must come first.",
        risk="Mail programs set to SSL/TLS cannot connect: they wait for a TLS answer and get text.",
        source="RFC 8314 §3.3",
        probes=(IN_CLEAR, INSIDE),
        check=silent_before_tls,
    ),
    Requirement(
        id="IMP-TLS-02",
        scope=Scope.IMPLICIT,
        title="EHLO in clear gets no SMTP reply",
        expected="the connection is closed, with nothing said or a TLS alert",
        remedy="-o smtpd_tls_wrappermode=yes on this service",
        problem="Mail commands in clear are answered on a port where TLS must come first.",
        risk="A program that has been misled into clear text sends its password there, for anyone on the path to read.",
        source="RFC 8314 §3.3",
        probes=(IN_CLEAR, INSIDE),
        check=no_smtp_in_clear,
    ),
    Requirement(
        id="IMP-TLS-03",
        scope=Scope.IMPLICIT,
        title="The greeting comes inside TLS",
        expected="220 and the server's name",
        remedy="-o smtpd_tls_wrappermode=yes on this service; smtpd_banner = $myhostname ESMTP",
        problem="No greeting comes after encryption on this port.",
        risk="Mail programs connect and then hang: users cannot send.",
        source="RFC 8314 §3.3",
        probes=(INSIDE,),
        check=greets_inside,
    ),
    Requirement(
        id="IMP-TLS-04",
        scope=Scope.IMPLICIT,
        title="EHLO offers AUTH to mail clients, and no STARTTLS",
        expected="no STARTTLS; AUTH PLAIN LOGIN where mail clients log in",
        remedy="-o smtpd_tls_wrappermode=yes and -o smtpd_sasl_auth_enable=yes on this service",
        problem="Inside TLS this port offers no login, or offers to encrypt again.",
        risk="Users cannot log in there; a program that tries STARTTLS inside TLS fails.",
        source="RFC 3207 §4.2, RFC 8314 §3.3",
        probes=(INSIDE,),
        check=offers_inside,
        needs_tls=True,
    ),
    Requirement(
        id="IMP-TLS-05",
        scope=Scope.IMPLICIT,
        title="STARTTLS is refused",
        expected="554 5.5.1 (5xx)",
        remedy="Postfix does this by itself: look for a proxy in front of it.",
        problem="The server agrees to encrypt what is already encrypted.",
        risk="Something other than Postfix answers there, and the session may be in a state that nobody tested.",
        source="RFC 3207 §4.2",
        probes=(INSIDE,),
        check=starttls_inside,
        needs_tls=True,
    ),
    Requirement(
        id="IMP-TLS-06",
        scope=Scope.IMPLICIT,
        title="No web server answers behind ALPN",
        expected="a handshake or no_application_protocol, and never an HTTP answer",
        remedy="Look for a proxy in front of Postfix that hands the connection to a web server.",
        problem="Whether the port answers to other protocols is recorded here.",
        risk="A web server behind the mail port would let a web site be attacked through it (ALPACA).",
        source="ALPACA (2021)",
        probes=(ALPN,),
        check=no_web_inside,
        needs_tls=True,
        severity=Severity.INFO,
    ),
    Requirement(
        id="IMP-TLS-07",
        scope=Scope.IMPLICIT,
        title="A handshake without SNI works",
        expected="a handshake and the greeting",
        remedy="A default certificate in smtpd_tls_chain_files besides tls_server_sni_maps",
        problem="Clients that do not say which server they want cannot connect.",
        risk="Older mail programs, scanners and many libraries send no name: their users cannot send.",
        source="RFC 7817",
        probes=(WITHOUT_SNI,),
        check=works_without_sni,
        needs_tls=True,
    ),
)
