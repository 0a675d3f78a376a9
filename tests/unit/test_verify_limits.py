import json
import threading
from types import SimpleNamespace

import pytest
from observations import CLOSED, SILENT, dialogue, judge, reply
from smtp_loopback import Conversation, Server

from gatepost import verification
from gatepost.lab import network
from gatepost.verify.checks import limits, submission
from gatepost.verify.model import Severity, Verdict
from gatepost.verify.registry import NotObserved
from gatepost.verify.wire import limits as wire
from gatepost.verify.wire.limits import IDLE, LIMITS, Idle, Limit, Limits
from gatepost.verify.wire.probe import Failed
from gatepost.verify.wire.session import Failure

IDS = [row.id for row in limits.REQUIREMENTS]
TOO_MANY_LOGINS = "450 4.7.1 Error: too many AUTH commands from 127.0.0.1"
TOO_MANY_CONNECTIONS = "421 4.7.0 mx.example.test Error: too many connections from 127.0.0.1"
TOO_MANY_ERRORS = "421 4.7.0 mx.example.test Error: too many errors"
TOO_MANY_RECIPIENTS = "452 4.5.3 Error: too many recipients"
PER_MINUTE = "450 4.7.1 Error: too many recipients from 127.0.0.1"
REFUSED = Failed(Failure.REFUSED, "connection refused")


def limit(taken, said=None):
    return Limit(taken, reply(said) if isinstance(said, str) else said)


def met(**fields):
    good = {
        "errors": limit(10, TOO_MANY_ERRORS),
        "recipients": limit(100, TOO_MANY_RECIPIENTS),
        "connections": limit(20, TOO_MANY_CONNECTIONS),
        "logins": limit(30, TOO_MANY_LOGINS),
    }
    return {LIMITS: Limits(**(good | fields))}


@pytest.mark.parametrize(
    ("identifier", "observed", "verdict", "quoted"),
    [
        ("LIM-01", met(), Verdict.PASS, "after 30 invented logins: 450"),
        ("LIM-01", met(logins=limit(64)), Verdict.FAIL, "64 invented logins"),
        ("LIM-01", met(logins=limit(0, TOO_MANY_LOGINS)), Verdict.INCONCLUSIVE, "earlier run"),
        ("LIM-02", met(), Verdict.PASS, "20 connections"),
        ("LIM-02", met(connections=limit(60)), Verdict.FAIL, "60 connections"),
        ("LIM-02", met(connections=limit(0, TOO_MANY_CONNECTIONS)), Verdict.INCONCLUSIVE, "421"),
        ("LIM-02", met(connections=limit(20, CLOSED)), Verdict.INCONCLUSIVE, "closed"),
        ("LIM-02", met(connections=limit(20, "554 5.7.1 No service")), Verdict.FAIL, "554"),
        ("LIM-03", met(), Verdict.PASS, "after 10 bad commands: 421"),
        ("LIM-03", met(errors=limit(25)), Verdict.FAIL, "25 bad commands"),
        ("LIM-03", met(errors=limit(3, CLOSED)), Verdict.FAIL, "without a 421"),
        ("LIM-03", met(errors=limit(3, SILENT)), Verdict.INCONCLUSIVE, "timed out"),
        ("LIM-04", met(), Verdict.PASS, "after 100 recipients of one message: 452"),
        ("LIM-04", met(recipients=limit(1000, TOO_MANY_RECIPIENTS)), Verdict.PASS, "1000"),
        ("LIM-04", met(recipients=limit(1001)), Verdict.FAIL, "1001 recipients"),
        ("LIM-04", met(recipients=limit(50, TOO_MANY_RECIPIENTS)), Verdict.FAIL, "after 50"),
        ("LIM-04", met(recipients=limit(600, PER_MINUTE)), Verdict.FAIL, "by the minute"),
        ("LIM-04", met(recipients=limit(50, PER_MINUTE)), Verdict.INCONCLUSIVE, "after 50"),
        ("LIM-04", met(recipients=limit(50, CLOSED)), Verdict.INCONCLUSIVE, "closed"),
        ("LIM-05", {IDLE: Idle(300.1, reply("421 4.4.2 Error: timeout exceeded"), ())}, Verdict.PASS, "300 s"),
        ("LIM-05", {IDLE: Idle(390.0, None, ())}, Verdict.FAIL, "still stood"),
        ("LIM-05", {IDLE: Idle(10.0, reply("421 4.4.2 Error: timeout exceeded"), ())}, Verdict.FAIL, "sooner"),
        ("LIM-05", {IDLE: Idle(300.0, CLOSED, ())}, Verdict.FAIL, "not 421"),
    ],
)
def test_limits_are_judged(identifier, observed, verdict, quoted):
    kind = "relay" if identifier == "LIM-04" else "submission"
    finding = judge(identifier, observed, kind=kind, limits=True, slow=True)
    assert finding.verdict is verdict and quoted in finding.found


def test_a_milder_fault_warns():
    finding = judge("LIM-05", {IDLE: Idle(10.0, reply("421 4.4.2 timeout"), ())}, slow=True)
    assert finding.severity is Severity.SHOULD


def test_logins_say_when_they_come_from_the_run_s_own_address():
    own = judge("LIM-01", met(), kind="submission", limits=True)
    another = judge("LIM-01", met(), kind="submission", limits=True, limit_addresses=("198.18.0.3",))
    assert own.verdict is another.verdict is Verdict.PASS
    assert "only address" in own.found and "only address" not in another.found


def test_what_could_not_be_tried_is_unknown():
    with pytest.raises(NotObserved, match="refused"):
        judge("LIM-01", met(logins=REFUSED), kind="submission")


@pytest.fixture(params=["relay", "submission"])
def kind(request):
    return request.param


def normal(messages="250 2.1.0 Ok", recipients="250 2.1.5 Ok", missing=0):
    cases = {
        "messages": (messages,) * (20 - missing) + (SILENT,) * (missing > 0),
        "recipients": ("250 2.1.0 Ok", *(["250 2.1.5 Ok"] * 4), recipients, *(["250 2.1.5 Ok"] * 5)),
    }
    return {limits.NORMAL_USE: dialogue(cases), submission.AFTER_LOGIN: dialogue(cases)}


@pytest.mark.parametrize(
    ("observed", "verdict", "quoted"),
    [
        (normal(), Verdict.PASS, "10 messages"),
        (normal(recipients=TOO_MANY_RECIPIENTS), Verdict.FAIL, "after 10 times 250: 452"),
        (normal(messages="452 4.3.1 Insufficient system storage"), Verdict.FAIL, "452"),
        (normal(messages="450 4.7.1 Error: too much mail from 127.0.0.1"), Verdict.INCONCLUSIVE, "too much mail"),
        (normal(missing=5), Verdict.INCONCLUSIVE, "after 15 times"),
    ],
)
def test_normal_use_meets_no_limit(observed, verdict, quoted, kind):
    finding = judge("LIM-06", observed, kind=kind)
    assert finding.verdict is verdict, finding.found
    assert quoted in finding.found


# -- Over real sockets -------------------------------------------------------------------------------------------------


class Limited(Server):
    """Limits as Postfix has them; each can be left out (None)."""

    def __init__(
        self, purpose="relay", tls="starttls", *, errors=10, recipients=100, connections=20, logins=30, **more
    ):
        self.most = SimpleNamespace(errors=errors, recipients=recipients, connections=connections, logins=logins)
        self.logins, self.open, self.lock = 0, 0, threading.Lock()
        super().__init__(purpose, tls, **more)

    def _serve(self, connection):
        with self.lock:
            self.open += 1
            too_many = self.most.connections is not None and self.open > self.most.connections
        try:
            if too_many:
                connection.sendall(TOO_MANY_CONNECTIONS.encode() + b"\r\n")
                return
            LimitedConversation(self, connection).hold()
        except OSError:
            pass
        finally:
            connection.close()
            with self.lock:
                self.open -= 1


class LimitedConversation(Conversation):
    errors = taken = 0

    def _reply(self, line):
        server, most = self.server, self.server.most
        if line.startswith("AUTH") and self.phase == "tls":
            with server.lock:
                server.logins += 1
                if most.logins is not None and server.logins > most.logins:
                    return TOO_MANY_LOGINS
        if line.startswith("MAIL"):
            self.taken = 0
        if line.startswith("RCPT"):
            self.taken += 1
            if most.recipients is not None and self.taken > most.recipients:
                return TOO_MANY_RECIPIENTS
        answer = super()._reply(line)
        self.errors += answer is not None and answer[0] in "45"
        return TOO_MANY_ERRORS if most.errors is not None and self.errors > most.errors else answer


OVER_THE_WIRE = [i for i in IDS if i != "LIM-05"]


@pytest.mark.parametrize("purpose", ["relay", "submission"])
def test_limits_are_met_one_by_one(purpose):
    with Limited(purpose) as server:
        results = server.judge(*OVER_THE_WIRE, limits=True)
    said = {identifier: result.found for identifier, result in results.items()}
    assert {result.verdict for result in results.values()} == {Verdict.PASS}, said
    assert "after 10 bad commands" in said["LIM-03"]
    assert "20 connections at once" in said["LIM-02"]
    if purpose == "relay":
        assert "after 100 recipients" in said["LIM-04"]
    else:
        # The login of normal use counts too: without addresses for limits all come from the same one.
        assert "after 29 invented logins" in said["LIM-01"]


@pytest.mark.parametrize(
    ("identifier", "purpose", "without"),
    [
        ("LIM-01", "submission", "logins"),
        ("LIM-02", "submission", "connections"),
        ("LIM-03", "relay", "errors"),
        ("LIM-04", "relay", "recipients"),
    ],
)
def test_a_missing_limit_fails_its_row_and_no_other(identifier, purpose, without):
    with Limited(purpose, **{without: None}) as server:
        results = server.judge(*OVER_THE_WIRE, limits=True)
        assert server.logins <= wire.MAX_LOGINS + 1
    assert {i for i, r in results.items() if r.verdict is Verdict.FAIL} == {identifier}
    assert {r.verdict for i, r in results.items() if i != identifier} == {Verdict.PASS}


def test_a_low_limit_of_recipients_fails_in_normal_use():
    with Limited("relay", recipients=5) as server:
        result = server.judge("LIM-06")["LIM-06"]
    assert result.verdict is Verdict.FAIL and "452" in result.found


def test_idle_connections_are_waited_for_to_the_end(monkeypatch):
    monkeypatch.setattr(wire, "IDLE_SECONDS", 0.2)
    with Server() as server:
        result = server.judge("LIM-05", slow=True)["LIM-05"]
    assert result.verdict is Verdict.FAIL and "still stood" in result.found


def test_limits_are_met_only_on_request_and_nothing_is_delivered():
    with Limited("submission") as server:
        results = server.judge(*IDS)
        assert {i for i, r in results.items() if r.verdict is Verdict.NOT_RUN} == {*IDS} - {"LIM-04", "LIM-06"}
        assert server.logins == 1
        server.judge(*OVER_THE_WIRE, limits=True)
        assert not [c for c in server.commands if "DATA" in c or "BDAT" in c]


# -- From where --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("which", "seconds"), [(0, verification.PAIR_SECONDS), (1, verification.LIMIT_PAIR_SECONDS)])
def test_runs_and_their_limits_go_round_through_pairs_of_their_own(tmp_path, monkeypatch, which, seconds):
    """None is used twice within a minute, and none of the runs' for limits."""
    count = network.VANTAGES
    standing = SimpleNamespace(vantage={name: [f"{name}-{n}" for n in range(count)] for name in ("ipv4", "ipv6")})
    used = []
    for now in (1_800_000_000 + n * seconds for n in range(count)):
        monkeypatch.setattr(verification.time, "time", lambda now=now: now)
        pairs = verification._vantage(SimpleNamespace(reports=tmp_path), standing)
        used.append(pairs)
    in_a_minute = int(60 / seconds) + 1
    mine = [pairs[which] for pairs in used]
    assert all(len({*mine[n : n + in_a_minute]}) == in_a_minute for n in range(count - in_a_minute))
    assert not {pairs[0] for pairs in used} & {pairs[1] for pairs in used}


def test_a_run_never_comes_from_where_the_last_one_did(tmp_path, monkeypatch):
    standing = SimpleNamespace(vantage={"ipv4": ["4a", "4b", "4c"], "ipv6": ["6a", "6b", "6c"]})
    monkeypatch.setattr(verification.time, "time", lambda: 1_800_000_000)
    first, _ = verification._vantage(SimpleNamespace(reports=tmp_path), standing)
    (tmp_path / "last.json").write_text(json.dumps({"target": {"source_addresses": first}}))
    second, _ = verification._vantage(SimpleNamespace(reports=tmp_path), standing)
    assert first != second


def test_few_addresses_are_all_the_run_s(tmp_path):
    for count, expected in ((0, ((), ())), (1, (("4", "6"), ())), (2, (("4", "6"), ()))):
        standing = SimpleNamespace(vantage={"ipv4": ["4"] * count, "ipv6": ["6"] * count})
        assert verification._vantage(SimpleNamespace(reports=tmp_path), standing) == expected
