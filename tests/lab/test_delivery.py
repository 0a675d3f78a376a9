"""Real messages on a real server: delivered, read back, and nothing of them left, whatever way the run ends."""

from __future__ import annotations

import signal
import subprocess
import time
from dataclasses import replace

import dns.resolver
import pytest
from environments import GATEPOST, MINUTES, Environment

from gatepost import inventory, settings, verification
from gatepost.verify import runner
from gatepost.verify.checks import delivery
from gatepost.verify.model import Target, Verdict
from gatepost.verify.wire import delivery as wire
from gatepost.verify.wire.session import WireError

pytestmark = pytest.mark.lab

JUDGED = [row.id for row in delivery.REQUIREMENTS if not row.id.startswith(("DKM", "HST-DKIM"))]


def target_of(server: Environment) -> Target:
    loaded = settings.load(server.directory)
    standing = inventory.read(loaded)
    return verification.target_of(loaded, standing, verification.table_of(server.directory, None, standing))


def left_over(server: Environment) -> str:
    """Return the test messages that lie in mailboxes and in the queue, one line each."""
    users = " ".join(account["address"] for account in server.info["test_accounts"])
    ours = "mailbox '*' OR HEADER X-Gatepost-Probe '' BODY gatepost-probe"
    return server.ssh(f"for user in {users}; do doveadm search -u $user {ours}; done; postqueue -j").stdout


def queue_runs_dry(server: Environment) -> None:
    server.ssh('for _ in {1..100}; do test -z "$(postqueue -j)" && break; sleep .1; done')


@pytest.mark.parametrize("release", ["server13", "server12"])
def test_messages_arrive_and_are_removed(release: str, request: pytest.FixtureRequest) -> None:
    server: Environment = request.getfixturevalue(release)
    report = runner.run(target_of(server), only=JUDGED)
    assert {r.id for r in report.of(Verdict.PASS)} == set(JUDGED), [r for r in report.results if r.verdict != "pass"]
    assert left_over(server) == ""


def test_what_was_left_by_others_is_not_touched(server13: Environment) -> None:
    """Neither mail without our header nor the newer messages of another run."""
    user = server13.info["test_accounts"][0]["address"]
    save = f"doveadm save -u {user} -m INBOX"
    server13.ssh(
        f"printf 'Subject: kept\\n\\nprivate\\n' | {save}\n"
        f"printf 'X-Gatepost-Probe: 0123456789abcdef mail\\nSubject: kept\\n\\nof another run\\n' | {save}"
    )
    try:
        runner.run(target_of(server13), only=["E2E-01"])
        assert len(server13.ssh(f"doveadm search -u {user} mailbox INBOX SUBJECT kept").stdout.splitlines()) == 2
    finally:
        server13.ssh(f"doveadm expunge -u {user} mailbox '*' SUBJECT kept")


def test_an_interrupted_run_cleans_up(server13: Environment) -> None:
    """Stopped while its messages are on the way: nothing is delivered yet, so that reading back waits."""
    stuck = "postconf -e defer_transports=lmtp,smtp; postfix reload"
    server13.ssh(f"cp -a /etc/postfix/main.cf /root/main.cf.kept; {stuck}")
    try:
        run = subprocess.Popen(
            [GATEPOST, "verify", "--inventory", server13.directory, "--json", "--only", "E2E-01", "--only", "E2E-02"],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        deadline = time.monotonic() + MINUTES
        while not server13.ssh("postqueue -j").stdout and time.monotonic() < deadline:
            time.sleep(0.1)
        run.send_signal(signal.SIGINT)
        said, _ = run.communicate(timeout=2 * MINUTES)
        assert run.returncode in (1, 3) and '"interrupted": true' in said
    finally:
        server13.ssh("mv /root/main.cf.kept /etc/postfix/main.cf; systemctl restart postfix")
    assert left_over(server13) == ""


def test_without_a_login_nothing_is_delivered(server13: Environment) -> None:
    report = runner.run(replace(target_of(server13), via=()), only=JUDGED)
    assert {r.verdict for r in report.results} == {Verdict.NOT_RUN}
    assert all("--via" in r.found for r in report.results)
    queue_runs_dry(server13)
    assert left_over(server13) == ""


def test_a_login_at_another_host_reads_nothing_back(server13: Environment, server12: Environment) -> None:
    report = runner.run(replace(target_of(server13), via=target_of(server12).via), only=JUDGED)
    assert {r.verdict for r in report.results} == {Verdict.NOT_RUN}
    assert all("so nothing can be read back" in r.found for r in report.results)


def test_mail_goes_out_only_where_the_dns_leads_to_the_sink(
    server13: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked of the lab's real resolver, as for a server that is not the lab's."""
    target = replace(target_of(server13), lab=False)
    resolver = dns.resolver.Resolver(configure=False)
    resolver.nameservers = [target.sink[0]]
    monkeypatch.setattr(dns.resolver, "default_resolver", resolver)
    wire.check_sink(target)
    with pytest.raises(WireError, match=f"goes to {target.sink[0]}.*nothing is sent there"):
        wire.check_sink(replace(target, sink=target.source_addresses))
    with pytest.raises(WireError, match="alone"):
        wire.check_sink(replace(target, sink=target.sink[:1]))
    with pytest.raises(WireError, match="goes to nowhere"):
        wire.check_sink(replace(target, outside_domain="nowhere.test"))
