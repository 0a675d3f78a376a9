"""Which layer stops a connection: each one broken on real machines, and named by `gatepost verify`'s own run."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
from environments import Environment

from gatepost import inventory, settings, verification
from gatepost.lab import firewall, store
from gatepost.verify import runner
from gatepost.verify.model import Diagnosis, Layer, Report, Target, Verdict

pytestmark = pytest.mark.lab

OWN_TABLE = "gatepost_test_own_network"


def target_of(server: Environment) -> Target:
    loaded = settings.load(server.directory)
    standing = inventory.read(loaded)
    return verification.target_of(loaded, standing, verification.table_of(server.directory, None, standing))


@pytest.fixture(scope="module")
def target(server13: Environment, server12: Environment) -> Target:
    """The server, seen from here, from itself and from another machine, which sits behind another firewall."""
    target, other = target_of(server13), target_of(server12)
    return replace(target, via=(*target.via, *other.via))


def look(target: Target, *ids: str) -> Report:
    return runner.run(target, only=ids or ("GEN-NET-01", "GEN-BAN-01"))


def layers(report: Report) -> dict[int, set[Layer]]:
    found: dict[int, set[Layer]] = {}
    for diagnosis in report.diagnoses:
        found.setdefault(diagnosis.port, set()).add(diagnosis.layer)
    return found


def of(report: Report, port: int) -> Diagnosis:
    return next(d for d in report.diagnoses if d.port == port)


def nft(script: str) -> None:
    subprocess.run(["nft", "-f", "-"], input=script, text=True, check=True, timeout=60)


@contextmanager
def own_network_blocks(target: Target, port: int) -> Iterator[None]:
    """Drop what this computer itself sends to the port, as an access network does; other machines' packets pass."""
    drops = "".join(
        f"{'ip6' if ':' in address else 'ip'} daddr {address} tcp dport {port} drop\n" for address in target.addresses
    )
    nft(f"table inet {OWN_TABLE} {{\nchain out {{\ntype filter hook output priority -10\n{drops}}}\n}}\n")
    try:
        yield
    finally:
        nft(f"delete table inet {OWN_TABLE}")


@contextmanager
def lab_firewall_without(server: Environment, port: int) -> Iterator[None]:
    [name] = [row["name"] for row in server.info["servers"]]
    rules: list[dict[str, Any]] = store.read()["firewalls"][name]["rules"]
    firewall.update(name, [rule for rule in rules if rule["port"] != port])
    try:
        yield
    finally:
        firewall.update(name, rules)


@contextmanager
def on(server: Environment, broken: str, healed: str) -> Iterator[None]:
    try:
        server.ssh(broken)
        yield
    finally:
        server.ssh(healed)


@pytest.fixture
def port(target: Target) -> Callable[[str], int]:
    by_name = {listener.name: listener.port for listener in target.listeners}
    return by_name.__getitem__


def test_a_sound_server_is_reached_from_every_vantage_point(target: Target) -> None:
    report = look(target)
    assert report.diagnoses == ()
    assert {s.vantage for s in report.sights} == {"here", *(login.url for login in target.via)}
    assert len(report.sights) == 3 * len(target.listeners) * len(target.addresses)
    assert all(sight.reached and target.hostname in sight.found for sight in report.sights if sight.port != 465)


def test_the_hosts_firewall_and_the_one_in_front(
    server13: Environment, target: Target, port: Callable[[str], int]
) -> None:
    dropped, rejected, in_front = port("submission"), port("submissions"), port("submission-alt")
    rules = f"""nft -f - <<'END'
        insert rule inet filter input tcp dport {dropped} drop
        insert rule inet filter input tcp dport {rejected} reject\nEND"""
    with on(server13, rules, "systemctl restart nftables"), lab_firewall_without(server13, in_front):
        report = look(target)
    assert layers(report) == {
        dropped: {Layer.HOST_FIREWALL},
        rejected: {Layer.HOST_FIREWALL},
        in_front: {Layer.CLOUD_FIREWALL},
    }
    assert "drops them" in of(report, dropped).found
    assert "rejects them" in of(report, rejected).found
    assert target.via[1].url in of(report, in_front).found


def test_the_network_we_are_in(target: Target, port: Callable[[str], int]) -> None:
    ours = port("relay")
    with own_network_blocks(target, ours):
        report = look(target)
        alone = look(replace(target, via=()))
    assert layers(report) == {ours: {Layer.OWN_NETWORK}}
    assert target.via[1].url in of(report, ours).found
    failed = [r for r in report.of(Verdict.FAIL) if r.id == "GEN-NET-01"]
    assert failed and all(str(Layer.OWN_NETWORK) in r.found for r in failed)
    # Without a second place the same is not guessed.
    assert layers(alone) == {ours: {Layer.UNKNOWN}}


def test_a_daemon_that_does_not_listen_or_dies_at_its_start(
    server13: Environment, target: Target, port: Callable[[str], int]
) -> None:
    gone, loopback, dying = port("submission-alt"), port("submission"), port("submissions")
    break_it = f"""
        cp -a /etc/postfix/master.cf /root/master.cf.kept
        postconf -MX {gone}/inet
        line=$(postconf -M {loopback}/inet); postconf -MX {loopback}/inet
        postconf -Me "127.0.0.1:{loopback}/inet=127.0.0.1:{loopback} ${{line#* }}"
        postconf -P {dying}/inet/smtpd_relay_restrictions=permit {dying}/inet/smtpd_recipient_restrictions=permit
        systemctl restart postfix"""
    heal = "mv /root/master.cf.kept /etc/postfix/master.cf; systemctl restart postfix"
    with on(server13, break_it, heal):
        report = look(target)
    assert layers(report) == {gone: {Layer.DAEMON}, loopback: {Layer.DAEMON}}
    assert "not at all" in of(report, gone).found
    assert "only on 127.0.0.1" in of(report, loopback).found
    silent = [r for r in report.of(Verdict.FAIL) if r.id == "GEN-BAN-01"]
    assert {r.port for r in silent} == {dying}
    assert all("fatal: in parameter smtpd_relay_restrictions" in r.found for r in silent)


def test_a_server_that_trusts_us_is_told_from_an_open_relay(server13: Environment, target: Target) -> None:
    ours = ", ".join(f"[{a}]" if ":" in a else a for a in target.source_addresses)
    kept = "cp -a /etc/postfix/main.cf /root/main.cf.kept"
    heal = "mv /root/main.cf.kept /etc/postfix/main.cf; systemctl restart postfix"
    with on(server13, f"{kept}; postconf -e 'mynetworks = 127.0.0.0/8, {ours}'; systemctl restart postfix", heal):
        results = look(target, "VER-01").results
    assert all(r.verdict is Verdict.INCONCLUSIVE and "is in mynetworks" in r.found for r in results), results
    results = look(target, "VER-01").results
    assert all(r.verdict is Verdict.PASS and "asked at the server" in r.found for r in results), results
