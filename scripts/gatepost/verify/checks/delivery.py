"""Chapter 9 of the policy, and what else only a real message shows: delivery, traces and privacy (E2E, PRV, DKM)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from gatepost.verify.checks.answers import together
from gatepost.verify.model import Finding, Severity, Verdict
from gatepost.verify.registry import (
    Need,
    NotObserved,
    Requirement,
    Scope,
    Seen,
    ServerProbe,
    failed,
    inconclusive,
    key,
    passed,
)
from gatepost.verify.wire.delivery import (
    BARE,
    LEAKS,
    Delivered,
    Outbox,
    Sent,
    hand_in,
    headers,
    read_back,
    short,
    sink_address,
)
from gatepost.verify.wire.probe import Failed, Phase, Site
from gatepost.verify.wire.reach import REACH, Reached
from gatepost.verify.wire.session import Failure, Reply, WireError


def _hand_in(seen: Seen) -> Outbox:
    target = seen.target
    sites: dict[str, Site] = {}
    for site in seen.sites:
        reached = seen.observations.get(key(site, REACH))
        wanted = bool(target.accounts) if site.listener.is_submission else bool(target.domains)
        if wanted and isinstance(reached, Reached) and not reached.dead:
            sites.setdefault(site.listener.name, site)
    return hand_in(target, tuple(sites.values()))


def _read_back(seen: Seen) -> Delivered:
    outbox = seen.attempt(OUTBOX)
    if isinstance(outbox, Failed):
        raise WireError(outbox.failure, outbox.detail)
    return read_back(seen.target, outbox)


OUTBOX = ServerProbe(
    "outbox",
    _hand_in,
    needs=Need.VIA,
    phase=Phase.MAIN,
    about="Real messages on every listener: as a client to its own mailbox and to the sink, as a server to the "
    "mailbox, a +tag and abuse@DOM; one of each with lines that end in a bare LF. Only when a login is at the server.",
)
DELIVERY = ServerProbe(
    "delivery",
    _read_back,
    needs=Need.VIA,
    phase=Phase.AFTER,
    about="The messages are read back at the server (doveadm, postqueue) and at the sink, and removed.",
)


def _sent(seen: Seen, kind: str) -> Sent:
    """Return the message of a kind that this listener was given; raise NotObserved when it was not."""
    delivered = seen[DELIVERY]
    listener = seen.here.listener.name
    sent = delivered.of(kind, listener)
    if sent is None:
        why = dict(delivered.failures).get(listener)
        if why is None:
            raise NotObserved(Failed(Failure.NOT_TRIED, "no message of this kind was handed in here"))
        raise NotObserved(Failed(why.failure, f"nothing could be handed in: {why.detail}", why.transcript))
    return sent


def _accepted(seen: Seen, kind: str) -> Sent:
    sent = _sent(seen, kind)
    if not sent.accepted:
        raise NotObserved(Failed(Failure.NOT_TRIED, f"the message was not taken (E2E-00): {sent.told}"))
    return sent


def _where(delivered: Delivered, sent: Sent) -> str:
    """Return what the queue and the log say of a message that did not arrive."""
    queued = [q for q in delivered.queued if q.ours and q.identity == sent.identity]
    if queued:
        return "; ".join(f"it is queued for {', '.join(q.recipients)}: {q.reason or 'no reason yet'}" for q in queued)
    log = [line for line in delivered.log if sent.identity and sent.identity in line]
    said = f"; Postfix's log: {' / '.join(log)}" if log else ""
    return f"it is not in the queue either{said}"


# -- Delivery ----------------------------------------------------------------------------------------------------------


def taken(seen: Seen) -> Finding:
    """E2E-00."""
    sent = _sent(seen, "mail")
    answer = sent.told.last
    found = str(sent.told)
    if sent.accepted:
        return passed(found, transcript=sent.told.transcript)
    if isinstance(answer, Reply):
        return failed(found, transcript=sent.told.transcript)
    return inconclusive(found, transcript=sent.told.transcript)


def in_mailbox(seen: Seen) -> Finding:
    """E2E-01."""
    return _in_mailbox(seen, "mail")


def arrived(seen: Seen) -> Finding:
    """E2E-03: from another server to a user, to user+tag, and a report of abuse to abuse@DOM (MX-RCV-04, -07)."""
    kinds = [k for k in ("inbound", "tag", "arf") if seen[DELIVERY].of(k, seen.here.listener.name) is not None]
    if not kinds:
        _sent(seen, "inbound")
    findings = []
    for kind in kinds:
        sent = _sent(seen, kind)
        if sent.accepted:
            findings.append(_in_mailbox(seen, kind))
        elif isinstance(sent.told.last, Reply):
            findings.append(failed(f"{kind}: {sent.told}", transcript=sent.told.transcript))
        else:
            findings.append(inconclusive(f"{kind}: {sent.told}", transcript=sent.told.transcript))
    return together(findings)


def _in_mailbox(seen: Seen, kind: str) -> Finding:
    sent, delivered = _accepted(seen, kind), seen[DELIVERY]
    copies = delivered.in_mailbox(sent)
    to = ", ".join(sent.to_mailbox)
    if copies:
        users = ", ".join(copy.user for copy in copies)
        return passed(f"{kind}: for {to}, read back from the mailbox of {users}", transcript=sent.told.transcript)
    return failed(
        f"{kind}: taken ({sent.told.last}) for {to}, but in no mailbox after 8 s; {_where(delivered, sent)}",
        transcript=sent.told.transcript,
    )


def at_the_sink(seen: Seen) -> Finding:
    """E2E-02: delivered to the outside domain with the envelope as it was handed in."""
    sent, delivered = _accepted(seen, "mail"), seen[DELIVERY]
    if delivered.taken is None:
        return inconclusive(delivered.no_sink)
    sender = seen.target.accounts[0].address
    wanted = sink_address(seen.target, seen.here.listener.name)
    copies = delivered.at_sink(sent)
    if not copies:
        why = _where(delivered, sent)
        return failed(f"the sink got no message for {wanted} within 8 s; {why}", transcript=sent.told.transcript)
    found = "; ".join(f"from <{c.mail_from}> to <{'>, <'.join(c.rcpt_to)}>, by {c.peer}" for c in copies)
    intact = len(copies) == 1 and copies[0].mail_from == sender and copies[0].rcpt_to == (wanted,)
    return (passed if intact else failed)(f"the sink took it {found}", transcript=sent.told.transcript)


def tls_in_received(seen: Seen) -> Finding:
    """E2E-04."""
    sent = _accepted(seen, "inbound")
    line = _our_received(seen, sent)
    good = re.search(r"(?i)\bwith (UTF8SMTPS|E?SMTPS)A?\b", line) and re.search(
        r"(?i)using TLSv1\.\d with cipher", line
    )
    return (passed if good else failed)(f"Received: {line}")


def _our_received(seen: Seen, sent: Sent) -> str:
    """Return the Received header that the server wrote when it took the message from us."""
    copies = seen[DELIVERY].in_mailbox(sent)
    if not copies:
        raise NotObserved(Failed(Failure.NOT_TRIED, "the message was not found in a mailbox (E2E-03)"))
    lines = copies[0].headers("Received")
    # Delivery agents write theirs on top (LMTP); the lowest one is the first server's.
    return lines[-1] if lines else "(none)"


# -- Privacy -----------------------------------------------------------------------------------------------------------


def _copies(seen: Seen) -> Iterator[tuple[str, bytes]]:
    sent, delivered = _accepted(seen, "mail"), seen[DELIVERY]
    yield from (("in the mailbox", copy.content) for copy in delivered.in_mailbox(sent))
    yield from (("at the sink", copy.content) for copy in delivered.at_sink(sent))


def _no_copy_has(seen: Seen, leaks: Callable[[bytes], Iterator[str]]) -> Finding:
    copies = list(_copies(seen))
    if not copies:
        raise NotObserved(Failed(Failure.NOT_TRIED, "the message was found nowhere (E2E-01, E2E-02)"))
    found = [f"{where}: {leak}" for where, content in copies for leak in leaks(content)]
    if found:
        return failed("\n".join(dict.fromkeys(found)))
    received = "; ".join(headers(copies[0][1], "Received")[-1:])
    return passed(f"none of it in {len(copies)} copies; the lowest Received: {received}")


def client_hidden(seen: Seen) -> Finding:
    """PRV-01."""
    sent, delivered = _accepted(seen, "mail"), seen[DELIVERY]
    secret = [sent.source, sent.ehlo, *delivered.names]

    def leaks(content: bytes) -> Iterator[str]:
        # Our own Message-ID, From and To say nothing of where the client sits, but share a domain with its names.
        head = re.split(rb"\r?\n\r?\n", content, maxsplit=1)[0].decode("utf-8", "backslashreplace").lower()
        for line in re.sub(r"\r?\n[ \t]+", " ", head).splitlines():
            yield from (f"{s} in {line[:300]}" for s in secret if _word(s, line))

    return _no_copy_has(seen, leaks)


def _word(secret: str, line: str) -> bool:
    return re.search(rf"(?<![\w.:-]){re.escape(secret.lower())}(?![\w:-])", line) is not None


def login_hidden(seen: Seen) -> Finding:
    """PRV-02."""
    return _no_copy_has(
        seen, lambda c: (line[:300] for line in headers(c, "Received") if "authenticated sender" in line.lower())
    )


def program_hidden(seen: Seen) -> Finding:
    """PRV-03."""
    return _no_copy_has(seen, lambda c: (f"{n}: {value}" for n in LEAKS for value in headers(c, n)))


def trace_kept(seen: Seen) -> Finding:
    """PRV-04: mail between servers keeps its trace (RFC 5321 §4.4)."""
    sent = _accepted(seen, "inbound")
    line = _our_received(seen, sent)
    lacks = [what for what in (sent.ehlo, sent.source) if not _word(what, line.lower().replace("ipv6:", ""))]
    if not re.search(r"(?i)\bwith (UTF8)?E?SMTPS?A?\b", line):
        lacks.append("the protocol")
    if lacks:
        return failed(f"{', '.join(lacks)} is not in Received: {line}")
    return passed(f"Received: {line}")


# -- Injection, as the receiver sees it --------------------------------------------------------------------------------


def bare_lf_kept(seen: Seen) -> Finding:
    """INJ-09: refused, or delivered with all its lines."""
    sent, delivered = _sent(seen, "bare"), seen[DELIVERY]
    answer = sent.told.last
    if not sent.accepted:
        if isinstance(answer, Reply) and answer.code >= 500 and sent.told.steps[-1].sent == "(message)":
            return passed(f"refused: {sent.told}", transcript=sent.told.transcript)
        verdict = failed if isinstance(answer, Reply) else inconclusive
        return verdict(f"{sent.told}", transcript=sent.told.transcript)
    copies = delivered.in_mailbox(sent)
    if not copies:
        raise NotObserved(Failed(Failure.NOT_TRIED, "the message was not found in a mailbox (E2E-01, E2E-03)"))
    body = re.split(rb"\r?\n\r?\n", copies[0].content, maxsplit=1)[-1].decode("utf-8", "backslashreplace")
    lines = [line for line in body.splitlines() if line]
    found = f"the delivered text: {' / '.join(lines)}"
    whole = len(copies) == 1 and [line for line in lines if line != "."] == list(BARE)
    return (passed if whole else failed)(found, transcript=sent.told.transcript)


def not_a_source(seen: Seen) -> Finding:
    """INJ-15: what goes out is one message, its lines ended by CRLF alone."""
    sent, delivered = _sent(seen, "bare"), seen[DELIVERY]
    if not sent.accepted:
        return passed(f"not taken, so it does not go out: {sent.told}", transcript=sent.told.transcript)
    if delivered.taken is None:
        return inconclusive(delivered.no_sink)
    copies = delivered.at_sink(sent)
    if not copies:
        raise NotObserved(Failed(Failure.NOT_TRIED, f"the sink got nothing (E2E-02); {_where(delivered, sent)}"))
    bare = [c for c in copies if re.search(rb"(?<!\r)\n|\r(?!\n)", c.content)]
    found = f"the sink took {len(copies)} message{'s' if len(copies) > 1 else ''}"
    if bare or len(copies) > 1:
        return failed(f"{found}, {len(bare)} with bare CR or LF: {short(bare[0].content) if bare else ''}")
    return passed(f"{found}; every line of it ends in CRLF")


def nothing_relayed(seen: Seen) -> Finding:
    """MX-RLY-33: nothing that was to be refused came to the sink, as a message or as its bounce, or lies in the
    queue."""
    delivered = seen[DELIVERY]
    if delivered.taken is None:
        return inconclusive(delivered.no_sink)
    outside = f"@{(seen.target.outside_domain or '').lower()}"
    tried = [s for s in delivered.sent if s.kind in ("relay", "unknown")]
    if not tried:
        raise NotObserved(Failed(Failure.NOT_TRIED, "no relaying could be tried"))
    wrong = [f"{s.kind}: {s.told}" for s in tried if s.accepted]
    wanted = {to for s in delivered.sent if s.kind in ("mail", "bare") for to in s.to_sink}
    for message in delivered.taken:
        strangers = [to for to in message.rcpt_to if to not in wanted]
        if strangers:
            wrong.append(f"the sink got a message from <{message.mail_from}> for {', '.join(strangers)}")
    for queued in delivered.queued:
        strangers = [to for to in queued.recipients if to.lower().endswith(outside) and to not in wanted]
        if strangers:
            wrong.append(f"in the queue: {queued.identity} for {', '.join(strangers)} ({queued.reason or 'new'})")
    if wrong:
        return failed("\n".join(wrong), transcript=tuple(line for s in tried for line in s.told.transcript))
    return passed(
        f"the sink got {len(delivered.taken)} messages, all sent by this run as a user; the queue holds none",
        transcript=tuple(line for s in tried for line in s.told.transcript),
    )


def signs_nothing(_seen: Seen) -> Finding:
    """DKM-01 to DKM-04, HST-DKIM-01."""
    return Finding(Verdict.NOT_APPLICABLE, "Gatepost's servers have no DKIM signer yet: these ids wait for it")


# -- Rows --------------------------------------------------------------------------------------------------------------

_SUBCLEANUP = (
    "give the submission services a cleanup(8) of their own: -o cleanup_service_name=subcleanup, whose header_checks "
)
_QUEUE = (
    "`postqueue -p` and the log (`journalctl -u postfix`) say where it went. A connection that is refused at Dovecot's "
    "socket means that Dovecot is down (systemctl start dovecot)."
)

REQUIREMENTS = (
    Requirement(
        id="MX-RLY-33",
        scope=Scope.SERVER,
        title="Nothing is relayed, not even as a bounce",
        expected="no message or bounce for the outside domain at the sink or in the queue",
        remedy="smtpd_relay_restrictions = permit_mynetworks, reject_unauth_destination; reject unknown recipients at "
        "RCPT (smtpd_reject_unlisted_recipient = yes, complete virtual_mailbox_maps).",
        problem="Something for a stranger's address left the server or waits in its queue, as a message or as a "
        "bounce.",
        risk="The server sends spam, or bounces to people who never wrote (backscatter), and lands on block lists.",
        source="RFC 5321 §7.1, §3.6.2",
        probes=(OUTBOX, DELIVERY),
        check=nothing_relayed,
        needs=Need.VIA | Need.SINK | Need.DOMAIN | Need.OUTSIDE,
        over=Scope.RELAY,
    ),
    Requirement(
        id="INJ-09",
        scope=Scope.ALL,
        title="A message with bare line feeds is delivered whole, or refused",
        expected="every line in the mailbox, or 550 5.5.2 at the end of the message",
        remedy="smtpd_forbid_bare_newline = normalize (or reject); set it explicitly, since 3.7's default is no.",
        problem="A message with bare line feeds arrives cut off or changed.",
        risk="Users lose part of a message and nobody is told.",
        source="RFC 5321 §2.3.8, CVE-2023-51764",
        probes=(OUTBOX, DELIVERY),
        check=bare_lf_kept,
        needs=Need.VIA | Need.LOGIN | Need.DOMAIN,
        once=True,
    ),
    Requirement(
        id="INJ-15",
        scope=Scope.SUBMISSION,
        title="Mail that goes out cannot smuggle",
        expected="one message at the sink, every line ended by CRLF",
        remedy="smtpd_forbid_bare_newline = normalize on the submission services too; no content filter behind that "
        "passes bare line feeds on.",
        problem="A message that a user sends leaves the server in a form that others can read as two.",
        risk="The server becomes the source of smuggled mail, forged in the name of its own domains with a valid SPF.",
        source="RFC 5321 §2.3.8, §4.1.1.4",
        probes=(OUTBOX, DELIVERY),
        check=not_a_source,
        needs=Need.VIA | Need.SINK | Need.ACCOUNT | Need.OUTSIDE,
        once=True,
    ),
    Requirement(
        id="PRV-01",
        scope=Scope.SUBMISSION,
        title="Where a mail client sits is not told",
        expected="no header with the client's address, its name or what it said in EHLO",
        remedy=f"Postfix 3.10: -o smtpd_hide_client_session=yes on this service; before: {_SUBCLEANUP}replace the "
        "first Received line.",
        problem="Mail of users shows from which address and computer they sent it.",
        risk="Every recipient learns where the user sits: at home, at a hotel, at which provider.",
        source="RFC 6409 §8, RFC 5321 §7.6",
        probes=(OUTBOX, DELIVERY),
        check=client_hidden,
        needs=Need.VIA | Need.ACCOUNT,
        once=True,
    ),
    Requirement(
        id="PRV-02",
        scope=Scope.SUBMISSION,
        title="The login name is not told",
        expected="no (Authenticated sender: …) in a Received header",
        remedy="smtpd_sasl_authenticated_header = no.",
        problem="Mail of users shows their login name.",
        risk="Every recipient gets half of what is needed to log in as the user.",
        source="policy (postconf(5), smtpd_sasl_authenticated_header)",
        probes=(OUTBOX, DELIVERY),
        check=login_hidden,
        needs=Need.VIA | Need.ACCOUNT,
        once=True,
    ),
    Requirement(
        id="PRV-03",
        scope=Scope.SUBMISSION,
        title="X-Originating-IP and User-Agent are taken out",
        expected="neither header in the delivered message",
        remedy=f"{_SUBCLEANUP}ignore both (header_checks(5), IGNORE).",
        problem="Mail of users carries headers that tell their address or mail program.",
        risk="Every recipient learns where the user sits, or which program and version to attack.",
        source="policy (RFC 6409 §8)",
        probes=(OUTBOX, DELIVERY),
        check=program_hidden,
        needs=Need.VIA | Need.ACCOUNT,
        once=True,
    ),
    Requirement(
        id="PRV-04",
        scope=Scope.RELAY,
        title="Mail between servers keeps its trace",
        expected="the first Received header names the client, its address and the protocol",
        remedy="use header_checks that scrub Received on the submission services' cleanup(8) only, not in main.cf.",
        problem="The trace of incoming mail does not say where it came from.",
        risk="Spam and faults cannot be followed to their source, and filters that read the trace stop working.",
        source="RFC 5321 §4.4",
        probes=(OUTBOX, DELIVERY),
        check=trace_kept,
        needs=Need.VIA | Need.DOMAIN,
        once=True,
    ),
    Requirement(
        id="E2E-00",
        scope=Scope.SUBMISSION,
        title="A user's message is taken",
        expected="250 to the end of the message",
        remedy="451 4.7.1 means that a milter does not answer (smtpd_milters, milter_default_action); 452 that the "
        "disk is full (queue_minfree).",
        problem="A message from a user who logged in is refused at the end.",
        risk="Users cannot send, though everything up to there looks well.",
        source="RFC 5321 §4.1.1.4, RFC 6409",
        probes=(OUTBOX, DELIVERY),
        check=taken,
        needs=Need.VIA | Need.ACCOUNT,
        once=True,
    ),
    Requirement(
        id="E2E-01",
        scope=Scope.SUBMISSION,
        title="A user's message for a user here is in the mailbox within 8 s",
        expected="read back from the mailbox",
        remedy=f"virtual_transport must lead to the delivery agent's socket (lmtp:unix:private/dovecot-lmtp), and "
        f"nothing may discard. {_QUEUE}",
        problem="The server said yes to a message and did not put it into the mailbox.",
        risk="Mail is lost or late, and nobody is told: the server has taken responsibility for it.",
        source="RFC 5321 §6.1",
        probes=(OUTBOX, DELIVERY),
        check=in_mailbox,
        needs=Need.VIA | Need.ACCOUNT,
        once=True,
    ),
    Requirement(
        id="E2E-02",
        scope=Scope.SUBMISSION,
        title="A user's message for another domain goes out, with its envelope intact",
        expected="at the sink, with the sender and the recipient that were handed in",
        remedy=f"relayhost, transport_maps and defer_transports decide where it goes. {_QUEUE}",
        problem="The server said yes to a message for another domain and did not send it as it was handed in.",
        risk="Mail to the outside is lost or late, and its sender is told after days or not at all.",
        source="RFC 5321 §5.1, §6.1",
        probes=(OUTBOX, DELIVERY),
        check=at_the_sink,
        needs=Need.VIA | Need.ACCOUNT | Need.SINK | Need.OUTSIDE,
        once=True,
    ),
    Requirement(
        id="E2E-03",
        scope=Scope.RELAY,
        title="Mail from another server is delivered: to a user, to user+tag, and a report to abuse",
        expected="all of them read back from a mailbox within 8 s",
        remedy=f"virtual_transport, virtual_alias_maps, recipient_delimiter = +; content filters must let reports to "
        f"abuse through. {_QUEUE}",
        problem="The server said yes to mail from outside and did not put it into the mailbox.",
        risk="Mail is lost and nobody is told; for abuse, complaints go unread until the server is blocked.",
        source="RFC 5321 §6.1, RFC 2142 §4, RFC 5965, RFC 5233",
        probes=(OUTBOX, DELIVERY),
        check=arrived,
        needs=Need.VIA | Need.DOMAIN,
        once=True,
    ),
    Requirement(
        id="E2E-04",
        scope=Scope.RELAY_STARTTLS,
        title="The trace says that TLS was used, and which",
        expected="with ESMTPS, and using TLSv1.x with cipher … in the Received header",
        remedy="smtpd_tls_received_header = yes.",
        problem="The trace of a message does not say that it came encrypted.",
        risk="Nobody can show later whether a message crossed the net in clear.",
        source="RFC 3848, RFC 8314 §4.3",
        probes=(OUTBOX, DELIVERY),
        check=tls_in_received,
        needs=Need.VIA | Need.DOMAIN,
        once=True,
    ),
    *(
        Requirement(
            id=identifier,
            scope=Scope.SERVER,
            title=title,
            expected="judged when the project has a signer",
            remedy="nothing to do yet.",
            source=source,
            problem="There is no signer yet, so this is not judged.",
            risk="Large providers put unsigned mail into the spam folder or refuse it; a signer that signs what "
            "strangers hand in vouches for forgeries.",
            probes=(REACH,),
            check=signs_nothing,
            severity=Severity.INFO,
        )
        for identifier, title, source in (
            ("DKM-01", "A user's mail is signed", "RFC 6376, RFC 8301, RFC 8463"),
            ("DKM-02", "Mail from outside in our name is not signed", "RFC 6376"),
            ("DKM-03", "Forged Authentication-Results are removed", "RFC 8601 §5"),
            ("DKM-04", "Nothing goes out unsigned while the signer is down", "RFC 6376"),
            ("HST-DKIM-01", "The signing key is the signer's alone, and the one in the DNS", "RFC 6376 §3.6.1"),
        )
    ),
)
