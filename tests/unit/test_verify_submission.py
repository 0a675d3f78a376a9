import base64
import contextlib
import re
import time
from dataclasses import replace

import pytest
from observations import ADDRESS, CLOSED, LISTENERS, SILENT, dialogue, judge, reply, target, told
from smtp_loopback import ALICE, BOB, Conversation, Server

from gatepost.listeners import Listener
from gatepost.verify.checks import submission
from gatepost.verify.model import Verdict
from gatepost.verify.registry import Seen
from gatepost.verify.report import as_json, html
from gatepost.verify.runner import run
from gatepost.verify.wire.login import RATE_TRIES, Timing, mann_whitney
from gatepost.verify.wire.probe import Failed, Site
from gatepost.verify.wire.session import Failure

NO_TLS = "250-mx.example.test\n250 PIPELINING"
OK = "250 2.1.5 Ok"
EHLO = "250-mx.example.test\n250-PIPELINING\n250 "
WRONG = r"AUTH PLAIN (?!AGFsaWNlQGV4YW1wbGUudGVzdABDb3JyM2N0LWhvcnNl)"  # anything but alice's credentials


def response(*parts):
    return re.escape(base64.b64encode("\0".join(parts).encode()).decode()) + "$"


AS_BOB = response(BOB.address, ALICE.address, ALICE.password)
EMPTY = response("", ALICE.address, "")
CUT = response("", ALICE.address, ALICE.password, "gatepost")
AUTHCID = response("", ALICE.address)

BROKEN = [
    ("SUB-TLS-01", {"clear EHLO": NO_TLS}, "PIPELINING"),
    ("SUB-TLS-01", {"clear EHLO": "554 5.7.1 Client host rejected"}, "554"),
    ("SUB-TLS-02", {"clear EHLO": f"{EHLO}AUTH PLAIN LOGIN"}, "AUTH PLAIN LOGIN"),
    ("SUB-TLS-02", {"clear EHLO": f"{EHLO}AUTH=PLAIN"}, "AUTH=PLAIN"),
    ("SUB-TLS-03", {"clear MAIL": "250 2.1.0 Ok"}, "MAIL FROM:<> → 250"),
    ("SUB-TLS-03", {"clear RCPT": "503 5.5.1 Error: need MAIL command"}, "→ 503"),
    ("SUB-TLS-03", {"clear BDAT": "521 5.5.1 Error: command not implemented"}, "BDAT 0 LAST → 521"),
    ("SUB-TLS-04", {"clear AUTH": "235 2.7.0 Authentication successful"}, "235"),
    ("SUB-TLS-04", {"clear AUTH": "535 5.7.8 Error: authentication failed"}, "535"),
    ("SUB-TLS-04", {"clear AUTH": "503 5.5.1 Error: authentication not enabled"}, "503"),
    ("SUB-TLS-04", {f"clear {WRONG}": "538 5.7.11 Encryption required"}, "good and invented credentials"),
    ("SUB-TLS-05", {"clear VRFY": "252 2.0.0 postmaster"}, "VRFY postmaster → 252"),
    ("SUB-TLS-05", {"clear NOOP": "530 5.7.0 Must issue a STARTTLS command first"}, "NOOP → 530"),
    ("SUB-TLS-05", {"clear QUIT": "530 5.7.0 Must issue a STARTTLS command first"}, "QUIT → 530"),
    ("SUB-TLS-06", {"STARTTLS now": "220 2.0.0 Ready"}, "220"),
    ("SUB-TLS-07", {"tls STARTTLS": "220 2.0.0 Ready"}, "220"),
    ("SUB-TLS-08", {"tls MAIL": "250 2.1.0 Ok"}, "250"),
    ("SUB-AUTH-01", {"tls EHLO": NO_TLS}, "no AUTH"),
    ("SUB-AUTH-01", {"tls EHLO": f"{EHLO}AUTH LOGIN"}, "AUTH LOGIN"),
    ("SUB-AUTH-01", {"tls EHLO": f"{EHLO}AUTH PLAIN LOGIN CRAM-MD5"}, "CRAM-MD5"),
    ("SUB-AUTH-01", {"tls EHLO": "250-mx\n250-AUTH PLAIN LOGIN\n250 AUTH=PLAIN LOGIN"}, "AUTH=PLAIN LOGIN"),
    ("SUB-AUTH-01", {"tls EHLO": None}, "SASL socket"),
    ("SUB-AUTH-02", {"AUTH ANONYMOUS": "235 2.7.0 Authentication successful"}, "AUTH ANONYMOUS"),
    ("SUB-AUTH-02", {"AUTH CRAM-MD5": "334 PDEyMzRAbXg+"}, "334"),
    ("SUB-AUTH-03", {"tls EHLO": "250-mx\n250-AUTH PLAIN LOGIN\n250 AUTH=PLAIN LOGIN"}, "AUTH=PLAIN LOGIN"),
    ("SUB-AUTH-04", {"tls RCPT TO:<alice@": OK}, "RCPT TO:<alice@example.test> → 250"),
    ("SUB-AUTH-04", {"tls RCPT .* from <>": OK}, "MAIL FROM:<>"),
    ("SUB-AUTH-04", {"tls RCPT TO:<[^>]*@remote": "450 4.7.1 Access denied"}, "450"),
    ("SUB-AUTH-05", {"AUTH LOGIN": "535 5.7.8 Error: authentication failed"}, "AUTH LOGIN: 535"),
    ("SUB-AUTH-05", {"AUTH PLAIN$": "535 5.7.8 Error: authentication failed"}, "then the response: 535"),
    ("SUB-AUTH-05", {"AUTH PLAIN .": "454 4.7.0 Temporary authentication failure"}, "initial response: 454"),
    ("SUB-AUTH-05", {"tls EHLO": None}, "SASL socket"),
    ("SUB-AUTH-05", {"tls AUTH": None}, "closed"),
    ("SUB-AUTH-06", {WRONG: "235 2.7.0 Authentication successful"}, "235"),
    ("SUB-AUTH-06", {WRONG: "454 4.7.0 Temporary authentication failure"}, "454"),
    ("SUB-AUTH-07", {r"AUTH PLAIN AGFsaWNlQ": "535 5.7.8 Error: wrong password"}, "wrong password: 535"),
    ("SUB-AUTH-07", {r"AUTH PLAIN AGFsaWNlQ": "535 5.7.8 Error: authentication failed: (Reason)"}, "(Reason)"),
    ("SUB-AUTH-09", {"login AUTH": "235 2.7.0 Authentication successful"}, "235"),
    ("SUB-AUTH-10", {"login AUTH": "334 "}, "334"),
    ("SUB-AUTH-11", {"(clear|tls) AUTH": "334 "}, "334"),
    ("SUB-AUTH-12", {"tls AUTH PLAIN$": "535 5.7.8 Error: authentication failed"}, "535"),
    ("SUB-AUTH-12", {"tls AUTH PLAIN$": "334 ", r"tls \*": "250 2.0.0 Ok"}, "250"),
    ("SUB-AUTH-13", {"AUTH PLAIN !": "235 2.7.0 Authentication successful"}, "235"),
    ("SUB-AUTH-13", {"response A{13000}": "235 2.7.0 Authentication successful"}, "235"),
    ("SUB-AUTH-13", {"response A{13000}": "454 4.7.0 Temporary authentication failure"}, "454"),
    ("SUB-AUTH-14", {f"AUTH PLAIN {AS_BOB}": "235 2.7.0 Authentication successful"}, "in another's name: AUTH"),
    ("SUB-AUTH-15", {f"AUTH PLAIN {EMPTY}": "235 2.7.0 Authentication successful"}, "empty password: AUTH"),
    ("SUB-AUTH-15", {f"AUTH PLAIN {CUT}": "235 2.7.0 Authentication successful"}, "NUL in the password: AUTH"),
    ("SUB-AUTH-15", {f"AUTH PLAIN {AUTHCID}": "235 2.7.0 Authentication successful"}, "only a user name: AUTH"),
    ("SUB-SND-01", {"login RCPT .* from <alice@": "553 5.7.1 not owned"}, "553"),
    ("SUB-SND-02", {"login RCPT .* from <bob@": OK}, "MAIL FROM:<bob@example.test>"),
    ("SUB-SND-02", {"login RCPT .* from <alice@": OK}, "MAIL FROM:<alice@example.test>"),
    ("SUB-SND-03", {"login RCPT .* from <[^>]*@remote.test>": OK}, "@remote.test> → 250"),
    ("SUB-SND-04", {"login RCPT .* from <gatepost-no-such": OK}, "250"),
    ("SUB-SND-05", {"login RCPT .* from <alice.alias@": "553 5.7.1 not owned"}, "553"),
    ("SUB-RCP-01", {"login RCPT TO:<gatepost-no-such": OK}, "250"),
    ("SUB-RCP-01", {"login RCPT TO:<gatepost-no-such": "450 4.1.1 User unknown"}, "450"),
    ("SUB-HLO-01", {r"login EHLO \[192": "501 5.5.4 Invalid name"}, "501"),
    ("SUB-HLO-01", {"login RCPT .* as my_pc": "504 5.5.2 need fully-qualified hostname"}, "504"),
]
IDS = [row.id for row in submission.REQUIREMENTS]
RECORDED = {"SUB-AUTH-16", "SUB-SND-06", "SUB-SND-07"}
SLOW = {"SUB-AUTH-08", "SUB-AUTH-08b"}


@pytest.fixture(scope="module", params=["starttls", "implicit"])
def sound(request):
    with Server("submission", request.param) as server:
        yield server.judge(*IDS), server


@pytest.mark.parametrize("identifier", sorted({*IDS} - SLOW - RECORDED - {"SUB-CFG-01"}))
def test_passes_on_a_sound_server(sound, identifier):
    results, server = sound
    if server.tls == "implicit" and identifier.startswith("SUB-TLS") and identifier != "SUB-TLS-07":
        assert identifier not in results  # there is no before TLS
    else:
        assert results[identifier].verdict is Verdict.PASS, results[identifier].found


@pytest.mark.parametrize(("identifier", "broken", "quoted"), BROKEN, ids=lambda value: str(value)[:60])
def test_fails_and_quotes_what_is_broken(identifier, broken, quoted):
    # The second account's login must not meet what breaks the first one's.
    with Server("submission", broken=broken) as server:
        result = server.judge(identifier, slow=identifier in ("SUB-AUTH-02", "SUB-AUTH-13", "SUB-AUTH-15"))[identifier]
    assert result.verdict is Verdict.FAIL, result.found
    assert quoted in result.found
    assert result.expected and result.remedy and result.source


class FallsBack(Server):
    """Goes on in clear when a handshake fails."""

    def _serve(self, connection):
        connection.sendall(b"220 mx.example.test ESMTP\r\n")
        replies = {"EHLO": b"250-mx.example.test\r\n250 STARTTLS\r\n", "STARTTLS": b"220 go ahead\r\n"}
        for line in connection.makefile("rb"):
            connection.sendall(replies.get(line.split()[0].decode("ascii", "replace").upper(), b"250 2.1.0 Ok\r\n"))


def test_sub_tls_09_fails_on_a_server_that_falls_back_to_clear(monkeypatch):
    # No handshake succeeds with this server, which alone would make the row "not run".
    rows = tuple(replace(row, needs_tls=False) for row in submission.REQUIREMENTS if row.id == "SUB-TLS-09")
    monkeypatch.setattr("gatepost.verify.runner.requirements", lambda: rows)
    with FallsBack("submission") as server:
        result = server.judge("SUB-TLS-09")["SUB-TLS-09"]
    assert result.verdict is Verdict.FAIL and "250" in result.found


def test_every_requirement_has_a_failing_case():
    # What the loopback server does not do is judged from observations below.
    assert set(IDS) - RECORDED - SLOW - {"SUB-CFG-01", "SUB-TLS-09"} == {identifier for identifier, *_ in BROKEN}


def test_real_credentials_are_never_sent_in_clear_outside_the_lab():
    with Server("submission") as server:
        server.judge(*IDS, lab=False)
        assert not any("AGFsaWNlQGV4YW1wbGUudGVzdABDb3JyM2N0LWhvcnNl" in command for command in server.commands)
        assert any(command.startswith("clear AUTH PLAIN") for command in server.commands)  # invented ones were


def listeners(count):
    return tuple(Listener(f"sub{n}", 587 + n, "submission", "starttls", ("0.0.0.0/0",)) for n in range(count))


def logins(server):
    """Return (AUTH commands, failed ones) that a server saw inside TLS."""
    inside = [c for c in server.commands if re.match("(tls|login) AUTH ", c)]
    good = ("AGFsaWNlQGV4YW1wbGUudGVzdABDb3JyM2N0LWhvcnNl", "AGJvYkBl", submission.plain("ALICE@EXAMPLE.TEST", "C"))
    good = [c for c in inside if any(token[:30] in c and not re.search(f"{EMPTY}|{CUT}", c) for token in good)]
    silent = re.compile("login|.* before EHLO$|tls AUTH (PLAIN|LOGIN)$")  # refused unseen, or only begun
    return inside, [c for c in inside if c not in good and not silent.match(c)]


def test_at_most_ten_logins_fail_and_no_message_is_sent(sound):
    inside, failures = logins(sound[1])
    assert 7 <= len(failures) <= 10, failures
    assert len(inside) <= 25, inside
    assert not [c for c in sound[1].commands if c.endswith(" (message)")]


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_costly_logins_are_dealt_over_the_listeners(count):
    """Each once where they fit, on none more than three, and all of them on each with --slow."""
    table = listeners(count)
    with Server("submission") as server:
        target = server.target(listeners=table)
    dealt = [submission._dealt(Site(target, listener, "127.0.0.1")) for listener in table]
    assert all(0 < len(labels) <= 3 for labels in dealt)
    together = [label for labels in dealt for label in labels]
    assert len(together) == len(set(together)) == min(9, 3 * count)
    for listener, labels in zip(table, dealt, strict=True):
        site = Site(replace(target, slow=True), listener, "127.0.0.1")
        late = [c.label for c in (*submission._not_dealt(site), *submission._logins_not_dealt(site))]
        assert sorted((*labels, *late)) == sorted(submission._DEALT)
        assert not list(submission._not_dealt(Site(target, listener, "127.0.0.1")))


def test_with_slow_all_of_them_are_asked_and_the_minute_is_waited_for(monkeypatch):
    monkeypatch.setattr("gatepost.verify.wire.login.RATE_PAUSE", 0.01)
    with Server("submission") as server:
        results = server.judge("SUB-AUTH-02", "SUB-AUTH-13", "SUB-AUTH-15", slow=True)
    assert {result.verdict for result in results.values()} == {Verdict.PASS}
    assert not any("left to --slow" in result.found for result in results.values())
    assert all(name in results["SUB-AUTH-02"].found for name, _ in submission._OTHER_MECHANISMS)
    with Server("submission", broken={"AUTH GSSAPI": "450 4.7.1 Error: too many AUTH commands"}) as server:
        result = server.judge("SUB-AUTH-02", slow=True)["SUB-AUTH-02"]
        assert sum("GSSAPI" in command for command in server.commands) == 1 + RATE_TRIES
    assert result.verdict is Verdict.INCONCLUSIVE and "450" in result.found


def test_what_was_not_asked_here_is_named(sound):
    results, _ = sound
    assert "DIGEST-MD5, NTLM, GSSAPI, XOAUTH2: left to --slow" in results["SUB-AUTH-02"].found
    assert "only a user name: left to --slow" in results["SUB-AUTH-15"].found
    assert results["SUB-AUTH-16"].verdict is Verdict.NOT_RUN and "left to --slow" in results["SUB-AUTH-16"].found


@pytest.mark.parametrize("identifier", sorted(RECORDED - {"SUB-AUTH-16"}))
def test_info_is_recorded(sound, identifier):
    result = sound[0][identifier]
    assert result.verdict is Verdict.INFO and "250" in result.found


@pytest.mark.parametrize("code", ["235 2.7.0 Authentication successful", "535 5.7.8 Error: authentication failed"])
def test_a_login_in_the_wrong_case_is_only_recorded(code):
    with Server("submission", broken={"AUTH PLAIN AEFMSUNF": code}) as server:
        result = server.judge("SUB-AUTH-16", slow=True)["SUB-AUTH-16"]
    assert result.verdict is Verdict.INFO and code[:3] in result.found


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_where_the_wrong_case_is_asked_another_login_is_missing(count):
    """So that no listener sees more than ten failures, whether a server minds the case or not."""
    table = listeners(count)
    with Server("submission") as server:
        target = server.target(listeners=table)
    asked = [listener for listener in table if list(submission._wrong_case(Site(target, listener, "127.0.0.1")))]
    assert len(asked) == (count > 1)  # one alone is asked with --slow only
    for listener in asked:
        assert submission._LONG in submission._dealt(Site(target, listener, "127.0.0.1"))


# -- Timing ------------------------------------------------------------------------------------------------------------

QUICK = tuple(0.49 + n / 1000 for n in range(9))
DEARER = tuple(0.55 + n / 1000 for n in range(9))
DELAYED = tuple(2.0 + n / 100 for n in range(9))


def timing(known, unknown, stopped=None):
    return {submission.TIMING: Timing(known, unknown, stopped and reply(stopped), ())}


@pytest.mark.parametrize(
    ("identifier", "observed", "verdict", "quoted"),
    [
        ("SUB-AUTH-08", timing(DELAYED, DELAYED), Verdict.PASS, "9 pairs"),
        ("SUB-AUTH-08", timing(QUICK, tuple(t + 0.02 for t in QUICK)), Verdict.PASS, "20 ms"),
        ("SUB-AUTH-08", timing(DEARER, QUICK), Verdict.FAIL, "60 ms apart"),
        ("SUB-AUTH-08", timing(QUICK, DEARER), Verdict.FAIL, "60 ms apart"),
        ("SUB-AUTH-08", timing(QUICK + QUICK, DEARER + DEARER), Verdict.FAIL, "60 ms apart"),
        ("SUB-AUTH-08", timing(QUICK + DELAYED, DEARER + DELAYED), Verdict.PASS, "18 pairs"),  # by chance
        ("SUB-AUTH-08", timing(QUICK + DEARER, DEARER + QUICK), Verdict.PASS, "18 pairs"),
        ("SUB-AUTH-08", timing(QUICK[:2], DEARER[:2], "454 4.7.0 Temporary"), Verdict.INCONCLUSIVE, "after 2 pairs"),
        ("SUB-AUTH-08b", timing(DELAYED, DELAYED), Verdict.PASS, "2.00 to 2.08 s"),
        ("SUB-AUTH-08b", timing(DELAYED, (*DELAYED[1:], 0.9)), Verdict.FAIL, "0.90"),
        ("SUB-AUTH-08b", timing((), (), "235 2.7.0 Welcome"), Verdict.INCONCLUSIVE, "235"),
    ],
)
def test_failed_logins_by_the_clock(identifier, observed, verdict, quoted):
    finding = judge(identifier, observed, kind="submission", slow=True)
    assert finding.verdict is verdict and quoted in finding.found


def test_mann_whitney_agrees_with_published_values():
    # The hare and the tortoise, exact two-sided p = 0.0022 for disjoint samples of six; the approximation is near it.
    assert mann_whitney(range(6), range(6, 12)) == pytest.approx(0.0051, abs=0.0005)
    assert mann_whitney((1, 1, 1), (1, 1, 1)) == 1.0
    assert mann_whitney((1, 3, 5, 7), (2, 4, 6, 8)) > 0.5


def test_failed_logins_are_timed_in_pairs_and_wait_while_the_server_counts_too_many(monkeypatch):
    monkeypatch.setattr("gatepost.verify.wire.login.RATE_PAUSE", 0.01)
    with Server("submission") as server:
        results = server.judge(*SLOW, slow=True)
        assert results["SUB-AUTH-08"].verdict is Verdict.PASS, results["SUB-AUTH-08"].found
        assert results["SUB-AUTH-08b"].verdict is Verdict.FAIL  # this one refuses at once
        tries = [c for c in server.commands if c.startswith("tls AUTH PLAIN ")]
        assert len(tries) == 18 and sum("AGFsaWNlQGV4" in c for c in tries) == 9
    with Server("submission", broken={"tls AUTH": "450 4.7.1 Error: too many AUTH commands"}) as server:
        result = server.judge(*SLOW, slow=True)["SUB-AUTH-08"]
    assert result.verdict is Verdict.INCONCLUSIVE and "450" in result.found


class Tells(Server):
    """Takes longer for users that exist."""

    def _serve(self, connection):
        talk = Conversation(self, connection)
        answer = talk._reply

        def late(line):
            if f"AUTH PLAIN {response('', ALICE.address)[:20]}" in line:
                time.sleep(0.05)
            return answer(line)

        talk._reply = late
        with contextlib.suppress(OSError):
            talk.hold()


def test_times_that_look_apart_are_taken_again():
    with Tells("submission") as server:
        result = server.judge(*SLOW, slow=True)["SUB-AUTH-08"]
        assert len([c for c in server.commands if c.startswith("tls AUTH PLAIN ")]) == 36
    assert result.verdict is Verdict.FAIL and "18 pairs" in result.found


# -- One like the other ------------------------------------------------------------------------------------------------


def alike(here, there):
    second = Listener("second", 12525, "submission", "starttls", ("0.0.0.0/0",))
    whole = target(listeners=(*LISTENERS.values(), second))
    seen = {(name, ADDRESS, probe.name): found for name, observed in (("submission", here), ("second", there))
            for probe, found in observed.items()}  # fmt: skip
    return submission.all_answer_alike(Seen(whole, None, seen))


def talk(answer="530 5.7.0 Must issue a STARTTLS command first", **fields):
    return replace(dialogue({"mail": answer}, clear="250-mx.example.test\n250 STARTTLS"), **fields)


@pytest.mark.parametrize(
    ("here", "there", "verdict", "quoted"),
    [
        (talk(), talk(), Verdict.PASS, "3 answers are the same"),
        (talk("250 2.0.0 port 10587 queued as 4XyZ1234ab"), talk("250 2.0.0 port 12525 queued as 4XyA98765b"),
         Verdict.PASS, "same"),
        (talk(), talk("250 2.1.0 Ok"), Verdict.FAIL, "'250 2.1.0 Ok' on second"),
        (talk(), talk(ehlo_clear=reply("250 mx.example.test")), Verdict.FAIL, "EHLO in clear"),
        (talk(), talk(greeting=reply("220 mx.example.test ESMTP other")), Verdict.FAIL, "greeting"),
        (talk(), talk("421 4.7.0 mx.example.test Error: too many errors"), Verdict.PASS, "2 answers"),
        (talk(), talk(told=(replace(told("mail", "250 2.1.0 Ok"), retried=True),)), Verdict.PASS, "2 answers"),
        (talk(), talk(SILENT), Verdict.PASS, "2 answers"),
        (talk(), talk(CLOSED), Verdict.FAIL, "'closed' on second"),
        (talk(), Failed(Failure.REFUSED, "connection refused"), Verdict.INCONCLUSIVE, "refused"),
    ],
)  # fmt: skip
def test_submission_listeners_answer_alike(here, there, verdict, quoted):
    finding = alike({submission.CLEAR: here}, {submission.CLEAR: there})
    assert finding.verdict is verdict, finding.found
    assert quoted in finding.found


def test_one_submission_listener_has_none_to_be_compared_with():
    assert judge("SUB-CFG-01", {submission.CLEAR: talk()}, kind="submission").verdict is Verdict.NOT_APPLICABLE


def test_two_real_listeners_are_compared():
    with Server("submission") as one, Server("submission", broken={"tls VRFY": "252 2.0.0 postmaster"}) as other:
        table = tuple(replace(listeners(2)[n], port=server.port) for n, server in enumerate((one, other)))
        result = run(one.target(listeners=table), only=("SUB-CFG-01",)).results[0]
        sound = run(one.target(listeners=(table[0], replace(table[1], port=one.port))), only=("SUB-CFG-01",)).results[0]
    assert result.verdict is Verdict.FAIL and "252" in result.found
    assert sound.verdict is Verdict.PASS, sound.found


def test_no_password_is_in_any_transcript_or_report():
    secrets = (ALICE.password, BOB.password, "AGFsaWNlQGV4YW1wbGUudGVzdABDb3JyM2N0LWhvcnNl", "Q29ycjNjdC1ob3JzZQ==")
    with Server("submission", broken={"login": "553 5.7.1 no"}) as server:
        report = run(server.target(), only=IDS)
    lines = [line.text for result in report.results for line in result.transcript]
    assert any("AUTH PLAIN ****" in line for line in lines)
    for shown in ("\n".join(lines), as_json.to_json(report), html.render(report)):
        assert not any(secret in shown for secret in secrets)


def test_a_tired_server_that_is_not_ours_is_inconclusive():
    rows = {}
    with Server("submission", broken={WRONG: "454 4.7.0 Temporary authentication failure"}) as server:
        report = run(server.target(lab=False), only=["SUB-AUTH-06", "SUB-AUTH-07"])
        rows = {result.id: result.verdict for result in report.results}
    assert rows == {"SUB-AUTH-06": Verdict.INCONCLUSIVE, "SUB-AUTH-07": Verdict.INCONCLUSIVE}


def test_without_accounts_only_what_needs_none_is_judged():
    with Server("submission") as server:
        results = server.judge(*IDS, accounts=())
    assert {i for i, r in results.items() if r.verdict is Verdict.NOT_RUN} == {
        *(f"SUB-AUTH-{n:02}" for n in (5, 6, 7, 8, 9, 10, 14, 15, 16)),
        "SUB-AUTH-08b",
        *(f"SUB-SND-{n:02}" for n in range(1, 8)),
        "SUB-RCP-01",
        "SUB-HLO-01",
    }
    judged = {i: r.verdict for i, r in results.items() if r.verdict is not Verdict.NOT_RUN}
    assert judged.pop("SUB-CFG-01") is Verdict.NOT_APPLICABLE  # one listener
    assert set(judged.values()) == {Verdict.PASS}


def test_a_login_that_fails_leaves_sending_unknown_and_not_passed():
    with Server("submission", broken={"AUTH PLAIN .": "535 5.7.8 Error: authentication failed"}) as server:
        results = server.judge("SUB-SND-03", "SUB-SND-02")
    assert {result.verdict for result in results.values()} == {Verdict.INCONCLUSIVE}
