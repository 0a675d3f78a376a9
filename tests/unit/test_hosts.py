"""Several servers by one command: side by side, in order, each with its report, and stopped in good order."""

from __future__ import annotations

import os
import signal
import socket
import threading
from dataclasses import replace

import pytest
from smtp_loopback import Server

from gatepost import credentials, inventory, settings, verification
from gatepost.verify import hosts, runner
from gatepost.verify.model import ExitCode, Verdict


def test_reports_come_in_order_and_are_those_of_single_runs():
    with Server() as good, Server(broken={"EXPN": "250 2.1.5 alice"}) as bad:
        # The third as the first, so that processes end in another order than they began.
        targets = [good.target(), bad.target(), good.target(addresses=("127.0.0.2",))]
        seen = []
        reports = hosts.run(
            targets, only=["GEN-CMD-02", "GEN-CMD-07"], skip=["GEN-CMD-07"], progress=lambda n, of: seen.append((n, of))
        )
        assert [r.target for r in reports] == targets
        assert reports[0].exit_code is ExitCode.PASSED and reports[1].exit_code is ExitCode.FAILED
        assert reports[2].exit_code is not ExitCode.PASSED  # nothing listens at that address
        assert all(r.only and r.skipped == ("GEN-CMD-07",) for r in reports)
        alone = runner.run(targets[1], only=["GEN-CMD-02"]).results
        assert [(r.id, r.verdict, r.found) for r in alone] == [
            (r.id, r.verdict, r.found) for r in reports[1].results if r.id == "GEN-CMD-02"
        ]
    assert sorted(seen) == [(1, 3), (2, 3), (3, 3)]
    assert verification.worst(reports) is ExitCode.FAILED


@pytest.mark.parametrize(
    ("codes", "worst"),
    [((0, 0), 0), ((0, 3), 3), ((3, 1), 1), ((0, 1), 1), ((3, 0, 3), 3)],
)
def test_the_worst_exit_code_is_the_runs(codes, worst):
    class Fake:
        def __init__(self, code):
            self.exit_code = ExitCode(code)

    assert verification.worst([Fake(code) for code in codes]) == worst


def test_a_stopped_run_has_a_partial_report_of_each_server(monkeypatch):
    monkeypatch.setattr(hosts, "AT_ONCE", 2)
    with socket.create_server(("127.0.0.1", 0)) as silent, Server() as server:
        listener = replace(server.target().listeners[0], port=silent.getsockname()[1])
        targets = [server.target(listeners=(listener,))] * 3
        accepted = threading.Event()

        def stop():
            kept.append(silent.accept())
            accepted.set()
            os.kill(os.getpid(), signal.SIGINT)

        kept = []
        threading.Thread(target=stop, daemon=True).start()
        reports = hosts.run(targets)
        assert accepted.is_set()
    assert len(reports) == 3 and all(r.interrupted for r in reports)
    # Either of the two processes may have been the one that had begun; the third had not.
    assert (reports[0].results or reports[1].results) and not reports[2].results
    assert not any(result.port for report in reports for result in report.of(Verdict.PASS))
    assert verification.worst(reports) is ExitCode.INCONCLUSIVE


def test_a_process_that_dies_is_no_pass(monkeypatch):
    monkeypatch.setattr(runner, "run", lambda *_args, **_how: os.kill(os.getpid(), signal.SIGKILL))
    with Server() as server:
        reports = hosts.run([server.target(), server.target()])
    assert [r.exit_code for r in reports] == [ExitCode.INCONCLUSIVE] * 2


NOWHERE = {"source_addresses": (), "via": (), "sinks": (), "slow": False, "limits": False}
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIMvREn/5eVOeCpZwzjMfjG88jBikm6/sHIY7LKoVlOiP"


def environment(directory, *addresses):
    """An environment with servers mx1, mx2, …"""
    (directory / "settings.yml").write_text("{}")
    loaded = settings.load(directory)
    credentials.make_probe_passwords(loaded)
    row = {"ipv6": None, "ssh_user": "root", "ssh_port": 22, "ssh_host_key": KEY}
    rows = {
        f"mx{n}": row | {"fqdn": f"mx{n}.example.test", "ipv4": address} for n, address in enumerate(addresses, start=1)
    }
    standing = inventory.servers_of(loaded, {"servers": rows})
    inventory.write(loaded, standing, credentials.password_hashes(loaded), listeners_file=None)
    return loaded


def test_every_server_of_the_inventory_is_judged_by_its_own_name_and_login(tmp_path):
    loaded = environment(tmp_path, "198.18.0.16", "198.18.0.17")
    given = verification.vantage({**NOWHERE, "via": ("ssh://far.example.test",), "limits": True})
    first, second = verification.servers(loaded, None, given)
    assert (first.name, second.name) == ("mx1", "mx2")
    assert (first.target.hostname, second.target.hostname) == ("mx1.example.test", "mx2.example.test")
    assert second.target.addresses == ("198.18.0.17",)
    assert [login.url for login in second.target.via] == ["ssh://root@198.18.0.17:22", "ssh://far.example.test"]
    assert second.target.limits and not second.target.slow
    assert (first.kept, second.kept) == (loaded.reports / "mx1", loaded.reports / "mx2")


def test_one_server_keeps_its_reports_where_info_looks(tmp_path):
    loaded = environment(tmp_path, "198.18.0.16")
    (only,) = verification.servers(loaded, None, verification.vantage(NOWHERE))
    assert only.kept == loaded.reports and not only.target.limits


def test_the_second_source_address_of_a_family_is_for_limits():
    given = verification.vantage({**NOWHERE, "source_addresses": ("127.0.0.1", "::1", "127.0.0.2")})
    assert given["source_addresses"] == ("127.0.0.1", "::1") and given["limit_addresses"] == ("127.0.0.2",)
