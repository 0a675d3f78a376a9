"""terraform/local on the real lab: apply, an empty plan, drift and its repair, change, destroy."""

from __future__ import annotations

import shutil
import socket
import subprocess
from pathlib import Path

import pytest
import yaml
from conftest import Root

from gatepost.lab import firewall, host, machine, store

pytestmark = pytest.mark.lab


def leader(name: str) -> int:
    (pid,) = host.machine_leaders(machine.root_of(name), Path("/run/netns", f"gatepost-{name}"))
    return pid


def answer(address: str, port: int, *, source: str = "") -> str:
    """Return open, refused or silent (a filter that drops)."""
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as client:
        client.settimeout(1.5)
        if source:
            client.bind((source, 0))
        try:
            client.connect((address, port))
        except ConnectionRefusedError:
            return "refused"
        except TimeoutError:
            return "silent"
        return "open"


def test_the_output_is_the_contract_and_ssh_knows_the_host_key(lab: Root) -> None:
    server = lab.server()
    assert set(server) == {"fqdn", "ipv4", "ipv6", "ssh_user", "ssh_port", "ssh_host_key"}
    assert server["fqdn"] == "mx.example.test"
    assert server["ssh_host_key"].startswith("ssh-ed25519 AAAA")
    assert lab.ssh("sudo id -un; hostname -f").split() == ["root", "mx.example.test"]
    assert lab.ssh("cloud-init status").strip() == "status: done"
    assert lab.ssh("systemctl --failed --quiet --no-legend") == ""
    assert lab.ssh("id -un", family="ipv6").strip() == "gatepost"


def test_no_private_host_key_is_in_the_image_or_the_seed(lab: Root) -> None:
    image = store.read()["machines"][lab.name]["image"]
    assert not list(Path("/var/lib/gatepost/lab/images", image, "root/etc/ssh").glob("ssh_host_*"))
    assert "PRIVATE" not in lab.ssh("sudo cat /var/lib/cloud/seed/nocloud/user-data")


def test_an_applied_lab_has_an_empty_plan(lab: Root) -> None:
    assert lab.plan() == {}


def test_the_state_holds_no_secret(lab: Root) -> None:
    assert "PRIVATE KEY" not in (lab.directory / "terraform.tfstate").read_text()


def test_the_firewall_stands_outside_of_the_machine(lab: Root) -> None:
    server = lab.server()
    lab.ssh("sudo systemd-run --quiet --unit=door26 python3 -m http.server --bind :: 26")
    lab.ssh("sudo systemd-run --quiet --unit=door587 python3 -m http.server --bind :: 587")
    lab.ssh("until ss -Hltn 'sport = :587' | grep -q . && ss -Hltn 'sport = :26' | grep -q .; do sleep .1; done")
    try:
        for family in ("ipv4", "ipv6"):
            assert answer(server[family], 587) == "open"
            assert answer(server[family], 25) == "refused"  # allowed, and no one is there
            assert answer(server[family], 26) == "silent"  # someone is there, and not allowed
        for vantage in lab.outputs()["vantage"]["ipv4"]:
            assert answer(server["ipv4"], 587, source=vantage) == "open"
        for vantage in lab.outputs()["vantage"]["ipv6"]:
            assert answer(server["ipv6"], 587, source=vantage) == "open"
    finally:
        lab.ssh("sudo systemctl stop door26 door587")


def test_the_machine_resolves_itself_the_outside_and_the_world(lab: Root) -> None:
    script = (
        "import socket;"
        "print(socket.getaddrinfo('gateway.remote.test', 25)[0][4][0]);"
        "print(socket.gethostbyaddr(socket.gethostbyname('vantage1.remote.test'))[0])"
    )
    lines = lab.ssh(f'python3 -c "{script}"').split()
    net = store.read()["networks"][lab.name]
    assert lines[0] in (net["gateway_ipv4"], net["gateway_ipv6"])
    assert lines[1] == "vantage1.remote.test"
    assert "does-not-exist" in lab.ssh("getent hosts nothing.test || echo does-not-exist")
    lab.ssh("sudo apt-get -qq update")  # forwards, and masquerades


def test_a_killed_machine_is_started_in_place(lab: Root) -> None:
    before = lab.server()
    host.end([leader(lab.name)])
    assert lab.plan() == {"lab_machine.server": ["update"]}
    lab.apply()
    assert lab.server() == before
    lab.ssh("true")
    assert lab.plan() == {}


def test_a_flushed_firewall_is_seen_and_loaded_again(lab: Root) -> None:
    subprocess.run(["nft", "delete", "table", "inet", firewall.table(lab.name)], check=True)
    assert answer(lab.server()["ipv4"], 26) == "refused"  # the wall is gone
    assert lab.plan() == {"lab_firewall.server": ["update"], "lab_network.lab": ["update"]}
    lab.apply()
    assert answer(lab.server()["ipv4"], 26) == "silent"
    assert lab.plan() == {}


@pytest.mark.parametrize(
    "change",
    [
        "insert rule inet {table} fw_{name} tcp dport 26 accept",
        "flush chain inet {table} to_machines",
        "insert rule inet {table} forward accept",
        "insert rule inet {table} fw_{name} counter",
        "delete chain inet {table} output",
    ],
)
def test_a_changed_rule_is_seen_and_repaired(lab: Root, change: str) -> None:
    command = change.format(table=firewall.table(lab.name), name=lab.name)
    subprocess.run(["nft", command], check=True)
    assert lab.plan() == {"lab_firewall.server": ["update"]}
    lab.apply()
    assert lab.plan() == {}
    assert answer(lab.server()["ipv4"], 26) == "silent"


def test_a_missing_device_is_repaired_while_the_machine_runs(lab: Root) -> None:
    boot = lab.ssh("cat /proc/sys/kernel/random/boot_id; systemctl show -p ActiveEnterTimestampMonotonic ssh")
    subprocess.run(["ip", "link", "delete", f"gpm-{lab.name}"], check=True)
    assert lab.plan() == {"lab_machine.server": ["update"]}
    lab.apply()
    assert lab.ssh("cat /proc/sys/kernel/random/boot_id; systemctl show -p ActiveEnterTimestampMonotonic ssh") == boot
    assert lab.plan() == {}


@pytest.mark.parametrize(
    "damage",
    [
        "ip route delete {ipv4} dev gpm-{name}",
        "ip -n gatepost-{name} address delete {ipv6}/128 dev host0",
        "ip -n gatepost-{name} route delete default",
        "ip link set gpm-{name} down",
        "ip netns delete gatepost-{name}",
    ],
)
def test_a_damaged_network_is_repaired_in_place(lab: Root, damage: str) -> None:
    server = lab.server()
    pid = leader(lab.name)
    subprocess.run(damage.format(name=lab.name, **server).split(), check=True)
    assert lab.plan() == {"lab_machine.server": ["update"]}
    lab.apply()
    assert leader(lab.name) == pid
    lab.ssh("true")
    lab.ssh("true", family="ipv6")
    assert lab.plan() == {}


def test_a_dead_resolver_and_a_missing_gateway_are_repaired(lab: Root) -> None:
    host.end(host.processes(f"--conf-file=/var/lib/gatepost/lab/networks/{lab.name}/dnsmasq.conf"))
    assert lab.plan() == {"lab_network.lab": ["update"]}
    lab.apply()
    subprocess.run(["ip", "link", "delete", f"gpn-{lab.name}"], check=True)
    assert lab.plan() == {"lab_network.lab": ["update"]}
    lab.apply()
    assert lab.plan() == {}
    lab.ssh("getent hosts gateway.remote.test")


def test_other_sources_change_the_firewall_in_place_and_nothing_else(lab: Root, tmp_path: Path) -> None:
    server, pid = lab.server(), leader(lab.name)
    table = yaml.safe_load((lab.directory / "../../roles/postfix/defaults/main/listeners.yml").read_text())
    table["postfix_listeners"][1]["sources"] = ["203.0.113.0/24"]
    (tmp_path / "listeners.yml").write_text(yaml.safe_dump(table))
    lab.write(listeners_file=str(tmp_path / "listeners.yml"))
    try:
        assert lab.plan() == {"lab_firewall.server": ["update"]}
        lab.apply()
        port = table["postfix_listeners"][1]["port"]
        assert answer(server["ipv4"], port) == "silent"
        assert answer(server["ipv4"], table["postfix_listeners"][0]["port"]) == "refused"
        assert (lab.server(), leader(lab.name)) == (server, pid)
        assert lab.plan() == {}
    finally:
        lab.write(listeners_file=None)
        lab.apply()
    assert answer(server["ipv4"], port) == "refused"


def test_the_order_of_sources_and_rows_does_not_matter(lab: Root, tmp_path: Path) -> None:
    table = yaml.safe_load((lab.directory / "../../roles/postfix/defaults/main/listeners.yml").read_text())
    table["postfix_listeners"].reverse()
    for row in table["postfix_listeners"]:
        row["sources"].reverse()
    (tmp_path / "listeners.yml").write_text(yaml.safe_dump(table))
    lab.write(listeners_file=str(tmp_path / "listeners.yml"), ssh_sources=list(reversed(lab.variables["ssh_sources"])))
    try:
        assert lab.plan() == {}
    finally:
        lab.write(listeners_file=None)


def test_more_domains_change_the_resolver_in_place(lab: Root) -> None:
    lab.write(domains=["example.test", "second.test"])
    try:
        assert lab.plan() == {"lab_machine.server": ["update"]}
        lab.apply()
        configuration = Path(f"/var/lib/gatepost/lab/networks/{lab.name}/dnsmasq.conf").read_text()
        assert "mx-host=second.test,mx.example.test,10" in configuration
    finally:
        lab.write(domains=["example.test"])
        lab.apply()


def test_a_firewall_removed_under_a_machine_closes_it(lab: Root) -> None:
    record = store.read()["firewalls"][lab.name]
    firewall.destroy(lab.name, record["uuid"])
    assert answer(lab.server()["ipv4"], 22) == "silent"
    assert lab.plan() == {"lab_firewall.server": ["create"]}
    lab.apply()
    assert answer(lab.server()["ipv4"], 22) == "open"


def test_a_lost_disk_makes_a_new_machine(lab: Root) -> None:
    before = lab.server()
    shutil.rmtree(f"/var/lib/gatepost/lab/machines/{lab.name}/upper")
    assert lab.plan() == {"lab_machine.server": ["create"]}
    lab.apply()
    after = lab.server()
    assert after["ssh_host_key"] != before["ssh_host_key"]
    lab.ssh("true")
    assert lab.plan() == {}


def test_destroy_leaves_nothing_and_can_be_repeated(lab: Root) -> None:
    # Last of this module: the fixture's own destroy then finds nothing, and its footprint shows that nothing is left.
    host.end([leader(lab.name)])  # a stopped machine is destroyed like a running one
    lab.destroy()
    assert lab.name not in store.read()["machines"]
    assert lab.name not in store.read()["networks"]
