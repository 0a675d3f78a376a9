"""Chapters 4 and 6 of the policy: nothing before TLS, nothing before AUTH, and nobody else's name (SUB)."""

from __future__ import annotations

import base64
import re
import secrets
from collections.abc import Callable, Collection, Iterable, Iterator

from gatepost.listeners import Listener
from gatepost.verify.checks import general
from gatepost.verify.checks.answers import extensions, judge, refusal, together
from gatepost.verify.checks.relay import envelope, not_relayed, recipient, sender, taken, to, unknown_user
from gatepost.verify.model import Finding, Severity, Verdict
from gatepost.verify.registry import Need, NotObserved, Requirement, Scope, Seen, failed, inconclusive, passed
from gatepost.verify.wire.login import LOGINS, PAIRS, SIGNIFICANCE, TIMING, Gap, Timing, patiently, side_by_side
from gatepost.verify.wire.probe import Case, Dialogue, Failed, Probe, Send, Site, Step, Told, case, dialogue, is_limit
from gatepost.verify.wire.session import Answer, Ended, Failure, Reply, plain
from gatepost.verify.wire.starttls import SPOILT, UPGRADE

FAILED_LOGIN_SECONDS = 20.0  # servers delay it on purpose, and longer after many (surprises 15)
MECHANISMS = frozenset({"PLAIN", "LOGIN"})


# -- Before TLS --------------------------------------------------------------------------------------------------------


def _in_clear(site: Site) -> Iterator[Case]:
    # DATA and BDAT before MAIL: should the server demand no TLS, they are out of order and start no message.
    yield case("mail", "DATA", "BDAT 0 LAST", "MAIL FROM:<>", f"RCPT TO:<{site.target.hostname}>")
    yield case("harmless", "NOOP")
    yield case("reset", "RSET")
    yield case("verbs", "VRFY postmaster", f"ETRN {site.target.hostname}")
    yield case("quit", "QUIT", ends=True)


def _auth_in_clear(site: Site) -> Iterator[Case]:
    invented = plain(f"gatepost-probe@{site.target.hostname}", secrets.token_hex(8))
    yield case("invented", Send(f"AUTH PLAIN {invented}", timeout=FAILED_LOGIN_SECONDS))
    if site.target.lab and site.target.accounts:  # never elsewhere: real credentials in clear
        good = site.target.accounts[0]
        yield case("good", Send(f"AUTH PLAIN {plain(good.address, good.password)}", timeout=FAILED_LOGIN_SECONDS))


def _starttls_argument(site: Site) -> Iterator[Case]:
    yield case("argument", "STARTTLS now", ends=True)


CLEAR = dialogue("submission-clear", _in_clear, tls=False)
AUTH_CLEAR = dialogue("submission-auth-clear", _auth_in_clear, tls=False)
ARGUMENT = dialogue("submission-starttls-argument", _starttls_argument, tls=False)


def starttls_offered(seen: Seen) -> Finding:
    """SUB-TLS-01."""
    reply = seen[CLEAR].ehlo_clear
    assert reply is not None
    found = f"EHLO in clear: {reply.code}, offers {extensions(reply)}"
    return (passed if reply.keyword("STARTTLS") is not None else failed)(found)


def no_auth_in_clear(seen: Seen) -> Finding:
    """SUB-TLS-02."""
    reply = seen[CLEAR].ehlo_clear
    assert reply is not None
    lines = [line for line in reply.keywords if line.upper().startswith("AUTH")]
    return failed(f"EHLO in clear offers {', '.join(lines)}") if lines else passed(f"offers {extensions(reply)}")


def mail_needs_tls(seen: Seen) -> Finding:
    """SUB-TLS-03: each command by itself. An ended connection hides the rest."""
    told = seen[CLEAR]["mail"]
    answers = [answer for step in told.steps for answer in step.answers]
    if any(isinstance(a, Reply) and a.code != 530 and not is_limit(a) for a in answers):
        return failed(str(told), transcript=told.transcript)
    if len(told.steps) < 4 or not all(isinstance(a, Reply) and a.code == 530 for a in answers):
        return inconclusive(f"not all could be asked: {told}", transcript=told.transcript)
    return passed(str(told), transcript=told.transcript)


def auth_needs_tls(seen: Seen) -> Finding:
    """SUB-TLS-04: 503 would mean that TLS is optional here, 535 that the password was looked at."""
    observed = seen[AUTH_CLEAR]
    finding = together(judge(told, lambda reply: reply.code in (530, 538)) for told in observed.told)
    texts = {(t.last.code, t.last.lines) for t in observed.told if isinstance(t.last, Reply)}
    if len(texts) > 1:
        return failed("good and invented credentials get different replies: " + "; ".join(map(str, observed.told)))
    return finding


def harmless_verbs(seen: Seen) -> Finding:
    """SUB-TLS-05. RFC 3207 §4 wants 530 to RSET, as Postfix answers; RFC 5321 §4.1.1.5 wants 250: both will do."""
    observed = seen[CLEAR]
    return together(
        (
            _every(observed["verbs"], lambda reply: reply.code >= 500),
            _every(observed["harmless"], lambda reply: reply.code == 250),
            _every(observed["reset"], lambda reply: reply.code in (250, 530)),
            _every(observed["quit"], lambda reply: reply.code == 221),
        )
    )


def _every(told: Told, good: Callable[[Reply], bool]) -> Finding:
    answers = [answer for step in told.steps for answer in step.answers]
    if any(isinstance(a, Reply) and not good(a) and not is_limit(a) for a in answers):
        return failed(str(told), transcript=told.transcript)
    return judge(told, good)


def argument_refused(seen: Seen) -> Finding:
    """SUB-TLS-06."""
    return refusal(seen[ARGUMENT]["argument"])


def starttls_inside(seen: Seen) -> Finding:
    """SUB-TLS-07, and IMP-TLS-05."""
    return refusal(seen[INSIDE]["starttls"])


def state_is_reset(seen: Seen) -> Finding:
    """SUB-TLS-08."""
    observed = seen[UPGRADE]
    found = f"MAIL after the handshake, before a new EHLO: {observed.early_mail}"
    if not isinstance(observed.early_mail, Reply) or is_limit(observed.early_mail):
        return inconclusive(found, transcript=observed.transcript)
    return (passed if observed.early_mail.code == 503 else failed)(found, transcript=observed.transcript)


def no_fall_back(seen: Seen) -> Finding:
    """SUB-TLS-09: after a handshake that failed, nothing is taken in clear."""
    observed = seen[SPOILT]
    found = f"text in clear instead of a handshake: {observed.said or 'no SMTP reply'}"
    if observed.said.startswith("2") or (isinstance(observed.mail, Reply) and observed.mail.code < 500):
        return failed(f"{found}; then MAIL in clear: {observed.mail}", transcript=observed.transcript)
    if observed.closed:
        return passed(f"{found}; the server closed the connection", transcript=observed.transcript)
    if isinstance(observed.mail, Reply):
        return failed(f"{found}; it still answers in clear: {observed.mail}", transcript=observed.transcript)
    return inconclusive(f"{found}; the server neither closed nor answered", transcript=observed.transcript)


# -- AUTH --------------------------------------------------------------------------------------------------------------

# Failed logins cost the server and look like an attack: no listener shall see more than ten in a run without --slow.
# Seven go to each of them: the three of SUB-AUTH-07, EXTERNAL, ANONYMOUS, an empty password, and a login in another's
# name. The others are dealt over the submission listeners.
DEALT_EACH = 3
_FIXED_MECHANISMS = (  # mechanism, initial response; none of them holds anything real
    ("EXTERNAL", "="),
    ("ANONYMOUS", base64.b64encode(b"gatepost").decode()),
)
_OTHER_MECHANISMS = (
    ("CRAM-MD5", ""),
    ("DIGEST-MD5", ""),
    ("NTLM", ""),
    ("GSSAPI", ""),
    ("XOAUTH2", base64.b64encode(b"user=gatepost\1auth=Bearer none\1\1").decode()),
)
_BASE64, _LONG = "bad base64", "13,000 octets"
_NUL, _AUTHCID = "NUL in the password", "only a user name"
_EMPTY, _AUTHZID = "empty password", "in another's name"
_CASE = "user name in the wrong case"
# In this order, so that the few that one listener alone is asked are of all kinds.
_DEALT = ("CRAM-MD5", _NUL, _BASE64, _AUTHCID, "XOAUTH2", _LONG, "DIGEST-MD5", "NTLM", "GSSAPI")


def _dealt(site: Site) -> tuple[str, ...]:
    """Return which of the dealt logins this listener is asked."""
    dealt_to = [listener.name for listener in site.target.listeners if listener.is_submission]
    if site.listener.name not in dealt_to:  # as in docs/checks.md
        return _DEALT
    return _DEALT[dealt_to.index(site.listener.name) :: len(dealt_to)][:DEALT_EACH]


def _inside(site: Site) -> Iterator[Case]:
    if site.listener.is_submission:
        yield case("cancel", Send("AUTH PLAIN", vital=True), "*")
    yield case("starttls", "STARTTLS", ends=True)


def _mechanisms(site: Site) -> Iterator[Case]:
    yield from _only((label for label, _ in _FIXED_MECHANISMS), _mechanism_cases())
    yield from _only(_dealt(site), _mechanism_cases())


def _mechanism_cases() -> Iterator[Case]:
    for mechanism, token in (*_FIXED_MECHANISMS, *_OTHER_MECHANISMS):
        yield case(mechanism, Send(f"AUTH {mechanism} {token}".rstrip(), timeout=FAILED_LOGIN_SECONDS), ends=True)


def _responses(site: Site) -> Iterator[Case]:
    yield from _only(_dealt(site), _response_cases())


def _response_cases() -> Iterator[Case]:
    yield case(_BASE64, Send("AUTH PLAIN !gatepost!", timeout=FAILED_LOGIN_SECONDS), ends=True)
    response = Send("A" * 13_000, timeout=FAILED_LOGIN_SECONDS)
    yield case(_LONG, Send("AUTH PLAIN", vital=True), response, ends=True)


def _odd_logins(site: Site) -> Iterator[Case]:
    yield from _only((_AUTHZID, _EMPTY, *_dealt(site)), _odd_login_cases(site))


def _odd_login_cases(site: Site) -> Iterator[Case]:
    """What must not log in although, but for its oddity, it could: inside TLS that was judged safe."""
    user, password = site.target.accounts[0].address, site.target.accounts[0].password
    other = next((a.address for a in site.target.accounts[1:]), f"postmaster@{user.rpartition('@')[2]}")
    responses = {
        _AUTHZID: plain(user, password, authzid=other),
        _EMPTY: plain(user, ""),
        _NUL: plain(user, f"{password}\0gatepost"),
        _AUTHCID: base64.b64encode(f"\0{user}".encode()).decode(),
    }
    for label, response in responses.items():
        yield case(label, Send(f"AUTH PLAIN {response}", timeout=FAILED_LOGIN_SECONDS), ends=True)


def _not_dealt(site: Site) -> Iterator[Case]:
    yield from _only(_rest(site), (*_mechanism_cases(), *_response_cases()))


def _logins_not_dealt(site: Site) -> Iterator[Case]:
    yield from _only(_rest(site), _odd_login_cases(site))


def _rest(site: Site) -> tuple[str, ...]:
    """Return what was dealt to other listeners, with --slow."""
    return tuple(label for label in _DEALT if label not in _dealt(site)) if site.target.slow else ()


def _only(labels: Iterable[str], cases: Iterable[Case]) -> Iterator[Case]:
    labels = frozenset(labels)
    return (this for this in cases if this.label in labels)


def _wrong_case(site: Site) -> Iterator[Case]:
    # One listener tells for all: each login costs the server a hash, which it works out for one client after the other.
    # It is the one that is asked for a response too long to be a login: where this one fails, it is the tenth.
    if _LONG not in _dealt(site) and not site.target.slow:
        return
    account = site.target.accounts[0]
    response = plain(account.address.swapcase(), account.password)
    yield case(_CASE, Send(f"AUTH PLAIN {response}", timeout=FAILED_LOGIN_SECONDS), ends=True)


def _without_login(site: Site) -> Iterator[Case]:
    for mail_from in _claimed(site):
        yield envelope(mail_from, *_anyone(site))


def _claimed(site: Site) -> tuple[str, ...]:
    return (f"<{recipient(site)}>", f"<{sender(site)}>", "<>")


def _anyone(site: Site) -> tuple[str, ...]:
    return (f"<{recipient(site)}>", _victim(site))


def _victim(site: Site) -> str:
    return f"<gatepost-nobody@{site.outside}>"


def _before_ehlo(site: Site) -> Iterator[Case]:
    yield case("auth", f"AUTH PLAIN {plain(f'gatepost-probe@{site.target.hostname}', secrets.token_hex(8))}")


def _wrong_password(site: Site) -> Iterator[Case]:
    yield _wrong(site.target.accounts[0].address)


def _unknown_user(site: Site) -> Iterator[Case]:
    yield _wrong(f"{unknown_user()}@{site.domain}")


def _foreign_domain(site: Site) -> Iterator[Case]:
    yield _wrong(f"gatepost-probe@{site.outside if site.target.outside_domain else 'example.org'}")


def _wrong(user: str) -> Case:
    return case("auth", Send(f"AUTH PLAIN {plain(user, secrets.token_hex(12))}", timeout=FAILED_LOGIN_SECONDS))


INSIDE = dialogue("starttls-inside", _inside)
ALONE = dialogue("mechanisms", _mechanisms, once=True)
RESPONSES = dialogue("odd-responses", _responses, slow=True, once=True)
NOT_DEALT = patiently("mechanisms-dealt-to-others", _not_dealt)
LOGINS_NOT_DEALT = patiently("logins-dealt-to-others", _logins_not_dealt, account=0)
ODD_LOGINS = side_by_side("odd-logins", _odd_logins)
WRONG_CASE = side_by_side("user-name-in-wrong-case", _wrong_case)
ANONYMOUS = dialogue("submission-without-login", _without_login)
BEFORE_EHLO = dialogue("auth-before-ehlo", _before_ehlo, greet_only=True, once=True)
WRONG_PASSWORD = dialogue("wrong-password", _wrong_password, slow=True, once=True)
UNKNOWN_USER = dialogue("wrong-user", _unknown_user, slow=True, once=True)
FOREIGN_DOMAIN = dialogue("wrong-domain", _foreign_domain, slow=True, once=True)


def _died_inside(found: Failed) -> bool:
    """Whether the server took our TLS and then went away: Postfix does that when its SASL socket is missing."""
    inside = any(line.direction == "note" and line.text.startswith("TLSv") for line in found.transcript)
    return inside and found.failure in (Failure.CLOSED, Failure.RESET)


_DIED = "the server took the TLS handshake and then went away; Postfix does so when it cannot reach its SASL socket"


def offers_plain_and_login(seen: Seen) -> Finding:
    """SUB-AUTH-01."""
    observed = seen.attempt(INSIDE)
    if isinstance(observed, Failed):
        if _died_inside(observed):
            return failed(f"{_DIED} ({observed})", transcript=observed.transcript)
        raise NotObserved(observed)
    reply = observed.ehlo_tls
    assert reply is not None
    lines = [line for line in reply.keywords if line.upper().startswith("AUTH")]
    if lines == [] or len(lines) > 1:
        return failed(f"EHLO inside TLS offers {' and '.join(lines) or 'no AUTH'}")
    offered = frozenset((reply.keyword("AUTH") or "").upper().split())
    return (passed if offered == MECHANISMS else failed)(f"EHLO inside TLS offers {lines[0]}")


def other_mechanisms_refused(seen: Seen) -> Finding:
    """SUB-AUTH-02: whatever EHLO says. Any 5xx but the 503 of a session that an earlier one has logged in."""
    others = [mechanism for mechanism, _ in _OTHER_MECHANISMS]
    told = (*seen[ALONE].told, *_late(seen, NOT_DEALT, others))
    finding = together(judge(t, lambda reply: reply.code >= 500) for t in told)
    return _with_dealt(seen, finding, ALONE, others)


def _late(seen: Seen, probe: Probe[tuple[Told, ...]], labels: Collection[str]) -> tuple[Told, ...]:
    """Return what was told of these with --slow only."""
    return tuple(told for told in seen[probe] if told.label in labels) if seen.target.slow else ()


def _with_dealt(
    seen: Seen, finding: Finding | None, probe: Probe[Dialogue | tuple[Told, ...]], labels: Iterable[str]
) -> Finding:
    """Say of the logins that this listener was not asked which other one was, and which are left to --slow."""
    mine = _DEALT if seen.target.slow else _dealt(seen.here)
    elsewhere: dict[str, list[str]] = {}
    for label in (label for label in labels if label not in mine):
        asked = [li.name for li, _, found in seen.everywhere(probe) if label in _labels(found)]
        elsewhere.setdefault(f"asked of {asked[0]}" if asked else "left to --slow", []).append(label)
    notes = "; ".join(f"{', '.join(labels)}: {where}" for where, labels in elsewhere.items())
    if finding is None:
        return Finding(Verdict.NOT_RUN, notes)
    return Finding(finding.verdict, "\n".join(filter(None, (finding.found, notes))), finding.transcript)


def _labels(found: Dialogue | tuple[Told, ...] | Failed) -> frozenset[str]:
    told = found.told if isinstance(found, Dialogue) else () if isinstance(found, Failed) else found
    return frozenset(t.label for t in told)


def no_obsolete_form(seen: Seen) -> Finding:
    """SUB-AUTH-03."""
    reply = seen[INSIDE].ehlo_tls
    assert reply is not None
    lines = [line for line in reply.keywords if line.upper().startswith("AUTH=")]
    return failed(f"EHLO offers {', '.join(lines)}") if lines else passed(f"offers {extensions(reply)}")


def mail_needs_login(seen: Seen) -> Finding:
    """SUB-AUTH-04: also for local recipients."""
    return together(
        not_relayed(to(seen[ANONYMOUS], mail_from, rcpt_to))
        for mail_from in _claimed(seen.here)
        for rcpt_to in _anyone(seen.here)
    )


def logs_in(seen: Seen) -> Finding:
    """SUB-AUTH-05."""
    observed = seen.attempt(LOGINS)
    if isinstance(observed, Failed):
        if _died_inside(observed):
            return failed(f"{_DIED} ({observed})", transcript=observed.transcript)
        raise NotObserved(observed)
    findings = []
    for attempt in observed:
        answer = attempt.answer
        found = f"{attempt.way}: {answer}"
        if isinstance(answer, Reply) and answer.code == 535:
            found += f"; {seen.target.accounts[0].address} does not exist, its password is another, or AUTH is broken"
        if isinstance(answer, Reply) and is_limit(answer):
            findings.append(inconclusive(found, transcript=attempt.transcript))
        elif isinstance(answer, Reply) and answer.code == 235:
            findings.append(passed(found, transcript=attempt.transcript))
        else:
            findings.append(failed(found, transcript=attempt.transcript))
    return together(findings)


def wrong_password_refused(seen: Seen) -> Finding:
    """SUB-AUTH-06."""
    told = seen[WRONG_PASSWORD]["auth"]
    if not seen.target.lab and isinstance(told.last, Reply) and told.last.code == 454:
        return inconclusive(f"the server may have tired of failed logins: {told}", transcript=told.transcript)
    return judge(told, lambda reply: reply.code == 535)


def users_cannot_be_told_apart(seen: Seen) -> Finding:
    """SUB-AUTH-07."""
    told = {
        "wrong password": seen[WRONG_PASSWORD]["auth"],
        "unknown user": seen[UNKNOWN_USER]["auth"],
        "foreign domain": seen[FOREIGN_DOMAIN]["auth"],
    }
    found = "\n".join(f"{what}: {t.last}" for what, t in told.items())
    transcript = tuple(line for t in told.values() for line in t.transcript)
    last = [t.last for t in told.values()]
    replies = {(a.code, a.lines) for a in last if isinstance(a, Reply)}
    if any(isinstance(a, Ended) for a in last) or any(is_limit(a) for a in last):
        return inconclusive(found, transcript=transcript)
    if not seen.target.lab and any(code == 454 for code, _ in replies):
        return inconclusive(f"the server may have tired of failed logins: {found}", transcript=transcript)
    return (passed if len(replies) == 1 else failed)(found, transcript=transcript)


def auth_before_ehlo(seen: Seen) -> Finding:
    """SUB-AUTH-11: before TLS on STARTTLS listeners, where 530 is as right."""
    return refusal(seen[BEFORE_EHLO]["auth"], (503, 530))


def auth_can_be_cancelled(seen: Seen) -> Finding:
    """SUB-AUTH-12."""
    told = seen[INSIDE]["cancel"]
    if told.codes[:1] != (334,):
        return judge(told, lambda _: False)
    return judge(told, lambda reply: reply.code == 501)


def odd_responses_refused(seen: Seen) -> Finding:
    """SUB-AUTH-13: also by closing the connection, which must go on being answered afterwards (GEN-NET-01)."""
    told = (*seen[RESPONSES].told, *_late(seen, NOT_DEALT, (_BASE64, _LONG)))
    finding = together(judge(t, lambda reply: reply.code >= 500) for t in told) if told else None
    return _with_dealt(seen, finding, RESPONSES, (_BASE64, _LONG))


def nobody_acts_for_another(seen: Seen) -> Finding:
    """SUB-AUTH-14: with a password that the server takes, since a wrong one is refused in anybody's name."""
    attempts = seen[LOGINS]
    if not any(isinstance(a.answer, Reply) and a.answer.code == 235 for a in attempts):
        raise NotObserved(Failed(Failure.LOGIN_REFUSED, f"no login worked: {attempts[0].answer}"))
    return together(_refused(told) for told in seen[ODD_LOGINS] if told.label == _AUTHZID)


def odd_passwords_refused(seen: Seen) -> Finding:
    """SUB-AUTH-15."""
    told = (*seen[ODD_LOGINS], *_late(seen, LOGINS_NOT_DEALT, (_NUL, _AUTHCID)))
    finding = together(_refused(t) for t in told if t.label != _AUTHZID)
    return _with_dealt(seen, finding, ODD_LOGINS, (_NUL, _AUTHCID))


def _refused(told: Told) -> Finding:
    finding = judge(told, lambda reply: reply.code >= 500)
    return Finding(finding.verdict, f"{told.label}: {finding.found}", finding.transcript)


def wrong_case(seen: Seen) -> Finding:
    """SUB-AUTH-16."""
    if not seen[WRONG_CASE]:
        return _with_dealt(seen, None, WRONG_CASE, (_CASE,))
    told = seen[WRONG_CASE][0]
    return Finding(Verdict.INFO, f"the user name with upper and lower case exchanged: {told}", told.transcript)


MIN_FAILURE_SECONDS = 1.0


def users_take_equally_long(seen: Seen) -> Finding:
    """SUB-AUTH-08: the ranks of the two overlap (Mann–Whitney), or their medians are close. One round in a hundred
    looks apart by chance, so that both together must do so more clearly."""
    timing = seen[TIMING]
    if unknown := _not_timed(timing):
        return unknown
    gap = Gap.between(timing.known, timing.unknown)
    apart = gap.is_apart and (len(timing.known) <= PAIRS or gap.p <= SIGNIFICANCE / 10)
    return (failed if apart else passed)(f"{len(timing.known)} pairs: {gap}", transcript=timing.transcript)


def failures_are_slow(seen: Seen) -> Finding:
    """SUB-AUTH-08b."""
    timing = seen[TIMING]
    if unknown := _not_timed(timing):
        return unknown
    times = (*timing.known, *timing.unknown)
    found = f"{len(times)} failed logins took {min(times):.2f} to {max(times):.2f} s"
    return (passed if min(times) >= MIN_FAILURE_SECONDS else failed)(found, transcript=timing.transcript)


def _not_timed(timing: Timing) -> Finding | None:
    if timing.stopped is None:
        return None
    return inconclusive(
        f"after {len(timing.unknown)} pairs a failed login was answered {timing.stopped}", transcript=timing.transcript
    )


# -- Sending as somebody -----------------------------------------------------------------------------------------------


def _address(site: Site, who: str) -> str:
    """Return one of the senders that an account tries, in brackets."""
    accounts = site.target.accounts
    return {
        "own": f"<{accounts[0].address}>",
        "alias": f"<{accounts[0].alias}>",
        "other": f"<{accounts[-1].address}>",
        "foreign": f"<{sender(site)}>",
        "nobody": f"<{unknown_user()}@{site.domain}>",
        "null": "<>",
    }[who]


def _as_first(site: Site) -> Iterator[Case]:
    own = _address(site, "own")
    # As in mail programs. Before what is refused, since a connection carries four errors.
    helos = (line for name in MUA_NAMES for line in (f"EHLO {name}", f"MAIL FROM:{own}", f"RCPT TO:{_victim(site)}"))
    yield case("names", *helos, f"EHLO {site.ehlo}")
    yield case("unlisted", Send(f"MAIL FROM:{own}", vital=True), f"RCPT TO:<{unknown_user()}@{site.domain}>")
    for who in ("null", "own", "alias", "other", "foreign", "nobody"):
        if (who != "alias" or site.target.accounts[0].alias) and (who != "other" or len(site.target.accounts) > 1):
            yield envelope(_address(site, who), _victim(site))


MESSAGES = RECIPIENTS = 10


def normal_use(mail_from: str, rcpt_to: str) -> Iterator[Case]:
    """Return LIM-06's cases: many messages in one session, many recipients of one."""
    mail = f"MAIL FROM:<{mail_from}>\r\n"
    # RSET before RCPT: nothing is opened in the queue yet, so that these messages cost the server nothing.
    yield case("messages", Send((mail + "RSET\r\n").encode() * MESSAGES, replies=2 * MESSAGES))
    yield case("recipients", Send((mail + f"RCPT TO:<{rcpt_to}>\r\n" * RECIPIENTS).encode(), replies=1 + RECIPIENTS))


def _after_login(site: Site) -> Iterator[Case]:
    own = site.target.accounts[0].address
    yield from normal_use(own, own)
    invented = plain(f"gatepost-probe@{site.target.hostname}", secrets.token_hex(8))
    yield case("again", f"AUTH PLAIN {invented}")
    yield case("inside", f"MAIL FROM:<{site.target.accounts[0].address}>", f"AUTH PLAIN {invented}", stop_on_error=True)


def _as_second(site: Site) -> Iterator[Case]:
    yield envelope(_address(site, "own"), _victim(site))


MUA_NAMES = ("[192.168.1.2]", "localhost", "my_pc")
AS_FIRST = dialogue("submission-as-first", _as_first, account=0, once=True)
AS_SECOND = dialogue("submission-as-second", _as_second, account=1, once=True)
AFTER_LOGIN = dialogue("auth-after-login", _after_login, account=0, once=True)


def _tried(seen: Seen, who: str) -> Told:
    return to(seen[AS_FIRST], _address(seen.here, who), _victim(seen.here))


def own_address(seen: Seen) -> Finding:
    """SUB-SND-01."""
    return taken(_tried(seen, "own"))


def others_address(seen: Seen) -> Finding:
    """SUB-SND-02: both ways."""
    back = to(seen[AS_SECOND], _address(seen.here, "own"), _victim(seen.here))
    return together((refusal(_tried(seen, "other")), refusal(back)))


def foreign_address(seen: Seen) -> Finding:
    """SUB-SND-03."""
    return not_relayed(_tried(seen, "foreign"))


def unknown_address(seen: Seen) -> Finding:
    """SUB-SND-04."""
    return refusal(_tried(seen, "nobody"))


def own_alias(seen: Seen) -> Finding:
    """SUB-SND-05."""
    return taken(_tried(seen, "alias"))


def null_sender(seen: Seen) -> Finding:
    """SUB-SND-06."""
    told = _tried(seen, "null")
    return Finding(Verdict.INFO, str(told), told.transcript)


def header_of_another(seen: Seen) -> Finding:
    """SUB-SND-07: only a message that is taken and delivered would show what a milter makes of it."""
    own = _tried(seen, "own")
    found = f"not tried, since it needs a delivery; Postfix compares the envelope only: {own}"
    return Finding(Verdict.INFO, found, own.transcript)


def no_bounces(seen: Seen) -> Finding:
    """SUB-RCP-01."""
    return refusal(seen[AS_FIRST]["unlisted"])


def any_name_will_do(seen: Seen) -> Finding:
    """SUB-HLO-01: neither EHLO nor what follows is refused for the name."""
    told = seen[AS_FIRST]["names"]
    if told.codes[:1] == (503,):
        return Finding(Verdict.NOT_RUN, f"the server takes one EHLO on a connection only (RFC 5321 §4.1.4): {told}")
    finding = _every(told, lambda reply: reply.code == 250)
    if finding.verdict is Verdict.PASS and len(told.steps) < 3 * len(MUA_NAMES):
        return inconclusive(f"not all could be asked: {told}", transcript=told.transcript)
    return finding


def auth_again(seen: Seen) -> Finding:
    """SUB-AUTH-09."""
    return refusal(seen[AFTER_LOGIN]["again"], (503,))


def auth_in_transaction(seen: Seen) -> Finding:
    """SUB-AUTH-10."""
    return refusal(seen[AFTER_LOGIN]["inside"], (503,))


# -- One like the other ------------------------------------------------------------------------------------------------

_COMPARED = (
    *(CLEAR, AUTH_CLEAR, ARGUMENT, INSIDE, ALONE, RESPONSES, BEFORE_EHLO),
    *(general.VERBS, general.CLEAR, general.BDAT, general.GET, general.EARLY),
)
# These too, when other rows asked: they need accounts, or an outside domain.
_COMPARED_IF_SEEN = (ANONYMOUS, WRONG_PASSWORD, UNKNOWN_USER, FOREIGN_DOMAIN, AS_FIRST, AS_SECOND, AFTER_LOGIN)
_CHANGING = re.compile(r"\b(?=[0-9A-Za-z]*[0-9])[0-9A-Za-z]{8,}\b|\b\d{1,2}:\d\d(:\d\d)?\b")  # queue ids, tokens, times


def all_answer_alike(seen: Seen) -> Finding:
    """SUB-CFG-01: dialogue by dialogue, what every listener was asked and answered without meeting a limit."""
    listeners = [li for li in seen.target.listeners if Scope.SUBMISSION_STARTTLS.covers(li)]
    if len(listeners) < 2:
        return Finding(Verdict.NOT_APPLICABLE, "there are no two submission listeners with STARTTLS")
    different: list[str] = []
    compared, missing = 0, set()
    for probe in (*_COMPARED, *_COMPARED_IF_SEEN):
        answers: dict[str, dict[str, dict[str, str]]] = {}  # address → what was asked → listener → answer
        for listener, address, found in seen.everywhere(probe):
            if listener not in listeners:
                continue
            if isinstance(found, Failed):
                if found.failure not in (Failure.NOT_TRIED, Failure.LOGIN_REFUSED):
                    missing.add(f"{probe.name} on {listener.name}: {found}")
                continue
            for asked, answer in _answers(found, listener):
                answers.setdefault(address, {}).setdefault(asked, {})[listener.name] = answer
        for asked, by_listener in ((asked, by) for at in answers.values() for asked, by in at.items()):
            if len(by_listener) > 1:
                compared += 1
            if len(set(by_listener.values())) > 1:
                different.append(f"{asked}: " + " but ".join(f"{a!r} on {name}" for name, a in by_listener.items()))
    if different:
        return failed("\n".join(dict.fromkeys(different)))
    if missing or not compared:
        return inconclusive("not everything could be compared: " + ("; ".join(sorted(missing)) or "nothing was seen"))
    return passed(f"{compared} answers are the same on {', '.join(li.name for li in listeners)}")


def _answers(found: Dialogue, listener: Listener) -> Iterator[tuple[str, str]]:
    hellos = (("greeting", found.greeting), ("EHLO in clear", found.ehlo_clear), ("EHLO inside TLS", found.ehlo_tls))
    for what, reply in hellos:
        if reply is not None and not is_limit(reply):
            yield what, _plain(reply, listener)
    for told in found.told:
        if told.was_limited or told.retried:
            continue
        for number, step in enumerate(told.steps):
            if all(_is_settled(answer) for answer in step.answers):
                yield f"{_sent(told, step, number)}", " | ".join(_plain(a, listener) for a in step.answers)


def _sent(told: Told, step: Step, number: int) -> str:
    # Not what was sent alone: it may hold what is drawn anew for each listener.
    verb = step.sent.partition(" ")[0][:20]
    return f"{told.label}, {number + 1}. {verb}"


def _is_settled(answer: Answer) -> bool:
    """Whether an answer tells how the server is set up, and not how busy it is."""
    return isinstance(answer, Reply) or answer.failure is Failure.CLOSED


def _plain(answer: Answer, listener: Listener) -> str:
    """Return an answer without what may differ: port, listener's name, ids and times."""
    if not isinstance(answer, Reply):
        return str(answer.failure)
    text = re.sub(rf"\b({listener.port}|{re.escape(listener.name)})\b", "…", answer.text)
    return f"{answer.code} {_CHANGING.sub('…', text)}"


# -- Rows --------------------------------------------------------------------------------------------------------------

_ENCRYPT = "-o smtpd_tls_security_level=encrypt on this service"
_LOGIN_MAPS = (
    "reject_sender_login_mismatch (not the …_known_ or …_unauthenticated_ variant) before permit_sasl_authenticated in "
    "this service's sender restrictions, and smtpd_sender_login_maps with one login per address"
)

REQUIREMENTS = (
    Requirement(
        id="SUB-TLS-01",
        scope=Scope.SUBMISSION_STARTTLS,
        title="Mail clients are offered STARTTLS",
        expected="STARTTLS among the extensions of the EHLO reply in clear",
        remedy=f"{_ENCRYPT}, smtpd_tls_wrappermode=no, and no starttls in smtpd_discard_ehlo_keywords.",
        problem="Mail programs are not offered encryption on this port.",
        risk="Those that insist on it cannot send; those that do not would send password and mail in clear.",
        source="RFC 3207, RFC 6409 §7, RFC 8314 §3.3",
        probes=(CLEAR,),
        check=starttls_offered,
    ),
    Requirement(
        id="SUB-TLS-02",
        scope=Scope.SUBMISSION_STARTTLS,
        title="AUTH is not offered before TLS",
        expected="no line that starts with AUTH in the EHLO reply in clear",
        remedy=f"{_ENCRYPT}, smtpd_tls_auth_only = yes, and noplaintext in smtpd_sasl_security_options as second lock.",
        problem="The server asks for passwords before the connection is encrypted.",
        risk='Mail programs set to "TLS if available" send the password in clear for anyone on the path to read.',
        source="RFC 8314 §3.3, RFC 4954 §4, RFC 4616 §6",
        probes=(CLEAR,),
        check=no_auth_in_clear,
    ),
    Requirement(
        id="SUB-TLS-03",
        scope=Scope.SUBMISSION_STARTTLS,
        title="No mail before TLS",
        expected="530 5.7.0 to MAIL, RCPT, DATA and BDAT in clear",
        remedy=f"{_ENCRYPT}: with may, the refusal comes late and for another reason.",
        problem="The server takes mail commands on this port without encryption.",
        risk="Mail goes out in clear, and the rest of the defence hangs on one rule that can be edited away.",
        source="RFC 3207 §4, RFC 8314 §3.3",
        probes=(CLEAR,),
        check=mail_needs_tls,
    ),
    Requirement(
        id="SUB-TLS-04",
        scope=Scope.SUBMISSION_STARTTLS,
        title="No password is looked at before TLS",
        expected="530 5.7.0 (or 538 5.7.11) to AUTH PLAIN in clear, the same for good and invented credentials",
        remedy=f"{_ENCRYPT}, smtpd_tls_auth_only = yes. A 503 shows that TLS is optional here.",
        problem="The server looks at a password that was sent without encryption.",
        risk="The password has crossed the net in clear; a stranger can guess passwords there and read the answers of "
        "others.",
        source="RFC 4954 §4, §6",
        probes=(AUTH_CLEAR,),
        check=auth_needs_tls,
    ),
    Requirement(
        id="SUB-TLS-05",
        scope=Scope.SUBMISSION_STARTTLS,
        title="Before TLS only harmless commands work",
        expected="5xx (530) to VRFY and ETRN, 250 to NOOP, 250 or 530 to RSET, 221 to QUIT",
        remedy=f"{_ENCRYPT}, disable_vrfy_command = yes, no client restrictions that refuse before the login.",
        problem="Before encryption more, or less, works on this port than it should.",
        risk="What works can be asked without TLS and be changed on the path; what is missing makes clients give up "
        "before they encrypt.",
        source="RFC 3207 §4",
        probes=(CLEAR,),
        check=harmless_verbs,
    ),
    Requirement(
        id="SUB-TLS-06",
        scope=Scope.SUBMISSION_STARTTLS,
        title="STARTTLS takes no argument",
        expected="501 5.5.4 (5xx)",
        remedy="Postfix does this by itself: look for a proxy in front of it.",
        problem="STARTTLS is accepted with text behind it.",
        risk="Something other than Postfix answers there, and what it does with the text is not known.",
        source="RFC 3207 §4",
        probes=(ARGUMENT,),
        check=argument_refused,
    ),
    Requirement(
        id="SUB-TLS-07",
        scope=Scope.SUBMISSION,
        title="No STARTTLS inside TLS",
        expected="554 5.5.1 (or 503)",
        remedy="Postfix does this by itself: look for a proxy in front of it.",
        problem="The server offers to encrypt what is already encrypted.",
        risk="A session that starts over inside TLS loses the certainty of who is speaking; something other than "
        "Postfix answers there.",
        source="RFC 3207 §4.2",
        probes=(INSIDE,),
        check=starttls_inside,
        needs_tls=True,
    ),
    Requirement(
        id="SUB-TLS-08",
        scope=Scope.SUBMISSION_STARTTLS,
        title="The session starts anew behind STARTTLS",
        expected="503 5.5.1 to MAIL before a new EHLO",
        remedy="smtpd_helo_required = yes",
        problem="What was said before encryption still counts behind it.",
        risk="Someone on the path can say hello, or begin a message, for the user before TLS begins.",
        source="RFC 3207 §4.2",
        probes=(UPGRADE,),
        check=state_is_reset,
        needs_tls=True,
    ),
    Requirement(
        id="SUB-TLS-09",
        scope=Scope.SUBMISSION_STARTTLS,
        title="A failed handshake does not fall back to clear",
        expected="the connection is closed, and no command in clear is taken",
        remedy=f"{_ENCRYPT}",
        problem="After failed encryption the session goes on in clear.",
        risk="Someone on the path needs only to disturb the handshake to read what follows.",
        source="RFC 3207 §4.1",
        probes=(SPOILT,),
        check=no_fall_back,
        needs_tls=True,
    ),
    Requirement(
        id="SUB-AUTH-01",
        scope=Scope.SUBMISSION,
        title="Exactly AUTH PLAIN and LOGIN are offered inside TLS",
        expected="one AUTH line, with PLAIN and LOGIN and nothing else",
        remedy="-o smtpd_sasl_auth_enable=yes on this service; auth_mechanisms = plain login in Dovecot; "
        "smtpd_sasl_tls_security_options = noanonymous; smtpd_sasl_exceptions_networks empty; Dovecot running, its "
        "socket at private/auth.",
        problem="Users cannot log in on this port as mail programs do, or in ways that they should not.",
        risk="Without PLAIN and LOGIN mail programs report that the server does not support authentication; others, "
        "such as CRAM-MD5, need passwords stored in readable form.",
        source="RFC 4954 §3, RFC 4616",
        probes=(INSIDE,),
        check=offers_plain_and_login,
        needs_tls=True,
    ),
    Requirement(
        id="SUB-AUTH-02",
        scope=Scope.SUBMISSION,
        title="Other mechanisms are refused, offered or not",
        expected="5xx (535 5.7.8 or 504 5.5.4) to AUTH "
        + ", ".join(mechanism for mechanism, _ in (*_FIXED_MECHANISMS, *_OTHER_MECHANISMS)),
        remedy="auth_mechanisms = plain login in Dovecot; smtpd_sasl_tls_security_options = noanonymous; "
        "smtpd_sasl_mechanism_filter = !external, static:rest",
        problem="A way to log in works that is not meant to.",
        risk="ANONYMOUS and EXTERNAL let people in without a password; the CRAM kind needs passwords stored in "
        "readable form on the server.",
        source="RFC 4954 §4, RFC 4505, RFC 8314 §4",
        probes=(ALONE, NOT_DEALT),
        check=other_mechanisms_refused,
        needs_tls=True,
        once=True,
    ),
    Requirement(
        id="SUB-AUTH-03",
        scope=Scope.SUBMISSION,
        title="The obsolete form AUTH= is not offered",
        expected="no line that starts with AUTH= in the EHLO reply inside TLS",
        remedy="broken_sasl_auth_clients = no",
        problem="The server repeats its list of logins in a form that was given up in 1999.",
        risk="Only programs of that time read it; strict ones stumble over it, and filters in between may let it pass "
        "in clear.",
        source="RFC 4954 §3",
        probes=(INSIDE,),
        check=no_obsolete_form,
        needs_tls=True,
    ),
    Requirement(
        id="SUB-AUTH-04",
        scope=Scope.SUBMISSION,
        title="Nobody sends without a login, not even to local users",
        expected="5xx (530, 553 or 554) at MAIL or RCPT inside TLS without AUTH, from <U@DOM>, <x@OUT> and <>, to "
        "<U@DOM> and <V@OUT>",
        remedy="-o smtpd_relay_restrictions=permit_sasl_authenticated,reject on this service, and the same two at the "
        "end of its recipient restrictions.",
        problem="Somebody who has not logged in can send mail through the port for users.",
        risk="To the outside it is an open relay; to users here it lets strangers pass the checks of the port for "
        "servers.",
        source="RFC 6409 §4.3, RFC 4954 §6",
        probes=(ANONYMOUS,),
        check=mail_needs_login,
        needs_tls=True,
        needs=Need.DOMAIN | Need.OUTSIDE,
    ),
    Requirement(
        id="SUB-AUTH-05",
        scope=Scope.SUBMISSION,
        title="A user can log in, each way that clients use",
        expected="235 to AUTH PLAIN with and without initial response, and to AUTH LOGIN",
        remedy="smtpd_sasl_type = dovecot, smtpd_sasl_path = private/auth (relative to the queue directory), Dovecot "
        "running, its socket there for user postfix.",
        problem="A user with the right password cannot log in.",
        risk="Nobody can send mail from a mail program.",
        source="RFC 4954 §4, RFC 4616",
        probes=(LOGINS,),
        check=logs_in,
        needs_tls=True,
        needs=Need.ACCOUNT,
        once=True,
    ),
    Requirement(
        id="SUB-AUTH-06",
        scope=Scope.SUBMISSION,
        title="A wrong password is refused for good",
        expected="535 5.7.8",
        remedy="Look at Dovecot's passdb: no nopassword, no static driver. A 454 is a back end that does not answer, "
        "or its penalty after many failures.",
        problem="A wrong password is accepted, or answered as if it might be right later.",
        risk="If accepted, anyone sends as any user; if put off (4xx), the program repeats the wrong password and "
        "does not ask the user.",
        source="RFC 4954 §6, RFC 5248",
        probes=(WRONG_PASSWORD,),
        check=wrong_password_refused,
        needs_tls=True,
        needs=Need.ACCOUNT,
        once=True,
    ),
    Requirement(
        id="SUB-AUTH-07",
        scope=Scope.SUBMISSION,
        title="Replies do not tell which users exist",
        expected="the same reply, byte for byte, to a wrong password, an unknown user and a foreign domain",
        remedy="Leave Dovecot's texts as they are, and let all users come from one kind of passdb.",
        problem="The answer to a failed login differs for users that exist.",
        risk="A stranger finds out which addresses are accounts, and guesses passwords only there.",
        source="RFC 5321 §7.3, Gatepost's policy",
        probes=(WRONG_PASSWORD, UNKNOWN_USER, FOREIGN_DOMAIN),
        check=users_cannot_be_told_apart,
        needs_tls=True,
        needs=Need.ACCOUNT | Need.DOMAIN,
        once=True,
    ),
    Requirement(
        id="SUB-AUTH-08",
        scope=Scope.SUBMISSION,
        title="The time that a failed login takes does not tell which users exist",
        expected="nine pairs in turns: ranks overlap (Mann–Whitney p > 0.01), or medians less than 30 ms apart; where "
        "they do not, nine more pairs, and p > 0.001 over all",
        remedy="auth_failure_delay = 2 secs in Dovecot; a password hash whose cost is the same for all users.",
        source="RFC 5321 §7.3, Gatepost's policy",
        probes=(TIMING,),
        check=users_take_equally_long,
        needs_tls=True,
        needs=Need.ACCOUNT | Need.SLOW,
        once=True,
        problem="A wrong password is refused sooner or later than a user that does not exist.",
        risk="Attackers find out which addresses have a mailbox, and try passwords only there.",
    ),
    Requirement(
        id="SUB-AUTH-08b",
        scope=Scope.SUBMISSION,
        title="A failed login takes its time",
        expected="at least 1.0 s each",
        remedy="auth_failure_delay = 2 secs in Dovecot",
        source="Gatepost's policy",
        probes=(TIMING,),
        check=failures_are_slow,
        needs_tls=True,
        needs=Need.ACCOUNT | Need.SLOW,
        once=True,
        problem="The server refuses wrong passwords at once.",
        risk="Attackers try many passwords in a short time.",
    ),
    Requirement(
        id="SUB-AUTH-09",
        scope=Scope.SUBMISSION,
        title="No second AUTH after a login",
        expected="503 5.5.1",
        remedy="Postfix does this by itself: look for a proxy in front of it.",
        problem="A second login in one session is accepted.",
        risk="Rights of two users mix in one session; something other than Postfix answers there.",
        source="RFC 4954 §4",
        probes=(AFTER_LOGIN,),
        check=auth_again,
        needs_tls=True,
        needs=Need.ACCOUNT,
        once=True,
    ),
    Requirement(
        id="SUB-AUTH-10",
        scope=Scope.SUBMISSION,
        title="No AUTH inside a transaction",
        expected="503 5.5.1",
        remedy="Postfix does this by itself: look for a proxy in front of it.",
        problem="A login in the middle of a message is accepted.",
        risk="Who sent the message is then unclear, and the checks made at its start were made for somebody else.",
        source="RFC 4954 §4",
        probes=(AFTER_LOGIN,),
        check=auth_in_transaction,
        needs_tls=True,
        needs=Need.ACCOUNT,
        once=True,
    ),
    Requirement(
        id="SUB-AUTH-11",
        scope=Scope.SUBMISSION,
        title="No AUTH before EHLO",
        expected="503 5.5.1 (530 in clear)",
        remedy="smtpd_helo_required = yes",
        problem="A login is possible before the client has said hello.",
        risk="Simple password guessers save a step, and checks of the greeting are passed by.",
        source="RFC 4954 §4",
        probes=(BEFORE_EHLO,),
        check=auth_before_ehlo,
        once=True,
    ),
    Requirement(
        id="SUB-AUTH-12",
        scope=Scope.SUBMISSION,
        title="A client can give up a login",
        expected="334 to AUTH PLAIN without a response, then 501 to *",
        remedy="Postfix does this by itself: look for a proxy in front of it.",
        problem="A mail program cannot break off a login that it has begun.",
        risk="Programs that try one mechanism after another hang or fail.",
        source="RFC 4954 §4",
        probes=(INSIDE,),
        check=auth_can_be_cancelled,
        needs_tls=True,
    ),
    Requirement(
        id="SUB-AUTH-13",
        scope=Scope.SUBMISSION,
        title="Nonsense and very long responses do not log in",
        expected="5xx (535 5.7.8, 501 5.5.2 or 500 5.5.6) to a response that is not base64 and to one of 13,000 octets",
        remedy="Postfix does this by itself (smtpd_sasl_response_limit = 12288): look for a proxy in front of it.",
        source="RFC 4954 §4",
        probes=(RESPONSES, NOT_DEALT),
        check=odd_responses_refused,
        needs_tls=True,
        once=True,
        problem="The server does not refuse a login that makes no sense.",
        risk="Somebody who sends nonsense may crash it, or even be let in.",
    ),
    Requirement(
        id="SUB-AUTH-14",
        scope=Scope.SUBMISSION,
        title="No user logs in in another one's name",
        expected="535 (5xx) to AUTH PLAIN with V as authorization identity and U's user name and password",
        remedy="No master users in Dovecot (auth_master_user_separator empty, no passdb with master = yes).",
        source="RFC 4616 §2",
        probes=(ODD_LOGINS, LOGINS),
        check=nobody_acts_for_another,
        needs_tls=True,
        needs=Need.ACCOUNT,
        once=True,
        problem="A user can log in as another one with his own password.",
        risk="One stolen password opens every mailbox, and mail goes out in anybody's name.",
    ),
    Requirement(
        id="SUB-AUTH-15",
        scope=Scope.SUBMISSION,
        title="No login with an empty, a cut or no password",
        expected="535 or 501 (5xx) to U with an empty password, the right one with NUL and more, and none at all",
        remedy="Look at Dovecot's passdb: no nopassword, and no LDAP bind that takes an empty password for anonymous.",
        source="RFC 4616 §2, RFC 4513 §5.1.2",
        probes=(ODD_LOGINS, LOGINS_NOT_DEALT),
        check=odd_passwords_refused,
        needs_tls=True,
        needs=Need.ACCOUNT,
        once=True,
        problem="A login works without the whole password.",
        risk="Anybody who knows an address sends mail as its owner.",
    ),
    Requirement(
        id="SUB-AUTH-16",
        scope=Scope.SUBMISSION,
        title="Whether a user name may be written in upper case",
        expected="recorded only: 235 suits users; login maps must then compare in lower case",
        remedy="auth_username_format = %Lu in Dovecot",
        problem="Whether users may write their login name in capitals is recorded here.",
        risk="Where the login works but the sender map knows only the small letters, the user can log in and not send.",
        source="Gatepost's policy",
        probes=(WRONG_CASE,),
        check=wrong_case,
        severity=Severity.INFO,
        needs_tls=True,
        needs=Need.ACCOUNT,
        once=True,
    ),
    Requirement(
        id="SUB-SND-01",
        scope=Scope.SUBMISSION,
        title="A user may send as himself, to anywhere",
        expected="250 to MAIL <U@DOM> and RCPT <V@OUT> after a login as U",
        remedy="smtpd_sender_login_maps must map U@DOM to the login U@DOM; rebuild it with postmap.",
        problem="A user cannot send with his own address.",
        risk="He cannot send mail at all.",
        source="RFC 6409 §6.1",
        probes=(AS_FIRST,),
        check=own_address,
        needs_tls=True,
        needs=Need.ACCOUNT | Need.OUTSIDE | Need.DOMAIN,
        once=True,
    ),
    Requirement(
        id="SUB-SND-02",
        scope=Scope.SUBMISSION,
        title="No user sends as another one",
        expected="5xx (553 5.7.1) to MAIL <other@DOM> and RCPT <V@OUT>, both ways between two users",
        remedy=f"{_LOGIN_MAPS}.",
        problem="One user can send in the name of another.",
        risk="Fraud inside the house, and one stolen password is enough to speak for everybody.",
        source="RFC 6409 §6.1, §8.1",
        probes=(AS_FIRST, AS_SECOND),
        check=others_address,
        needs_tls=True,
        needs=Need.SECOND_ACCOUNT | Need.OUTSIDE | Need.DOMAIN,
        once=True,
    ),
    Requirement(
        id="SUB-SND-03",
        scope=Scope.SUBMISSION,
        title="No user sends as somebody elsewhere",
        expected="5xx (553 5.7.1) to MAIL <x@OUT> and RCPT <V@OUT> after a login as U",
        remedy=f"{_LOGIN_MAPS}.",
        problem="A user can send in the name of somebody at another domain.",
        risk="A stolen password sends forged mail; recipients refuse it (SPF, DMARC) and block the server.",
        source="RFC 6409 §6.1",
        probes=(AS_FIRST,),
        check=foreign_address,
        needs_tls=True,
        needs=Need.ACCOUNT | Need.OUTSIDE | Need.DOMAIN,
        once=True,
    ),
    Requirement(
        id="SUB-SND-04",
        scope=Scope.SUBMISSION,
        title="No user sends as nobody of the domain",
        expected="5xx (553 or 550) to MAIL <NX@DOM> and RCPT <V@OUT> after a login as U",
        remedy=f"{_LOGIN_MAPS}; no entry for a whole domain.",
        problem="A user can send from addresses of the domain that do not exist.",
        risk="Bounces and answers go nowhere, and a stolen password sends under endless names that no block stops.",
        source="RFC 6409 §6.1",
        probes=(AS_FIRST,),
        check=unknown_address,
        needs_tls=True,
        needs=Need.ACCOUNT | Need.OUTSIDE | Need.DOMAIN,
        once=True,
    ),
    Requirement(
        id="SUB-SND-05",
        scope=Scope.SUBMISSION,
        title="A user may send as an alias of his own",
        expected="250 to MAIL <alias@DOM> and RCPT <V@OUT> after a login as U",
        remedy="smtpd_sender_login_maps must map the alias to the login; rebuild it with postmap.",
        problem="A user cannot send with an alias that is his.",
        risk='Answers from role addresses such as sales@ fail with "not owned by user".',
        source="RFC 6409 §6.1",
        probes=(AS_FIRST,),
        check=own_alias,
        needs_tls=True,
        needs=Need.ACCOUNT | Need.ALIAS | Need.OUTSIDE | Need.DOMAIN,
        once=True,
    ),
    Requirement(
        id="SUB-SND-06",
        scope=Scope.SUBMISSION,
        title="Whether a user may send with the empty sender",
        expected="recorded only: 250, since receipts (RFC 8098 §3) need it",
        remedy="reject_sender_login_mismatch never applies to <>: limit it by rate.",
        problem="Whether a user may send with the empty sender is recorded here.",
        risk="Read receipts and delivery reports need it; limits on the number of messages must cover it.",
        source="RFC 6409 §6.1",
        probes=(AS_FIRST,),
        check=null_sender,
        severity=Severity.INFO,
        needs_tls=True,
        needs=Need.ACCOUNT | Need.OUTSIDE | Need.DOMAIN,
        once=True,
    ),
    Requirement(
        id="SUB-SND-07",
        scope=Scope.SUBMISSION,
        title="Whether the From: line may name somebody else",
        expected="recorded only: it may, unless a milter compares the header with the login",
        remedy="Postfix itself does not compare them: a milter can.",
        problem="Whether the visible From: must fit the login is recorded here.",
        risk="Postfix compares the envelope only: without a milter a user can show any name in From:.",
        source="RFC 6409 §8.1",
        probes=(AS_FIRST,),
        check=header_of_another,
        severity=Severity.INFO,
        needs_tls=True,
        needs=Need.ACCOUNT | Need.OUTSIDE | Need.DOMAIN,
        once=True,
    ),
    Requirement(
        id="SUB-RCP-01",
        scope=Scope.SUBMISSION,
        title="A user's mail to nobody of the domain is refused at once",
        expected="550 5.1.1 (5xx) to RCPT <NX@DOM> after a login as U",
        remedy="smtpd_reject_unlisted_recipient = yes (the default), or reject_unlisted_recipient before "
        "permit_sasl_authenticated; recipient maps that list all mailboxes, and no catch-all.",
        source="RFC 5321 §3.6.2, Gatepost's policy",
        probes=(AS_FIRST,),
        check=no_bounces,
        needs_tls=True,
        needs=Need.ACCOUNT | Need.OUTSIDE | Need.DOMAIN,
        once=True,
        problem="The server takes mail to addresses of its own domain that do not exist.",
        risk="Who mistypes a colleague's address learns it from a bounce, late or never.",
    ),
    Requirement(
        id="SUB-HLO-01",
        scope=Scope.SUBMISSION,
        title="Mail clients may say any name in EHLO",
        expected="250 to " + ", ".join(f"EHLO {name}" for name in MUA_NAMES) + ", and to MAIL and RCPT behind them",
        remedy="-o smtpd_helo_restrictions= -o smtpd_client_restrictions= on this service: what keeps spam out of port "
        "25 keeps mail programs out of this one.",
        source="RFC 5321 §4.1.4",
        probes=(AS_FIRST,),
        check=any_name_will_do,
        needs_tls=True,
        needs=Need.ACCOUNT | Need.OUTSIDE | Need.DOMAIN,
        once=True,
        problem="The server refuses mail programs because of the name by which they introduce themselves.",
        risk="Users at home and on the road cannot send mail, although their password is right.",
    ),
    Requirement(
        id="SUB-CFG-01",
        scope=Scope.SERVER,
        over=Scope.SUBMISSION_STARTTLS,
        title="Submission listeners with STARTTLS answer alike",
        expected="the same replies to the same dialogues, but for port numbers, ids and times",
        remedy="The same -o settings in master.cf on all of them: postconf -P shows them side by side.",
        source="Gatepost's policy",
        probes=_COMPARED,
        check=all_answer_alike,
        problem="Two ports that should be the same service behave differently.",
        risk="What is forbidden on one is allowed on the other, or works only for some users.",
    ),
)
