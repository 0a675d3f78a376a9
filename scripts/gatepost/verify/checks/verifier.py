"""Chapter 0 of the policy: the verifier looks at itself (VER).

VER-03, VER-04 and VER-06 are rules that the runner and `answers` keep; their rows record what the rule met in this run.
"""

from __future__ import annotations

from collections.abc import Callable

from gatepost.verify.checks import vantage
from gatepost.verify.model import Finding, Severity, Verdict
from gatepost.verify.registry import Need, Requirement, Scope, Seen, inconclusive, passed
from gatepost.verify.wire.mail import Mail
from gatepost.verify.wire.probe import Case, Dialogue, Failed, Probe, Site, Told, case, dialogue
from gatepost.verify.wire.reach import REACH
from gatepost.verify.wire.session import Ended, Failure, Reply
from gatepost.verify.wire.tls import speaks_old_tls


def _outsider(site: Site) -> tuple[Case, ...]:
    outside = site.outside
    return (case("relay", f"MAIL FROM:<gatepost-probe@{outside}>", f"RCPT TO:<gatepost-probe@{outside}>"),)


OUTSIDER = dialogue("outsider", _outsider, tls=False)
OLD_TLS: Probe[str] = Probe(
    "own-old-tls",
    lambda _: speaks_old_tls(),
    once=True,
    about="Nothing goes to the server: TLS 1.0 and 1.1 hellos, to a server inside this process.",
)


def outsider(seen: Seen) -> Finding:
    """VER-01: only a client that the server does not trust by its address can judge relaying and limits."""
    told = seen[OUTSIDER]["relay"]
    answer = told.last
    trust = vantage.trust(seen)
    if trust is not None and trust[0]:
        return inconclusive(f"the server trusts this address: {trust[1]}; {told}", transcript=told.transcript)
    if isinstance(answer, Reply) and answer.code >= 500:
        asked = f" ({trust[1]}, asked at the server)" if trust else ""
        return passed(f"this address is not trusted: {told}{asked}", transcript=told.transcript)
    if isinstance(answer, Reply) and answer.code < 400 and trust is not None:
        return passed(
            f"this address is not trusted ({trust[1]}, asked at the server), and yet relaying was allowed: what is "
            f"allowed here is allowed to everybody (MX-RLY-01); {told}",
            transcript=told.transcript,
        )
    if isinstance(answer, Reply) and answer.code < 400:
        return inconclusive(
            f"relaying was allowed: {told}. Either the server is an open relay (MX-RLY-01), or it trusts the address "
            "that this run comes from: compare it with `postconf -xh mynetworks`, or give a login (--via)",
            transcript=told.transcript,
        )
    return inconclusive(f"not shown: {told}", transcript=told.transcript)


def old_tls(seen: Seen) -> Finding:
    """VER-02."""
    answers = {str(found) for _, _, found in seen.everywhere(OLD_TLS)}
    if answers == {""}:
        return passed("our TLS 1.0 and 1.1 hellos were understood by a server that speaks both")
    if not answers:
        return Finding(Verdict.NOT_RUN, "no port answers")
    return inconclusive("; ".join(sorted(answers - {""})))


def dead_ports(seen: Seen) -> Finding:
    """VER-03."""
    return _ports(seen, lambda failure: failure is not Failure.TIMED_OUT, "every port answered")


def silent_ports(seen: Seen) -> Finding:
    """VER-06."""
    return _ports(seen, lambda failure: failure is Failure.TIMED_OUT, "no port stayed silent")


def _ports(seen: Seen, counts: Callable[[Failure], bool], good: str) -> Finding:
    found = []
    for listener, address, reached in seen.everywhere(REACH):
        answer = None if isinstance(reached, Failed) else reached.answer
        if isinstance(answer, Ended) and counts(answer.failure):
            found.append(f"{listener.port} at {address}: {answer}")
    if found:
        return Finding(Verdict.INFO, f"what depends on these is not run, and not passed: {'; '.join(found)}")
    return passed(good)


def _all_told(seen: Seen) -> list[tuple[str, Told]]:
    talks = []
    for (listener, address, _), found in seen.observations.items():
        talk = found.dialogue if isinstance(found, Mail) else found
        if isinstance(talk, Dialogue):
            talks += [(f"{listener} at {address}", told) for told in talk.told]
    return talks


def temporary_refusals(seen: Seen) -> Finding:
    """VER-04."""
    found = [f"{where}: {told}" for where, told in _all_told(seen) if any(400 <= c < 500 for c in told.codes)]
    if found:
        more = f" (and {len(found) - 3} more)" if len(found) > 3 else ""
        return Finding(Verdict.INFO, f"never a pass where a 5xx is required: {'; '.join(found[:3])}{more}")
    return passed("no temporary refusal met")


def limits(seen: Seen) -> Finding:
    """VER-05."""
    talks = _all_told(seen)
    again = sum(told.retried for _, told in talks)
    limited = [f"{where}: {told}" for where, told in talks if told.was_limited]
    if limited:
        more = f" (and {len(limited) - 3} more)" if len(limited) > 3 else ""
        return Finding(
            Verdict.INFO,
            f"{again} asked again on a new connection; limits still answered: {'; '.join(limited[:3])}{more}. "
            "Wait a minute, or use --source-address",
        )
    return passed(f"{again} of {len(talks)} cases had to be asked again on a new connection")


REQUIREMENTS = (
    Requirement(
        id="VER-01",
        scope=Scope.RELAY,
        title="This run comes from an address that the server does not trust",
        expected="relaying refused with a 5xx",
        remedy="run it from an address outside mynetworks and smtpd_client_event_limit_exceptions",
        problem="The server relays for the very address this run comes from, so nothing it lets this run do tells "
        "what it lets strangers do.",
        risk="Either the server is an open relay, or the run was made from a trusted network and every relay check of "
        "it says nothing.",
        source="policy",
        probes=(OUTSIDER, vantage.VANTAGE),
        check=outsider,
        needs=Need.OUTSIDE,
    ),
    Requirement(
        id="VER-02",
        scope=Scope.SERVER,
        title="This program can itself speak TLS 1.0 and 1.1",
        expected="its hellos are understood by a server that speaks them",
        remedy="a mistake in Gatepost or its TLS library: report it; TLS-VER-03 shows nothing until then",
        problem="The TLS library of this computer cannot offer the old versions, so a server that accepts them would "
        "go unnoticed.",
        risk="TLS-VER-03 would seem to pass on a server that still speaks TLS 1.0.",
        source="policy",
        probes=(OLD_TLS,),
        check=old_tls,
    ),
    Requirement(
        id="VER-03",
        scope=Scope.SERVER,
        title="Dead ports pass nothing",
        expected="recorded only",
        remedy="see GEN-NET-01",
        problem="A port that cannot be reached refuses everything, which is not the same as being safe.",
        risk="Counting silence as refusal would let a dead server pass most of this policy.",
        source="policy",
        probes=(REACH,),
        check=dead_ports,
        severity=Severity.INFO,
    ),
    Requirement(
        id="VER-04",
        scope=Scope.SERVER,
        title="Temporary refusals pass nothing",
        expected="recorded only",
        remedy="soft_bounce = no; look for greylisting, a milter that is down, rate limits",
        problem='The server answered "try again later" where it should have said no.',
        risk="The sender keeps trying for days, and what is refused now may be let in on the next attempt.",
        source="policy",
        probes=(REACH,),
        check=temporary_refusals,
        severity=Severity.INFO,
    ),
    Requirement(
        id="VER-05",
        scope=Scope.SERVER,
        title="Questions that met a limit are asked again",
        expected="recorded only",
        remedy="wait a minute, or run from another address (--source-address)",
        problem="A limit of the server answered in place of the check that was asked.",
        risk="A limit mistaken for a refusal would hide a hole that is open to whoever asks more slowly.",
        source="policy",
        probes=(REACH,),
        check=limits,
        severity=Severity.INFO,
    ),
    Requirement(
        id="VER-06",
        scope=Scope.SERVER,
        title="Silent ports do not hold up the run",
        expected="recorded only",
        remedy="see GEN-BAN-01",
        problem="A port takes connections and then says nothing.",
        risk="Clients hang on it until they time out, and a verifier without deadlines would hang with them.",
        source="policy",
        probes=(REACH,),
        check=silent_ports,
        severity=Severity.INFO,
    ),
)
