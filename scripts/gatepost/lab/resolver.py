"""The lab's DNS: one small dnsmasq per network, so that mail between lab machines takes the way of real mail, by MX.

It knows A, AAAA, PTR and MX of the network's machines and of one outside domain that exists; anything else in those
domains and under .test (RFC 6761 §6.2) does not exist; the rest is asked of the resolvers in this host's
/etc/resolv.conf.
"""

from __future__ import annotations

import ipaddress
import shutil
from pathlib import Path

from gatepost.errors import GatepostError
from gatepost.lab import host, store


def configuration(network: str) -> Path:
    """Return the path of a network's dnsmasq.conf, by which its process is known too."""
    return host.DIRECTORY / "networks" / network / "dnsmasq.conf"


def render(book: store.Book, network: str) -> str:
    """Return the dnsmasq configuration of a network (dnsmasq(8))."""
    record = book["networks"][network]
    outside = record["outside_domain"]
    machines = sorted((m for m in book["machines"].values() if m["network"] == network), key=lambda m: str(m["fqdn"]))
    gateway4, gateway6 = record["gateway_ipv4"], record["gateway_ipv6"]
    hosts = [(f"gateway.{outside}", gateway4, gateway6)]
    vantages = zip(record["vantage_ipv4"], record["vantage_ipv6"], strict=True)
    hosts += [(f"vantage{number}.{outside}", *pair) for number, pair in enumerate(vantages, start=1)]
    hosts += [(machine["fqdn"], machine["ipv4"], machine["ipv6"]) for machine in machines]
    # Last, since the first name for an address is the one that its PTR gives.
    hosts.append((outside, gateway4, gateway6))
    exchangers = {domain: machine["fqdn"] for machine in machines for domain in machine["mx_for"]}
    exchangers.setdefault(outside, f"gateway.{outside}")
    reverse4 = ipaddress.ip_network(record["ipv4_subnet"]).network_address.reverse_pointer.split(".", 1)[1]
    reverse6 = ipaddress.ip_network(record["ipv6_prefix"]).network_address.reverse_pointer.split(".", 16)[16]
    ours = {"test", *exchangers, *(machine["fqdn"] for machine in machines), reverse4, reverse6}
    return "\n".join(
        [
            "# Written by Gatepost's lab; changes are lost.",
            "bind-interfaces",
            f"listen-address={gateway4}",
            f"listen-address={gateway6}",
            "resolv-file=/etc/resolv.conf",
            "no-hosts",
            "domain-needed",
            "pid-file=",
            "local-ttl=5",
            *(f"local=/{domain}/" for domain in sorted(ours)),
            *(f"host-record={name},{ipv4},{ipv6}" for name, ipv4, ipv6 in hosts),
            *(f"mx-host={domain},{exchanger},10" for domain, exchanger in sorted(exchangers.items())),
            "",
        ]
    )


def ensure(book: store.Book, network: str) -> None:
    """Have the resolver run with what the book says; it is left alone when it does so already."""
    path = configuration(network)
    wanted = render(book, network)
    try:
        if running(network) and path.read_text() == wanted:
            return
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        stop(network)
        path.write_text(wanted)
    except OSError as error:
        raise store.disk_error(error) from error
    try:
        host.spawn(f"dns-{network}", ("dnsmasq", f"--conf-file={path}"), log=path.with_name("dnsmasq.log"), forks=True)
    except host.CommandError as error:
        raise GatepostError(
            f"the resolver of network {network!r} does not start: {error.output.strip()}",
            expected=f"UDP and TCP port 53 free on {book['networks'][network]['gateway_ipv4']}",
            next_step="If another name server of this host listens on all addresses, restrict it to its own.",
        ) from error


def running(network: str) -> bool:
    """Whether the network's dnsmasq lives."""
    return bool(host.processes(f"--conf-file={configuration(network)}"))


def stop(network: str) -> None:
    """End the network's dnsmasq; absent is success."""
    pids = host.processes(f"--conf-file={configuration(network)}")
    if not host.end(pids):
        raise GatepostError(
            f"dnsmasq of network {network!r} does not end: {pids}", next_step="Look at what it waits for."
        )


def remove(network: str) -> None:
    """Stop the resolver and remove its files."""
    stop(network)
    shutil.rmtree(configuration(network).parent, ignore_errors=True)
