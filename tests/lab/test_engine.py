"""The lab engine without Terraform: machines side by side, DNS between them, images, restart, both Debian releases."""

from __future__ import annotations

import concurrent.futures
import secrets
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import dns.resolver
import dns.reversename
import pytest
from footprint import Footprint

from gatepost.errors import GatepostError
from gatepost.lab import firewall, host, images, machine, network, store

pytestmark = pytest.mark.lab


@dataclass
class Lab:
    """A network of the test's own with a key that opens its machines."""

    name: str
    key: Path
    network: network.Network

    def spec(self, name: str, fqdn: str, **more: object) -> machine.Spec:
        public = self.key.with_suffix(".pub").read_text().strip()
        return machine.Spec(f"{self.name}-{name}", fqdn, self.name, public, **more)  # type: ignore[arg-type]

    def ssh(self, server: machine.Machine, command: str) -> str:
        known = self.key.with_name("known_hosts")
        known.write_text(f"{server.ipv4} {server.ssh_host_key}\n")
        done = subprocess.run(
            ["ssh", "-F", "none", "-i", str(self.key), "-o", f"UserKnownHostsFile={known}", "-o", "BatchMode=yes",
             "-o", "StrictHostKeyChecking=yes", f"gatepost@{server.ipv4}", command],
            capture_output=True, text=True, timeout=90,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    def clear(self) -> None:
        book = store.read()
        for name, record in book["machines"].items():
            if record["network"] == self.name:
                machine.destroy(name, record["uuid"])
        for name, record in book["firewalls"].items():
            if record["network"] == self.name:
                firewall.destroy(name, record["uuid"])


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    before = Footprint()
    key = tmp_path_factory.mktemp("key") / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    name = "e" + secrets.token_hex(3)
    made = Lab(name, key, network.create(name, outside_domain="remote.test"))
    yield made
    made.clear()
    network.destroy(name, made.network.uuid)
    network.destroy(name, made.network.uuid)  # once more is success
    assert before.left() == []


@pytest.fixture(scope="module")
def pair(lab: Lab) -> Iterator[tuple[machine.Machine, machine.Machine]]:
    """Two machines, one of each Debian release, made at the same time; the second serves the outside domain."""
    specs = (
        lab.spec("mx", "mx.example.test", mx_for=("example.test",), release=13),
        lab.spec("out", "out.remote.test", mx_for=("remote.test",), release=12),
    )
    with concurrent.futures.ThreadPoolExecutor() as pool:
        one, two = pool.map(machine.create, specs)
    yield one, two
    lab.clear()


def ask(lab: Lab, name: str, kind: str, *, over: str = "gateway_ipv4") -> list[str]:
    resolver = dns.resolver.Resolver(configure=False)
    resolver.nameservers = [getattr(lab.network, over)]
    resolver.lifetime = 5
    return [str(answer) for answer in resolver.resolve(name, kind)]


def test_both_releases_boot_and_differ(lab: Lab, pair: tuple[machine.Machine, machine.Machine]) -> None:
    for server, version in zip(pair, ("13", "12"), strict=True):
        assert lab.ssh(server, "cut -d. -f1 /etc/debian_version").strip() == version
        assert lab.ssh(server, "systemctl --failed --quiet --no-legend") == ""
        assert lab.ssh(server, "cloud-init status").strip() == "status: done"
        assert lab.ssh(server, "hostname -f").strip() == server.fqdn
    assert len({server.ssh_host_key for server in pair}) == 2
    assert len({server.ipv4 for server in pair}) == 2


@pytest.mark.parametrize("over", ["gateway_ipv4", "gateway_ipv6"])
def test_the_resolver_answers_for_the_lab(lab: Lab, pair: tuple[machine.Machine, machine.Machine], over: str) -> None:
    for server in pair:
        assert ask(lab, server.fqdn, "A", over=over) == [server.ipv4]
        assert ask(lab, server.fqdn, "AAAA", over=over) == [server.ipv6]
        for address in (server.ipv4, server.ipv6):
            assert ask(lab, str(dns.reversename.from_address(address)), "PTR", over=over) == [server.fqdn + "."]
    assert ask(lab, "example.test", "MX", over=over) == ["10 mx.example.test."]
    assert ask(lab, "remote.test", "MX", over=over) == ["10 out.remote.test."]
    for number, address in enumerate(lab.network.vantage_ipv4, start=1):
        (pointer,) = ask(lab, str(dns.reversename.from_address(address)), "PTR", over=over)
        assert pointer == f"vantage{number}.remote.test."
        assert ask(lab, pointer, "A", over=over) == [address]  # forward-confirmed


@pytest.mark.parametrize(
    ("name", "kind"),
    [("nothing.test", "A"), ("nothing.test", "MX"), ("x.example.test", "TXT"), ("_dmarc.remote.test", "TXT")],
)
def test_what_does_not_exist_does_not_exist(
    lab: Lab, pair: tuple[machine.Machine, machine.Machine], name: str, kind: str
) -> None:
    with pytest.raises(dns.resolver.NXDOMAIN):
        ask(lab, name, kind)


def test_machines_reach_each_other_by_mx_through_the_firewall_in_between(
    lab: Lab, pair: tuple[machine.Machine, machine.Machine]
) -> None:
    mx, out = pair
    rule = {"port": 25, "protocol": "tcp", "sources": [f"{out.ipv4}/32", f"{out.ipv6}/128"]}
    identity = firewall.create(f"{lab.name}-wall", lab.name, [rule])
    machine.update(mx.name, firewall_name=f"{lab.name}-wall", mx_for=("example.test",))
    try:
        assert machine.read(mx.name, mx.uuid)
        door = "sudo systemd-run --quiet --unit=door --collect python3 -m http.server --bind :: 25"
        # The wall lets only `out` in, and only to 25: not even SSH from this host.
        with pytest.raises((TimeoutError, OSError)):
            socket.create_connection((mx.ipv4, 22), timeout=1)
        leader = host.machine_leaders(machine.root_of(mx.name), Path(f"/run/netns/gatepost-{mx.name}"))[0]
        subprocess.run(["nsenter", "-a", "-t", str(leader), "sh", "-c", door.removeprefix("sudo ")], check=True)
        look = "import socket,sys; [socket.create_connection((a, 25), 5).close() for a in sys.argv[1:]]; print('in')"
        command = f'python3 -c "{look}" {mx.ipv4} {mx.ipv6}'
        deadline = time.monotonic() + 20
        while True:
            try:
                assert lab.ssh(out, command).strip() == "in"
                break
            except AssertionError:
                assert time.monotonic() < deadline
        with pytest.raises(TimeoutError):
            socket.create_connection((mx.ipv4, 25), timeout=1)
    finally:
        machine.update(mx.name, firewall_name="", mx_for=("example.test",))
        firewall.destroy(f"{lab.name}-wall", identity)
    lab.ssh(mx, "sudo systemctl stop door")


def test_restarting_a_service_in_one_machine_does_not_wait_for_the_other(
    lab: Lab, pair: tuple[machine.Machine, machine.Machine]
) -> None:
    # In one shared cgroup each systemd would wait for the other's processes, up to the stop timeout of 90 s.
    for server in pair:
        lab.ssh(server, "sudo timeout 20 systemctl restart systemd-journald ssh")


def test_a_machine_reboots_from_inside_with_its_network(
    lab: Lab, pair: tuple[machine.Machine, machine.Machine]
) -> None:
    mx, _ = pair
    before = lab.ssh(mx, "systemctl show -p UserspaceTimestamp --value")
    subprocess.run(
        ["ssh", "-q", "-F", "none", "-i", str(lab.key), "-o", f"UserKnownHostsFile={lab.key.with_name('known_hosts')}",
         f"gatepost@{mx.ipv4}", "sudo systemctl reboot"], check=False,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while True:
        try:
            after = lab.ssh(mx, "systemctl show -p UserspaceTimestamp --value")
            if after != before:
                break
        except AssertionError:
            pass
        assert time.monotonic() < deadline
        time.sleep(0.2)
    found = machine.read(mx.name, mx.uuid)
    assert found
    assert (found.status, found.network_ok, found.ssh_host_key) == ("running", True, mx.ssh_host_key)


def test_a_stopped_machine_starts_with_its_disk_and_addresses(
    lab: Lab, pair: tuple[machine.Machine, machine.Machine]
) -> None:
    mx, _ = pair
    lab.ssh(mx, "sudo touch /root/mark")
    machine.stop(mx.name)
    found = machine.read(mx.name, mx.uuid)
    assert found
    assert found.status == "stopped"
    assert machine.update(mx.name, firewall_name="", mx_for=("example.test",)) == mx
    lab.ssh(mx, "sudo test -e /root/mark")


def test_a_host_name_that_is_taken_is_refused(lab: Lab, pair: tuple[machine.Machine, machine.Machine]) -> None:
    with pytest.raises(GatepostError, match=r"has the host name mx\.example\.test already"):
        machine.create(lab.spec("second", "mx.example.test"))
    assert f"{lab.name}-second" not in store.read()["machines"]


def test_a_network_with_machines_is_not_destroyed(lab: Lab, pair: tuple[machine.Machine, machine.Machine]) -> None:
    with pytest.raises(GatepostError, match="still has machines"):
        network.destroy(lab.name, lab.network.uuid)
    found = network.read(lab.name, lab.network.uuid)
    assert found
    assert found.intact


def test_what_has_another_uuid_is_left_alone(lab: Lab, pair: tuple[machine.Machine, machine.Machine]) -> None:
    mx, _ = pair
    machine.destroy(mx.name, "another")
    assert machine.read(mx.name, "another") is None
    assert machine.read(mx.name, mx.uuid)
    lab.ssh(mx, "true")


def test_an_interrupted_boot_leaves_a_machine_that_is_made_anew_or_destroyed(lab: Lab) -> None:
    cancelled = threading.Event()
    cancelled.set()
    spec = lab.spec("short", "short.example.test")
    with pytest.raises(GatepostError, match="interrupted"):
        machine.create(spec, cancelled=cancelled)
    assert store.read()["machines"][spec.name]["phase"] == "creating"
    made = machine.create(spec)
    lab.ssh(made, "true")
    machine.destroy(made.name, made.uuid)
    machine.destroy(made.name, made.uuid)


def test_a_boot_that_does_not_end_is_told_with_the_console(lab: Lab) -> None:
    spec = lab.spec("slow", "slow.example.test", boot_timeout=0)
    with pytest.raises(GatepostError, match="did not answer SSH within 0 s") as caught:
        machine.create(spec)
    assert "console.log" in caught.value.next_step
    machine.destroy(spec.name, store.read()["machines"][spec.name]["uuid"])


def test_images_are_built_once_grow_old_and_are_kept_while_used(tmp_path: Path) -> None:
    said: list[str] = []
    first = images.ensure(13, directory=tmp_path, progress=said.append)
    assert (first.root / "usr/sbin/sshd").exists()
    assert not list((first.root / "etc/ssh").glob("ssh_host_*"))
    assert (first.root / "etc/machine-id").read_text() == ""
    assert "Building the image" in said[0]
    said.clear()
    assert images.ensure(13, directory=tmp_path, progress=said.append) == first
    assert said == []
    with images.in_use(first):
        second = images.ensure(13, max_age_days=0, directory=tmp_path)
        assert second.path != first.path
        assert first.root.is_dir()
    images.prune(13, tmp_path)
    assert [build for build in tmp_path.iterdir() if build.is_dir()] == [second.path]
    shutil.rmtree(tmp_path)
