"""Real messages, from the door to the mailbox and to the sink, read back at the server, and removed there.

Messages are sent only when one of the target's logins is at the server itself, so that they can be read back and
removed; and to the outside domain only when its mail is known to come to our own sink.
"""

from __future__ import annotations

import ipaddress
import json
import re
import shlex
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from email.parser import BytesParser
from email.policy import compat32
from typing import Any

from gatepost.verify.model import Login, Target
from gatepost.verify.wire import ssh
from gatepost.verify.wire.message import BODY, HEADER, message, token
from gatepost.verify.wire.probe import Failed, Site, Step, Told, case, open_session, tell_case
from gatepost.verify.wire.session import Answer, Ended, Failure, Reply, Session, WireError
from gatepost.verify.wire.sink import Sink, Taken

DELIVERY_SECONDS = 8.0  # E2E-01
_MARK = "==gatepost=="


@dataclass(frozen=True, slots=True)
class Sent:
    """One message as it was handed in. `told` ends with the reply to its end-of-data, or earlier when refused."""

    kind: str
    listener: str
    told: Told
    to_mailbox: tuple[str, ...]  # recipients here that were accepted
    to_sink: tuple[str, ...]  # recipients in the outside domain that were accepted
    ehlo: str
    source: str  # our address, as the server sees it

    @property
    def identity(self) -> str:
        """Return the name under which Postfix queued it; empty where it does not say so."""
        last = self.told.last
        match = re.search(r"queued as (\w+)", last.text) if isinstance(last, Reply) else None
        return match.group(1) if match else ""

    @property
    def accepted(self) -> bool:
        """Whether the server took the message."""
        return self.told.steps[-1].sent == "(message)" and self.told.codes[-1:] == (250,)


@dataclass(frozen=True, slots=True)
class Copy:
    """A message as it lies in a mailbox; line ends are LF there."""

    user: str
    content: bytes

    def headers(self, name: str) -> tuple[str, ...]:
        """Return every value of a header, unfolded."""
        return headers(self.content, name)


@dataclass(frozen=True, slots=True)
class Queued:
    """A message that still lay in the queue at the end."""

    identity: str
    sender: str
    recipients: tuple[str, ...]
    reason: str
    ours: bool


@dataclass(frozen=True, slots=True)
class Delivered:
    """What was sent, and where it was found."""

    login: str
    sent: tuple[Sent, ...]
    failures: tuple[tuple[str, Failed], ...]  # listener, why nothing could be handed in there
    copies: tuple[Copy, ...]
    taken: tuple[Taken, ...] | None  # None: there was no sink, for the reason in `no_sink`
    no_sink: str
    queued: tuple[Queued, ...]
    names: tuple[str, ...]  # what the server's resolver calls our addresses (PTR)
    log: tuple[str, ...] = ()  # lines of Postfix's log about the messages, where one is missing

    def of(self, kind: str, listener: str) -> Sent | None:
        """Return the message of this kind that a listener was given."""
        return next((s for s in self.sent if (s.kind, s.listener) == (kind, listener)), None)

    def in_mailbox(self, sent: Sent) -> tuple[Copy, ...]:
        """Return the copies of a message that lie in mailboxes here."""
        return tuple(c for c in self.copies if _kind(c.content) == _label(sent.kind, sent.listener))

    def of_kind(self, kind: str) -> tuple[Copy, ...]:
        """Return the copies of a message that another probe of this run sent."""
        return tuple(c for c in self.copies if _kind(c.content) == kind)

    def at_sink(self, sent: Sent) -> tuple[Taken, ...]:
        """Return the copies of a message that the sink took."""
        return tuple(t for t in self.taken or () if _kind(t.content) == _label(sent.kind, sent.listener))


def headers(content: bytes, name: str) -> tuple[str, ...]:
    """Return every value of a message's header, unfolded."""
    parsed = BytesParser(policy=compat32).parsebytes(content, headersonly=True)
    return tuple(" ".join(str(value).split()) for value in parsed.get_all(name, ()))


def _kind(content: bytes) -> str:
    found = headers(content, HEADER)
    return found[0].removeprefix(f"{token()} ") if found and found[0].startswith(f"{token()} ") else ""


def _label(kind: str, listener: str) -> str:
    return f"{kind}/{listener}"


# -- At the server -----------------------------------------------------------------------------------------------------


def _home(target: Target) -> Login:
    """Return the login that is at the server itself; raise WireError when none is."""
    reasons = []
    for login in target.via:
        place = ssh.place(login, target)
        if not place.home:
            reasons.append(f"{login.url} is not {target.hostname}, so nothing can be read back or removed there")
        elif not place.doveadm:
            reasons.append(f"{login.url} has no doveadm, and only Dovecot's mailboxes can be read back")
        else:
            return login
    raise WireError(Failure.NOT_TRIED, "; ".join(reasons))


_READ = """
users="$(printf '%s\\n' {users}
for map in $(postconf -xh virtual_alias_maps | tr ',' ' '); do postmap -q {role} "$map" | tr ',' '\\n'; done)"
users=$(printf '%s\\n' "$users" | sed 's/ //g' | sort -u)
end=$((SECONDS + {seconds}))
while :; do
  n=0
  for user in $users; do
    n=$((n + $(doveadm search -u "$user" mailbox '*' SAVEDSINCE 1h HEADER {header} {token} 2>/dev/null | wc -l)))
  done
  [ "$n" -ge {wanted} ] && [ -z "$(postqueue -p | sed -n '/^[0-9A-Za-z]*\\*/p')" ] && break
  [ "$SECONDS" -ge "$end" ] && break
  sleep 0.2
done
for user in $users; do
  echo "{mark} mailbox $user"
  doveadm -f json fetch -u "$user" text mailbox '*' SAVEDSINCE 1h HEADER {header} {token} 2>/dev/null
  echo
  # Bounces of our messages quote them; what a run that was killed left is removed after an hour. Dates stand in the
  # index, and bound how much of a large mailbox is read.
  doveadm expunge -u "$user" mailbox '*' SAVEDSINCE 1h TEXT {token} 2>/dev/null
  doveadm expunge -u "$user" mailbox '*' SAVEDBEFORE 1h SAVEDSINCE 7d HEADER {header} "" 2>/dev/null
done
echo "{mark} queue"
postqueue -j | head -n 200 | while IFS= read -r line; do
  id=$(printf '%s' "$line" | sed -n 's/.*"queue_id": "\\([^"]*\\)".*/\\1/p')
  if postcat -q "$id" 2>/dev/null | grep -q {token}; then
    echo "ours $line"
    postsuper -d "$id" 2>/dev/null
  else
    echo "other $line"
  fi
done
if [ "$n" -lt {wanted} ]; then
  echo "{mark} log"
  {{ journalctl -q --no-pager -o cat -u 'postfix*' --since -5min || cat /var/log/mail.log; }} 2>/dev/null |
    grep -E {identities} | grep -E 'status=|discard|hold|reject|warning|milter' | tail -n 60
fi
echo "{mark} names"
for address in {sources}; do getent hosts "$address" | sed 's/^[^ ]* *//'; done
:
"""


@dataclass(frozen=True, slots=True)
class _Reading:
    copies: tuple[Copy, ...]
    queued: tuple[Queued, ...]
    names: tuple[str, ...]
    log: tuple[str, ...]


def _read(login: Login, target: Target, sent: tuple[Sent, ...]) -> _Reading:
    wanted = sum(len(s.to_mailbox) for s in sent if s.accepted)
    users = {account.address for account in target.accounts} | {to for s in sent for to in s.to_mailbox}
    quoted = " ".join(shlex.quote(user) for user in sorted(users) if "+" not in user) or "''"
    sources = " ".join(sorted({shlex.quote(s.source) for s in sent}))
    script = _READ.format(
        users=quoted,
        role=shlex.quote(f"abuse@{target.domains[0]}" if target.domains else "abuse"),
        seconds=int(DELIVERY_SECONDS),
        identities=shlex.quote("|".join(s.identity for s in sent if s.identity) or "^$"),
        header=HEADER,
        token=token(),
        wanted=wanted,
        mark=_MARK,
        sources=sources or "''",
    )
    said = ssh.run(login, script, root=True, seconds=60.0)
    copies: list[Copy] = []
    queued: list[Queued] = []
    names: list[str] = []
    log: list[str] = []
    for part in said.split(f"{_MARK} ")[1:]:
        title, _, rest = part.partition("\n")
        if title.startswith("mailbox "):
            copies += _copies(title.removeprefix("mailbox "), rest)
        elif title == "queue":
            queued += [_queued(line) for line in rest.splitlines() if "{" in line]
        elif title == "log":
            log += rest.splitlines()
        elif title == "names":
            names += rest.split()
    known = tuple(dict.fromkeys(name.rstrip(".").lower() for name in names))
    return _Reading(tuple(copies), tuple(queued), known, tuple(log))


def _copies(user: str, text: str) -> Iterator[Copy]:
    if not text.strip():
        return
    try:
        rows: list[dict[str, Any]] = json.loads(text, strict=False)
    except ValueError:
        raise WireError(Failure.GARBAGE, f"doveadm's answer for {user} is no JSON: {text[:200]!r}") from None
    for row in rows:
        yield Copy(user, str(row.get("text", "")).encode("utf-8", "backslashreplace"))


def _queued(line: str) -> Queued:
    whose, _, text = line.partition(" ")
    try:
        row: dict[str, Any] = json.loads(text, strict=False)
    except ValueError:
        return Queued("?", "", (), text[:200], whose == "ours")
    recipients = row.get("recipients", [])
    return Queued(
        str(row.get("queue_id", "?")),
        str(row.get("sender", "")),
        tuple(str(r.get("address", "")) for r in recipients),
        "; ".join(dict.fromkeys(str(r["delay_reason"]) for r in recipients if r.get("delay_reason"))),
        whose == "ours",
    )


# -- Handing in --------------------------------------------------------------------------------------------------------

# Some lines end in a bare LF: a server that takes LF.LF for the end of the message would cut it here (INJ-09, INJ-15).
BARE = ("first", "second", "third", "fourth", "fifth")
_BARE_BODY = b"first\nsecond\r\nthird\n.\nfourth\r\nfifth\r\n"
_ARF = (
    b"--gatepost\r\nContent-Type: text/plain\r\n\r\nA probe: no abuse is meant.\r\n\r\n"
    b"--gatepost\r\nContent-Type: message/feedback-report\r\n\r\n"
    b"Feedback-Type: abuse\r\nUser-Agent: Gatepost/1\r\nVersion: 1\r\n\r\n"
    b"--gatepost\r\nContent-Type: message/rfc822\r\n\r\n"
    b"From: <nobody@example.org>\r\nSubject: a message that somebody complains of\r\n\r\nText\r\n\r\n--gatepost--\r\n"
)
_ARF_HEADERS = (
    "MIME-Version: 1.0",
    'Content-Type: multipart/report; report-type=feedback-report; boundary="gatepost"',
)
LEAKS = ("X-Originating-IP", "User-Agent")


def sink_address(target: Target, kind: str) -> str:
    """Return an address in the outside domain, at the sink."""
    return f"gatepost-probe-{kind}@{target.outside_domain}"


def _hand_in(site: Site, *, with_sink: bool) -> tuple[Sent, ...]:
    if not site.listener.is_submission:
        return _as_server(site, with_sink=with_sink)
    return _as_client(site, with_sink=with_sink)


def _as_client(site: Site, *, with_sink: bool) -> tuple[Sent, ...]:
    own = site.target.accounts[0].address
    to = (own, sink_address(site.target, site.listener.name)) if with_sink else (own,)
    ehlo = f"{token()}.client.{site.target.outside_domain or 'example.net'}"
    leaks = (f"{LEAKS[0]}: [192.0.2.99]", f"{LEAKS[1]}: Gatepost mail program/1")
    with Session(site) as session:
        open_session(session, tls=True, ehlo=ehlo, account=0, greet_only=False)
        return (
            _one(session, "mail", own, to, ehlo, headers=leaks),
            _one(session, "bare", own, to, ehlo, body=_BARE_BODY),
        )


def _as_server(site: Site, *, with_sink: bool) -> tuple[Sent, ...]:
    target = site.target
    hosted = [a.address for a in target.accounts if a.address.rpartition("@")[2].lower() in target.domains]
    user = next(iter(hosted), f"postmaster@{site.domain}")
    sender = f"gatepost-probe@{target.outside_domain}" if target.outside_domain else ""
    with Session(site) as session:
        open_session(session, tls=True, ehlo=None, account=None, greet_only=False)
        ehlo = site.ehlo
        sent = [_one(session, "inbound", sender, (user,), ehlo)]
        if hosted:
            local, _, domain = user.rpartition("@")
            sent.append(_one(session, "tag", sender, (f"{local}+gatepost@{domain}",), ehlo))
        arf = (f"abuse@{site.domain}",)
        sent.append(_one(session, "arf", sender, arf, ehlo, headers=_ARF_HEADERS, body=_ARF))
        if with_sink:
            # Both are to be refused. Where they are not, the message or its bounce comes to the sink.
            sent.append(_one(session, "relay", sender, (sink_address(target, "relay"),), ehlo))
            nobody = f"gatepost-no-such-user-{token()}@{site.domain}"
            sent.append(_one(session, "unknown", sender, (nobody,), ehlo))
        # Last, since a server that takes its middle for its end answers the rest as if it were commands.
        sent.append(_one(session, "bare", sender, (user,), ehlo, body=_BARE_BODY))
        return tuple(sent)


def _one(
    session: Session,
    kind: str,
    sender: str,
    to: tuple[str, ...],
    ehlo: str,
    *,
    headers: tuple[str, ...] = (),
    body: bytes = BODY,
) -> Sent:
    site = session.site
    before = len(session.transcript)
    begun, alive = tell_case(session, case(kind, f"MAIL FROM:<{sender}>", *(f"RCPT TO:<{r}>" for r in to)), rset=False)
    answers = [step.answer for step in begun.steps]
    took = [r for r, answer in zip(to, answers[1:], strict=False) if isinstance(answer, Reply) and answer.code == 250]
    steps = begun.steps
    if alive and took:
        label = _label(kind, site.listener.name)
        text = message(site, label, sender=sender, recipient=took[0], headers=headers, body=body)
        steps += _data(session, text)
    elif alive:
        session.command("RSET")
    here = tuple(r for r in took if r.rpartition("@")[2].lower() != (site.target.outside_domain or "").lower())
    return Sent(
        kind,
        site.listener.name,
        Told(kind, steps, session.transcript[before:]),
        here,
        tuple(r for r in took if r not in here),
        ehlo,
        str(session.raw_socket.getsockname()[0]),
    )


def _data(session: Session, text: bytes) -> tuple[Step, ...]:
    go = session.command("DATA")
    if go.code != 354:
        return (Step("DATA", (go,)),)
    answer: Answer
    try:
        session.stream(text + b".\r\n")
        answer = session.reply(30.0)
    except WireError as error:
        answer = Ended(error.failure, error.detail)
    return (Step("DATA", (go,)), Step("(message)", (answer,)))


# -- The whole ---------------------------------------------------------------------------------------------------------


def check_sink(target: Target) -> None:
    """Raise WireError unless the outside domain's mail comes to the sink (RFC 5321 §5.1): MX, else A and AAAA."""
    import dns.exception
    import dns.resolver

    if target.lab:  # its resolver, which this computer does not ask, says so
        return
    assert target.outside_domain is not None

    def look(name: str, kind: str) -> list[Any]:
        try:
            return list(dns.resolver.resolve(name, kind, search=False, lifetime=5.0))
        except (dns.resolver.NoAnswer, dns.resolver.NXDOMAIN):
            return []

    try:
        exchangers = [str(row.exchange).rstrip(".") for row in look(target.outside_domain, "MX")]
        hosts = exchangers or [target.outside_domain]
        found = {str(row.address) for host in hosts for kind in ("A", "AAAA") for row in look(host, kind)}
    except dns.exception.DNSException as error:
        raise WireError(Failure.BUSY, f"MX of {target.outside_domain}: {error}") from None
    ours = {str(ipaddress.ip_address(address)) for address in target.sink}
    if not found or not found <= ours:
        raise WireError(
            Failure.NOT_TRIED,
            f"mail for {target.outside_domain} goes to {', '.join(sorted(found)) or 'nowhere'}, not to the sink "
            f"({', '.join(sorted(ours))}) alone: nothing is sent there",
        )


@dataclass(frozen=True, slots=True)
class Outbox:
    """What was handed in, and the sink that goes on listening until :func:`read_back`."""

    login: Login
    sent: tuple[Sent, ...]
    failures: tuple[tuple[str, Failed], ...]  # listener, why nothing could be handed in there
    sink: Sink | None
    no_sink: str  # why there is none


def hand_in(target: Target, sites: Sequence[Site]) -> Outbox:
    """Hand in messages at these sites.

    Raises WireError when no login of the target's is at the server itself, since nothing is sent then.
    """
    login = _home(target)
    sink, no_sink = None, "no sink for the outside domain's mail was given (--sink)"
    if target.sink and target.outside_domain:
        try:
            check_sink(target)
            sink, no_sink = Sink(target.sink, target.outside_domain), ""
        except WireError as error:
            no_sink = str(error)
    sent, failures = _everywhere(sites, with_sink=sink is not None)
    return Outbox(login, sent, failures, sink, no_sink)


def read_back(target: Target, outbox: Outbox) -> Delivered:
    """Wait for the messages in the mailboxes and at the sink, remove them, and close the sink."""
    deadline = time.monotonic() + DELIVERY_SECONDS
    try:
        found = _read(outbox.login, target, outbox.sent)
        if outbox.sink is not None:
            _wait(outbox.sink, sum(len(s.to_sink) for s in outbox.sent if s.accepted), deadline)
        taken = None if outbox.sink is None else outbox.sink.taken
    finally:
        if outbox.sink is not None:
            outbox.sink.close()
    return Delivered(
        outbox.login.url,
        outbox.sent,
        outbox.failures,
        found.copies,
        taken,
        outbox.no_sink,
        found.queued,
        found.names,
        found.log,
    )


def clean_up(target: Target) -> None:
    """Remove what an interrupted run delivered; raise WireError when there is no login at the server."""
    _read(_home(target), target, ())


def _everywhere(sites: Sequence[Site], *, with_sink: bool) -> tuple[tuple[Sent, ...], tuple[tuple[str, Failed], ...]]:
    sent: list[Sent] = []
    failures: list[tuple[str, Failed]] = []
    with ThreadPoolExecutor(max(1, len(sites)), "delivery") as pool:
        futures = {s.listener.name: pool.submit(_hand_in, s, with_sink=with_sink) for s in sites}
        for name, future in futures.items():
            try:
                sent += future.result()
            except WireError as error:
                failures.append((name, Failed(error.failure, error.detail, error.transcript)))
    return tuple(sent), tuple(failures)


def _wait(sink: Sink, wanted: int, deadline: float) -> None:
    while sum(bool(_kind(t.content)) for t in sink.taken) < wanted and time.monotonic() < deadline:
        time.sleep(0.05)


def short(content: bytes, most: int = 600) -> str:
    """Return the head of a message, for people."""
    head = re.split(rb"\r?\n\r?\n", content, maxsplit=1)[0].decode("utf-8", "backslashreplace")
    return head if len(head) <= most else f"{head[:most]}…"
