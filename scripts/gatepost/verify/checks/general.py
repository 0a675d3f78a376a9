"""Chapter 1 of the policy: what every listener must do (GEN)."""

from __future__ import annotations

import re
from collections.abc import Callable

from gatepost.verify.checks import vantage
from gatepost.verify.checks.answers import acceptance, extensions, judge, refusal, together
from gatepost.verify.model import Finding, Severity, Verdict
from gatepost.verify.registry import Need, NotObserved, Requirement, Scope, Seen, failed, inconclusive, passed
from gatepost.verify.wire.mail import LARGEST, Mail, mail
from gatepost.verify.wire.probe import Case, Dialogue, Failed, Probe, Site, Told, case, dialogue
from gatepost.verify.wire.reach import REACH
from gatepost.verify.wire.session import BANNER_SECONDS, CONNECT_SECONDS, Ended, Failure, Reply

NOBODY = "gatepost-no-such-user"


def _someone(site: Site) -> str:
    """An address that must exist: the account's, or postmaster's (RFC 5321 §4.5.1)."""
    return site.target.accounts[0].address if site.target.accounts else f"postmaster@{site.domain}"


def _verbs(site: Site) -> tuple[Case, ...]:
    domain = site.target.domains[0] if site.target.domains else site.target.hostname
    someone = site.target.accounts[0].address if site.target.accounts else f"postmaster@{domain}"
    return (
        case("NOOP", "NOOP"),
        case("RSET", "RSET"),
        case("VRFY someone", f"VRFY {someone}"),
        case("VRFY nobody", f"VRFY {NOBODY}@{domain}"),
        case("EXPN", "EXPN staff"),
        case("ETRN", f"ETRN {domain}"),
        case("XCLIENT", "XCLIENT ADDR=127.0.0.1"),
        case("XFORWARD", "XFORWARD NAME=gatepost.example"),
        case("TURN", "TURN"),
        case("HELP", "HELP"),
        case("BURL", "BURL imap://gatepost.example/"),
        case("unknown verb", "GTPS"),
        case("QUIT", "QUIT", ends=True),
    )


def _clear(_: Site) -> tuple[Case, ...]:
    return (case("NOOP", "NOOP"), case("RSET", "RSET"), case("QUIT", "QUIT", ends=True))


def _bdat(_: Site) -> tuple[Case, ...]:
    return (case("BDAT", b"BDAT 5 LAST\r\nhello", ends=True),)


def _get(_: Site) -> tuple[Case, ...]:
    return (case("GET", "GET / HTTP/1.1", ends=True),)


def _early(site: Site) -> tuple[Case, ...]:
    # HELO here, and not after EHLO: OpenSMTPD takes one greeting on a connection only (RFC 5321 §4.1.4).
    return (case("MAIL", "MAIL FROM:<>"), case("HELO", f"HELO {site.ehlo}"))


VERBS = dialogue("verbs", _verbs)
CLEAR = dialogue("verbs-clear", _clear, tls=False)
BDAT = dialogue("bdat", _bdat)
GET = dialogue("get", _get, greet_only=True)
EARLY = dialogue("mail-before-ehlo", _early, greet_only=True)
MAIL: Probe[Mail] = Probe("mail", mail, account=0, slow=True, once=True)


# -- reachability and banner -----------------------------------------------------------------------------------------


def reachable(seen: Seen) -> Finding:
    """GEN-NET-01."""
    found = seen[REACH]
    if not found.connected:
        return failed(f"{found.answer}{vantage.why(seen)}", transcript=found.transcript)
    return passed(f"connected in {found.seconds * 1000:.0f} ms", transcript=found.transcript)


def banner(seen: Seen) -> Finding:
    """GEN-BAN-01."""
    found = seen[REACH]
    if not found.connected:
        return Finding(Verdict.NOT_RUN, f"not reachable (GEN-NET-01): {found.answer}")
    if isinstance(found.answer, Ended):
        return failed(f"no greeting: {found.answer}{vantage.log(seen)}", transcript=found.transcript)
    said = f"{found.answer.code} " + " / ".join(found.answer.lines)
    hostname = seen.target.hostname.lower()
    # postscreen's teaser makes two lines of it, on a relay only (MX-PSC-02)
    lines = 1 if seen.here.listener.is_submission else 2
    good = (
        found.answer.code == 220
        and len(found.answer.lines) <= lines
        and all(re.fullmatch(r"(\S+) ESMTP\b.*", line) for line in found.answer.lines)
        and all(line.split()[0].lower() == hostname for line in found.answer.lines)
    )
    if found.more:
        return failed(f"{said}; and then, unasked: {found.more[:80]!r}", transcript=found.transcript)
    if isinstance(found.second, Ended):
        return failed(
            f"{said}; but a second connection beside it got none: {found.second}", transcript=found.transcript
        )
    return (passed if good else failed)(said, transcript=found.transcript)


_SOFTWARE = re.compile(
    r"(?i)postfix|debian|ubuntu|exim|sendmail|opensmtpd|exchange|microsoft|centos|red ?hat|dovecot|haraka|\d+\.\d+"
)


def discretion(seen: Seen) -> Finding:
    """GEN-BAN-02."""
    spoken: list[tuple[str, str]] = []
    reached = seen[REACH]
    if isinstance(reached.answer, Reply):
        spoken.append(("banner", reached.answer.text))
    for probe in (VERBS, CLEAR):
        if probe is CLEAR and seen.here.listener.is_implicit:
            continue
        talk = seen.attempt(probe)
        if isinstance(talk, Failed):
            continue
        spoken += [("EHLO", reply.text) for reply in (talk.ehlo_clear, talk.ehlo_tls) if reply is not None]
        spoken += [("QUIT", a.text) for t in talk.told if t.label == "QUIT" for a in (t.last,) if isinstance(a, Reply)]
    if not spoken:
        return inconclusive("the server said nothing to look at")
    for where, text in spoken:
        for line in text.splitlines():
            bare = line.replace(seen.target.hostname, "").replace(seen.here.ehlo, "")
            bare = re.sub(r"\A[245]\.\d{1,3}\.\d{1,3} |\[[0-9a-fA-F.:]+\]", "", bare)  # enhanced code, client's address
            leak = _SOFTWARE.search(bare)
            if leak:
                return failed(f"{where} says {line!r}: {leak.group(0)!r}", transcript=reached.transcript)
    return passed(f"nothing told in {', '.join(dict.fromkeys(w for w, _ in spoken))}", transcript=reached.transcript)


# -- EHLO ------------------------------------------------------------------------------------------------------------


def _hellos(seen: Seen) -> list[tuple[str, Reply]]:
    """Return the EHLO replies before and inside TLS, as far as the listener has both."""
    replies: list[tuple[str, Reply]] = []
    if not seen.here.listener.is_implicit:
        clear = seen[CLEAR].ehlo_clear
        assert clear is not None
        replies.append(("in clear", clear))
    inside = seen[VERBS].ehlo_tls
    assert inside is not None
    replies.append(("inside TLS", inside))
    return replies


def ehlo_name(seen: Seen) -> Finding:
    """GEN-EHLO-01. A server that dies at EHLO (no SASL socket, say) fails here; one without TLS is judged in clear."""
    hostname = seen.target.hostname
    told = []
    for probe in (VERBS,) if seen.here.listener.is_implicit else (CLEAR, VERBS):
        talk = seen.attempt(probe)
        if not isinstance(talk, Failed):
            told += [(w, r) for w, r in (("in clear", talk.ehlo_clear), ("inside TLS", talk.ehlo_tls)) if r is not None]
        elif talk.failure in (Failure.CLOSED, Failure.RESET, Failure.TIMED_OUT, Failure.GARBAGE):
            return failed(f"no answer to EHLO: {talk}", transcript=talk.transcript)
        elif probe is CLEAR or seen.here.listener.is_implicit:
            raise NotObserved(talk)
    bad = [f"{where}: {reply}" for where, reply in told if reply.code != 250 or _first_word(reply) != hostname.lower()]
    if "." not in hostname:
        bad.append(f"{hostname} is not a full name")
    return failed("; ".join(bad)) if bad else passed("; ".join(f"{w}: {r.code} {r.lines[0]}" for w, r in told))


def _first_word(reply: Reply) -> str:
    return reply.lines[0].split(" ")[0].lower()


WANTED = ("PIPELINING", "SIZE", "ENHANCEDSTATUSCODES", "8BITMIME", "DSN", "SMTPUTF8")
UNWANTED = ("VRFY", "EXPN", "ETRN", "XCLIENT", "XFORWARD", "CHUNKING", "BINARYMIME", "XVERP")


def wanted_extensions(seen: Seen) -> Finding:
    """GEN-EHLO-02."""
    reply = seen[VERBS].ehlo_tls
    assert reply is not None
    missing = [word for word in WANTED if reply.keyword(word) is None]
    if missing:
        return failed(f"{', '.join(missing)} missing; offered: {extensions(reply)}")
    return passed(f"offered: {extensions(reply)}")


def unwanted_extensions(seen: Seen) -> Finding:
    """GEN-EHLO-03."""
    bad = []
    for where, reply in _hellos(seen):
        bad += [f"{word} {where}" for word in UNWANTED if reply.keyword(word) is not None]
        if where == "inside TLS" and reply.keyword("STARTTLS") is not None:
            bad.append("STARTTLS inside TLS")
    offered = "; ".join(f"{where}: {extensions(reply)}" for where, reply in _hellos(seen))
    return failed(f"{', '.join(bad)}; offered {offered}") if bad else passed(offered)


def helo(seen: Seen) -> Finding:
    """GEN-EHLO-04."""
    hostname = seen.target.hostname.lower()
    return judge(seen[EARLY]["HELO"], lambda reply: reply.code == 250 and _first_word(reply) == hostname)


def both_hellos(seen: Seen) -> Finding:
    """GEN-EHLO-05: recorded only."""
    hellos = _hellos(seen)
    if len(hellos) < 2:
        return Finding(Verdict.NOT_APPLICABLE, "TLS from the first byte: there is one list only")
    before, after = (set(reply.keywords) for _, reply in hellos)
    gone, new = ", ".join(sorted(before - after)) or "nothing", ", ".join(sorted(after - before)) or "nothing"
    return Finding(Verdict.INFO, f"behind STARTTLS gone: {gone}; new: {new}")


# -- commands --------------------------------------------------------------------------------------------------------


def vrfy(seen: Seen) -> Finding:
    """GEN-CMD-01."""
    someone, nobody = seen[VERBS]["VRFY someone"], seen[VERBS]["VRFY nobody"]
    finding = together((refusal(someone, (500, 502, 530)), refusal(nobody, (500, 502, 530))))
    first, second = someone.last, nobody.last
    if finding.verdict is Verdict.PASS and isinstance(first, Reply) and isinstance(second, Reply):
        alike = _without_address(first.text) == _without_address(second.text)
        if not alike:
            return failed(f"known and unknown differ: {first} and {second}", transcript=someone.transcript)
    return finding


def _without_address(text: str) -> str:
    return re.sub(r"\S+@\S+", "…", text)


def _refused_verb(*labels: str) -> Callable[[Seen], Finding]:
    """Return a check that wants a 5xx to each of these cases."""
    return lambda seen: together(refusal(seen[VERBS][label]) for label in labels)


def other_verbs(seen: Seen) -> Finding:
    """GEN-CMD-07. HELP may be answered: RFC 5321 §4.1.1.8 says SHOULD, and Postfix does so from 3.9 on."""
    refused = (refusal(seen[VERBS][verb]) for verb in ("TURN", "BURL", "unknown verb"))
    return together((judge(seen[VERBS]["HELP"], lambda reply: reply.code == 214 or reply.code >= 500), *refused))


def http(seen: Seen) -> Finding:
    """GEN-CMD-05."""
    told = seen[GET]["GET"]
    answer = told.last
    if isinstance(answer, Ended):
        silent = answer.failure is Failure.TIMED_OUT
        return (failed if silent else passed)(str(told), transcript=told.transcript)
    return judge(told, lambda reply: reply.code == 221)


def early_mail(seen: Seen) -> Finding:
    """GEN-CMD-06: 503, or 530 where TLS is demanded first."""
    return refusal(seen[EARLY]["MAIL"], (503, 530))


def harmless(seen: Seen) -> Finding:
    """GEN-CMD-08."""
    inside = (acceptance(seen[VERBS][verb], code) for verb, code in _HARMLESS)
    if seen.here.listener.is_implicit:
        return together(inside)
    # Where TLS is demanded first, RSET may be answered 530 too: RFC 3207 §4 spares NOOP and QUIT only.
    also = (530,) if seen.here.listener.is_submission else ()
    clear = (judge(seen[CLEAR][verb], _one_of(code, *(also if verb == "RSET" else ()))) for verb, code in _HARMLESS)
    return together((*clear, *inside))


def _one_of(*codes: int) -> Callable[[Reply], bool]:
    return lambda reply: reply.code in codes


_HARMLESS = (("NOOP", 250), ("RSET", 250), ("QUIT", 221))


def bdat(seen: Seen) -> Finding:
    """GEN-CMD-09."""
    told = seen[BDAT]["BDAT"]
    answer = told.last
    if isinstance(answer, Ended) and answer.failure is Failure.TIMED_OUT:
        return inconclusive(str(told), transcript=told.transcript)
    return judge(told, lambda reply: reply.code >= 500, close_passes=True)


def unknown_parameters(seen: Seen) -> Finding:
    """GEN-CMD-10."""
    talk = seen[MAIL].dialogue
    return together(refusal(talk[label]) for label in ("BODY=BINARYMIME", "REQUIRETLS", "FOO=bar"))


def dsn(seen: Seen) -> Finding:
    """GEN-CMD-11: operators may withhold DSN from outsiders, so on a relay it is recorded only."""
    told = seen[MAIL].dialogue["DSN"]
    if not seen.here.listener.is_submission:
        return Finding(Verdict.INFO, str(told), told.transcript, Severity.INFO)
    refused = [step for step in told.steps if isinstance(step.answer, Reply) and step.answer.code >= 500]
    return failed(str(told), transcript=told.transcript) if refused else acceptance(told)


# -- size ------------------------------------------------------------------------------------------------------------


def _size(talk: Dialogue | Failed) -> str | None:
    reply = None if isinstance(talk, Failed) else talk.ehlo_tls
    return reply.keyword("SIZE") if reply is not None else None


def size(seen: Seen) -> Finding:
    """GEN-SIZE-01."""
    own = _size(seen[VERBS])
    if own is None:
        return failed("no SIZE offered")
    if not own.isdecimal() or int(own) == 0:
        return failed(f"SIZE {own}".rstrip() + ": no limit")
    others = {_size(talk): f"{listener.port} at {address}" for listener, address, talk in seen.everywhere(VERBS)}
    other = [f"SIZE {value} on {where}" for value, where in others.items() if value is not None and value != own]
    return failed(f"SIZE {own} here, but {', '.join(other)}") if other else passed(f"SIZE {own}, the same everywhere")


def announced_size(seen: Seen) -> Finding:
    """GEN-SIZE-02."""
    return _oversize(seen, "SIZE")


def sent_size(seen: Seen) -> Finding:
    """GEN-SIZE-03."""
    found = seen[MAIL]
    if found.limit is not None and found.limit > LARGEST:
        return Finding(Verdict.NOT_RUN, f"the limit of {found.limit} octets is too large to try out")
    told = _told(found, "DATA")
    if told is not None and len(told.steps) < 4:
        return inconclusive(f"DATA was not reached: {told}", transcript=told.transcript)
    return _oversize(seen, "DATA")


def _oversize(seen: Seen, label: str) -> Finding:
    found = seen[MAIL]
    told = _told(found, label)
    if told is None:
        return Finding(Verdict.NOT_RUN, "no size limit is announced (GEN-SIZE-01), so there is none to exceed")
    return refusal(told, (552, 554))  # 554 5.3.4 is OpenSMTPD's


def _told(found: Mail, label: str) -> Told | None:
    return next((t for t in found.dialogue.told if t.label == label), None)


REQUIREMENTS = (
    Requirement(
        id="GEN-NET-01",
        scope=Scope.ALL,
        title="The port can be reached",
        expected=f"a TCP connection within {CONNECT_SECONDS:g} s on every address",
        remedy="a service for the port in master.cf; inet_interfaces = all, inet_protocols = all; the port in the "
        "firewalls of host and cloud",
        problem="Nobody gets through to this port: nothing listens there, or a firewall is in the way.",
        risk="On a relay port other servers cannot deliver and give up after days; on a submission port users whose "
        "program is set to it cannot send.",
        source="RFC 8314 §3",
        probes=(REACH, vantage.VANTAGE),
        check=reachable,
    ),
    Requirement(
        id="GEN-BAN-01",
        scope=Scope.ALL,
        title="The server greets with its name",
        expected=f"`220 NAME ESMTP` within {BANNER_SECONDS:g} s and nothing more, on two connections side by side",
        remedy="A wrong name: smtpd_banner = $myhostname ESMTP, myhostname = the server's name. No greeting: smtpd "
        "dies at its start, and its log says why (journalctl -u 'postfix*'). Most often Dovecot is down, so that the "
        "SASL socket is missing (`no SASL authentication mechanisms`: systemctl start dovecot); else a wrong value in "
        "main.cf, TLS expected from the first byte (smtpd_tls_wrappermode), or a process limit of 1 in master.cf",
        problem="The port accepts connections but does not greet as a mail server of this name should.",
        risk="Clients wait until they time out and mail stays queued at the sender; a wrong name makes other servers "
        "distrust the mail that this one sends.",
        source="RFC 5321 §4.2 and §4.3.1",
        probes=(REACH, vantage.VANTAGE),
        check=banner,
    ),
    Requirement(
        id="GEN-BAN-02",
        scope=Scope.ALL,
        title="The server does not tell its software",
        expected="no software, version or distribution in greeting, EHLO and 221",
        remedy="smtpd_banner = $myhostname ESMTP (Debian's default adds `Postfix (Debian/GNU)`)",
        problem="The server tells everybody which software, version or distribution it runs.",
        risk="Whoever collects hosts for the next vulnerability of that version finds this one in a search engine.",
        source="policy (hardening)",
        probes=(REACH, VERBS, CLEAR),
        check=discretion,
    ),
    Requirement(
        id="GEN-EHLO-01",
        scope=Scope.ALL,
        title="EHLO answers with the server's full name",
        expected="the same fully qualified name on every listener, in clear and inside TLS",
        remedy="myhostname = the server's full name. If there is no answer at all inside TLS: the SASL socket "
        "(smtpd_sasl_path, Dovecot)",
        problem="The server does not answer with its own full name, or calls itself differently from port to port.",
        risk="The same name goes into the HELO of outgoing mail, where other servers refuse or downgrade a name that "
        "does not exist.",
        source="RFC 5321 §4.1.1.1 and §2.3.5",
        probes=(VERBS, CLEAR),
        check=ehlo_name,
    ),
    Requirement(
        id="GEN-EHLO-02",
        scope=Scope.ALL,
        title="The extensions that clients use are offered",
        expected=", ".join(WANTED),
        remedy="smtpd_discard_ehlo_keywords = etrn, chunking, silent-discard and nothing else; smtputf8_enable = yes",
        problem="The server hides features that mail programs and other servers count on.",
        risk="Without SMTPUTF8 or 8BITMIME mail with international addresses or text bounces or is re-encoded; "
        "without DSN nobody learns that mail was delivered late.",
        source="RFC 2920, 1870, 2034, 6152, 3461, 6531",
        probes=(VERBS,),
        check=wanted_extensions,
    ),
    Requirement(
        id="GEN-EHLO-03",
        scope=Scope.ALL,
        title="No extension beyond need is offered",
        expected=f"none of {', '.join(UNWANTED)}; no STARTTLS inside TLS",
        remedy="disable_vrfy_command = yes; smtpd_discard_ehlo_keywords = etrn, chunking, silent-discard; "
        "smtpd_authorized_xclient_hosts, smtpd_authorized_xforward_hosts and smtpd_authorized_verp_clients empty",
        problem="The server offers commands that nobody needs, or that belong to trusted neighbours only.",
        risk="Each is one more way in: VRFY and EXPN list users, XCLIENT lets a stranger pose as a trusted address, "
        "ETRN lets him flush queues.",
        source="policy (minimal surface)",
        probes=(VERBS, CLEAR),
        check=unwanted_extensions,
    ),
    Requirement(
        id="GEN-EHLO-04",
        scope=Scope.RELAY_OR_IMPLICIT,
        title="HELO works",
        expected="`250 NAME`",
        remedy="myhostname = the server's full name; no smtpd_helo_restrictions that refuse at HELO",
        problem="The old greeting HELO is not answered as it should be.",
        risk="Simple senders (printers, scanners, monitoring) that know no EHLO cannot hand over mail.",
        source="RFC 5321 §4.1.1.1",
        probes=(EARLY,),
        check=helo,
    ),
    Requirement(
        id="GEN-EHLO-05",
        scope=Scope.ALL,
        title="Extensions before and behind STARTTLS",
        expected="recorded only: a client must not use what it read before TLS",
        remedy="nothing to do",
        problem="What the server offers differs before and after encryption.",
        risk="None by itself; a client that keeps the list it read in clear can be fooled by someone on the path.",
        source="RFC 3207 §4.2",
        probes=(VERBS, CLEAR),
        check=both_hellos,
        severity=Severity.INFO,
    ),
    Requirement(
        id="GEN-CMD-01",
        scope=Scope.ALL,
        title="VRFY tells nothing",
        expected="502 5.5.1 (or 500, or 530 before a login), the same for an address that exists and one that does not",
        remedy="disable_vrfy_command = yes",
        problem="The server answers whether an address exists to anyone who asks.",
        risk="Spammers and password guessers collect valid addresses without sending a single message.",
        source="RFC 5321 §3.5.3 and §7.3",
        probes=(VERBS,),
        check=vrfy,
    ),
    Requirement(
        id="GEN-CMD-02",
        scope=Scope.ALL,
        title="EXPN is refused",
        expected="a 5xx reply (500 5.5.2 or 502)",
        remedy="Postfix does not implement it: look for a proxy in front",
        problem="The server tells who is behind a mailing list.",
        risk="Spammers harvest the members, who are real addresses by construction.",
        source="RFC 5321 §7.3",
        probes=(VERBS,),
        check=_refused_verb("EXPN"),
    ),
    Requirement(
        id="GEN-CMD-03",
        scope=Scope.ALL,
        title="ETRN is refused",
        expected="a 5xx reply (554 5.7.1)",
        remedy="smtpd_etrn_restrictions = reject. Hiding the keyword alone leaves the verb working.",
        problem="Strangers can make the server work through its queue.",
        risk="Repeated, it costs the server delivery attempts and tells which domains it holds mail for.",
        source="RFC 1985",
        probes=(VERBS,),
        check=_refused_verb("ETRN"),
    ),
    Requirement(
        id="GEN-CMD-04",
        scope=Scope.ALL,
        title="XCLIENT and XFORWARD are refused",
        expected="a 5xx reply (550 5.7.0): who may use them chooses the address that Postfix sees",
        remedy="smtpd_authorized_xclient_hosts and smtpd_authorized_xforward_hosts empty",
        problem="Strangers can tell the server that they connect from another address.",
        risk="Whoever claims to be 127.0.0.1 is trusted: the server is an open relay, and its logs and limits are "
        "worthless.",
        source="Postfix XCLIENT_README",
        probes=(VERBS,),
        check=_refused_verb("XCLIENT", "XFORWARD"),
    ),
    Requirement(
        id="GEN-CMD-05",
        scope=Scope.ALL,
        title="A web request ends the session",
        expected="221 2.7.0, and the connection closed",
        remedy="smtpd_forbidden_commands = CONNECT GET POST regexp:{{/^[^A-Z]/ Bogus}}",
        problem="The server goes on talking to what is plainly a web browser.",
        risk="A web page can make a visitor's browser send mail commands through it, or use the server to attack its "
        "web site (ALPACA).",
        source="ALPACA, CVE-2021-3618",
        probes=(GET,),
        check=http,
    ),
    Requirement(
        id="GEN-CMD-06",
        scope=Scope.ALL,
        title="MAIL before EHLO is refused",
        expected="503 5.5.1 (530 5.7.0 where TLS is demanded first)",
        remedy="smtpd_helo_required = yes",
        problem="Mail is taken from senders that do not even say hello.",
        risk="Simple spam programs get through, and checks of the HELO name are passed by leaving it out.",
        source="RFC 5321 §4.1.4",
        probes=(EARLY,),
        check=early_mail,
    ),
    Requirement(
        id="GEN-CMD-07",
        scope=Scope.ALL,
        title="Other verbs are refused",
        expected="a 5xx reply (500 or 502) to TURN, BURL and a verb that does not exist; to HELP that, or 214",
        remedy="Postfix implements none of them but HELP: look for a proxy in front",
        problem="The server obeys a command that Postfix does not know.",
        risk="Something else answers in its place, and what it lets through is not what master.cf says.",
        source="RFC 5321 §4.2.4, §4.1.1.8",
        probes=(VERBS,),
        check=other_verbs,
    ),
    Requirement(
        id="GEN-CMD-08",
        scope=Scope.ALL,
        title="NOOP, RSET and QUIT work in every state",
        expected="250, 250 and 221, in clear too (530 to RSET where TLS is demanded first)",
        remedy="look for a proxy in front of Postfix",
        problem="The most basic commands do not work in some state of the session.",
        risk="Clients and servers that reuse a connection break off and count the delivery as failed, or deliver "
        "twice.",
        source="RFC 5321 §4.1.1.5 to §4.1.1.10",
        probes=(VERBS, CLEAR),
        check=harmless,
    ),
    Requirement(
        id="GEN-CMD-09",
        scope=Scope.ALL,
        title="BDAT is refused",
        expected="a 5xx reply or the connection closed (Postfix: 521 5.5.1)",
        remedy="smtpd_discard_ehlo_keywords = etrn, chunking, silent-discard",
        problem="The server takes a message by BDAT though it does not offer it.",
        risk="Restrictions at DATA are passed by, and with them what keeps out pipelining and multi-recipient bounces.",
        source="RFC 3030",
        probes=(BDAT,),
        check=bdat,
    ),
    Requirement(
        id="GEN-CMD-10",
        scope=Scope.ALL,
        title="MAIL parameters that are not offered are refused",
        expected="555 5.5.4",
        remedy="look for a proxy in front of Postfix",
        problem="The server says yes to options that it does not know.",
        risk="A sender that asks for REQUIRETLS or BINARYMIME believes it was promised, and mail is sent in clear or "
        "damaged.",
        source="RFC 5321 §4.1.1.11",
        probes=(MAIL,),
        check=unknown_parameters,
        needs=Need.DOMAIN | Need.LOGIN,
        once=True,
    ),
    Requirement(
        id="GEN-CMD-11",
        scope=Scope.ALL,
        title="Delivery reports can be asked for",
        expected="250 to RET=HDRS and NOTIFY=SUCCESS (recorded only on a relay)",
        remedy="no `dsn` in smtpd_discard_ehlo_keywords",
        problem="Senders cannot ask to be told whether their mail was delivered.",
        risk="Users do not get the delivery report that they ask for in their mail program.",
        source="RFC 3461",
        probes=(MAIL,),
        check=dsn,
        needs=Need.DOMAIN | Need.LOGIN,
        once=True,
    ),
    Requirement(
        id="GEN-SIZE-01",
        scope=Scope.ALL,
        title="A message size limit is announced",
        expected="SIZE with a number above 0, the same on every listener",
        remedy="message_size_limit in main.cf only (and mailbox_size_limit 0, or not smaller)",
        problem="The server does not say, or not everywhere alike, how large a message may be.",
        risk="Clients upload a large message to the end only to see it refused; with no limit one message can fill "
        "the disk.",
        source="RFC 1870",
        probes=(VERBS,),
        check=size,
    ),
    Requirement(
        id="GEN-SIZE-02",
        scope=Scope.ALL,
        title="A message announced as too large is refused",
        expected="552 5.3.4 at MAIL",
        remedy="message_size_limit above 0",
        problem="A message that is announced as too large is not refused at once.",
        risk="The whole of it is transferred first, which costs both sides time and bandwidth.",
        source="RFC 1870 §6.1",
        probes=(MAIL,),
        check=announced_size,
        needs=Need.DOMAIN | Need.LOGIN,
        once=True,
    ),
    Requirement(
        id="GEN-SIZE-03",
        scope=Scope.ALL,
        title="A message that turns out too large is refused",
        expected="552 5.3.4 (or 554) behind its last line",
        remedy="message_size_limit above 0",
        problem="A message larger than the announced limit is taken.",
        risk="A few such messages fill the spool, and the server stops taking any mail.",
        source="RFC 1870 §6.3",
        probes=(MAIL,),
        check=sent_size,
        needs=Need.DOMAIN | Need.LOGIN,
        once=True,
    ),
)
