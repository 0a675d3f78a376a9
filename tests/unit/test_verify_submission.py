import re
from dataclasses import replace

import pytest
from smtp_loopback import ALICE, BOB, Server

from gatepost.verify.checks import submission
from gatepost.verify.model import Verdict
from gatepost.verify.report import as_json, html
from gatepost.verify.runner import run

NO_TLS = "250-mx.example.test\n250 PIPELINING"
OK = "250 2.1.5 Ok"
EHLO = "250-mx.example.test\n250-PIPELINING\n250 "
WRONG = r"AUTH PLAIN (?!AGFsaWNlQGV4YW1wbGUudGVzdABDb3JyM2N0LWhvcnNl)"  # anything but alice's credentials

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
    ("SUB-SND-01", {"login RCPT .* from <alice@": "553 5.7.1 not owned"}, "553"),
    ("SUB-SND-02", {"login RCPT .* from <bob@": OK}, "MAIL FROM:<bob@example.test>"),
    ("SUB-SND-02", {"login RCPT .* from <alice@": OK}, "MAIL FROM:<alice@example.test>"),
    ("SUB-SND-03", {"login RCPT .* from <[^>]*@remote.test>": OK}, "@remote.test> → 250"),
    ("SUB-SND-04", {"login RCPT .* from <gatepost-no-such": OK}, "250"),
    ("SUB-SND-05", {"login RCPT .* from <alice.alias@": "553 5.7.1 not owned"}, "553"),
]
IDS = [row.id for row in submission.REQUIREMENTS]


@pytest.fixture(scope="module", params=["starttls", "implicit"])
def sound(request):
    with Server("submission", request.param) as server:
        yield server.judge(*IDS), server


@pytest.mark.parametrize("identifier", IDS)
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
        result = server.judge(identifier)[identifier]
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
    assert set(IDS) == {identifier for identifier, *_ in BROKEN} | {"SUB-TLS-09"}


def test_real_credentials_are_never_sent_in_clear_outside_the_lab():
    with Server("submission") as server:
        server.judge(*IDS, lab=False)
        assert not any("AGFsaWNlQGV4YW1wbGUudGVzdABDb3JyM2N0LWhvcnNl" in command for command in server.commands)
        assert any(command.startswith("clear AUTH PLAIN") for command in server.commands)  # invented ones were


def test_at_most_ten_logins_fail_and_no_message_is_sent(sound):
    commands = sound[1].commands
    inside = [c for c in commands if c.startswith("tls AUTH ") and not c.endswith(" before EHLO")]
    good = sum("AGFsaWNlQGV4YW1wbGUudGVzdABDb3JyM2N0LWhvcnNl" in c or "AGJvYkBl" in c for c in inside)
    prompted = [command for command in inside if command in ("tls AUTH PLAIN", "tls AUTH LOGIN")]
    assert 0 < len(inside) - good - len(prompted) <= 10
    phases = [command.partition(" ")[0] for command in commands if re.search(r" (DATA|BDAT)", command)]
    assert set(phases) <= {"clear"}  # where they are refused for want of TLS


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
        *(f"SUB-AUTH-{n:02}" for n in (5, 6, 7, 9, 10)),
        *(f"SUB-SND-{n:02}" for n in range(1, 6)),
    }
    assert all(r.verdict is Verdict.PASS for r in results.values() if r.verdict is not Verdict.NOT_RUN)


def test_a_login_that_fails_leaves_sending_unknown_and_not_passed():
    with Server("submission", broken={"AUTH PLAIN .": "535 5.7.8 Error: authentication failed"}) as server:
        results = server.judge("SUB-SND-03", "SUB-SND-02")
    assert {result.verdict for result in results.values()} == {Verdict.INCONCLUSIVE}
