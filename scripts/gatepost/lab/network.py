"""A lab network: addresses, the host's side of it, the way out. Machines hang on routed veth pairs, not on a bridge.

(On hosts with br_netfilter an `inet forward` chain sees bridged frames, elsewhere it does not; routed traffic is
filtered the same way everywhere.)

Addresses: a /24 of 198.18.0.0/15 (RFC 2544, benchmarking: never a LAN's) and a random ULA /64 (RFC 4193 §3.2). A device
without a cable holds the gateway's addresses and a few *vantage* addresses from which this host can connect to the
machines.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import secrets
import socket
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gatepost.errors import GatepostError
from gatepost.lab import firewall, host, resolver, store

RANGE = ipaddress.ip_network("198.18.0.0/15")
VANTAGES = 30
FIRST_MACHINE = 32  # host numbers below are the gateway's and the vantage addresses
_FORWARDING = ("net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding")


@dataclass(frozen=True, slots=True)
class Network:
    """A network as it is: addresses as text; `intact` tells whether devices, NAT, resolver and forwarding all stand."""

    name: str
    uuid: str
    outside_domain: str
    ipv4_subnet: str
    ipv6_prefix: str
    gateway_ipv4: str
    gateway_ipv6: str
    vantage_ipv4: tuple[str, ...]
    vantage_ipv6: tuple[str, ...]
    intact: bool


def create(name: str, *, outside_domain: str) -> Network:
    """Make a network. Raises GatepostError when the name or the device is taken, by us or by a stranger."""
    store.check_name("network", name)
    with store.edit() as book:
        if name in book["networks"]:
            raise GatepostError(
                f"there is a network {name!r} in the lab of this host already",
                next_step="Choose another name, or destroy the lab that it belongs to.",
            )
        device = store.device("gpn", name)
        if has_device(device):
            raise GatepostError(
                f"network {name!r}: this host has a device {device} that is not the lab's",
                next_step=f"Choose another name; or, if nothing needs the device, `ip link delete {device}`.",
            )
        if firewall.exists(name):
            raise GatepostError(
                f"network {name!r}: this host has an nft table {firewall.table(name)} that is not the lab's",
                next_step="Choose another name; or, if nothing needs it, "
                f"`nft delete table inet {firewall.table(name)}`.",
            )
        book["networks"][name] = record = _allocate(book, device, outside_domain)
        try:
            _restore(book, name)
        except GatepostError:
            _wipe(book, name)
            raise
        return _described(name, record, intact=True)


def _allocate(book: store.Book, device: str, outside_domain: str) -> dict[str, Any]:
    taken = [ipaddress.ip_network(network["ipv4_subnet"]) for network in book["networks"].values()]
    taken += foreign_subnets(set())
    subnet = next((s for s in RANGE.subnets(new_prefix=24) if not any(s.overlaps(other) for other in taken)), None)
    if subnet is None:
        raise GatepostError(
            f"no /24 of {RANGE} is free on this host", next_step="Destroy a lab that you no longer need."
        )
    prefix = ipaddress.ip_network((b"\xfd" + secrets.token_bytes(5) + bytes(10), 64))
    ipv4 = [str(subnet[number]) for number in range(1, 2 + VANTAGES)]
    # Each in a /84 of its own, whose clients anvil(8) counts together (smtpd_client_ipv6_prefix_length, Postfix 3.8).
    ipv6 = [str(prefix[1]), *(str(prefix[number << 44 | number]) for number in range(2, 2 + VANTAGES))]
    return {
        "uuid": str(uuid.uuid4()),
        "device": device,
        "outside_domain": outside_domain,
        "ipv4_subnet": str(subnet),
        "ipv6_prefix": str(prefix),
        "gateway_ipv4": ipv4[0],
        "gateway_ipv6": ipv6[0],
        "vantage_ipv4": ipv4[1:],
        "vantage_ipv6": ipv6[1:],
        "chains": {},
    }


def foreign_subnets(ours: set[str]) -> list[ipaddress.IPv4Network]:
    """Return the subnets inside of the lab's range that this host routes through devices other than `ours`."""
    found = []
    for route in json.loads(host.run("ip", "-j", "-4", "route", "show", "table", "all") or "[]"):
        if route.get("dev") in ours or route["dst"] in ("default", "0.0.0.0/0"):
            continue
        with contextlib.suppress(ValueError):
            subnet = ipaddress.IPv4Network(route["dst"])
            if subnet.overlaps(RANGE):
                found.append(subnet)
    return found


def read(name: str, identity: str) -> Network | None:
    """Look at a network; None when there is no such network of ours. Raises GatepostError when a tool fails."""
    book = store.read()
    record = book["networks"].get(name)
    if not record or record["uuid"] != identity:
        return None
    chains = firewall.kernel_chains(name)
    intact = (
        _addresses(record["device"]) >= {*_all_addresses(record)}
        and "nat" in chains
        and firewall.digest(chains["nat"]) == record["chains"].get("nat")
        and resolver.running(name)
        and all(_sysctl(key) == "1" for key in _FORWARDING)
    )
    return _described(name, record, intact=intact)


def update(name: str, *, outside_domain: str) -> Network:
    """Set the outside domain and put back whatever of the network is missing or changed."""
    with store.edit() as book:
        book["networks"][name]["outside_domain"] = outside_domain
        _restore(book, name)
        return _described(name, book["networks"][name], intact=True)


def destroy(name: str, identity: str) -> None:
    """Remove a network; the last one puts the host's forwarding back. One that is gone already is success."""
    with store.edit() as book:
        record = book["networks"].get(name)
        if not record or record["uuid"] != identity:
            return
        living = sorted(n for n, machine in book["machines"].items() if machine["network"] == name)
        if living:
            raise GatepostError(
                f"network {name!r} still has machines: {', '.join(living)}", next_step="Destroy them first."
            )
        _wipe(book, name)


def _wipe(book: store.Book, name: str) -> None:
    resolver.remove(name)
    firewall.unload(name)
    delete_device(book["networks"][name]["device"])
    del book["networks"][name]
    if not book["networks"]:
        for key, value in book["sysctls"].items():
            with contextlib.suppress(OSError):  # the device may be gone
                Path("/proc/sys", key).write_text(value)
        book["sysctls"] = {}
        if book.pop("made_netns", False):
            _remove_netns(Path("/run/netns"))


def _remove_netns(directory: Path) -> None:
    """Take away the directory of named namespaces, unless someone else has one there by now."""
    with contextlib.suppress(GatepostError, OSError):
        if not any(directory.iterdir()):
            host.run("umount", str(directory))  # a bind mount on itself, which os.path.ismount() does not see
            directory.rmdir()


def _described(name: str, record: dict[str, Any], *, intact: bool) -> Network:
    return Network(
        name=name,
        uuid=record["uuid"],
        outside_domain=record["outside_domain"],
        ipv4_subnet=record["ipv4_subnet"],
        ipv6_prefix=record["ipv6_prefix"],
        gateway_ipv4=record["gateway_ipv4"],
        gateway_ipv6=record["gateway_ipv6"],
        vantage_ipv4=tuple(record["vantage_ipv4"]),
        vantage_ipv6=tuple(record["vantage_ipv6"]),
        intact=intact,
    )


def _all_addresses(record: dict[str, Any]) -> list[str]:
    return [record["gateway_ipv4"], record["gateway_ipv6"], *record["vantage_ipv4"], *record["vantage_ipv6"]]


def _restore(book: store.Book, name: str) -> None:
    """Bring devices, forwarding, NAT and resolver to what the book says. Harmless when all stands."""
    record = book["networks"][name]
    device, peer = record["device"], store.device("gpp", name)
    _forward(book)
    commands = []
    if not has_device(device):
        ours = {machine["device"] for machine in book["machines"].values() if machine["network"] == name}
        subnet = ipaddress.IPv4Network(record["ipv4_subnet"])
        if any(subnet.overlaps(other) for other in foreign_subnets(ours)):
            raise GatepostError(
                f"network {name!r}: its device is gone, and this host now routes {subnet} elsewhere",
                next_step=f"Remove the other route (`ip route show root {subnet}`), or make this lab anew.",
            )
        # A veth pair that leads nowhere: machines need veth anyway, while not every kernel has the dummy device. Its
        # peer is up, since without a carrier the kernel holds IPv6 addresses back.
        commands += [f"link add {device} type veth peer name {peer}", f"link set {peer} addrgenmode none"]
    commands += [f"link set {peer} up", f"link set {device} up"]
    for address in _all_addresses(record):
        plain = f"{address}/128 dev {device} nodad" if ":" in address else f"{address}/32 dev {device}"
        commands.append(f"addr replace {plain}")
    host.run("ip", "-batch", "-", stdin="\n".join(commands) + "\n")
    firewall.load(book, name)
    resolver.ensure(book, name)


def _forward(book: store.Book) -> None:
    """Switch forwarding on, keeping what was there for the last destroy."""
    if _sysctl(_FORWARDING[1]) != "1":
        # A router ignores router advertisements unless told otherwise (accept_ra, ip-sysctl.rst): the host must not
        # lose its own IPv6 default route.
        advertised = {
            r["dev"] for r in json.loads(host.run("ip", "-j", "-6", "route") or "[]") if r.get("protocol") == "ra"
        }
        for device in advertised:
            _set(book, f"net/ipv6/conf/{device}/accept_ra", "2", only_if="1")
    for key in _FORWARDING:
        _set(book, key, "1", only_if="0")


def _set(book: store.Book, key: str, value: str, *, only_if: str) -> None:
    before = _sysctl(key)
    if before == only_if:
        book["sysctls"].setdefault(key, before)
        Path("/proc/sys", key).write_text(value)


def _sysctl(key: str) -> str:
    return Path("/proc/sys", key).read_text().strip()


def _addresses(device: str) -> set[str]:
    if not has_device(device):
        return set()
    return {
        address["local"]
        for link in json.loads(host.run("ip", "-j", "addr", "show", "dev", device, "up") or "[]")
        for address in link.get("addr_info", [])
    }


def has_device(name: str) -> bool:
    """Whether this network namespace has a device; /sys may show another namespace's (in a container)."""
    return name in {device for _, device in socket.if_nameindex()}


def delete_device(device: str) -> None:
    """Delete a network device; absent is success."""
    if has_device(device):
        host.run("ip", "link", "delete", device)
