"""What real messages show (E2E, PRV, INJ-09, INJ-15, MX-RLY-33): pure functions of what was sent and found. And the
sink, on the loopback."""

import smtplib
import socket
from dataclasses import replace

import pytest
from observations import ADDRESS, LISTENERS, dialogue, reply, target

from gatepost.errors import GatepostError
from gatepost.verification import check_sink, login_at
from gatepost.verify.checks.delivery import DELIVERY, REQUIREMENTS
from gatepost.verify.checks.relay import LOOP, loop_ends
from gatepost.verify.model import Login, Verdict
from gatepost.verify.registry import Need, NotObserved, Seen
from gatepost.verify.wire import sink
from gatepost.verify.wire.delivery import HEADER, Copy, Delivered, Queued, Sent, hand_in
from gatepost.verify.wire.message import message, token, written
from gatepost.verify.wire.probe import Failed, Site, Step, Told
from gatepost.verify.wire.session import Failure, WireError
from gatepost.verify.wire.sink import Sink, Taken

CLIENT, EHLO = "198.51.100.7", f"{token()}.client.remote.test"
ALICE = "alice@example.test"
HIDDEN = "by mx.example.test (Postfix) id 4AB;\r\n\tTue, 24 Nov 2026 10:00:00 +0000"
TRACE = (
    f"from client.remote.test (host.isp.test [{CLIENT}])\r\n\t(using TLSv1.3 with cipher TLS_AES_256_GCM_SHA384 "
    "(256/256 bits))\r\n\tby mx.example.test (Postfix) with ESMTPS id 4AC; Tue, 24 Nov 2026 10:00:00 +0000"
)
BODY = b"first\r\nsecond\r\nthird\r\n.\r\nfourth\r\nfifth\r\n"


def sent(kind, listener="submission", answer="250 2.0.0 Ok: queued as 4AB", here=(ALICE,), out=()):
    steps = (Step("MAIL", (reply("250 2.1.0 Ok"),)),)
    if answer:
        steps += (Step("(message)", (reply(answer),)),)
    ehlo = "client.remote.test" if listener == "relay" else EHLO
    return Sent(kind, listener, Told(kind, steps), here, out, ehlo, CLIENT)


def content(kind, listener="submission", received=HIDDEN, more=(), body=b"Text\r\n"):
    head = [f"Received: {received}", *more, f"{HEADER}: {token()} {kind}/{listener}", "Subject: gatepost-probe"]
    return "\r\n".join(head).encode() + b"\r\n\r\n" + body


def copy(kind, listener="submission", user=ALICE, **what):
    return Copy(user, content(kind, listener, **what).replace(b"\r\n", b"\n"))


def taken(kind="mail", to="gatepost-probe-submission@remote.test", sender=ALICE, **what):
    return Taken(ADDRESS, sender, (to,), content(kind, **what))


OUT = ("gatepost-probe-submission@remote.test",)
SOUND = Delivered(
    "ssh://root@server",
    sent=(
        sent("mail", out=OUT),
        sent("bare", out=OUT),
        *(sent(kind, "relay") for kind in ("inbound", "tag", "arf", "bare")),
        sent("relay", "relay", answer="", here=()),
        sent("unknown", "relay", answer="", here=()),
    ),
    failures=(),
    copies=(
        copy("mail"),
        copy("bare", body=BODY),
        *(copy(kind, "relay", received=TRACE, body=BODY) for kind in ("inbound", "tag", "arf", "bare")),
    ),
    taken=(taken(), taken("bare", body=BODY)),
    no_sink="",
    queued=(),
    names=("host.isp.test",),
)


def judge(identifier, delivered):
    row = next(r for r in REQUIREMENTS if r.id == identifier)
    listener = next(li for li in LISTENERS.values() if row.looks_at(li))
    if identifier in ("INJ-09", "INJ-15"):
        listener = LISTENERS["submission"]
    whole = target(via=(Login("ssh://root@server", ("ssh",)),), sink=("192.0.2.1",))
    site = None if row.scope.name == "SERVER" else Site(whole, listener, ADDRESS)
    return row.check(Seen(whole, site, {("", "", DELIVERY.name): delivered}))


def without(kind, listener="submission"):
    """SOUND, with one message in no mailbox."""
    label = f"{kind}/{listener}".encode()
    return replace(SOUND, copies=tuple(c for c in SOUND.copies if label not in c.content))


def with_copy(kind, listener="submission", **what):
    broken = without(kind, listener)
    return replace(broken, copies=(*broken.copies, copy(kind, listener, **what)))


def refused(kind, listener="submission", answer="451 4.7.1 Service unavailable - try again later"):
    rest = tuple(s for s in SOUND.sent if (s.kind, s.listener) != (kind, listener))
    return replace(SOUND, sent=(*rest, sent(kind, listener, answer)))


STUCK = Queued("4AB", ALICE, OUT, "deferred transport", ours=True)
BROKEN = [
    ("E2E-00", refused("mail"), "451"),
    ("E2E-01", without("mail"), "in no mailbox after 8 s"),
    ("E2E-01", replace(without("mail"), log=("4AB: to=<alice>, status=sent (discarded)",)), "status=sent (discarded)"),
    ("E2E-02", replace(SOUND, taken=(), queued=(STUCK,)), "deferred transport"),
    ("E2E-02", replace(SOUND, taken=(taken(sender="SRS0=x@example.test"),)), "SRS0=x@example.test"),
    ("E2E-02", replace(SOUND, taken=(taken(), taken())), "; from"),
    ("E2E-03", without("inbound", "relay"), "inbound: taken"),
    ("E2E-03", without("tag", "relay"), "tag: taken"),
    ("E2E-03", without("arf", "relay"), "arf: taken"),
    ("E2E-03", refused("arf", "relay", "550 5.7.1 looks like spam"), "looks like spam"),
    ("E2E-04", with_copy("inbound", "relay", received=TRACE.replace("ESMTPS", "ESMTP")), "with ESMTP id"),
    ("E2E-04", with_copy("inbound", "relay", received=TRACE.replace("using TLSv1.3 with cipher", "")), "with ESMTPS"),
    ("PRV-01", with_copy("mail", received=f"from x (unknown [{CLIENT}]) by mx.example.test; date"), CLIENT),
    ("PRV-01", with_copy("mail", received=f"from {EHLO} by mx.example.test; date"), EHLO),
    ("PRV-01", with_copy("mail", more=["X-Client: host.isp.test"]), "host.isp.test"),
    ("PRV-01", replace(SOUND, taken=(taken(more=[f"X-Sender-IP: {CLIENT}"]),)), "at the sink"),
    ("PRV-02", with_copy("mail", received=f"{HIDDEN} (Authenticated sender: {ALICE})"), "Authenticated sender"),
    ("PRV-03", with_copy("mail", more=["User-Agent: Gatepost mail program/1"]), "User-Agent"),
    ("PRV-03", replace(SOUND, taken=(taken(more=["X-Originating-IP: [192.0.2.99]"]),)), "X-Originating-IP"),
    ("PRV-04", with_copy("inbound", "relay", received=HIDDEN), CLIENT),
    ("INJ-09", with_copy("bare", body=b"first\r\nsecond\r\nthird\r\n"), "first / second / third"),
    ("INJ-09", refused("bare", answer="451 4.3.0 later"), "451"),
    ("INJ-15", replace(SOUND, taken=(taken("bare", body=b"third\n.\nfourth\r\n"),)), "1 with bare CR or LF"),
    ("INJ-15", replace(SOUND, taken=(taken("bare"), taken("bare"))), "2 messages"),
    ("MX-RLY-33", replace(SOUND, taken=(taken(to="gatepost-probe-relay@remote.test"),)), "gatepost-probe-relay"),
    ("MX-RLY-33", replace(SOUND, taken=(taken(to="gatepost-probe@remote.test", sender=""),)), "from <>"),
    ("MX-RLY-33", refused("relay", "relay", "250 2.0.0 Ok: queued as 4AD"), "relay: "),
    (
        "MX-RLY-33",
        replace(SOUND, queued=(Queued("4AE", "", ("gatepost-probe@remote.test",), "", ours=True),)),
        "in the queue: 4AE",
    ),
]
JUDGED = [row.id for row in REQUIREMENTS if not row.id.startswith(("DKM", "HST-DKIM"))]


@pytest.mark.parametrize("identifier", JUDGED)
def test_passes_where_all_arrived_as_it_should(identifier):
    finding = judge(identifier, SOUND)
    assert finding.verdict is Verdict.PASS, finding.found


@pytest.mark.parametrize(("identifier", "delivered", "words"), BROKEN)
def test_fails_and_quotes_what_is_broken(identifier, delivered, words):
    finding = judge(identifier, delivered)
    assert finding.verdict is Verdict.FAIL and words in finding.found, finding.found


def test_every_row_has_a_failing_case():
    assert {identifier for identifier, _, _ in BROKEN} == set(JUDGED)


def test_a_message_with_bare_line_feeds_may_be_refused():
    finding = judge("INJ-09", refused("bare", answer="550 5.5.2 Error: bare <LF> received"))
    assert finding.verdict is Verdict.PASS


@pytest.mark.parametrize("identifier", ["E2E-02", "INJ-15", "MX-RLY-33"])
def test_without_a_sink_what_goes_out_is_unknown(identifier):
    finding = judge(identifier, replace(SOUND, taken=None, no_sink="no sink on port 25: Address already in use"))
    assert finding.verdict is Verdict.INCONCLUSIVE and "already in use" in finding.found


@pytest.mark.parametrize("identifier", ["E2E-01", "PRV-01", "PRV-02", "PRV-03", "E2E-04", "PRV-04", "INJ-09"])
def test_what_was_not_sent_or_not_found_passes_nothing(identifier):
    with pytest.raises(NotObserved):
        gone = Failed(Failure.LIMITED, "421 4.7.0 too many connections")
        judge(identifier, replace(SOUND, sent=(), copies=(), failures=(("relay", gone), ("submission", gone))))


@pytest.mark.parametrize("identifier", ["PRV-01", "PRV-02", "PRV-03"])
def test_privacy_of_a_message_that_is_nowhere_is_unknown(identifier):
    with pytest.raises(NotObserved, match="found nowhere"):
        judge(identifier, replace(without("mail"), taken=()))


def test_what_waits_for_a_signer_does_not_apply():
    waiting = [row for row in REQUIREMENTS if row.id not in JUDGED]
    assert [row.id for row in waiting] == ["DKM-01", "DKM-02", "DKM-03", "DKM-04", "HST-DKIM-01"]
    for row in waiting:
        finding = judge(row.id, SOUND)
        assert finding.verdict is Verdict.NOT_APPLICABLE and "signer" in finding.found


def test_nothing_is_judged_without_a_login():
    for row in REQUIREMENTS:
        if row.id in JUDGED:
            assert Need.VIA in row.needs, row.id


def test_nothing_is_sent_without_a_login_at_the_server_itself():
    other = Login("ssh://other", ("false",))
    with pytest.raises(WireError) as caught:
        hand_in(target(via=(other,), hostname="mx.nowhere.test"), [Site(target(), LISTENERS["relay"], "127.0.0.1")])
    assert caught.value.failure is Failure.NOT_TRIED and "is not mx.nowhere.test" in caught.value.detail


# -- Messages ----------------------------------------------------------------------------------------------------------


def test_a_message_is_known_by_the_runs_token_and_has_crlf_alone():
    site = Site(target(), LISTENERS["relay"], ADDRESS)
    text = message(site, "kind", sender="a@remote.test", recipient=ALICE, headers=["X-Top: 1"])
    head, _, body = text.partition(b"\r\n\r\n")
    assert text.startswith(b"X-Top: 1\r\n") and body.endswith(b"\r\n")
    assert f"{HEADER}: {token()} kind".encode() in head.split(b"\r\n")
    assert b"Subject: gatepost-probe kind" in head.split(b"\r\n")
    assert b"\n" not in text.replace(b"\r\n", b"")
    assert {b"From", b"To", b"Date", b"Message-ID"} <= {line.partition(b":")[0] for line in head.split(b"\r\n")}
    assert written()


# -- The sink ----------------------------------------------------------------------------------------------------------


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return listening.getsockname()[1]


def test_the_sink_takes_mail_for_its_domain_alone():
    port = free_port()
    box = Sink(["127.0.0.1"], "Remote.test", port=port)
    try:
        with smtplib.SMTP("127.0.0.1", port) as client:
            client.sendmail(ALICE, ["x@remote.TEST"], b"Subject: 1\r\n\r\n..dot\r\n")
            client.sendmail("", ["x@remote.test"], b"Subject: a bounce\r\n\r\n")
            with pytest.raises(smtplib.SMTPRecipientsRefused):
                client.sendmail(ALICE, ["x@example.org"], b"Subject: 2\r\n\r\n")
    finally:
        box.close()
    [one, bounce] = box.taken
    assert bounce.mail_from == ""
    assert (one.peer, one.mail_from, one.rcpt_to) == ("127.0.0.1", ALICE, ("x@remote.TEST",))
    assert one.content == b"Subject: 1\r\n\r\n..dot\r\n"
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), 1)


def test_the_sink_keeps_no_more_than_it_can_hold(monkeypatch):
    monkeypatch.setattr(sink, "MOST", 2)
    monkeypatch.setattr(sink, "LARGEST", 1000)
    port = free_port()
    box = Sink(["127.0.0.1"], "remote.test", port=port)
    try:
        with smtplib.SMTP("127.0.0.1", port) as client:
            with pytest.raises(smtplib.SMTPException):
                client.sendmail(ALICE, ["x@remote.test"], b"x" * 100 + b"\r\n" + b"y\r\n" * 2000)
            for _ in range(2):
                client.sendmail(ALICE, ["x@remote.test"], b"Subject: 1\r\n\r\n")
            with pytest.raises(smtplib.SMTPDataError):
                client.sendmail(ALICE, ["x@remote.test"], b"Subject: 3\r\n\r\n")
    finally:
        box.close()
    assert len(box.taken) == 2


def test_a_port_that_stays_taken_is_told(monkeypatch):
    monkeypatch.setattr(sink, "WAIT_SECONDS", 0.0)
    with socket.create_server(("127.0.0.1", 0)) as holder, pytest.raises(WireError, match="in use") as caught:
        Sink(["127.0.0.1"], "remote.test", port=holder.getsockname()[1])
    assert caught.value.failure is Failure.BUSY


def test_the_sink_waits_for_another_runs(monkeypatch):
    port = free_port()
    first = Sink(["127.0.0.1"], "remote.test", port=port)
    slept = []

    def sleep(seconds):
        slept.append(seconds)
        if len(slept) == 1:
            first.close()

    monkeypatch.setattr(sink.time, "sleep", sleep)
    second = Sink(["127.0.0.1"], "remote.test", port=port)
    second.close()
    assert slept


# -- What the command line gives ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "command"),
    [
        ("ssh://mx.example.test", ("ssh", "--", "mx.example.test")),
        ("ssh://root@mx.example.test:2222", ("ssh", "-p", "2222", "--", "root@mx.example.test")),
        ("ssh://root@[2001:db8::1]", ("ssh", "--", "root@2001:db8::1")),
    ],
)
def test_a_login_is_an_ssh_url(url, command):
    assert login_at(url) == Login(url, command)


@pytest.mark.parametrize(
    "url",
    [
        "mx.example.test",
        "ssh://",
        "ssh://-oProxyCommand=id",
        "ssh://-l@host",
        "ssh://host:port",
        "ssh://u:secret@host",
        "ssh://host/path",
    ],
)
def test_what_is_no_login_is_refused(url):
    with pytest.raises(GatepostError, match="not a login") as caught:
        login_at(url)
    assert "ssh://[USER@]HOST[:PORT]" in str(caught.value) and "secret" not in str(caught.value)


def test_a_sink_must_be_an_address_of_this_computer():
    with pytest.raises(GatepostError, match="cannot listen"):
        check_sink("192.0.2.1")


@pytest.mark.parametrize(
    ("delivered", "verdict"),
    [
        (SOUND, Verdict.PASS),
        (replace(SOUND, queued=(STUCK,)), Verdict.INCONCLUSIVE),
        (replace(SOUND, copies=(Copy(ALICE, f"{HEADER}: {token()} loop\n\nText\n".encode()),)), Verdict.FAIL),
    ],
    ids=["gone", "queued", "delivered"],
)
def test_what_became_of_a_looping_message_is_seen_at_the_server(delivered, verdict):
    ok = "250 2.0.0 Ok"
    looped = dialogue({"loop": (ok, ok, "354 go on", ok)})
    whole = target(via=(Login("ssh://root@server", ("ssh",)),))
    site = Site(whole, LISTENERS["relay"], ADDRESS)
    seen = {("relay", ADDRESS, LOOP.name): looped, ("", "", DELIVERY.name): delivered}
    assert loop_ends(Seen(whole, site, seen)).verdict is verdict
