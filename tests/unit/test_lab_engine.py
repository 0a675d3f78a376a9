"""The lab engine's pure parts: allocation, rules, DNS and image keys, package sources. No root, no network."""

from __future__ import annotations

import ipaddress
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from gatepost.errors import GatepostError
from gatepost.lab import firewall, host, images, machine, network, resolver, store


@pytest.fixture
def book(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> store.Book:
    """A lab with two machines, in a directory of its own."""
    monkeypatch.setattr(host, "DIRECTORY", tmp_path / "lab")
    monkeypatch.setattr(host, "LOCKS", tmp_path / "locks")
    net = {
        "uuid": "n", "device": "gpn-a", "outside_domain": "remote.test", "chains": {},
        "ipv4_subnet": "198.18.7.0/24", "ipv6_prefix": "fd12:3456:789a::/64",
        "gateway_ipv4": "198.18.7.1", "gateway_ipv6": "fd12:3456:789a::1",
        "vantage_ipv4": ["198.18.7.2"], "vantage_ipv6": ["fd12:3456:789a::2"],
    }  # fmt: skip
    mail: dict[str, Any] = {
        "uuid": "m", "network": "a", "device": "gpm-mail", "firewall": "wall", "fqdn": "mx.example.test",
        "mx_for": ["example.test", "example.org"], "ipv4": "198.18.7.16", "ipv6": "fd12:3456:789a::10",
    }  # fmt: skip
    other = {**mail, "uuid": "o", "device": "gpm-other", "firewall": "", "fqdn": "out.remote.test", "mx_for": []}
    return {
        "format": 1,
        "networks": {"a": net},
        "firewalls": {"wall": {"uuid": "f", "network": "a", "rules": [rule(25, "0.0.0.0/0", "2001:db8::/32")]}},
        "machines": {"mail": mail, "other": {**other, "ipv4": "198.18.7.17", "ipv6": "fd12:3456:789a::11"}},
        "sysctls": {},
    }


def rule(port: int, *sources: str, protocol: str = "tcp") -> dict[str, Any]:
    return {"port": port, "protocol": protocol, "sources": list(sources)}


# Firewall


def test_rules_do_not_depend_on_order() -> None:
    one = firewall.rules_of([rule(25, "::/0", "0.0.0.0/0"), rule(22, "203.0.113.0/24")])
    two = firewall.rules_of([rule(22, "203.0.113.0/24"), rule(25, "0.0.0.0/0", "::/0", "::/0")])
    assert one == two


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([rule(0, "::/0")], "rule for port 0"),
        ([rule(65536, "::/0")], "rule for port 65536"),
        ([rule(25, "::/0", protocol="sctp")], "25/sctp"),
        ([rule(25, "::/0"), rule(25, "0.0.0.0/0")], "25/tcp is there twice"),
        ([rule(25)], "25/tcp has no sources"),
        ([rule(25, "203.0.113.7/24")], "203.0.113.0/24"),
        ([rule(25, "2001:DB8::/32")], "2001:db8::/32"),
        ([rule(25, "everywhere")], "not a CIDR"),
    ],
)
def test_a_rule_that_cannot_be_is_named(rows: list[dict[str, Any]], words: str) -> None:
    with pytest.raises(GatepostError, match=words.replace(".", r"\.")):
        firewall.rules_of(rows)


def test_the_table_is_replaced_in_one_transaction_and_drops_by_default(book: store.Book) -> None:
    text = firewall.render(book, "a")
    assert text.startswith(
        "add table inet gatepost_lab_a\ndelete table inet gatepost_lab_a\ntable inet gatepost_lab_a {"
    )
    assert "flush ruleset" not in text
    wall = text.partition("chain fw_wall {")[2].partition("}\n")[0]
    assert [line.strip() for line in wall.strip().splitlines()[2:]] == [
        "meta nfproto ipv4 tcp dport 25 accept",
        "ip6 saddr 2001:db8::/32 tcp dport 25 accept",
        "drop",
    ]
    assert 'oifname "gpm-mail" jump fw_wall' in text
    assert "gpm-other" not in text  # declares no firewall


def test_a_machine_whose_firewall_is_missing_is_closed(book: store.Book) -> None:
    del book["firewalls"]["wall"]
    assert 'oifname "gpm-mail" jump closed' in firewall.render(book, "a")


def test_a_changed_chain_is_told_in_rules() -> None:
    def match(left: dict[str, Any], right: Any) -> dict[str, Any]:
        return {"match": {"op": "==", "left": left, "right": right}}

    port = match({"payload": {"protocol": "tcp", "field": "dport"}}, 26)
    saddr = {"payload": {"protocol": "ip", "field": "saddr"}}
    chain = [
        {"name": "fw_wall"},
        [match(saddr, {"prefix": {"addr": "10.0.0.0", "len": 8}}), port, {"accept": None}],
        [match({"meta": {"key": "nfproto"}}, "ipv6"), port, {"accept": None}],
        [match({"payload": {"protocol": "tcp", "field": "dport"}}, 99), {"accept": None}],
        [match({"payload": {"protocol": "tcp", "field": "dport"}}, 98), {"drop": None}],
    ]  # fmt: skip
    assert firewall._parse(chain) == (
        firewall.Rule(26, "tcp", ("10.0.0.0/8", "::/0")),
        firewall.Rule(99, "tcp", ("0.0.0.0/0", "::/0")),
    )


# Resolver


def test_the_resolver_knows_machines_exchangers_and_what_does_not_exist(book: store.Book) -> None:
    lines = resolver.render(book, "a").splitlines()
    for line in (
        "host-record=mx.example.test,198.18.7.16,fd12:3456:789a::10",
        "mx-host=example.test,mx.example.test,10",
        "mx-host=example.org,mx.example.test,10",
        "mx-host=remote.test,gateway.remote.test,10",
        "host-record=vantage1.remote.test,198.18.7.2,fd12:3456:789a::2",
        "listen-address=198.18.7.1",
        "listen-address=fd12:3456:789a::1",
        "local=/test/",
        "local=/example.org/",
        "local=/7.18.198.in-addr.arpa/",
        "local=/0.0.0.0.a.9.8.7.6.5.4.3.2.1.d.f.ip6.arpa/",
    ):
        assert line in lines
    names = [line.partition("=")[2].split(",")[0] for line in lines if line.startswith("host-record=")]
    assert names.index("gateway.remote.test") < names.index("remote.test")  # the first name is the PTR


def test_a_machine_that_serves_the_outside_domain_is_its_exchanger(book: store.Book) -> None:
    book["machines"]["other"]["mx_for"] = ["remote.test"]
    lines = [line for line in resolver.render(book, "a").splitlines() if line.startswith("mx-host=remote.test")]
    assert lines == ["mx-host=remote.test,out.remote.test,10"]


# Network and machine


def test_subnets_are_given_out_once_and_strangers_are_passed_over(
    book: store.Book, monkeypatch: pytest.MonkeyPatch
) -> None:
    strangers = [ipaddress.IPv4Network("198.18.0.0/23"), ipaddress.IPv4Network("198.18.2.9/32")]
    monkeypatch.setattr(network, "foreign_subnets", lambda ours: strangers)
    given = []
    for number in range(4):
        record = network._allocate(book, f"gpn-{number}", "remote.test")
        book["networks"][str(number)] = record
        given.append(record["ipv4_subnet"])
        prefix = ipaddress.IPv6Network(record["ipv6_prefix"])
        assert prefix.subnet_of(ipaddress.IPv6Network("fd00::/8"))
        assert prefix.prefixlen == 64
        vantages = [ipaddress.IPv6Address(address) for address in record["vantage_ipv6"]]
        assert all(address in prefix for address in vantages)
        assert len({int(address) >> 44 for address in vantages}) == network.VANTAGES  # of a /84 each
    assert given == ["198.18.3.0/24", "198.18.4.0/24", "198.18.5.0/24", "198.18.6.0/24"]
    assert network._allocate(book, "gpn-x", "remote.test")["ipv4_subnet"] == "198.18.8.0/24"  # 7 is the fixture's


def test_no_subnet_is_left(book: store.Book, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "foreign_subnets", lambda ours: [ipaddress.IPv4Network("198.16.0.0/12")])
    with pytest.raises(GatepostError, match="is free on this host"):
        network._allocate(book, "gpn-x", "remote.test")


def test_machine_addresses_are_given_out_once_and_keep_off_the_vantages(
    book: store.Book, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert network.FIRST_MACHINE > 1 + network.VANTAGES  # the gateway's, and theirs
    monkeypatch.setattr(network, "FIRST_MACHINE", 16)
    assert machine._free_number(book["networks"]["a"], book["machines"]) == 18
    del book["machines"]["mail"]
    assert machine._free_number(book["networks"]["a"], book["machines"]) == 16
    full = {str(n): {"ipv4": f"198.18.7.{n}"} for n in range(16, 255)}
    with pytest.raises(GatepostError, match=r"198\.18\.7\.0/24 is full"):
        machine._free_number(book["networks"]["a"], full)


@pytest.mark.parametrize("name", ["a", "gatepost", "gatepost-527ef7", "a" * 31])
def test_device_names_fit_the_kernel_and_stay_apart(name: str) -> None:
    device = store.device("gpm", name)
    assert len(device) <= 15
    assert device.startswith("gpm-")  # what the NAT rule goes by
    assert device != store.device("gpm", name[:-1] + "x") or name == "x"


@pytest.mark.parametrize("name", ["", "A", "1a", "a_b", "a-", "-a", "a" * 32, "a b", "a/b", "ä"])
def test_names_that_cannot_be(name: str) -> None:
    with pytest.raises(GatepostError, match="Choose another name"):
        store.check_name("machine", name)


# Store and locks


def test_the_book_is_written_whole_and_private(book: store.Book) -> None:
    with store.edit() as open_book:
        open_book["networks"]["a"] = book["networks"]["a"]
    path = host.DIRECTORY / "state.json"
    assert store.read()["networks"]["a"]["uuid"] == "n"
    assert path.stat().st_mode & 0o777 == 0o600
    assert [entry.name for entry in host.DIRECTORY.iterdir()] == ["state.json"]


def test_what_was_done_before_an_error_is_in_the_book(book: store.Book) -> None:
    def fail() -> None:
        with store.edit() as open_book:
            open_book["machines"]["half"] = {"uuid": "h"}
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert "half" in store.read()["machines"]


@pytest.mark.parametrize("content", ["{", '{"format": 2}'])
def test_a_damaged_book_is_an_error_and_stays(book: store.Book, content: str) -> None:
    host.DIRECTORY.mkdir()
    (host.DIRECTORY / "state.json").write_text(content)
    with pytest.raises(GatepostError, match=r"state\.json"), store.edit():
        pass
    assert (host.DIRECTORY / "state.json").read_text() == content


def test_threads_do_not_lose_each_other_s_entries(book: store.Book) -> None:
    def enter(number: int) -> None:
        with store.edit() as open_book:
            open_book["machines"][str(number)] = {"uuid": str(number)}

    threads = [threading.Thread(target=enter, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(store.read()["machines"]) == 20


def test_a_lock_that_is_held_is_an_error_that_names_the_holder(book: store.Book) -> None:
    with (
        host.lock("x", what="the thing"),
        pytest.raises(GatepostError, match=rf"the thing .*process {os.getpid()}"),
        host.lock("x", what="the thing", timeout=0.1),
    ):
        pass
    with host.lock("x", what="the thing", timeout=0.1):
        pass


# Images


def test_an_image_s_key_names_what_went_in(monkeypatch: pytest.MonkeyPatch) -> None:
    before = images.key(13)
    assert before.startswith(f"debian-13-{os.uname().machine}-")
    assert images.key(12) != before
    monkeypatch.setattr(images, "PACKAGES", (*images.PACKAGES, "mawk"))
    assert images.key(13) != before
    with pytest.raises(GatepostError, match="12 or 13"):
        images.key(11)


def test_the_newest_finished_build_is_taken(tmp_path: Path) -> None:
    assert images.newest(13, tmp_path) is None
    for stamp, built in (("20260101000000", 1.0), ("20260201000000", 2.0)):
        build = tmp_path / f"{images.key(13)}-{stamp}"
        build.mkdir()
        (build / "image.json").write_text(f'{{"built_at": {built}}}')
    (tmp_path / ".building-13-1-1").mkdir()
    (tmp_path / "debian-13-other-20270101000000").mkdir()
    found = images.newest(13, tmp_path)
    assert found
    assert found.built_at == 2.0


DEB822 = """\
Types: deb deb-src
URIs: http://mirror.example.test/debian/
Suites: bookworm bookworm-updates
Components: main
Signed-By: {keyring}

# Types: deb
Types: deb
Enabled: no
URIs: http://off.example.test/debian-security
Suites: bookworm-security

Types: deb
URIs: http://mirror.example.test/debian-security
Suites: bookworm-security
Components: main

Types: deb
URIs: https://other.example.test/nodejs
Suites: nodistro
"""
ONE_LINE = """\
# deb http://old.example.test/debian stretch main
deb-src http://mirror.example.test/debian trixie main
deb [arch=amd64 signed-by={keyring}] http://mirror.example.test/debian trixie main contrib
deb http://mirror.example.test/debian-security trixie-security main
deb cdrom:[Debian]/ trixie main
"""


@pytest.mark.parametrize(("name", "text"), [("debian.sources", DEB822), ("debian.list", ONE_LINE)])
def test_the_host_s_mirrors_are_used(tmp_path: Path, name: str, text: str) -> None:
    keyring = tmp_path / "key.gpg"
    keyring.touch()
    (tmp_path / "sources.list.d").mkdir()
    (tmp_path / "sources.list.d" / name).write_text(text.format(keyring=keyring))
    archive, security = images.host_sources(tmp_path)
    assert archive == images.Source("http://mirror.example.test/debian", keyring)
    assert security
    assert security.uri == "http://mirror.example.test/debian-security"


def test_no_debian_among_the_sources_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "sources.list").write_text("deb http://mirror.example.test/ubuntu noble main\n")
    with pytest.raises(GatepostError, match="no Debian archive"):
        images.host_sources(tmp_path)


def test_a_missing_key_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "sources.list").write_text("deb [signed-by=/none.gpg] http://mirror.example.test/debian trixie main\n")
    with pytest.raises(GatepostError, match=r"/none\.gpg"):
        images.host_sources(tmp_path)


# Host


def test_a_host_without_the_tools_is_told_every_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(host.shutil, "which", lambda tool, path: None)
    with pytest.raises(GatepostError) as caught:
        host.check()
    for package in ("systemd-container", "mmdebstrap", "nftables", "dnsmasq-base", "iproute2"):
        assert package in caught.value.next_step
    assert "cloud: existing" in caught.value.next_step


def test_without_root_the_way_out_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(GatepostError, match="needs root, and this runs as user id 1000") as caught:
        host.check()
    assert "cloud: existing" in caught.value.next_step


@pytest.mark.parametrize("what", ["unshare", "nft"])
def test_a_host_without_namespaces_or_nft_is_told(monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    def run(*argv: str, **_: object) -> str:
        if argv[0] == what:
            raise host.CommandError(argv, 1, "Operation not permitted")
        return ""

    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(host.shutil, "which", lambda tool, path: tool)
    monkeypatch.setattr(host, "run", run)
    with pytest.raises(GatepostError, match="Operation not permitted") as caught:
        host.check()
    assert "cloud: existing" in caught.value.next_step


def test_a_failing_command_is_told_with_its_words() -> None:
    with pytest.raises(host.CommandError, match=r"`sh -c echo no >&2; exit 3` failed \(3\): no"):
        host.run("sh", "-c", "echo no >&2; exit 3")
    with pytest.raises(GatepostError, match="no-such-tool is not installed"):
        host.run("no-such-tool")
