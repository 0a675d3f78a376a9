import pytest
from smtp_loopback import Server

from gatepost.verify.checks import relay
from gatepost.verify.model import Verdict

AUTH = "250-mx.example.test\n250-STARTTLS\n250 AUTH PLAIN LOGIN"
NO_TLS = "250-mx.example.test\n250 PIPELINING"
OK = "250 2.1.5 Ok"
FORMS = [f"MX-RLY-{number}" for number, _, _ in relay._FORMS]

# Requirement, what is broken (see smtp_loopback), what the finding must quote.
BROKEN = [
    ("MX-TLS-01", {"clear EHLO": NO_TLS}, "PIPELINING"),
    ("MX-TLS-02", {"clear STARTTLS": "454 4.7.0 TLS not available due to local problem"}, "454"),
    ("MX-TLS-02", {"tls MAIL": "250 2.1.0 Ok"}, "250 2.1.0"),
    ("MX-TLS-02", {"tls EHLO": "250-mx.example.test\n250 STARTTLS"}, "offers STARTTLS again"),
    ("MX-TLS-03", {"clear (MAIL|RCPT)": "530 5.7.0 Must issue a STARTTLS command first"}, "530"),
    ("MX-AUTH-01", {"clear EHLO": AUTH}, "in clear: AUTH PLAIN LOGIN"),
    ("MX-AUTH-01", {"tls EHLO": "250-mx.example.test\n250 AUTH=PLAIN"}, "inside TLS: AUTH=PLAIN"),
    ("MX-AUTH-02", {"tls AUTH": "535 5.7.8 Error: authentication failed"}, "535"),
    ("MX-AUTH-02", {"clear AUTH": "334 "}, "334"),
    ("MX-RLY-01", {"RCPT TO:<[^>]*@example.org>": OK}, "@example.org> → 250"),
    ("MX-RLY-30", {"from <>": OK}, "MAIL FROM:<>"),
    ("MX-RLY-30", {"from <[^>]*@localhost>": OK}, "@localhost"),
    ("MX-RLY-31", {"as mx.example.test": OK}, "EHLO mx.example.test"),
    ("MX-RLY-31", {"as localhost": OK}, "EHLO localhost"),
    ("MX-RLY-32", {"from <> as mx.example.test": OK}, "MAIL FROM:<>"),
    ("MX-RLY-32", {"RCPT TO:<[^>]*%.* as mx.example.test": OK}, "%remote.test@example.test"),
    ("MX-RCV-01", {"RCPT TO:<alice@": "550 5.1.1 User unknown"}, "550"),
    ("MX-RCV-01", {"RCPT TO:<alice@": "451 4.3.0 Temporary lookup failure"}, "451"),
    ("MX-RCV-02", {"from <>": "554 5.7.1 <>: Sender address rejected"}, "554"),
    ("MX-RCV-02", {"MAIL FROM:<>": "554 5.7.1 <>: Sender address rejected"}, "554"),
    ("MX-RCV-03", {"RCPT TO:<postmaster@": "550 5.1.1 User unknown"}, "postmaster@example.test> → 550"),
    ("MX-RCV-03", {"RCPT TO:<PostMaster@": "550 5.1.1 User unknown"}, "PostMaster@EXAMPLE.TEST> → 550"),
    ("MX-RCV-03", {"RCPT TO:<postmaster>": "504 5.5.2 need fully-qualified address"}, "postmaster> → 504"),
    ("MX-RCV-04", {"RCPT TO:<fbl@": "550 5.1.1 User unknown"}, "fbl@example.test> → 550"),
    ("MX-RCV-04", {"RCPT TO:<abuse@": "550 5.1.1 User unknown"}, "abuse@example.test> → 550"),
    ("MX-RCV-05", {"RCPT TO:<gatepost-no-such": OK}, "250"),
    ("MX-RCV-05", {"RCPT TO:<gatepost-no-such": "450 4.1.1 User unknown"}, "450"),
    ("MX-RCV-06", {"RCPT TO:<gatepost-no-such": "550 5.1.1 User unknown in virtual mailbox table"}, "mailbox table"),
    ("MX-RCV-07", {r"RCPT TO:<alice\+": "550 5.1.1 User unknown"}, "alice+gatepost@example.test> → 550"),
    ("MX-RCV-08", {"from <alice@": OK}, "bob@example.test> → 250"),
    ("MX-RCV-08", {"from <alice@": "450 4.7.1 Sender address rejected"}, "450"),
    ("MX-RCV-09", {"from <gatepost-probe> ": OK}, "MAIL FROM:<gatepost-probe> → 250"),
    ("MX-RCV-09", {"from <gatepost-probe@gatepost> ": OK}, "MAIL FROM:<gatepost-probe@gatepost> → 250"),
    ("MX-RCV-10", {"as gatepost$": OK}, "EHLO gatepost"),
    ("MX-RCV-10", {"as bad_!name.example$": OK}, "EHLO bad_!name.example"),
    ("MX-RCV-11", {"from <[^>]*.invalid>": OK}, "alice@example.test> → 250"),
    ("MX-RCV-12", {"MAIL FROM:gatepost": "250 2.1.0 Ok"}, "MAIL FROM:gatepost-probe@remote.test → 250"),
    ("MX-RCV-13", {"DATA": "354 End data with <CR><LF>.<CR><LF>"}, "DATA → 354"),
    ("MX-RCV-13", {"DATA": "450 4.5.3 Multi-recipient bounce"}, "DATA → 450"),
    ("MX-RCV-14", {"message": "451 4.3.0 Error: queue file write error"}, "451"),
]


@pytest.fixture(scope="module")
def sound():
    with Server() as server:
        return server.judge(*(row.id for row in relay.REQUIREMENTS)), server.commands


@pytest.mark.parametrize("identifier", [row.id for row in relay.REQUIREMENTS])
def test_passes_on_a_sound_server(sound, identifier):
    result = sound[0][identifier]
    assert result.verdict is Verdict.PASS, result.found


@pytest.mark.parametrize(("identifier", "broken", "quoted"), BROKEN, ids=lambda value: str(value)[:60])
def test_fails_and_quotes_what_is_broken(identifier, broken, quoted):
    with Server(broken=broken) as server:
        result = server.judge(identifier)[identifier]
    assert result.verdict is Verdict.FAIL, result.found
    assert quoted in result.found
    assert result.expected and result.remedy and result.source


@pytest.mark.parametrize(
    ("broken", "quoted"),
    [
        ({"RCPT TO": OK}, "in clear: "),
        ({"tls RCPT TO": OK}, "inside TLS: "),
        ({"RCPT TO": "454 4.7.1 Relay access denied"}, "454"),
    ],
)
def test_every_relay_form_fails_when_it_is_not_refused_for_good(broken, quoted):
    with Server(broken=broken) as server:
        results = server.judge(*FORMS)
    assert set(results) == set(FORMS) and len(FORMS) == 22
    for result in results.values():
        assert result.verdict is Verdict.FAIL and quoted in result.found, result.found


def test_every_requirement_has_a_failing_case():
    assert {row.id for row in relay.REQUIREMENTS} == {identifier for identifier, *_ in BROKEN} | set(FORMS)


def test_each_form_is_asked_in_clear_and_inside_tls_and_no_message_is_sent(sound):
    commands = sound[1]
    for form in ("<gatepost-nobody@remote.test>", '<"remote.test!gatepost-nobody"@example.test>', "<@remote.test:"):
        for phase in ("clear", "tls"):
            assert any(c.startswith(f"{phase} RCPT TO:{form}") for c in commands), (phase, form)
    assert not any("BDAT" in command for command in commands)
    assert [command for command in commands if "(message)" in command] == ["clear (message)"]  # that of MX-RCV-14


def test_a_server_without_starttls_is_judged_by_what_it_says_in_clear():
    with Server(broken={"clear EHLO": NO_TLS, "STARTTLS": "502 5.5.1 Error: command not implemented"}) as server:
        assert server.judge("MX-RLY-01")["MX-RLY-01"].verdict is Verdict.PASS


@pytest.mark.parametrize("identifier", ["MX-RLY-01", "MX-RCV-01"])
def test_our_sender_unknown_to_its_dns_is_inconclusive(identifier):
    with Server(broken={"RCPT": "450 4.1.8 Sender address rejected: Domain not found"}) as server:
        result = server.judge(identifier)[identifier]
    assert result.verdict is Verdict.INCONCLUSIVE and "--outside-domain" in result.found


@pytest.mark.parametrize("identifier", ["MX-RLY-01", "MX-RCV-01", "MX-RCV-05", "MX-AUTH-02"])
def test_limits_are_inconclusive(identifier):
    with Server(broken={"(MAIL|AUTH)": "450 4.7.1 Error: too much mail from 127.0.0.1"}) as server:
        assert server.judge(identifier)[identifier].verdict is Verdict.INCONCLUSIVE


def test_mail_refused_for_another_reason_does_not_blame_tls():
    with Server(broken={"RCPT TO:<alice@": "550 5.1.1 User unknown"}) as server:
        assert server.judge("MX-TLS-03")["MX-TLS-03"].verdict is Verdict.INCONCLUSIVE


def test_a_refusal_of_the_sender_is_a_refusal_to_relay():
    with Server(broken={"MAIL FROM": "554 5.7.1 Sender address rejected"}) as server:
        assert server.judge("MX-RLY-17")["MX-RLY-17"].verdict is Verdict.PASS


def test_without_an_account_postmaster_stands_for_the_recipient():
    with Server() as server:
        found = server.judge("MX-RCV-01", "MX-RCV-07", accounts=())
    assert found["MX-RCV-01"].verdict is Verdict.PASS and "postmaster@" in found["MX-RCV-01"].found
    assert found["MX-RCV-07"].verdict is Verdict.NOT_RUN


def test_a_sender_of_no_domain_may_be_refused_for_good():
    with Server(broken={"from <[^>]*.invalid>": "550 5.1.8 Sender address rejected: Domain not found"}) as server:
        assert server.judge("MX-RCV-11")["MX-RCV-11"].verdict is Verdict.PASS


@pytest.mark.parametrize(
    ("broken", "quoted"),
    [
        ({"RCPT": "450 4.1.8 Sender address rejected: Domain not found"}, "not even remote.test"),
        ({"from <[^>]*.invalid>": "450 4.2.0 Greylisted"}, "not for the sender's domain"),
    ],
)
def test_a_sender_of_no_domain_that_is_put_off_like_others_is_inconclusive(broken, quoted):
    with Server(broken=broken) as server:
        result = server.judge("MX-RCV-11")["MX-RCV-11"]
    assert result.verdict is Verdict.INCONCLUSIVE and quoted in result.found


def test_a_bounce_to_two_may_be_refused_at_the_second_one():
    with Server(broken={"RCPT TO:<bob@": "550 5.5.3 Multi-recipient bounce"}) as server:
        assert server.judge("MX-RCV-13")["MX-RCV-13"].verdict is Verdict.PASS


def test_a_bounce_that_is_not_taken_at_all_is_inconclusive():
    with Server(broken={"from <>": "554 5.7.1 Sender address rejected"}) as server:
        assert server.judge("MX-RCV-13")["MX-RCV-13"].verdict is Verdict.INCONCLUSIVE


def test_a_message_is_not_ended_when_its_beginning_was_the_mistake():
    with Server(broken={"DATA": "354 End data with <CR><LF>.<CR><LF>"}) as server:
        server.judge("MX-RCV-13")
    assert server.commands[-1] == "clear DATA"  # nothing behind it, or it would be content


def test_a_bad_name_may_be_refused_at_ehlo_and_a_server_may_take_no_second_one():
    with Server(broken={"EHLO (gatepost|bad_)": "501 5.5.2 Invalid name"}) as server:
        assert server.judge("MX-RCV-10")["MX-RCV-10"].verdict is Verdict.PASS
        greeted = [command for command in server.commands if command.startswith("clear EHLO gate")]
    assert greeted == ["clear EHLO gatepost before EHLO"]


def test_a_looping_message_that_is_accepted_is_inconclusive():
    with Server(broken={"message": "250 2.0.0 Ok: queued as 12345"}) as server:
        result = server.judge("MX-RCV-14")["MX-RCV-14"]
    assert result.verdict is Verdict.INCONCLUSIVE and "not seen from outside" in result.found
