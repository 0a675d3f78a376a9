"""Chapter 7 of the policy: nothing is smuggled in a message, nobody speaks out of turn (INJ); and postscreen (MX-PSC).

A command hidden in a message is one that no server knows: it does no harm, and a reply to it proves that it was read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from gatepost.verify.checks.answers import refusal, together
from gatepost.verify.checks.relay import colleague, recipient
from gatepost.verify.model import Finding, Line, Severity, Verdict
from gatepost.verify.registry import Need, Requirement, Scope, Seen, failed, inconclusive, passed
from gatepost.verify.wire.injection import AHEAD, Early, early, looping
from gatepost.verify.wire.probe import (
    Case,
    Dialogue,
    Failed,
    Probe,
    Send,
    Site,
    Told,
    case,
    dialogue,
    is_limit,
    is_put_off,
    tell,
)
from gatepost.verify.wire.reach import REACH, Reached
from gatepost.verify.wire.session import Answer, Ended, Failure, Reply

_HIDDEN = b"GTPS"  # known to no server
_ENDS = (  # what some servers have taken for the end of a message, and the real end only is CR LF . CR LF
    ("INJ-02", b"\n.\n", "LF . LF"),
    ("INJ-03", b"\n.\r\n", "LF . CR LF"),
    ("INJ-04", b"\r\n.\n", "CR LF . LF"),
    ("INJ-05", b"\r.\r", "CR . CR"),
    ("INJ-06", b"\r\n.\r", "CR LF . CR"),
    ("INJ-07", b"\r\n\0.\r\n", "CR LF NUL . CR LF"),
    ("INJ-08", b"\r.\r\n", "CR . CR LF"),
)


def _sender(site: Site) -> str:
    """Return the envelope sender: on a relay nobody, so that nothing can bounce to a third party."""
    return site.target.accounts[0].address if site.listener.is_submission else ""


def _as_its_clients(site: Site, cases: Iterable[Case], account: int | None = None) -> Dialogue:
    """Tell cases as the listener's clients do: in clear between servers, inside TLS on submission."""
    return tell(site, tuple(cases), tls=site.listener.is_submission, account=account)


def _begin(site: Site) -> tuple[Send, ...]:
    return (
        Send(f"MAIL FROM:<{_sender(site)}>", vital=True),
        Send(f"RCPT TO:<{recipient(site)}>", vital=True),
        Send("DATA", vital=True),
    )


_BEGUN = 3


def _message(site: Site, label: str, *ends: bytes) -> Case:
    body = looping(site, label, recipient(site)) + b"".join(end + _HIDDEN for end in ends)
    return case(label, *_begin(site), Send(body + b"\r\n.\r\n", timeout=20.0), "RSET", ends=True)


def _at_once(site: Site) -> Iterator[Case]:
    yield _pipelined(site)
    yield _message(site, "plain")
    yield _message(site, "all", *(end for _, end, _ in _ENDS))


def _one_by_one(site: Site) -> Iterator[Case]:
    # Those with a bare LF last: a server may hang up on them.
    for identifier, end, _ in sorted(_ENDS, key=lambda row: b"\n" in row[1].replace(b"\r\n", b"")):
        yield _message(site, identifier, end)


def _pipelined(site: Site) -> Case:
    commands = f"MAIL FROM:<{_sender(site)}>\r\nRCPT TO:<{recipient(site)}>\r\nRCPT TO:<{colleague(site)}>\r\n"
    return case("pipelined", Send(commands.encode(), replies=3))


def _smuggle(site: Site) -> Dialogue:
    """Hide all of them in one message; one by one, unless that one is answered just as a plain one is.

    A server that refuses a message at the first of them, and reads on to its real end, would show nothing of the rest.
    """
    observed = _as_its_clients(site, _at_once(site), account=0)
    plain, hidden = (observed[label] for label in ("plain", "all"))
    alike = len({_replies(plain), _replies(hidden)}) == 1
    if alike or len(plain.steps) <= _BEGUN:
        return observed
    apart = _as_its_clients(site, _one_by_one(site), account=0)
    return replace(observed, told=(*observed.told, *apart.told))


def _replies(told: Told) -> tuple[tuple[int, str] | None, ...]:
    answers = (step.answer for step in told.steps[_BEGUN:])
    return tuple((a.code, a.enhanced) if isinstance(a, Reply) else None for a in answers)


SMUGGLING = Probe(
    "smuggling",
    _smuggle,
    account=0,
    once=True,
    about="In clear on a relay, inside TLS and after a login as the first account elsewhere. Each message has too many "
    f"Received lines to be taken. {_HIDDEN.decode()} is no command: a server that answers it has read it as one. "
    "Unless the last message is answered just as the plain one is, each end is tried in a message of its own.",
    cases=_at_once,
)


def _smuggled(identifier: str) -> Callable[[Seen], Finding]:
    """Return the check that a message ends where it ends: one reply to it, and the next one is RSET's."""

    def check(seen: Seen) -> Finding:
        observed = seen[SMUGGLING]
        told = next((told for told in observed.told if told.label == identifier), observed["all"])
        if len(told.steps) <= _BEGUN:
            return inconclusive(f"no message could be begun: {told}", transcript=told.transcript)
        final = told.steps[_BEGUN].answer
        after = told.steps[_BEGUN + 1].answer if len(told.steps) > _BEGUN + 1 else None
        found = f"to the message: {final}; then, to RSET: {after}"
        if isinstance(final, Ended) or is_limit(final):
            return inconclusive(found, transcript=told.transcript)
        if isinstance(after, Reply) and after.code != 250 and not is_limit(after):
            return failed(
                f"to the message: {final}; then to {_HIDDEN.decode()}, hidden inside it: {after}",
                transcript=told.transcript,
            )
        gone = after is None or (isinstance(after, Ended) and after.failure in (Failure.CLOSED, Failure.RESET))
        if gone and final.code >= 500:
            return passed(f"to the message: {final}; then it hung up", transcript=told.transcript)
        if not isinstance(after, Reply) or is_limit(after):
            return inconclusive(found, transcript=told.transcript)
        return passed(found, transcript=told.transcript)

    return check


def legal_pipelining(seen: Seen) -> Finding:
    """INJ-13."""
    talk = seen[SMUGGLING]
    reply = talk.ehlo_tls or talk.ehlo_clear
    if reply is None or reply.keyword("PIPELINING") is None:
        return Finding(Verdict.NOT_APPLICABLE, "PIPELINING is not offered (GEN-EHLO-02)")
    told = talk["pipelined"]
    if told.codes == (250, 250, 250):
        return passed(str(told), transcript=told.transcript)
    if told.was_limited or not any(code >= 500 for code in told.codes):
        return inconclusive(str(told), transcript=told.transcript)
    return failed(str(told), transcript=told.transcript)


# -- Octets that no command may hold -----------------------------------------------------------------------------------

_OCTETS = (("CR", b"\r"), ("NUL", b"\0"), ("LF", b"\n"))  # LF last: a server may hang up on it


def _octets(site: Site) -> Iterator[Case]:
    # Only a server that drops the octet finds an address, or BODY=8BITMIME, here.
    domain = site.target.hostname.encode()
    for name, octet in _OCTETS:
        yield case(f"{name} in an address", b"MAIL FROM:<gatepost" + octet + b"GTPS@" + domain + b">\r\n", ends=True)
        yield case(f"{name} in a parameter", b"MAIL FROM:<> BODY=8BIT" + octet + b"MIME\r\n", ends=True)


OCTETS: Probe[Dialogue] = Probe(
    "bad-octets",
    lambda site: _as_its_clients(site, _octets(site)),
    once=True,
    about="In clear on a relay, inside TLS and without a login elsewhere.",
    cases=_octets,
)


def bad_octets(seen: Seen) -> Finding:
    """INJ-14: the first reply to each; a bare LF may bring two."""
    return together(
        refusal(replace(told, steps=told.steps[:1]), close_is_refusal=_closed(told.last)) for told in seen[OCTETS].told
    )


def _closed(answer: Answer) -> bool:
    return isinstance(answer, Ended) and answer.failure in (Failure.CLOSED, Failure.RESET)


# -- Out of turn -------------------------------------------------------------------------------------------------------


EARLY: Probe[Early] = Probe(
    "before-the-greeting",
    lambda site: early(site, recipient(site), message=True),
    once=True,
    about="EHLO, MAIL, RCPT, DATA, a message with too many Received lines, and QUIT, in one write, before the "
    "greeting.",
)


def _unasked(site: Site) -> Iterator[Case]:
    message = b"DATA\r\n" + looping(site, "content-unasked", recipient(site)) + b"\r\n.\r\n"
    yield case("content", *_begin(site)[:-1], Send(message), ends=True)


def _after_helo(site: Site) -> Iterator[Case]:
    commands = f"MAIL FROM:<>\r\nRCPT TO:<{recipient(site)}>\r\nDATA\r\n"
    yield case("pipelined", Send(f"HELO {site.ehlo}", vital=True), Send(commands.encode(), replies=3), ends=True)


UNASKED = dialogue("content-unasked", _unasked, tls=False, once=True)
AFTER_HELO = dialogue("pipelined-after-helo", _after_helo, greet_only=True, once=True)


def before_greeting(seen: Seen) -> Finding:
    """INJ-10."""
    observed = seen[EARLY]
    return _out_of_turn(observed.answers, observed.transcript)


def content_unasked(seen: Seen) -> Finding:
    """INJ-11."""
    told = seen[UNASKED]["content"]
    return _out_of_turn([step.answer for step in told.steps], told.transcript)


def pipelined_after_helo(seen: Seen) -> Finding:
    """INJ-12."""
    told = seen[AFTER_HELO]["pipelined"]
    return _out_of_turn([answer for step in told.steps for answer in step.answers], told.transcript)


def _out_of_turn(answers: Iterable[Answer], transcript: tuple[Line, ...]) -> Finding:
    """Pass when no 354 came, and what stopped it was a 5xx reply or the end of the connection.

    A refusal of sender or recipient (X.1.X, X.7.X) says nothing about the order of things.
    """
    answers = tuple(answers)
    found = " | ".join(map(str, answers))
    replies = [answer for answer in answers if isinstance(answer, Reply)]
    if any(reply.code == 354 for reply in replies):
        return failed(f"a message was taken: {found}", transcript=transcript)
    if any(400 <= reply.code < 500 for reply in replies):
        return inconclusive(f"put off for another reason: {found}", transcript=transcript)
    if any(reply.code >= 500 and reply.enhanced[:4] in ("5.1.", "5.7.") for reply in replies):
        return inconclusive(f"refused for another reason: {found}", transcript=transcript)
    if any(reply.code >= 500 for reply in replies) or (answers and _closed(answers[-1])):
        return passed(found, transcript=transcript)
    return inconclusive(f"neither taken nor refused: {found}", transcript=transcript)


def ahead_of_tls(seen: Seen) -> Finding:
    """INJ-01: what came in clear behind STARTTLS is forgotten, or the connection ends."""
    observed = seen[AHEAD]
    found = f"STARTTLS → {observed.starttls}; inside TLS, to QUIT alone: {' | '.join(map(str, observed.inside)) or '—'}"
    first = observed.inside[0] if observed.inside else None
    if isinstance(first, Reply) and first.code != 221 and not is_limit(first):
        return failed(f"answered inside TLS what came in clear: {found}", transcript=observed.transcript)
    refused = isinstance(observed.starttls, Reply) and observed.starttls.code >= 500
    gone = _closed(observed.starttls) or (isinstance(first, Ended) and first.failure in _GONE)
    if refused or gone or (isinstance(first, Reply) and first.code == 221):
        return passed(found, transcript=observed.transcript)
    return inconclusive(found, transcript=observed.transcript)


_GONE = (Failure.CLOSED, Failure.RESET, Failure.TLS_REJECTED)


# -- postscreen --------------------------------------------------------------------------------------------------------

_UNSEEN = "no postscreen was seen: no greeting came in two parts (it does so only for an address it has not met)"


def _screened(seen: Seen) -> list[tuple[str, Reached]]:
    """Return the relay listeners whose greeting came in two parts, by port and address."""
    return [
        (f"{listener.port} at {address}", reached)
        for listener, address, reached in seen.everywhere(REACH)
        if not isinstance(reached, Failed) and reached.postscreen and not listener.is_submission
    ]


def _lines(screened: Iterable[tuple[str, Reached]]) -> tuple[Line, ...]:
    return tuple(line for _, reached in screened for line in reached.transcript)


def early_talker(seen: Seen) -> Finding:
    """MX-PSC-01."""
    screened = _screened(seen)
    if not screened:
        return Finding(Verdict.NOT_APPLICABLE, _UNSEEN)
    spoken = [reached.early for _, reached in screened if reached.early is not None]
    if not spoken:
        return inconclusive("nobody spoke too early", transcript=_lines(screened))
    return together(_kept_out(found) for found in spoken)


def _kept_out(spoken: Early) -> Finding:
    finding = _out_of_turn(spoken.answers, spoken.transcript)
    if spoken.handed_over and finding.verdict is not Verdict.FAIL:
        return failed(f"handed over to smtpd all the same: {finding.found}", transcript=spoken.transcript)
    return finding


def greeting_in_parts(seen: Seen) -> Finding:
    """MX-PSC-02: recorded only."""
    screened = _screened(seen)
    if not screened:
        return Finding(Verdict.NOT_APPLICABLE, _UNSEEN)
    found = "; ".join(f"{where}: `220-` first, the greeting's end {r.teased:.1f} s later" for where, r in screened)
    return Finding(Verdict.INFO, found, _lines(screened))


def deep_tests(seen: Seen) -> Finding:
    """MX-PSC-03: a first visit may be put off, a second one may not."""
    screened = _screened(seen)
    if not screened:
        return Finding(Verdict.NOT_APPLICABLE, _UNSEEN)
    found = "; ".join(f"{where}: RCPT → {' | then '.join(map(str, r.first_visit))}" for where, r in screened)
    last = [reached.first_visit[-1] for _, reached in screened if reached.first_visit]
    if any(is_put_off(answer) for answer in last):
        return failed(f"put off twice: {found}", transcript=_lines(screened))
    if not last or not all(isinstance(answer, Reply) for answer in last):
        return inconclusive(found, transcript=_lines(screened))
    put_off = any(is_put_off(answer) for _, reached in screened for answer in reached.first_visit)
    return passed(f"{'deep tests are on' if put_off else 'no deep tests'}: {found}", transcript=_lines(screened))


def submission_is_not_screened(seen: Seen) -> Finding:
    """MX-PSC-04."""
    bad = [
        (f"{listener.port} at {address}", reached)
        for listener, address, reached in seen.everywhere(REACH)
        if not isinstance(reached, Failed) and reached.postscreen and listener.is_submission
    ]
    if bad:
        where = ", ".join(where for where, _ in bad)
        return failed(f"the greeting came in two parts on {where}", transcript=_lines(bad))
    if not _screened(seen):
        return Finding(Verdict.NOT_APPLICABLE, _UNSEEN)
    return passed("the greeting came in two parts between servers only")


def all_behind_postscreen(seen: Seen) -> Finding:
    """MX-PSC-05: recorded only."""
    screened = _screened(seen)
    if not screened:
        return Finding(Verdict.NOT_APPLICABLE, _UNSEEN)
    where = ", ".join(where for where, _ in screened)
    return Finding(Verdict.INFO, f"every requirement of {where} was judged with postscreen in front")


# -- Rows --------------------------------------------------------------------------------------------------------------

_MESSAGE = Need.DOMAIN | Need.LOGIN
_BARE = (
    "smtpd_forbid_bare_newline = normalize (or reject), with smtpd_forbid_bare_newline_exclusions = $mynetworks and a "
    "narrow mynetworks; set it: before Postfix 3.9 the default is no. A proxy or filter in front must not change line "
    "ends either."
)
_EARLY = "smtpd_forbid_unauth_pipelining = yes (before Postfix 3.9 the default is no)"

REQUIREMENTS = (
    Requirement(
        id="INJ-01",
        scope=Scope.STARTTLS,
        title="What is sent in clear behind STARTTLS is not obeyed inside TLS",
        expected="inside TLS no reply but the 221 to QUIT; or 554 5.5.0 to STARTTLS; or the connection ends",
        remedy=f"{_EARLY}; if there is a TLS proxy in front, update it: it must throw away what it has read ahead.",
        problem="Commands that somebody slipped in before encryption began are obeyed inside it.",
        risk="Whoever sits between client and server adds commands of his own to the client's session, and can have "
        "its mail, or its password, sent to himself.",
        source="RFC 3207 §6, CVE-2011-0411, CVE-2021-38371",
        probes=(AHEAD,),
        check=ahead_of_tls,
        needs_tls=True,
        once=True,
    ),
    *(
        Requirement(
            id=identifier,
            scope=Scope.ALL,
            title=f"{shown} does not end a message",
            expected=f"one reply to a message with {shown} inside, and none to what stands behind it there",
            remedy=_BARE,
            problem="The server takes something for the end of a message that other servers do not.",
            risk="A message from a stranger, passed on by an honest server, turns into two here: the second one, "
            "forged, bears the honest server's good name (SMTP smuggling).",
            source="RFC 5321 §2.3.8, §4.1.1.4, CVE-2023-51764",
            probes=(SMUGGLING,),
            check=_smuggled(identifier),
            needs=_MESSAGE,
            once=True,
        )
        for identifier, _, shown in _ENDS
    ),
    Requirement(
        id="INJ-10",
        scope=Scope.RELAY,
        title="Who speaks before the greeting is not listened to",
        expected="554 5.5.0 and the end of the connection (521 or 550 of postscreen), and no 354, to a session sent at "
        "once",
        remedy=f"{_EARLY}, or postscreen with postscreen_greet_action = enforce.",
        problem="The server listens to a client that did not wait for its greeting.",
        risk="Almost only spam programs and attacks across protocols talk like that; all of them get in.",
        source="RFC 5321 §4.3.1, RFC 2920 §3.1",
        probes=(EARLY,),
        check=before_greeting,
        needs=Need.DOMAIN,
        once=True,
    ),
    Requirement(
        id="INJ-11",
        scope=Scope.RELAY,
        title="Content that does not wait for 354 is refused",
        expected="554 5.5.0, and no 354, to DATA and a message in one write",
        remedy=f"{_EARLY}; reject_unauth_pipelining in smtpd_data_restrictions does the same.",
        problem="The server takes a message before it has said that it is ready for one.",
        risk="Spam programs that pour out their mail without listening get in, and so does a web browser or another "
        "program tricked into talking to this port.",
        source="RFC 2920 §3.1",
        probes=(UNASKED,),
        check=content_unasked,
        needs=Need.DOMAIN,
        once=True,
    ),
    Requirement(
        id="INJ-12",
        scope=Scope.RELAY,
        title="After HELO no commands are taken in a bunch",
        expected="a 5xx reply (554, 503) by DATA, and no 354, to MAIL, RCPT and DATA in one write after HELO",
        remedy=f"{_EARLY}; reject_unauth_pipelining in smtpd_data_restrictions does the same.",
        problem="The server takes commands in a bunch from a client that was never told it may send them so.",
        risk="Spam programs that pour out their mail without listening get in.",
        source="RFC 2920 §3.1",
        probes=(AFTER_HELO,),
        check=pipelined_after_helo,
        needs=Need.DOMAIN,
        once=True,
    ),
    Requirement(
        id="INJ-13",
        scope=Scope.ALL,
        title="Pipelining works where it is allowed",
        expected="250 three times to MAIL, RCPT and RCPT in one write after EHLO",
        remedy="reject_unauth_pipelining belongs in smtpd_data_restrictions, where it knows what is allowed; look for "
        "a firewall that meddles with SMTP.",
        problem="Commands sent together, as the server itself offers, are not all answered as they should be.",
        risk="Mail from ordinary servers and programs, nearly all of which do so, is delayed or bounces.",
        source="RFC 2920 §3.1",
        probes=(SMUGGLING,),
        check=legal_pipelining,
        needs=_MESSAGE,
        once=True,
    ),
    Requirement(
        id="INJ-14",
        scope=Scope.ALL,
        title="CR, LF and NUL have no place in MAIL's address or parameters",
        expected="a 5xx reply (501, 555), or the end of the connection",
        remedy="no setting of Postfix's: look for a proxy in front that drops octets, and update it.",
        problem="Control characters get through inside a sender's address or its options.",
        risk="They end up in headers, logs and the next server's commands, where they begin a line of their own: "
        "forged headers and commands.",
        source="RFC 5321 §2.3.8, §4.1.2",
        probes=(OCTETS,),
        check=bad_octets,
        once=True,
    ),
)

POSTSCREEN = (
    Requirement(
        id="MX-PSC-01",
        scope=Scope.SERVER,
        over=Scope.RELAY,
        title="postscreen lets nobody in who speaks before the greeting",
        expected="521 and the end of the connection, or 550 5.5.1 to RCPT",
        remedy="postscreen_greet_action = enforce (or drop); ignore only logs it.",
        problem="postscreen sees that a client speaks too early, and lets it in all the same.",
        risk="The test that turns most spam programs away for free is on, and does nothing.",
        source="RFC 5321 §4.3.1, POSTSCREEN_README",
        probes=(REACH,),
        check=early_talker,
    ),
    Requirement(
        id="MX-PSC-02",
        scope=Scope.SERVER,
        over=Scope.RELAY,
        title="How long postscreen keeps a newcomer waiting",
        expected="recorded only",
        remedy="postscreen_greet_wait; postscreen_cache_map must be writable, or everybody stays a newcomer.",
        problem="How long a server that is new here has to wait.",
        risk="Each first delivery is late by that much; a long wait makes impatient senders give up.",
        source="POSTSCREEN_README",
        probes=(REACH,),
        check=greeting_in_parts,
        severity=Severity.INFO,
    ),
    Requirement(
        id="MX-PSC-03",
        scope=Scope.SERVER,
        over=Scope.RELAY,
        title="postscreen's tests let a client in at its second visit",
        expected="no 450 4.3.2 to RCPT, or one at the first visit only",
        remedy="postscreen_bare_newline_enable, postscreen_non_smtp_command_enable and postscreen_pipelining_enable = "
        "no: smtpd does the same without putting mail off. postscreen_cache_map must be writable.",
        problem="Servers that passed postscreen's tests are put off again and again.",
        risk="Mail from servers that are new here is hours late, and from those that never come from the same address "
        "twice it does not arrive.",
        source="POSTSCREEN_README",
        probes=(REACH,),
        check=deep_tests,
    ),
    Requirement(
        id="MX-PSC-04",
        scope=Scope.SERVER,
        title="postscreen stands before no submission listener",
        expected="greetings in one part on submission",
        remedy="master.cf: postscreen belongs on smtp inet only (with smtpd pass, tlsproxy unix and dnsblog unix); "
        "mail clients do not wait.",
        problem="Mail programs are kept waiting, and tested, as if they were strange servers.",
        risk="Users see time-outs when they send, and some programs give up.",
        source="POSTSCREEN_README",
        probes=(REACH,),
        check=submission_is_not_screened,
    ),
    Requirement(
        id="MX-PSC-05",
        scope=Scope.SERVER,
        over=Scope.RELAY,
        title="With postscreen in front everything else holds unchanged",
        expected="recorded only: the other requirements of the listener say it",
        remedy="tlsproxy unix in master.cf; postscreen_discard_ehlo_keywords and its like follow smtpd's by default.",
        problem="postscreen stands in front of this port.",
        risk="None: the other requirements of the port say whether anything is wrong with it.",
        source="POSTSCREEN_README",
        probes=(REACH,),
        check=all_behind_postscreen,
        severity=Severity.INFO,
    ),
)
