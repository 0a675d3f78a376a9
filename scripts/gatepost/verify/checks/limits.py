"""Chapter 8 of the policy: limits that stop who tries too much, and nobody else (LIM)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from gatepost.verify.checks import submission
from gatepost.verify.checks.answers import together
from gatepost.verify.checks.relay import recipient, sender
from gatepost.verify.model import Finding, Severity, Verdict
from gatepost.verify.registry import Need, NotObserved, Requirement, Scope, Seen, failed, inconclusive, passed
from gatepost.verify.wire.limits import IDLE, IDLE_SECONDS, LIMITS, MIN_RECIPIENTS, Limit, Limits
from gatepost.verify.wire.probe import Case, Dialogue, Failed, Probe, Site, Told, dialogue, is_limit
from gatepost.verify.wire.session import Failure, Reply

SHORTEST_IDLE_SECONDS = 295.0  # RFC 5321 §4.5.3.2.7: at least 5 minutes; less the coarseness of the server's clock


def _between_servers(site: Site) -> Iterator[Case]:
    yield from submission.normal_use(sender(site), recipient(site))


NORMAL_USE = dialogue("normal-use", _between_servers, tls=False, once=True)


def _normal_use(probe: Probe[Dialogue]) -> Callable[[Seen], Finding]:
    """LIM-06: a limit by the minute is no news, since this run itself has just sent more than a user does."""

    def check(seen: Seen) -> Finding:
        found = seen[probe]
        hello = found.ehlo_tls or found.ehlo_clear
        if hello is not None and hello.keyword("PIPELINING") is None:
            return Finding(Verdict.NOT_RUN, "not asked in earnest: the server does not offer PIPELINING (GEN-EHLO-02)")
        return together(_unlimited(found[label]) for label in ("messages", "recipients"))

    return check


def _unlimited(told: Told) -> Finding:
    answers = [answer for step in told.steps for answer in step.answers]
    replies = [answer for answer in answers if isinstance(answer, Reply)]
    bad = next((reply for reply in replies if reply.code != 250), None)
    messages = told.label == "messages"
    number = submission.MESSAGES if messages else submission.RECIPIENTS
    wanted = 2 * number if messages else 1 + number
    if bad is None and len(replies) == wanted:
        return passed(f"{number} {told.label} in one session: 250 to all", transcript=told.transcript)
    found = f"{told.label}: after {len([r for r in replies if r.code == 250])} times 250: {bad or told.last}"
    return (inconclusive if bad is None or is_limit(bad) else failed)(found, transcript=told.transcript)


def _limit(which: Callable[[Limits], Limit | Failed], judge: Callable[[Limit], Finding]) -> Callable[[Seen], Finding]:
    def check(seen: Seen) -> Finding:
        found = which(seen[LIMITS])
        if isinstance(found, Failed):
            raise NotObserved(found)
        return judge(found)

    return check


def _logins(limit: Limit) -> Finding:
    """LIM-01."""
    if limit.said is None:
        return failed(f"{limit.taken} invented logins side by side, and none was answered by a limit")
    found = f"after {limit.taken} invented logins: {limit.said}"
    if limit.taken == 0:
        return inconclusive(f"limited from the first on, by an earlier run? {found}", transcript=limit.transcript)
    return passed(found, transcript=limit.transcript)


def too_many_logins(seen: Seen) -> Finding:
    """LIM-01, with a word on where from: a server counts by the client's address."""
    finding = _limit(lambda limits: limits.logins, _logins)(seen)
    if seen.target.limit_addresses:
        return finding
    where = "from this run's only address, whose other logins in that minute count too (a second --source-address)"
    return replace(finding, found=f"{finding.found}\n{where}")


def _connections(limit: Limit) -> Finding:
    """LIM-02."""
    if limit.said is None:
        return failed(f"{limit.taken} connections at once, and all were greeted with 220")
    found = f"{limit.taken} connections at once were greeted with 220, the next one: {limit.said}"
    if limit.taken == 0 or not isinstance(limit.said, Reply):
        return inconclusive(found, transcript=limit.transcript)
    return (passed if limit.said.code == 421 else failed)(found, transcript=limit.transcript)


def _errors(limit: Limit) -> Finding:
    """LIM-03."""
    if limit.said is None:
        return failed(f"{limit.taken} bad commands on one connection, and it still stands", transcript=limit.transcript)
    found = f"after {limit.taken} bad commands: {limit.said}"
    if isinstance(limit.said, Reply):
        return passed(found, transcript=limit.transcript)
    if limit.said.failure in (Failure.CLOSED, Failure.RESET):
        return Finding(Verdict.FAIL, f"{found}, without a 421", limit.transcript, Severity.SHOULD)
    return inconclusive(found, transcript=limit.transcript)


def _recipients(limit: Limit) -> Finding:
    """LIM-04: the limit of one message, and not that of a minute."""
    if limit.said is None:
        return failed(f"{limit.taken} recipients of one message were taken", transcript=limit.transcript)
    found = f"after {limit.taken} recipients of one message: {limit.said}"
    if not isinstance(limit.said, Reply):
        return inconclusive(found, transcript=limit.transcript)
    by_the_minute = is_limit(limit.said)
    if limit.taken < MIN_RECIPIENTS:
        return (inconclusive if by_the_minute else failed)(found, transcript=limit.transcript)
    if by_the_minute:
        return failed(f"{found}; only a limit by the minute put an end to it", transcript=limit.transcript)
    return passed(found, transcript=limit.transcript)


def idle_ends(seen: Seen) -> Finding:
    """LIM-05."""
    idle = seen[IDLE]
    if idle.said is None:
        found = f"a connection on which nothing was said still stood after {IDLE_SECONDS:.0f} s"
        return failed(found, transcript=idle.transcript)
    found = f"after {idle.seconds:.0f} s of silence: {idle.said}"
    if not isinstance(idle.said, Reply) or idle.said.code != 421:
        return Finding(Verdict.FAIL, f"{found}, and not 421", idle.transcript, Severity.SHOULD)
    if idle.seconds < SHORTEST_IDLE_SECONDS:
        return Finding(Verdict.FAIL, f"{found}, sooner than after 5 minutes", idle.transcript, Severity.SHOULD)
    return passed(found, transcript=idle.transcript)


REQUIREMENTS = (
    Requirement(
        id="LIM-01",
        scope=Scope.SUBMISSION,
        title="Who tries too many logins is stopped",
        expected="450 4.7.1 (or 421) to AUTH after some logins in a minute, at most 64",
        remedy="smtpd_client_auth_rate_limit = 30; anvil in master.cf; no clients but our own networks in "
        "smtpd_client_event_limit_exceptions",
        source="RFC 4954 §6, Gatepost's policy",
        probes=(LIMITS,),
        check=too_many_logins,
        needs=Need.LIMITS,
        needs_tls=True,
        once=True,
        problem="The server lets one client try passwords as often as it likes.",
        risk="Attackers try passwords around the clock until one fits, and then send spam through the server.",
    ),
    Requirement(
        id="LIM-02",
        scope=Scope.ALL,
        title="Nobody takes all connections",
        expected="220 to some connections at once, then 421 4.7.0, before there are 60",
        remedy="smtpd_client_connection_count_limit = 20 (below 50); anvil in master.cf",
        source="Gatepost's policy",
        probes=(LIMITS,),
        check=_limit(lambda limits: limits.connections, _connections),
        needs=Need.LIMITS,
        once=True,
        problem="One client may open as many connections as it likes.",
        risk="A single computer keeps everybody else from sending mail.",
    ),
    Requirement(
        id="LIM-03",
        scope=Scope.ALL,
        title="Who makes many mistakes is hung up on",
        expected="421 4.7.0 after some bad commands on one connection, at most 25",
        remedy="smtpd_hard_error_limit = 10, smtpd_soft_error_limit = 5",
        source="Gatepost's policy",
        probes=(LIMITS,),
        check=_limit(lambda limits: limits.errors, _errors),
        needs=Need.LIMITS,
        once=True,
        problem="The server listens to nonsense without end.",
        risk="Attackers try out addresses, passwords and weak spots over one connection for hours.",
    ),
    Requirement(
        id="LIM-04",
        scope=Scope.RELAY,
        title="A message has at least 100 recipients, and not any number of them",
        expected="250 to 100 recipients of one message or more, then 452 4.5.3, before there are 1001",
        remedy="smtpd_recipient_limit = 100",
        source="RFC 5321 §4.5.3.1.8, §4.5.3.1.10",
        probes=(LIMITS,),
        check=_limit(lambda limits: limits.recipients, _recipients),
        needs=Need.LIMITS | Need.DOMAIN | Need.OUTSIDE,
        once=True,
        problem="The server takes too few recipients in one message, or any number of them.",
        risk="With too few, lists are delivered late or not at all; without a limit one message floods all mailboxes.",
    ),
    Requirement(
        id="LIM-05",
        scope=Scope.ALL,
        title="Silent connections are closed",
        expected=f"421 4.4.2 after 5 minutes of silence or more, within {IDLE_SECONDS:.0f} s",
        remedy="smtpd_timeout = ${stress?{10}:{300}}s",
        source="RFC 5321 §4.5.3.2.7",
        probes=(IDLE,),
        check=idle_ends,
        needs=Need.SLOW,
        once=True,
        problem="Connections on which nothing is said are kept for too long, or closed too soon.",
        risk="Kept ones use up the server's places; slow clients lose their connection when it is closed too soon.",
    ),
    *(
        Requirement(
            id="LIM-06",
            scope=scope,
            title="Normal use meets no limit",
            expected=f"250 to {submission.MESSAGES} messages in one session and to {submission.RECIPIENTS} recipients "
            "of one",
            remedy="Look at smtpd_recipient_limit, smtpd_client_message_rate_limit, smtpd_client_recipient_rate_limit, "
            "smtpd_junk_command_limit.",
            source="RFC 5321 §4.5.3.1.8, Gatepost's policy",
            probes=(probe,),
            check=_normal_use(probe),
            needs=needs,
            needs_tls=scope is Scope.SUBMISSION,
            once=True,
            problem="The server's limits are so low that ordinary mail meets them.",
            risk="Users and other servers get errors although they do nothing unusual.",
        )
        for scope, probe, needs in (
            (Scope.RELAY, NORMAL_USE, Need.DOMAIN | Need.OUTSIDE),
            (Scope.SUBMISSION, submission.AFTER_LOGIN, Need.ACCOUNT),
        )
    ),
)
