"""HST-FW: the firewall on the host, as the kernel has it."""

from __future__ import annotations

import json

from testinfra.host import Host

from gatepost.listeners import Listener


def _ssh_ports(host: Host) -> set[int]:
    """What sshd really serves, not what this connection happened to use."""
    lines = host.check_output("sshd -T 2>/dev/null | grep -i '^port '").splitlines()
    return {int(line.split()[1]) for line in lines}


def _input_rules(host: Host) -> tuple[set[str], list[dict]]:
    """Return the policies of the base chains on the input hook, and all rules of inet and ip/ip6 tables."""
    ruleset = json.loads(host.check_output("nft -j list ruleset"))["nftables"]
    chains = [entry["chain"] for entry in ruleset if "chain" in entry]
    policies = {chain.get("policy", "accept") for chain in chains if chain.get("hook") == "input"}
    return policies, [entry["rule"] for entry in ruleset if "rule" in entry]


def _ports(right: object) -> set[int]:
    if isinstance(right, int):
        return {right}
    if isinstance(right, dict) and "set" in right:
        return set().union(*(_ports(element) for element in right["set"]))
    if isinstance(right, dict) and "range" in right:
        low, high = right["range"]
        return set(range(low, high + 1))
    raise AssertionError(f"cannot read the ports of a rule: {right!r}")


def _left(match: dict) -> dict:
    """Return what a match looks at: {"payload": …}, {"meta": …}, {"ct": …} (libnftables-json(5))."""
    return match["left"] if isinstance(match["left"], dict) else {}


def _families(matches: list[dict]) -> set[str]:
    """Return ip or ip6 where the rule is for one of them alone."""
    by_source = {
        _left(m)["payload"]["protocol"] for m in matches if _left(m).get("payload", {}).get("field") == "saddr"
    }
    by_meta = {
        {"ipv4": "ip", "ipv6": "ip6"}[m["right"]] for m in matches if _left(m).get("meta", {}).get("key") == "nfproto"
    }
    return by_source | by_meta


def _opens_more_than_ports(rule: dict) -> bool:
    """Whether a rule accepts what is neither local, known, ICMP, DHCP nor for a TCP port."""
    matches = [e["match"] for e in rule["expr"] if "match" in e]
    if not any("accept" in e for e in rule["expr"]):
        return False
    harmless = any(
        (_left(m).get("meta", {}).get("key") in ("iif", "iifname") and m["right"] == "lo")
        or _left(m).get("ct", {}).get("key") == "state"
        or _left(m).get("meta", {}).get("key") == "l4proto"
        or _left(m).get("payload", {}).get("protocol") in ("icmp", "icmpv6", "udp")
        or (_left(m).get("payload", {}).get("protocol") == "tcp" and _left(m)["payload"].get("field") == "dport")
        for m in matches
    )
    return not harmless


def _closes(rule: dict) -> set[int]:
    """Return the TCP ports that a rule drops or rejects."""
    if not any("drop" in e or "reject" in e for e in rule["expr"]):
        return set()
    matches = [e["match"] for e in rule["expr"] if "match" in e]
    named = [m["right"] for m in matches if _left(m).get("payload", {}).get("field") == "dport"]
    return set().union(*map(_ports, named))


def test_hst_fw_01_drops_by_default_and_opens_the_table_and_ssh(host: Host, listeners: tuple[Listener, ...]) -> None:
    policies, rules = _input_rules(host)
    assert policies == {"drop"}
    assert [rule for rule in rules if _opens_more_than_ports(rule)] == [], "accepted without naming a TCP port"
    table = {row.port for row in listeners}
    assert [rule for rule in rules if _closes(rule) & table] == [], "dropped, though in the listener table"
    open_ports: dict[str, set[int]] = {"ip": set(), "ip6": set()}
    for rule in rules:
        matches = [e["match"] for e in rule["expr"] if "match" in e]
        if not any("accept" in e for e in rule["expr"]):
            continue
        for match in matches:
            payload = match["left"].get("payload", {}) if isinstance(match["left"], dict) else {}
            if payload.get("protocol") == "tcp" and payload.get("field") == "dport":
                for family in _families(matches) or open_ports.keys():
                    open_ports[family] |= _ports(match["right"])
    ssh = _ssh_ports(host)
    for family, mark in (("ip", "."), ("ip6", ":")):
        wanted = {row.port for row in listeners if any(mark in source for source in row.sources)}
        assert open_ports[family] - ssh == wanted, f"{family}: accepted ports"
    assert ssh & (open_ports["ip"] | open_ports["ip6"])


def test_hst_fw_02_running_rules_are_the_persistent_ones(host: Host) -> None:
    """The file is loaded into a network namespace of its own, which ends with the command, and listed from there."""
    running = host.check_output("nft -s list ruleset")
    persistent = host.check_output("unshare --net sh -c 'nft -f /etc/nftables.conf && nft -s list ruleset'")
    assert running == persistent
