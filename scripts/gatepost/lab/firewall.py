"""The lab's firewall: filters outside of the machines, as a cloud's does, with nftables.

Every network has one nft table of its own, in the `inet` family, written whole in one transaction (nft(8)); nobody
else's rules are touched. Traffic to a machine passes the `forward` hook, or `output` when it comes from this host
itself. What a machine sends is not restricted. A machine that declares a firewall which is not there is closed.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from gatepost.errors import GatepostError
from gatepost.lab import host, store

_ESTABLISHED = "ct state established,related accept"
# ICMP and ICMPv6 with its neighbour discovery (RFC 4890 §4.4), by number: the names are in /etc/protocols, which a
# minimal Debian lacks.
_ICMP = "meta l4proto { 1, 58 } accept"


@dataclass(frozen=True, slots=True, order=True)
class Rule:
    """Lets `sources` (canonical CIDRs, IPv4 and IPv6, sorted) reach a port; `protocol` is tcp or udp."""

    port: int
    protocol: str
    sources: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Reading:
    """What the kernel enforces: `rules` as found, and whether the whole is exactly what was loaded last."""

    rules: tuple[Rule, ...]
    enforced: bool


def table(network: str) -> str:
    """Return the name of a network's nft table."""
    return "gatepost_lab_" + network.replace("-", "_")


def _chain(firewall: str) -> str:
    return "fw_" + firewall.replace("-", "_")


def rules_of(rows: Iterable[Mapping[str, Any]]) -> tuple[Rule, ...]:
    """Return rows of {port, protocol, sources} as rules in a fixed order.

    Raises GatepostError for a port or protocol that is none, a CIDR that is not canonical, or a port named twice.
    """
    rules: dict[tuple[int, str], Rule] = {}
    for row in rows:
        port, protocol = row["port"], row["protocol"]
        if not isinstance(port, int) or not 1 <= port <= 65535:
            raise GatepostError(f"firewall rule for port {port}", expected="a whole number from 1 to 65535")
        where = f"firewall rule for {port}/{protocol}"
        if protocol not in ("tcp", "udp"):
            raise GatepostError(where, expected="protocol tcp or udp")
        if (port, protocol) in rules:
            raise GatepostError(f"{where} is there twice", next_step="Put all its sources into one rule.")
        if not row["sources"]:
            raise GatepostError(f"{where} has no sources", expected='CIDRs such as ["0.0.0.0/0", "::/0"]')
        for cidr in row["sources"]:
            _check_cidr(where, cidr)
        rules[port, protocol] = Rule(port, protocol, tuple(sorted(set(row["sources"]))))
    return tuple(sorted(rules.values()))


def _check_cidr(where: str, cidr: str) -> None:
    try:
        canonical = str(ipaddress.ip_network(cidr, strict=False))
    except ValueError as error:
        raise GatepostError(
            f"{where}: source {cidr!r} is not a CIDR: {error}", expected="such as 203.0.113.0/24 or 2001:db8::/32"
        ) from error
    if canonical != cidr:
        raise GatepostError(f"{where}: source {cidr!r}", expected=f"its canonical form, {canonical}")


def create(name: str, network: str, rows: Iterable[Mapping[str, Any]]) -> str:
    """Make a firewall and load it; return its uuid."""
    store.check_name("firewall", name)
    rules = rules_of(rows)
    with store.edit() as book:
        if name in book["firewalls"]:
            raise GatepostError(
                f"there is a firewall {name!r} in the lab of this host already",
                next_step="Choose another name, or destroy the lab that it belongs to.",
            )
        if network not in book["networks"]:
            raise GatepostError(f"firewall {name!r}: there is no network {network!r} in the lab of this host")
        book["firewalls"][name] = {"uuid": str(uuid.uuid4()), "network": network, "rules": _rows(rules)}
        load(book, network)
        return str(book["firewalls"][name]["uuid"])


def update(name: str, rows: Iterable[Mapping[str, Any]]) -> None:
    """Set a firewall's rules and load the network's table anew, whatever became of it."""
    rules = rules_of(rows)
    with store.edit() as book:
        record = book["firewalls"][name]
        record["rules"] = _rows(rules)
        load(book, record["network"])


def destroy(name: str, identity: str) -> None:
    """Remove a firewall; machines that still declare it are closed. One that is gone already is success."""
    with store.edit() as book:
        record = book["firewalls"].get(name)
        if record and record["uuid"] == identity:
            del book["firewalls"][name]
            if record["network"] in book["networks"]:
                load(book, record["network"])


def read(name: str, identity: str) -> Reading | None:
    """Look at the kernel's table; None when there is no such firewall of ours.

    Raises GatepostError when nft itself fails.
    """
    book = store.read()
    record = book["firewalls"].get(name)
    if not record or record["uuid"] != identity:
        return None
    loaded = book["networks"].get(record["network"], {}).get("chains", {})
    chains = kernel_chains(record["network"])
    own = _chain(name)
    enforced = all(
        chain in chains and digest(chains[chain]) == loaded.get(chain)
        for chain in (own, "closed", "to_machines", "forward", "output")
    )
    if own in chains and digest(chains[own]) == loaded.get(own):
        return Reading(rules_of(record["rules"]), enforced)
    return Reading(_parse(chains.get(own, [])), enforced)


def _rows(rules: Iterable[Rule]) -> list[dict[str, Any]]:
    return [{"port": rule.port, "protocol": rule.protocol, "sources": list(rule.sources)} for rule in rules]


def load(book: store.Book, network: str) -> None:
    """Write a network's table as the book says, in one transaction, and note what the kernel made of it."""
    host.run("nft", "-f", "-", stdin=render(book, network))
    book["networks"][network]["chains"] = {chain: digest(content) for chain, content in kernel_chains(network).items()}


def unload(network: str) -> None:
    """Remove a network's table; absent is success."""
    name = table(network)
    host.run("nft", "-f", "-", stdin=f"add table inet {name}\ndelete table inet {name}\n")


def render(book: store.Book, network: str) -> str:
    """Return the nft script that replaces a network's table."""
    name = table(network)
    record = book["networks"][network]
    firewalls = {n: f for n, f in sorted(book["firewalls"].items()) if f["network"] == network}
    lines = [f"add table inet {name}", f"delete table inet {name}", f"table inet {name} {{"]
    lines += _block("closed", [_ESTABLISHED, _ICMP, "drop"])
    for firewall, content in firewalls.items():
        accepts = [line for rule in rules_of(content["rules"]) for line in _accept(rule)]
        lines += _block(_chain(firewall), [_ESTABLISHED, _ICMP, *accepts, "drop"])
    jumps = []
    for machine in sorted(book["machines"].values(), key=lambda m: str(m["device"])):
        if machine["network"] == network and machine["firewall"]:
            chain = _chain(machine["firewall"]) if machine["firewall"] in firewalls else "closed"
            jumps.append(f'oifname "{machine["device"]}" jump {chain}')
    lines += _block("to_machines", jumps)
    for hook in ("forward", "output"):
        lines += _block(hook, [f"type filter hook {hook} priority filter; policy accept;", "jump to_machines"])
    # Out of the lab by this host's own address. Between lab machines addresses stay as they are.
    lines += _block(
        "nat",
        [
            "type nat hook postrouting priority srcnat; policy accept;",
            f'ip saddr {record["ipv4_subnet"]} oifname != "gpm-*" masquerade',
            f'ip6 saddr {record["ipv6_prefix"]} oifname != "gpm-*" masquerade',
        ],
    )
    return "\n".join([*lines, "}", ""])


def _block(chain: str, lines: list[str]) -> list[str]:
    return [f"  chain {chain} {{", *(f"    {line}" for line in lines), "  }"]


def _accept(rule: Rule) -> list[str]:
    """Return one nft rule per source: sets would refuse sources that overlap, and merge what the state holds apart."""
    lines = []
    for source in rule.sources:
        family = "ip6" if ":" in source else "ip"
        anywhere = source.endswith("/0")
        match = f"meta nfproto {'ipv6' if family == 'ip6' else 'ipv4'}" if anywhere else f"{family} saddr {source}"
        lines.append(f"{match} {rule.protocol} dport {rule.port} accept")
    return lines


def kernel_chains(network: str) -> dict[str, list[Any]]:
    """Return the chains of a network's table as nft lists them (libnftables-json(5)); empty when there is no table."""
    chains: dict[str, list[Any]] = {}
    for item in _listed(network):
        if chain := item.get("chain"):
            kept = {k: v for k, v in chain.items() if k != "handle"}
            chains.setdefault(chain["name"], []).insert(0, kept)
        elif rule := item.get("rule"):
            chains.setdefault(rule["chain"], []).append(rule["expr"])
    return chains


def exists(network: str) -> bool:
    """Whether there is a table of this network's name, be it empty."""
    return bool(_listed(network))


def _listed(network: str) -> list[dict[str, Any]]:
    try:
        listed = host.run("nft", "-j", "list", "table", "inet", table(network))
    except host.CommandError as error:
        if "No such file or directory" in error.output:
            return []
        raise
    return list(json.loads(listed)["nftables"])


def digest(chain: list[Any]) -> str:
    """Return a digest of a chain's content as the kernel holds it."""
    return hashlib.sha256(json.dumps(chain, sort_keys=True).encode()).hexdigest()


def _parse(chain: list[Any]) -> tuple[Rule, ...]:
    """Return what a changed chain lets through, as far as it can be said in rules of ours."""
    found: dict[tuple[int, str], set[str]] = {}
    for expressions in chain:
        if not isinstance(expressions, list) or {"accept": None} not in expressions:
            continue
        port, protocol, source = 0, "", ""
        for expression in expressions:
            match = expression.get("match", {})
            left, right = match.get("left", {}), match.get("right")
            payload = left.get("payload", {})
            if payload.get("field") == "dport" and isinstance(right, int):
                port, protocol = right, payload["protocol"]
            elif payload.get("field") == "saddr":
                prefix = right.get("prefix") if isinstance(right, dict) else None
                bits = 128 if payload["protocol"] == "ip6" else 32
                source = f"{prefix['addr']}/{prefix['len']}" if prefix else f"{right}/{bits}"
            elif left.get("meta", {}).get("key") == "nfproto":
                source = "::/0" if right == "ipv6" else "0.0.0.0/0"
        if port:
            found.setdefault((port, protocol), set()).update([source] if source else ["0.0.0.0/0", "::/0"])
    return tuple(sorted(Rule(port, protocol, tuple(sorted(s))) for (port, protocol), s in found.items()))
