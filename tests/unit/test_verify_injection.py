import dataclasses

import pytest
from observations import CLOSED, SILENT, judge, reply
from smtp_loopback import Server

from gatepost.verify.checks import injection
from gatepost.verify.model import Verdict
from gatepost.verify.wire.injection import Ahead, Early
from gatepost.verify.wire.reach import REACH, Reached

END = b"\r\n.\r\n"
ENDS = {identifier: end for identifier, end, _ in injection._ENDS}
OK = "250 2.1.0 Ok"
POSTSCREEN = [row.id for row in injection.POSTSCREEN]

# Requirement, what is wrong with the server, what the finding must quote.
BROKEN = [
    ("INJ-01", {"forgetful": False, "orderly": False}, "250 mx.example.test"),
    *((identifier, {"ends": (END, end)}, "to GTPS, hidden inside it: 502") for identifier, end in ENDS.items()),
    ("INJ-10", {"orderly": False}, "250 2.1.5 Ok | 354"),
    ("INJ-11", {"orderly": False}, "250 2.1.5 Ok | 354"),
    ("INJ-12", {"orderly": False}, "250 2.1.5 Ok | 354"),
    ("INJ-13", {"broken": {"RCPT TO:<bob@": "554 5.5.0 pipelining"}}, "554"),
    ("INJ-14", {"broken": {"MAIL FROM:<gatepost\rGTPS": OK}}, r"gatepost\rGTPS@mx.example.test> → 250"),
    ("INJ-14", {"broken": {"MAIL FROM:<gatepost\0GTPS": OK}}, r"gatepost\x00GTPS@mx.example.test> → 250"),
    ("INJ-14", {"broken": {"MAIL FROM:<gatepost$": OK}}, r"gatepost\nGTPS@mx.example.test> → 250"),
    ("INJ-14", {"broken": {"BODY=8BIT\0MIME": OK}}, r"BODY=8BIT\x00MIME → 250"),
]
KINDS = {"relay": ("relay", "starttls"), "submission": ("submission", "starttls"), "smtps": ("submission", "implicit")}
ON_SUBMISSION = [row for row in BROKEN if row[0] not in ("INJ-10", "INJ-11", "INJ-12")]


@pytest.fixture(scope="module", params=KINDS)
def sound(request):
    purpose, tls = KINDS[request.param]
    with Server(purpose, tls) as server:
        yield server.judge(*(row.id for row in injection.REQUIREMENTS)), server.commands, request.param


@pytest.mark.parametrize("identifier", [row.id for row in injection.REQUIREMENTS])
def test_passes_on_a_sound_server(sound, identifier):
    results, _, kind = sound
    relay_only = ("INJ-10", "INJ-11", "INJ-12")
    if identifier in {"relay": (), "submission": relay_only, "smtps": (*relay_only, "INJ-01")}[kind]:
        assert identifier not in results
    else:
        assert results[identifier].verdict is Verdict.PASS, results[identifier].found


def test_a_sound_server_is_sent_no_recipient_of_another_domain_and_takes_no_message(sound):
    _, commands, kind = sound
    recipients = {command.partition("<")[2].partition(">")[0] for command in commands if " RCPT TO:" in command}
    assert recipients == {"alice@example.test", "bob@example.test"}
    assert len([command for command in commands if "(message" in command]) == 2
    assert len([command for command in commands if " AUTH " in command]) == (0 if kind == "relay" else 1)


@pytest.mark.parametrize(("identifier", "wrong", "quoted"), BROKEN, ids=lambda value: str(value)[:60])
def test_fails_and_quotes_what_is_wrong(identifier, wrong, quoted):
    with Server(**wrong) as server:
        result = server.judge(identifier)[identifier]
    assert result.verdict is Verdict.FAIL, result.found
    assert quoted in result.found
    assert result.transcript and result.expected and result.remedy and result.source


@pytest.mark.parametrize(("identifier", "wrong", "quoted"), ON_SUBMISSION, ids=lambda value: str(value)[:60])
def test_fails_on_submission_too(identifier, wrong, quoted):
    with Server("submission", **wrong) as server:
        result = server.judge(identifier)[identifier]
    assert result.verdict is Verdict.FAIL and quoted in result.found, result.found


def test_every_requirement_has_a_failing_case():
    assert {row.id for row in injection.REQUIREMENTS} == {identifier for identifier, *_ in BROKEN}
    assert set(POSTSCREEN) == {"MX-PSC-01", "MX-PSC-02", "MX-PSC-03", "MX-PSC-04", "MX-PSC-05"}


def test_one_wrong_end_does_not_blame_the_others():
    with Server(ends=(END, ENDS["INJ-07"])) as server:
        results = server.judge(*ENDS)
    assert {i for i, result in results.items() if result.verdict is Verdict.FAIL} == {"INJ-07"}
    assert {i for i, result in results.items() if result.verdict is Verdict.PASS} == set(ENDS) - {"INJ-07"}


def test_a_server_that_minds_one_of_them_is_asked_about_each():
    with Server("submission", broken={"with bare LF": "550 5.5.2 Error: bare <LF> received"}) as server:
        results = server.judge(*ENDS)
        messages = [command for command in server.commands if "(message" in command]
    assert {identifier: result.found[:20] for identifier, result in results.items()} == {
        identifier: "to the message: 550 " if b"\n" in end.replace(b"\r\n", b"") else "to the message: 554 "
        for identifier, end in ENDS.items()
    }
    assert {result.verdict for result in results.values()} == {Verdict.PASS}
    assert len(messages) == 2 + len(ENDS)


def test_a_server_that_refuses_bare_line_feeds_and_hangs_up_passes():
    with Server(broken={"message": "421 4.7.0 Error: bare <LF> received"}) as server:
        assert server.judge("INJ-02")["INJ-02"].verdict is Verdict.INCONCLUSIVE  # 421 may mean a limit
    with Server(broken={"message": "550 5.5.2 Error: bare <LF> received", "RSET": None}) as server:
        result = server.judge("INJ-02")["INJ-02"]
    assert result.verdict is Verdict.PASS and "hung up" in result.found


def test_a_message_that_is_put_off_is_ended_once_all_the_same():
    with Server(broken={"message": "454 4.4.0 Error: too many hops"}) as server:
        assert server.judge("INJ-02")["INJ-02"].verdict is Verdict.PASS
        assert len([command for command in server.commands if "(message" in command]) == 2  # not told again


@pytest.mark.parametrize(
    "broken",
    [
        {"MAIL": "450 4.7.1 Error: too much mail from 127.0.0.1"},
        {"DATA": "451 4.3.0 try later"},
        {"message": None},
        {"RCPT": "550 5.1.1 User unknown"},
    ],
    ids=str,
)
def test_what_could_not_be_sent_is_inconclusive(broken):
    with Server(broken=broken) as server:
        results = server.judge("INJ-03", "INJ-13")
    assert results["INJ-03"].verdict is Verdict.INCONCLUSIVE
    assert (results["INJ-13"].verdict is Verdict.PASS) is broken.keys().isdisjoint({"MAIL", "RCPT"})


@pytest.mark.parametrize("identifier", ["INJ-10", "INJ-11", "INJ-12"])
@pytest.mark.parametrize(
    "refused",
    ["450 4.2.0 Greylisted", "550 5.1.1 User unknown", "554 5.7.1 Blocked"],
)
def test_a_refusal_for_another_reason_shows_nothing(identifier, refused):
    with Server(orderly=False, broken={"RCPT": refused}) as server:
        assert server.judge(identifier)[identifier].verdict is Verdict.INCONCLUSIVE


def test_pipelining_that_is_not_offered_is_not_asked_for():
    with Server(broken={"EHLO": "250-mx.example.test\n250 SIZE 1000"}) as server:
        assert server.judge("INJ-13")["INJ-13"].verdict is Verdict.NOT_APPLICABLE


@pytest.mark.parametrize(
    ("starttls", "inside", "verdict"),
    [
        (reply("554 5.5.0 Error: SMTP protocol synchronization"), (), Verdict.PASS),
        (CLOSED, (), Verdict.PASS),
        (reply("220 go"), (CLOSED,), Verdict.PASS),
        (reply("220 go"), (SILENT,), Verdict.INCONCLUSIVE),
        (reply("454 4.7.0 TLS not available"), (), Verdict.INCONCLUSIVE),
        (reply("220 go"), (reply("250-mx.example.test\n250 OK"), reply("250 ok"), reply("221 bye")), Verdict.FAIL),
    ],
)
def test_commands_ahead_of_tls(starttls, inside, verdict):
    found = judge("INJ-01", {injection.AHEAD: Ahead(starttls, inside, ())})
    assert found.verdict is verdict, found.found


# -- postscreen --------------------------------------------------------------------------------------------------------

PUT_OFF, TAKEN = reply("450 4.3.2 Service currently unavailable"), reply("250 2.1.5 Ok")
TEASER = reply("220-mx.example.test ESMTP\n220 mx.example.test ESMTP")
KEPT_OUT = Early((*map(reply, ("220 mx", "250 mx", OK, "550 5.5.1 Protocol error", "554 5.5.1 none")),), False, ())
DROPPED = Early((reply("220 mx"), reply("521 5.5.1 Protocol error")), False, ())
LET_IN = Early((*map(reply, ("220 mx", "250 mx", OK, OK, "354 go")),), True, ())
HANDED_OVER = Early((reply("220 mx"), reply("554 5.5.0 Error: SMTP protocol synchronization")), True, ())


def reached(**fields):
    plain = Reached(0.001, True, False, TEASER, b"", None, (), False, 6.0, KEPT_OUT, (TAKEN,))
    return dataclasses.replace(plain, **fields)


@pytest.mark.parametrize("identifier", POSTSCREEN)
def test_without_postscreen_there_is_nothing_to_judge(identifier):
    found = judge(identifier, {REACH: reached(teased=0.0, early=None, first_visit=())})
    assert found.verdict is Verdict.NOT_APPLICABLE and "no postscreen was seen" in found.found


@pytest.mark.parametrize("identifier", POSTSCREEN)
def test_postscreen_as_it_should_be(identifier):
    found = judge(identifier, {REACH: reached()}, others=[("submission", {REACH: reached(teased=0.0)})])
    assert found.verdict is (Verdict.INFO if identifier in ("MX-PSC-02", "MX-PSC-05") else Verdict.PASS)


def test_how_long_a_newcomer_waits_is_recorded():
    assert "6.0 s later" in judge("MX-PSC-02", {REACH: reached()}).found


@pytest.mark.parametrize(
    ("early", "verdict"),
    [
        (DROPPED, Verdict.PASS),
        (LET_IN, Verdict.FAIL),
        (HANDED_OVER, Verdict.FAIL),
        (None, Verdict.INCONCLUSIVE),
        (Early((SILENT,), False, ()), Verdict.INCONCLUSIVE),
    ],
)
def test_who_speaks_before_the_greeting(early, verdict):
    assert judge("MX-PSC-01", {REACH: reached(early=early)}).verdict is verdict


@pytest.mark.parametrize(
    ("visits", "verdict"),
    [
        ((PUT_OFF, TAKEN), Verdict.PASS),
        ((PUT_OFF, PUT_OFF), Verdict.FAIL),
        ((PUT_OFF, CLOSED), Verdict.INCONCLUSIVE),
        ((), Verdict.INCONCLUSIVE),
    ],
)
def test_deep_tests_put_off_one_visit(visits, verdict):
    assert judge("MX-PSC-03", {REACH: reached(first_visit=visits)}).verdict is verdict


def test_postscreen_before_submission_fails():
    found = judge("MX-PSC-04", {REACH: reached()}, others=[("submission", {REACH: reached()})])
    assert found.verdict is Verdict.FAIL and "10587" in found.found


def test_a_newcomer_meets_postscreen_once_and_is_then_judged_as_usual():
    with Server(postscreen=True) as server:
        results = server.judge(*POSTSCREEN, "GEN-BAN-01", "MX-RCV-01", "INJ-10")
    verdicts = {identifier: result.verdict for identifier, result in results.items()}
    assert verdicts.pop("MX-PSC-02") is verdicts.pop("MX-PSC-05") is Verdict.INFO
    assert set(verdicts.values()) == {Verdict.PASS}, {i: r.found for i, r in results.items()}
    assert "deep tests are on" in results["MX-PSC-03"].found
