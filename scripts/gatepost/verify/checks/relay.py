"""Chapter 3 of the policy: a listener between servers takes mail for its own domains and relays for nobody (MX)."""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache

from gatepost.verify.checks.answers import acceptance, extensions, judge, refusal, together
from gatepost.verify.checks.delivery import DELIVERY, OUTBOX
from gatepost.verify.model import Finding, Verdict
from gatepost.verify.registry import Need, NotObserved, Requirement, Scope, Seen, failed, inconclusive, passed
from gatepost.verify.wire.delivery import Delivered
from gatepost.verify.wire.injection import HOPS, looping
from gatepost.verify.wire.probe import (
    ERRORS_PER_CONNECTION,
    Case,
    Dialogue,
    Failed,
    Probe,
    Send,
    Site,
    Step,
    Told,
    case,
    dialogue,
)
from gatepost.verify.wire.session import Failure, Reply, plain
from gatepost.verify.wire.starttls import UPGRADE

_FORMS_PER_PROBE = 8  # two connections each: many short ones side by side
_NOBODY = "gatepost-nobody"


def sender(site: Site) -> str:
    """Return the foreign envelope sender that we use: in the outside domain, which the server can look up."""
    return f"gatepost-probe@{site.outside}"


def recipient(site: Site) -> str:
    """Return U: somebody who gets mail here. Without an account that is postmaster (RFC 5321 §4.5.1)."""
    own = (a.address for a in site.target.accounts if a.address.rpartition("@")[2].lower() in site.target.domains)
    return next(own, f"postmaster@{site.domain}")


@cache
def unknown_user() -> str:
    """Return NX's local part: nobody has it, and a server cannot know it beforehand. One for the whole run."""
    return f"gatepost-no-such-user-{secrets.token_hex(4)}"


def _elsewhere(site: Site) -> str:
    """Return a second foreign domain: one that takes no mail and belongs to nobody (RFC 2606)."""
    hosted = {site.outside, *site.target.domains}
    return next((d for d in ("example.org", "example.net", "example.com") if d not in hosted), "example.invalid")


def envelope(mail_from: str, *rcpt_to: str) -> Case:
    """Return a transaction up to its recipients; :func:`to` takes it apart again.

    Several recipients share a MAIL, since servers count those per client and minute. Besides, in Postfix each
    transaction with an accepted recipient costs one of in_flow_delay's 100 tokens, and gives none back when it ends in
    RSET: without tokens every first RCPT takes a second.
    """
    return case(mail_from, Send(f"MAIL FROM:{mail_from}", vital=True), *(f"RCPT TO:{to}" for to in rcpt_to))


def to(observed: Dialogue, mail_from: str, rcpt_to: str) -> Told:
    """Return the part of a transaction that concerns one recipient: MAIL, and its RCPT where MAIL was accepted."""
    wanted = f"RCPT TO:{rcpt_to}"
    for told in observed.told:
        if told.steps[0].sent != f"MAIL FROM:{mail_from}":
            continue
        if not isinstance(told.last, Reply) and len(told.steps) == 1:
            return told
        if isinstance(told.steps[0].answer, Reply) and told.steps[0].answer.code >= 400:
            return told
        for step in told.steps[1:]:
            if step.sent == wanted:
                return replace(told, steps=(told.steps[0], step))
    return Told(mail_from, (Step(wanted, ()),))  # the connection ended before


# -- TLS and AUTH ------------------------------------------------------------------------------------------------------


def _auth(site: Site) -> Iterator[Case]:
    yield case("AUTH", f"AUTH PLAIN {plain(f'gatepost-probe@{site.target.hostname}', secrets.token_hex(8))}")


AUTH_CLEAR = dialogue("relay-auth-clear", _auth, tls=False)
AUTH_TLS = dialogue("relay-auth-tls", _auth)


def starttls_offered(seen: Seen) -> Finding:
    """MX-TLS-01."""
    reply = seen[AUTH_CLEAR].ehlo_clear
    if reply is None:
        return Finding(Verdict.NOT_APPLICABLE, "TLS is implicit here")
    found = f"EHLO in clear offers {extensions(reply)}"
    return passed(found) if reply.keyword("STARTTLS") is not None else failed(found)


def upgrade(seen: Seen) -> Finding:
    """MX-TLS-02: the handshake completes, and what was said before it is forgotten."""
    observed = seen.attempt(UPGRADE)
    if isinstance(observed, Failed):
        if observed.failure in (Failure.TLS_FAILED, Failure.TLS_REJECTED, Failure.GARBAGE):
            return failed(str(observed), transcript=observed.transcript)
        raise NotObserved(observed)
    found = f"MAIL before the new EHLO: {observed.early_mail}; the new EHLO: {observed.ehlo}"
    early, ehlo = observed.early_mail, observed.ehlo
    if not isinstance(early, Reply) or not isinstance(ehlo, Reply):
        return inconclusive(found, transcript=observed.transcript)
    good = early.code == 503 and ehlo.code == 250 and ehlo.keyword("STARTTLS") is None
    if ehlo.keyword("STARTTLS") is not None:
        found += "; it offers STARTTLS again"
    return (passed if good else failed)(found, transcript=observed.transcript)


def clear_is_taken(seen: Seen) -> Finding:
    """MX-TLS-03: mail in clear is taken; other reasons to refuse it are MX-RCV-01's."""
    told = _to(seen, sender(seen.here), recipient(seen.here))
    if isinstance(told.last, Reply) and told.last.code == 250:
        return acceptance(told)
    if isinstance(told.last, Reply) and told.last.code == 530:
        return failed(str(told), transcript=told.transcript)
    return inconclusive(f"refused, but not for want of TLS (see MX-RCV-01): {told}", transcript=told.transcript)


def no_auth_offered(seen: Seen) -> Finding:
    """MX-AUTH-01: neither in clear nor inside TLS."""
    return _clear_and_tls(seen, AUTH_CLEAR, AUTH_TLS, _auth_line)


def _auth_line(observed: Dialogue, where: str) -> Finding:
    reply = observed.ehlo_tls or observed.ehlo_clear
    assert reply is not None
    lines = [line for line in reply.keywords if line.upper().startswith("AUTH")]
    return failed(f"{where}: {', '.join(lines)}") if lines else passed(f"{where}: EHLO offers {extensions(reply)}")


def auth_unknown(seen: Seen) -> Finding:
    """MX-AUTH-02: AUTH is no command here. 500 and 502 say the same as Postfix's 503."""
    return _clear_and_tls(
        seen, AUTH_CLEAR, AUTH_TLS, lambda d, where: _where(refusal(d["AUTH"], (500, 502, 503)), where)
    )


def _clear_and_tls(
    seen: Seen, clear: Probe[Dialogue], inside: Probe[Dialogue], check: Callable[[Dialogue, str], Finding]
) -> Finding:
    """Judge the same dialogue in clear and inside TLS; a failure in clear needs no second one.

    A server that offers no STARTTLS, or with which no handshake comes about (MX-TLS-02), is judged by what it says in
    clear: there is no other way to talk to it.
    """
    if seen.here.listener.is_implicit:
        return check(seen[inside], "inside TLS")
    outside = seen[clear]
    finding = check(outside, "in clear")
    no_tls = outside.ehlo_clear is not None and outside.ehlo_clear.keyword("STARTTLS") is None
    if finding.verdict is Verdict.FAIL or no_tls:
        return finding
    observed = seen.attempt(inside)
    if isinstance(observed, Failed) and observed.failure in (Failure.TLS_FAILED, Failure.TLS_REJECTED):
        return finding
    return together((finding, check(seen[inside], "inside TLS")))


def _where(finding: Finding, where: str) -> Finding:
    return Finding(finding.verdict, f"{where}: {finding.found}", finding.transcript)


# -- Relaying ----------------------------------------------------------------------------------------------------------

_ROUTED = "allow_untrusted_routing = no (the default)"
_FORMS: tuple[tuple[str, str, str], ...] = (  # policy §3.1: number, RCPT TO, what guards it besides relay restrictions
    ("01", "<V@OUT>", ""),
    ("02", "<V%OUT@DOM>", _ROUTED),
    ("03", "<V%OUT@HN>", _ROUTED),
    ("04", "<OUT!V>", _ROUTED),
    ("05", "<OUT!V@DOM>", _ROUTED),
    ("06", "<@DOM:V@OUT>", ""),
    ("07", "<@HN:V@OUT>", ""),
    ("08", '<"V@OUT">', "resolve_dequoted_address = yes (the default)"),
    ("09", '<"V@OUT"@DOM>', "resolve_dequoted_address = yes (the default)"),
    ("10", "<V@CLIENT>", ""),
    ("11", "<V@SERVER>", "smtpd_reject_unlisted_recipient = yes"),
    ("12", "<V%OUT>", _ROUTED),
    ("13", "<V@OUT@DOM>", _ROUTED),
    ("14", '<"V%OUT">', _ROUTED),
    ("15", "<V%OUT@SERVER>", _ROUTED),
    ("16", "<V@gatepost-sub.DOM>", "no relay_domains, and parent_domain_matches_subdomains without relay_domains"),
    ("17", "<V@OUT.>", ""),
    ("18", "V@OUT", "strict_rfc821_envelopes = yes"),
    ("19", '<"OUT!V"@DOM>', _ROUTED),
    ("20", "<V%OUT@localhost>", _ROUTED),
    ("21", "<V@DOM.OUT>", "no relay_domains"),
    ("22", "<@OUT:V@DOM>", "smtpd_reject_unlisted_recipient = yes and a complete list of recipients"),
)
_PLACEHOLDER = re.compile("V|OUT|DOM|HN|CLIENT|SERVER")


def _address(site: Site, form: str) -> str:
    values = {
        "V": _NOBODY,
        "OUT": site.outside,
        "DOM": site.domain,
        "HN": site.target.hostname,
        "CLIENT": site.own_literal if "CLIENT" in form else "",
        "SERVER": site.address_literal,
    }
    return _PLACEHOLDER.sub(lambda match: values[match.group()], form)


def _victims(site: Site, number: str, form: str) -> tuple[str, ...]:
    """Return the recipients that a form stands for; the first one also aims elsewhere: a relay may be open for one
    domain only."""
    return (_address(site, form), f"<{_NOBODY}@{_elsewhere(site)}>") if number == "01" else (_address(site, form),)


def _relay_cases(forms: Sequence[tuple[str, str]]) -> Callable[[Site], Iterator[Case]]:
    def cases(site: Site) -> Iterator[Case]:
        victims = [victim for number, form in forms for victim in _victims(site, number, form)]
        for at in range(0, len(victims), ERRORS_PER_CONNECTION):
            yield envelope(f"<{sender(site)}>", *victims[at : at + ERRORS_PER_CONNECTION])

    return cases


def _relay_probes() -> Iterator[tuple[str, tuple[Probe[Dialogue], Probe[Dialogue]]]]:
    for at in range(0, len(_FORMS), _FORMS_PER_PROBE):
        batch = [(number, form) for number, form, _ in _FORMS[at : at + _FORMS_PER_PROBE]]
        clear = dialogue(f"relay-clear-{batch[0][0]}", _relay_cases(batch), tls=False)
        inside = dialogue(f"relay-tls-{batch[0][0]}", _relay_cases(batch))
        for number, _ in batch:
            yield number, (clear, inside)


_RELAY = dict(_relay_probes())


def not_relayed(told: Told) -> Finding:
    """Refused with 5xx."""
    return _sender_unknown(told) or refusal(told)


def taken(told: Told) -> Finding:
    """Accepted at RCPT."""
    return _sender_unknown(told) or acceptance(told)


def _sender_unknown(told: Told) -> Finding | None:
    """A server that could not look up our sender's domain (450 4.1.8) did not get as far as the question."""
    if isinstance(told.last, Reply) and told.last.enhanced == "4.1.8":
        found = f"the server cannot look up our sender's domain, name another --outside-domain: {told}"
        return inconclusive(found, transcript=told.transcript)
    return None


def _form_check(number: str, form: str) -> Callable[[Seen], Finding]:
    def check(seen: Seen) -> Finding:
        site = seen.here
        clear, inside = _RELAY[number]
        victims = _victims(site, number, form)

        def judged(observed: Dialogue, where: str) -> Finding:
            return _where(together(not_relayed(to(observed, f"<{sender(site)}>", v)) for v in victims), where)

        return _clear_and_tls(seen, clear, inside, judged)

    return check


def _senders(site: Site) -> Iterator[Case]:
    # Each is a sender that a careless access table could let through.
    victim = f"<{_NOBODY}@{site.outside}>"
    for address in (
        "",
        recipient(site),
        "gatepost-probe@localhost",
        f"postmaster@{site.address_literal}",
        f"MAILER-DAEMON@{site.target.hostname}",
        "gatepost-probe@[127.0.0.1]",
    ):
        yield envelope(f"<{address}>", victim)


def _helos(site: Site) -> Iterator[Case]:
    victim, ours = f"<{_NOBODY}@{site.outside}>", f"<{sender(site)}>"
    for name in (site.target.hostname, "localhost", "[127.0.0.1]", site.address_literal, site.domain):
        yield _helo(f"as {name}", name, ours, victim)
    yield _helo("both percent", site.target.hostname, ours, _address(site, "<V%OUT@DOM>"))
    yield _helo("both null", site.target.hostname, "<>", victim)


def _helo(label: str, name: str, mail_from: str, rcpt_to: str) -> Case:
    return case(label, f"EHLO {name}", f"MAIL FROM:{mail_from}", f"RCPT TO:{rcpt_to}", stop_on_error=True)


SENDERS = dialogue("relay-senders", _senders, tls=False)
HELOS = dialogue("relay-helos", _helos, tls=False)


def senders_do_not_relay(seen: Seen) -> Finding:
    """MX-RLY-30."""
    return together(not_relayed(told) for told in seen[SENDERS].told)


def helo_does_not_relay(seen: Seen) -> Finding:
    """MX-RLY-31."""
    return together(not_relayed(told) for told in seen[HELOS].told if told.label.startswith("as "))


def both_do_not_relay(seen: Seen) -> Finding:
    """MX-RLY-32."""
    return together(not_relayed(told) for told in seen[HELOS].told if told.label.startswith("both "))


# -- Receiving ---------------------------------------------------------------------------------------------------------


def _postmasters(site: Site) -> tuple[str, ...]:
    return (f"postmaster@{site.domain}", f"PostMaster@{site.domain.upper()}", "postmaster")


def _reports(site: Site) -> tuple[str, ...]:
    return (f"abuse@{site.domain}", f"fbl@{site.domain}")


def _tagged(site: Site) -> str:
    local, _, domain = recipient(site).partition("@")
    return f"{local}+gatepost@{domain}"


def _nobody(site: Site) -> str:
    return f"{unknown_user()}@{site.domain}"


def _receive(site: Site) -> Iterator[Case]:
    people = (recipient(site), _tagged(site), _nobody(site))
    yield envelope(f"<{sender(site)}>", *_brackets(*people, *_postmasters(site), *_reports(site)))
    yield envelope("<>", *_brackets(recipient(site), *_postmasters(site)))


def _brackets(*addresses: str) -> Iterator[str]:
    return (f"<{address}>" for address in addresses)


RECEIVE = dialogue("receive", _receive, tls=False)


def _to(seen: Seen, mail_from: str, address: str) -> Told:
    return to(seen[RECEIVE], f"<{mail_from}>", f"<{address}>")


def takes_mail(seen: Seen) -> Finding:
    """MX-RCV-01."""
    return taken(_to(seen, sender(seen.here), recipient(seen.here)))


def takes_bounces(seen: Seen) -> Finding:
    """MX-RCV-02."""
    return taken(_to(seen, "", recipient(seen.here)))


def takes_postmaster(seen: Seen) -> Finding:
    """MX-RCV-03."""
    return together(
        taken(_to(seen, label, address)) for label in (sender(seen.here), "") for address in _postmasters(seen.here)
    )


def takes_reports(seen: Seen) -> Finding:
    """MX-RCV-04, as far as RCPT shows it."""
    return together(taken(_to(seen, sender(seen.here), address)) for address in _reports(seen.here))


def refuses_unknown(seen: Seen) -> Finding:
    """MX-RCV-05."""
    told = _to(seen, sender(seen.here), _nobody(seen.here))
    ehlo = seen[RECEIVE].ehlo_tls or seen[RECEIVE].ehlo_clear
    # Without the extension (RFC 2034) there is no second code to look at: Exim.
    plain = ehlo is not None and ehlo.keyword("ENHANCEDSTATUSCODES") is None
    return judge(told, lambda reply: reply.code == 550 and reply.enhanced in (("", "5.1.1") if plain else ("5.1.1",)))


def names_no_table(seen: Seen) -> Finding:
    """MX-RCV-06."""
    told = _to(seen, sender(seen.here), _nobody(seen.here))
    if not isinstance(told.last, Reply) or told.last.code < 400:
        return inconclusive(f"the unknown recipient was not refused (MX-RCV-05): {told}", transcript=told.transcript)
    leaks = re.search(r"\bin .*\btable\b", told.last.text, re.IGNORECASE)
    return (failed if leaks else passed)(str(told), transcript=told.transcript)


def takes_tagged(seen: Seen) -> Finding:
    """MX-RCV-07."""
    return taken(_to(seen, sender(seen.here), _tagged(seen.here)))


# -- Strictness --------------------------------------------------------------------------------------------------------


def colleague(site: Site) -> str:
    """Return V: somebody else who gets mail here. Without a second account that is postmaster."""
    others = (a.address for a in site.target.accounts if a.address.rpartition("@")[2].lower() in site.target.domains)
    return next((address for address in others if address != recipient(site)), f"postmaster@{site.domain}")


_UNQUALIFIED = ("gatepost-probe", "gatepost-probe@gatepost")
_BAD_NAMES = ("gatepost", "bad_!name.example")


@cache
def _no_domain() -> str:
    return f"gatepost-no-such-domain-{secrets.token_hex(4)}.invalid"  # RFC 2606 §2: never resolves


def _strict(site: Site) -> Iterator[Case]:
    theirs = f"<{recipient(site)}>"
    yield envelope(theirs, f"<{colleague(site)}>")
    for address in (*_UNQUALIFIED, f"gatepost-probe@{_no_domain()}"):
        yield envelope(f"<{address}>", theirs)
    yield envelope(sender(site), theirs)
    # 354 ends this connection without an end of data: nothing is delivered.
    yield case(
        "bounce to two",
        Send("MAIL FROM:<>", vital=True),
        Send(f"RCPT TO:{theirs}", vital=True),
        Send(f"RCPT TO:<{colleague(site)}>", vital=True),
        "DATA",
    )


def _as_named(site: Site) -> Iterator[Case]:
    yield envelope(f"<{sender(site)}>", f"<{recipient(site)}>")


def _named(name: str) -> Probe[Dialogue]:
    # A connection for each name: some servers take no second EHLO.
    told = dialogue(f"receive-from-{name.partition('.')[0]}", _as_named, tls=False, ehlo=lambda _: name)
    return replace(told, about=f"In clear, behind EHLO {name}.")


STRICT = dialogue("receive-strict", _strict, tls=False)
MISNAMED = {name: _named(name) for name in _BAD_NAMES}


def _strictly(seen: Seen, mail_from: str, rcpt_to: str) -> Told:
    return to(seen[STRICT], mail_from, f"<{rcpt_to}>")


def own_domain_is_not_forged(seen: Seen) -> Finding:
    """MX-RCV-08."""
    site = seen.here
    return refusal(_strictly(seen, f"<{recipient(site)}>", colleague(site)))


def sender_is_qualified(seen: Seen) -> Finding:
    """MX-RCV-09."""
    return together(refusal(_strictly(seen, f"<{address}>", recipient(seen.here))) for address in _UNQUALIFIED)


def name_is_valid(seen: Seen) -> Finding:
    """MX-RCV-10: of the syntax only; a name that is not the client's must not be held against it (RFC 5321 §4.1.4)."""
    return together(_misnamed(seen, name) for name in _BAD_NAMES)


def _misnamed(seen: Seen, name: str) -> Finding:
    site = seen.here
    told = to(seen[MISNAMED[name]], f"<{sender(site)}>", f"<{recipient(site)}>")
    return _where(not_relayed(told), f"behind EHLO {name}")


def sender_can_be_answered(seen: Seen) -> Finding:
    """MX-RCV-11: 4xx will do here, for the server cannot know that its resolver is right."""
    told = _strictly(seen, f"<gatepost-probe@{_no_domain()}>", recipient(seen.here))
    known = _to(seen, sender(seen.here), recipient(seen.here))
    if isinstance(known.last, Reply) and known.last.enhanced == "4.1.8":
        return inconclusive(
            f"it finds no domain at all, not even {seen.here.outside}: {known}", transcript=told.transcript
        )
    if isinstance(told.last, Reply) and 400 <= told.last.code < 500 and told.last.enhanced != "4.1.8":
        return inconclusive(f"put off, but not for the sender's domain: {told}", transcript=told.transcript)
    return judge(told, lambda reply: reply.code >= 400)


def brackets_are_needed(seen: Seen) -> Finding:
    """MX-RCV-12."""
    return refusal(_strictly(seen, sender(seen.here), recipient(seen.here)))


def bounce_has_one_recipient(seen: Seen) -> Finding:
    """MX-RCV-13: refused at DATA, or at the second recipient."""
    told = seen[STRICT]["bounce to two"]
    if len(told.steps) < 3:
        return inconclusive(
            f"a bounce to one recipient is not taken either (MX-RCV-02): {told}", transcript=told.transcript
        )
    return refusal(told)


def _loop(site: Site) -> Iterator[Case]:
    yield case(
        "loop",
        Send("MAIL FROM:<>", vital=True),
        Send(f"RCPT TO:<{recipient(site)}>", vital=True),
        Send("DATA", vital=True),
        Send(looping(site, "loop", recipient(site)) + b"\r\n.\r\n", timeout=20.0),
    )


LOOP = dialogue("message-that-loops", _loop, tls=False, once=True)


def loop_ends(seen: Seen) -> Finding:
    """MX-RCV-14: what became of a message that was accepted is only seen at the server."""
    told = seen[LOOP]["loop"]
    if len(told.steps) < 4:
        return inconclusive(f"the message could not be sent: {told}", transcript=told.transcript)
    said = Told(told.label, (Step(f"(a message with {HOPS} Received lines)", told.steps[-1].answers),), told.transcript)
    if isinstance(said.last, Reply) and said.last.code == 250:
        delivered = seen.attempt(DELIVERY) if seen.target.via else None
        if not isinstance(delivered, Delivered):
            why = "accepted; whether it bounces is not seen from outside"
            return inconclusive(f"{why}: {said}", transcript=told.transcript)
        if delivered.of_kind("loop"):
            return failed(f"accepted, and delivered: {said}", transcript=told.transcript)
        if any(queued.ours for queued in delivered.queued):
            return inconclusive(f"accepted, and still in the queue: {said}", transcript=told.transcript)
        return passed(f"accepted, and not delivered: {said}", transcript=told.transcript)
    return refusal(said)


# -- Rows --------------------------------------------------------------------------------------------------------------

_RELAY_REMEDY = (
    "smtpd_relay_restrictions = permit_mynetworks, reject_unauth_destination (reject, not defer), relay_domains empty. "
    "If it is refused from elsewhere, the address you ran this from is trusted: postconf -xh mynetworks"
)
_ENVELOPE = Need.DOMAIN | Need.OUTSIDE

REQUIREMENTS = (
    Requirement(
        id="MX-TLS-01",
        scope=Scope.RELAY_STARTTLS,
        title="Servers are offered STARTTLS",
        expected="STARTTLS among the extensions of the EHLO reply in clear",
        remedy="smtpd_tls_security_level = may, smtpd_tls_chain_files set; no starttls in smtpd_discard_ehlo_keywords.",
        problem="Other servers are not offered encryption.",
        risk="All incoming mail crosses the net in clear, and senders with MTA-STS or DANE do not deliver at all.",
        source="RFC 3207, RFC 7435, RFC 8461",
        probes=(AUTH_CLEAR,),
        check=starttls_offered,
    ),
    Requirement(
        id="MX-TLS-02",
        scope=Scope.RELAY_STARTTLS,
        title="STARTTLS leads into TLS, and the session starts anew there",
        expected="220, a handshake, 503 to MAIL before the new EHLO, and no STARTTLS in its reply",
        remedy="smtpd_tls_chain_files: key and certificate must be readable by root and belong together (postfix tls). "
        "smtpd_helo_required = yes makes MAIL before EHLO a 503.",
        problem="Encryption is offered but does not come about, or the session does not start anew behind it.",
        risk="Senders that rely on the offer get an error and put the mail off; if old state survives, someone on the "
        "path can plant commands in the session.",
        source="RFC 3207 §4.2",
        probes=(UPGRADE,),
        check=upgrade,
    ),
    Requirement(
        id="MX-TLS-03",
        scope=Scope.RELAY_STARTTLS,
        title="Mail from servers without TLS is taken",
        expected="250 to MAIL and RCPT in clear",
        remedy="smtpd_tls_security_level = may on the relay listener; encrypt belongs on submission only.",
        problem="Servers without TLS cannot deliver.",
        risk="Mail from senders who know no TLS, or only an old one, bounces: RFC 3207 forbids this for a public MX.",
        source="RFC 3207 §4",
        probes=(RECEIVE,),
        check=clear_is_taken,
        needs=_ENVELOPE,
    ),
    Requirement(
        id="MX-AUTH-01",
        scope=Scope.RELAY,
        title="Servers are not offered AUTH",
        expected="no line that starts with AUTH in the EHLO reply, in clear and inside TLS",
        remedy="smtpd_sasl_auth_enable = no in main.cf; -o smtpd_sasl_auth_enable=yes on submission services only.",
        problem="The port for other servers offers to log in.",
        risk="It invites guessing of passwords on a port without the submission port's limits, and passwords in clear "
        "where TLS is optional.",
        source="RFC 6409 §3.1, Gatepost's policy",
        probes=(AUTH_CLEAR, AUTH_TLS),
        check=no_auth_offered,
    ),
    Requirement(
        id="MX-AUTH-02",
        scope=Scope.RELAY,
        title="AUTH is no command between servers",
        expected="503 5.5.1 (500 and 502 too) to AUTH PLAIN with an invented account, in clear and inside TLS",
        remedy="smtpd_sasl_auth_enable = no in main.cf; -o smtpd_sasl_auth_enable=yes on submission services only.",
        problem="The port for other servers takes logins.",
        risk="Passwords can be guessed there, and a stolen one sends spam past the rules of the submission ports.",
        source="RFC 4954 §4, Gatepost's policy",
        probes=(AUTH_CLEAR, AUTH_TLS),
        check=auth_unknown,
    ),
    *(
        Requirement(
            id=f"MX-RLY-{number}",
            scope=Scope.RELAY,
            title=f"Relays for nobody: RCPT TO:{form}",
            expected="a 5xx reply (554 5.7.1) at MAIL or RCPT, in clear and inside TLS; 4xx is no refusal",
            remedy=f"{_RELAY_REMEDY}. Here also: {guard}." if guard else f"{_RELAY_REMEDY}.",
            problem="The server takes mail from strangers for an address that is not its own: for this way of writing "
            "it, it is an open relay.",
            risk="Spammers find such servers within hours. The server sends their mail, lands on block lists, and its "
            "users' mail is refused everywhere.",
            source="RFC 5321 §7.1, RFC 2505",
            probes=_RELAY[number],
            check=_form_check(number, form),
            needs=_ENVELOPE,
        )
        for number, form, guard in _FORMS
    ),
    Requirement(
        id="MX-RLY-30",
        scope=Scope.RELAY,
        title="No envelope sender opens the relay",
        expected="a 5xx reply to RCPT <V@OUT> from <>, <U@DOM>, <x@localhost>, <MAILER-DAEMON@HN> and at the server's "
        "address",
        remedy="No OK or permit for senders before reject_unauth_destination in smtpd_relay_restrictions: anyone can "
        "claim any sender.",
        problem="A sender address is enough to be allowed to relay, and a sender address can be invented.",
        risk="Whoever claims it sends spam through the server, which lands on block lists.",
        source="RFC 5321 §7.1",
        probes=(SENDERS,),
        check=senders_do_not_relay,
        needs=_ENVELOPE,
    ),
    Requirement(
        id="MX-RLY-31",
        scope=Scope.RELAY,
        title="No EHLO name opens the relay",
        expected="a 5xx reply to RCPT <V@OUT> after EHLO as the server itself, localhost, its addresses and its domain",
        remedy="No OK or permit by check_helo_access before reject_unauth_destination in smtpd_relay_restrictions: "
        "anyone can claim any name.",
        problem="A name in the greeting is enough to be allowed to relay, and that name can be invented.",
        risk="Whoever claims it sends spam through the server, which lands on block lists.",
        source="RFC 5321 §4.1.4, §7.1",
        probes=(HELOS,),
        check=helo_does_not_relay,
        needs=_ENVELOPE,
    ),
    Requirement(
        id="MX-RLY-32",
        scope=Scope.RELAY,
        title="The server's own EHLO name with a routed recipient or null sender opens no relay",
        expected="a 5xx reply to RCPT <V%OUT@DOM>, and to RCPT <V@OUT> from <>, after EHLO as the server itself",
        remedy=f"{_RELAY_REMEDY}.",
        problem="Two harmless-looking things together open the relay: the server's own name in the greeting, and a "
        "routed recipient or no sender.",
        risk="Spammers try such pairs by the dozen; the server lands on block lists.",
        source="RFC 5321 §7.1",
        probes=(HELOS,),
        check=both_do_not_relay,
        needs=_ENVELOPE,
    ),
    Requirement(
        id="MX-RCV-01",
        scope=Scope.RELAY,
        title="Mail from outside for a mailbox here is taken",
        expected="250 to MAIL <x@OUT> and RCPT <U@DOM>",
        remedy="virtual_mailbox_domains and virtual_mailbox_maps must know domain and mailbox (and mydestination must "
        "not); rebuild maps with postmap; no permit_sasl_authenticated,reject on the relay listener.",
        problem="The server refuses or puts off mail for one of its own users.",
        risk="Users get no mail from outside.",
        source="RFC 5321 §3.3",
        probes=(RECEIVE,),
        check=takes_mail,
        needs=_ENVELOPE,
    ),
    Requirement(
        id="MX-RCV-02",
        scope=Scope.RELAY,
        title="Bounces are taken: mail from the null sender",
        expected="250 to MAIL <> and RCPT <U@DOM>",
        remedy="No restriction may refuse <>: look for it in smtpd_sender_restrictions and access maps.",
        problem="The server does not take bounces.",
        risk="Users never learn that their mail was not delivered; other servers refuse mail from domains that take "
        "no bounces.",
        source="RFC 5321 §4.5.5, §6.1, RFC 3464",
        probes=(RECEIVE,),
        check=takes_bounces,
        needs=_ENVELOPE,
    ),
    Requirement(
        id="MX-RCV-03",
        scope=Scope.RELAY,
        title="Postmaster gets mail, in any case and without a domain",
        expected="250 to RCPT <postmaster@DOM>, <PostMaster@DOM>, <postmaster>, from <> and from outside",
        remedy="An alias for postmaster in virtual_alias_maps (and in alias_maps for the name without a domain).",
        problem="Mail to postmaster is not taken, as every mail server must.",
        risk="Others cannot report trouble, and lists of misbehaving domains take the server in.",
        source="RFC 5321 §4.1.1.3, §4.5.1, RFC 2142",
        probes=(RECEIVE,),
        check=takes_postmaster,
        needs=_ENVELOPE,
    ),
    Requirement(
        id="MX-RCV-04",
        scope=Scope.RELAY,
        title="Abuse reports and feedback loops find a recipient",
        expected="250 to RCPT <abuse@DOM> and <fbl@DOM>; whether a filter then drops a report is not seen from outside",
        remedy="Aliases for abuse and fbl in virtual_alias_maps; content filters must exempt them.",
        problem="Mail to abuse, or the address for feedback loops, is not taken.",
        risk="Complaints about spam from here go unread until the server is blocked.",
        source="RFC 2142 §4, RFC 5965",
        probes=(RECEIVE,),
        check=takes_reports,
        needs=_ENVELOPE,
    ),
    Requirement(
        id="MX-RCV-05",
        scope=Scope.RELAY,
        title="An unknown recipient is refused at RCPT, for good",
        expected="550 5.1.1",
        remedy="smtpd_reject_unlisted_recipient = yes, complete virtual_mailbox_maps, no catch-all, "
        "unknown_virtual_mailbox_reject_code = 550, soft_bounce = no. Else bounces go to forged senders.",
        problem="The server takes mail for users that do not exist, or puts it off in place of refusing it.",
        risk="It must bounce later, to senders that are mostly forged (backscatter), and lands on block lists; put "
        "off, the sender learns of his typing error after days.",
        source="RFC 5321 §3.3, §6.2, RFC 3463",
        probes=(RECEIVE,),
        check=refuses_unknown,
        needs=_ENVELOPE,
    ),
    Requirement(
        id="MX-RCV-06",
        scope=Scope.RELAY,
        title="The refusal does not name a lookup table",
        expected="no “in … table” in the refusal of MX-RCV-05",
        remedy="show_user_unknown_table_name = no.",
        problem="The refusal tells in which lookup table a user was not found.",
        risk="A stranger learns how the server is built and which kinds of users it has.",
        source="Gatepost's policy",
        probes=(RECEIVE,),
        check=names_no_table,
        needs=_ENVELOPE,
    ),
    Requirement(
        id="MX-RCV-07",
        scope=Scope.RELAY,
        title="Mail to U+tag is taken for U",
        expected="250 to RCPT <U+gatepost@DOM>; that it reaches U is not looked at from outside",
        remedy="recipient_delimiter = +",
        problem="Mail to user+tag is refused.",
        risk="Addresses that users gave to shops and lists stop working.",
        source="RFC 5233, Gatepost's policy",
        probes=(RECEIVE,),
        check=takes_tagged,
        needs=_ENVELOPE | Need.ACCOUNT,
    ),
    Requirement(
        id="MX-RCV-08",
        scope=Scope.RELAY,
        title="Nobody outside may use an address of this domain as sender",
        expected="a 5xx reply to MAIL <U@DOM> and RCPT <V@DOM> without a login",
        remedy="check_sender_access with your own domains → REJECT in smtpd_sender_restrictions, on the relay listener "
        "only (our role: postfix_reject_own_senders). If mailing lists or forwarders elsewhere must send as your "
        "domain, leave it off, and this requirement out with --skip MX-RCV-08.",
        problem="A stranger can send to users here in the name of another user here.",
        risk="Phishing in the name of a colleague or the boss arrives without any sign that it came from outside.",
        source="RFC 7489, Gatepost's policy",
        probes=(STRICT,),
        check=own_domain_is_not_forged,
        needs=_ENVELOPE,
    ),
    Requirement(
        id="MX-RCV-09",
        scope=Scope.RELAY,
        title="A sender needs a full domain name",
        expected="a 5xx reply (504 5.5.2) to MAIL <gatepost-probe> and <gatepost-probe@gatepost>, or to RCPT behind it",
        remedy="reject_non_fqdn_sender in smtpd_sender_restrictions.",
        problem="The server takes mail from senders without a full address.",
        risk="Nobody can answer it, bounces go nowhere, and Postfix may complete the address with its own domain.",
        source="RFC 5321 §2.3.5",
        probes=(STRICT,),
        check=sender_is_qualified,
        needs=_ENVELOPE,
    ),
    Requirement(
        id="MX-RCV-10",
        scope=Scope.RELAY,
        title="A server that greets with no full name, or with a malformed one, is refused",
        expected="a 5xx reply (504 5.5.2, 501 5.5.2) after EHLO gatepost, and after EHLO bad_!name.example, at RCPT at "
        "the latest",
        remedy="smtpd_helo_restrictions = reject_invalid_helo_hostname, reject_non_fqdn_helo_hostname; for syntax "
        "only: never demand that the name is the client's.",
        problem="The server takes mail from hosts that greet with a name that cannot be one.",
        risk="Almost only spam programs do; it comes through where a simple check keeps it out.",
        source="RFC 5321 §2.3.5, §4.1.1.1",
        probes=tuple(MISNAMED.values()),
        check=name_is_valid,
        needs=_ENVELOPE,
    ),
    Requirement(
        id="MX-RCV-11",
        scope=Scope.RELAY,
        title="A sender whose domain does not exist is refused",
        expected="450 4.1.8, or a 5xx reply, to a sender in a domain without A and MX record",
        remedy="reject_unknown_sender_domain in smtpd_sender_restrictions, and a resolver that works. To such a sender "
        "no bounce can be delivered.",
        problem="The server takes mail from domains that do not exist.",
        risk="It cannot be answered or bounced: bounces fill the queue for days.",
        source="RFC 5321 §3.6",
        probes=(STRICT, RECEIVE),
        check=sender_can_be_answered,
        needs=_ENVELOPE,
    ),
    Requirement(
        id="MX-RCV-12",
        scope=Scope.RELAY,
        title="An address needs its angle brackets",
        expected="a 5xx reply (501 5.1.7) to MAIL FROM:x@OUT",
        remedy="strict_rfc821_envelopes = yes.",
        problem="The server takes addresses without their brackets.",
        risk="Only broken programs and spam send such; what is guessed there may be read otherwise by a filter.",
        source="RFC 5321 §4.1.2",
        probes=(STRICT,),
        check=brackets_are_needed,
        needs=_ENVELOPE,
    ),
    Requirement(
        id="MX-RCV-13",
        scope=Scope.RELAY,
        title="A bounce with several recipients is refused",
        expected="a 5xx reply (550 5.5.3) to DATA, or to the second RCPT, after MAIL <>",
        remedy="reject_multi_recipient_bounce in smtpd_data_restrictions (at RCPT it comes too early).",
        problem="The server takes a bounce for several recipients at once.",
        risk="Spam in the form of bounces is handed in once for many users.",
        source="RFC 5321 §6.1",
        probes=(STRICT,),
        check=bounce_has_one_recipient,
        needs=_ENVELOPE,
    ),
    Requirement(
        id="MX-RCV-14",
        scope=Scope.RELAY,
        title="A message that goes round in circles is stopped",
        expected=f"a 5xx reply (554 5.4.0) at the end of a message with {HOPS} Received lines",
        remedy="hopcount_limit = 50 (the default).",
        problem="The server takes a message that has already passed more than 100 servers.",
        risk="Two servers that forward to each other send it round for ever, growing, until a disk is full.",
        source="RFC 5321 §6.3",
        probes=(LOOP, OUTBOX, DELIVERY),
        check=loop_ends,
        needs=Need.DOMAIN,
        once=True,
    ),
)
