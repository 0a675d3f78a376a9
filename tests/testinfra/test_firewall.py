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


def test_hst_fw_01_drops_by_default_and_opens_the_table_and_ssh(host: Host, listeners: tuple[Listener, ...]) -> None:
    policies, rules = _input_rules(host)
    assert policies == {"drop"}
    open_ports: dict[str, set[int]] = {"ip": set(), "ip6": set()}
    for rule in rules:
        matches = [e["match"] for e in rule["expr"] if "match" in e]
        if not any("accept" in e for e in rule["expr"]):
            continue
        for match in matches:
            payload = match["left"].get("payload", {}) if isinstance(match["left"], dict) else {}
            if payload.get("protocol") == "tcp" and payload.get("field") == "dport":
                limited = {
                    m["left"]["payload"]["protocol"]
                    for m in matches
                    if m["left"].get("payload", {}).get("field") == "saddr"
                }
                for family in limited or open_ports.keys():
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
