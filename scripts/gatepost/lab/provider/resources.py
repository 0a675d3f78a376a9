"""lab_network, lab_firewall and lab_machine."""

from __future__ import annotations

import sys
from typing import Any

from tf.iface import Provider
from tf.schema import Attribute, Schema
from tf.types import Bool, List, Number, Set, String

from gatepost.errors import GatepostError
from gatepost.lab import firewall, host, images, machine, network, store
from gatepost.lab.provider.framework import STOP, LabResource, Object, ObjectSet, State, report

SCHEMA_VERSION = 1  # tf calls its state upgrade, with a warning, on every read of a schema without a version


class LabProvider(Provider):  # type: ignore[misc] # tf has no type hints that mypy takes
    """The provider, without any configuration of its own."""

    def get_model_prefix(self) -> str:
        """Return what resource types begin with."""
        return "lab_"

    def full_name(self) -> str:
        """Return the source address."""
        return "terraform.local/gatepost/lab"

    def get_provider_schema(self, diags: Any) -> Schema:
        """Return the schema of the provider block."""
        return Schema(attributes=[])

    def validate_config(self, diags: Any, config: State) -> None:
        """Accept the empty block."""

    def configure_provider(self, diags: Any, config: State) -> None:
        """Look once whether this host can carry a lab."""
        try:
            host.check()
        except GatepostError as error:
            report(_Context(diags), error)

    def get_data_sources(self) -> list[Any]:
        """Return no data sources."""
        return []

    def get_resources(self) -> list[Any]:
        """Return the resource types."""
        return [NetworkResource, FirewallResource, MachineResource]


class _Context:
    def __init__(self, diagnostics: Any) -> None:
        self.diagnostics = diagnostics


def _id() -> Attribute:
    return Attribute("id", String(), description="UUID that the lab gave it.", computed=True)


def _name(what: str) -> Attribute:
    return Attribute(
        "name", String(), description=f"Name of the {what}, unique on this host.", required=True, requires_replace=True
    )


class NetworkResource(LabResource):
    """lab_network."""

    @classmethod
    def get_name(cls) -> str:
        """Return the type's name after the prefix."""
        return "network"

    @classmethod
    def get_schema(cls) -> Schema:
        """Return the attributes."""
        text = {
            "ipv4_subnet": "The network's /24 of 198.18.0.0/15.",
            "ipv6_prefix": "The network's ULA /64.",
            "gateway_ipv4": "Address of this host on the network, and of the network's resolver.",
            "gateway_ipv6": "The same over IPv6.",
        }
        lists = {
            "vantage_ipv4": "Further addresses of this host on the network, free to connect from.",
            "vantage_ipv6": "The same over IPv6.",
        }
        return Schema(
            version=SCHEMA_VERSION,
            attributes=[
                _id(),
                _name("network"),
                Attribute(
                    "outside_domain",
                    String(),
                    description="A mail domain that the resolver makes exist although no machine here serves it.",
                    required=True,
                ),
                *(Attribute(name, String(), description=about, computed=True) for name, about in text.items()),
                *(Attribute(name, List(String()), description=about, computed=True) for name, about in lists.items()),
                Attribute(
                    "intact",
                    Bool(),
                    description="Whether devices, NAT, resolver and forwarding all stand.",
                    computed=True,
                ),
            ],
        )

    def ids(self) -> set[str]:
        """Return the ids of the networks."""
        return {record["uuid"] for record in store.read()["networks"].values()}

    def check(self, config: State) -> None:
        """Check the name."""
        if "name" in config:
            store.check_name("network", config["name"])

    def make(self, planned: State) -> State:
        """Create the network."""
        return self._state(network.create(planned["name"], outside_domain=planned["outside_domain"]))

    def left_over(self, planned: State, known: set[str]) -> State | None:
        """Return nothing: a network that fails is taken back."""
        return None

    def look(self, current: State) -> State | None:
        """Read the network."""
        found = network.read(current["name"], current["id"])
        return self._state(found) if found else None

    def repaired(self, current: State, planned: State) -> State:
        """Plan it to be intact."""
        return {**planned, "intact": True}

    def change(self, current: State, planned: State) -> State:
        """Set the outside domain and repair."""
        return self._state(network.update(current["name"], outside_domain=planned["outside_domain"]))

    def remove(self, current: State) -> None:
        """Destroy the network."""
        network.destroy(current["name"], current["id"])

    @staticmethod
    def _state(found: network.Network) -> State:
        return {
            "id": found.uuid,
            "name": found.name,
            "outside_domain": found.outside_domain,
            "ipv4_subnet": found.ipv4_subnet,
            "ipv6_prefix": found.ipv6_prefix,
            "gateway_ipv4": found.gateway_ipv4,
            "gateway_ipv6": found.gateway_ipv6,
            "vantage_ipv4": list(found.vantage_ipv4),
            "vantage_ipv6": list(found.vantage_ipv6),
            "intact": found.intact,
        }


class FirewallResource(LabResource):
    """lab_firewall."""

    @classmethod
    def get_name(cls) -> str:
        """Return the type's name after the prefix."""
        return "firewall"

    @classmethod
    def get_schema(cls) -> Schema:
        """Return the attributes."""
        rule = Object({"port": Number(), "protocol": String(), "sources": Set(String())})
        return Schema(
            version=SCHEMA_VERSION,
            attributes=[
                _id(),
                _name("firewall"),
                Attribute(
                    "network",
                    String(),
                    description="Network whose machines may use it.",
                    required=True,
                    requires_replace=True,
                ),
                Attribute(
                    "rules",
                    ObjectSet(rule),
                    description="What may reach the machine: port, protocol (tcp or udp) and source CIDRs. ICMP and "
                    "answers always may, anything else may not.",
                    required=True,
                ),
                Attribute(
                    "enforced",
                    Bool(),
                    description="Whether the kernel holds exactly these rules, and they apply.",
                    computed=True,
                ),
            ],
        )

    def ids(self) -> set[str]:
        """Return the ids of the firewalls."""
        return {record["uuid"] for record in store.read()["firewalls"].values()}

    def check(self, config: State) -> None:
        """Check name and rules."""
        if "name" in config:
            store.check_name("firewall", config["name"])
        if "rules" in config:
            firewall.rules_of(config["rules"])

    def make(self, planned: State) -> State:
        """Create the firewall."""
        identity = firewall.create(planned["name"], planned["network"], planned["rules"])
        return {**planned, "id": identity, "enforced": True}

    def left_over(self, planned: State, known: set[str]) -> State | None:
        """Return the firewall that is in the book and did not load."""
        record = store.read()["firewalls"].get(planned["name"])
        if record and record["uuid"] not in known:
            return {**planned, "id": record["uuid"], "enforced": False}
        return None

    def look(self, current: State) -> State | None:
        """Read what the kernel enforces."""
        found = firewall.read(current["name"], current["id"])
        if not found:
            return None
        rules = [{"port": r.port, "protocol": r.protocol, "sources": list(r.sources)} for r in found.rules]
        return {**current, "rules": rules, "enforced": found.enforced}

    def repaired(self, current: State, planned: State) -> State:
        """Plan it to be enforced."""
        return {**planned, "enforced": True}

    def change(self, current: State, planned: State) -> State:
        """Load the planned rules."""
        firewall.update(current["name"], planned["rules"])
        return {**planned, "enforced": True}

    def remove(self, current: State) -> None:
        """Destroy the firewall."""
        firewall.destroy(current["name"], current["id"])


class MachineResource(LabResource):
    """lab_machine."""

    @classmethod
    def get_name(cls) -> str:
        """Return the type's name after the prefix."""
        return "machine"

    @classmethod
    def get_schema(cls) -> Schema:
        """Return the attributes."""
        return Schema(
            version=SCHEMA_VERSION,
            attributes=[
                _id(),
                _name("machine"),
                Attribute("network", String(), description="Its network.", required=True, requires_replace=True),
                Attribute(
                    "firewall",
                    String(),
                    description="Its firewall; none leaves it open. A firewall that is declared and missing closes it.",
                    optional=True,
                ),
                Attribute("fqdn", String(), description="Its full host name.", required=True, requires_replace=True),
                Attribute("mx_for", Set(String()), description="Domains whose MX is this machine.", optional=True),
                Attribute(
                    "release", Number(), description="Debian release: 13 or 12.", required=True, requires_replace=True
                ),
                Attribute(
                    "image_max_age_days",
                    Number(),
                    description="Age from which on the cached image is built anew; matters on creation only.",
                    required=True,
                ),
                Attribute("boot_timeout", Number(), description="Seconds from start to SSH.", required=True),
                Attribute(
                    "ssh_user",
                    String(),
                    description="Login with sudo, made by cloud-init.",
                    required=True,
                    requires_replace=True,
                ),
                Attribute("ssh_public_key", String(), description="Its key.", required=True, requires_replace=True),
                Attribute("ipv4", String(), description="Its IPv4 address.", computed=True),
                Attribute("ipv6", String(), description="Its IPv6 address.", computed=True),
                Attribute(
                    "ssh_host_key", String(), description="Its public host key, read from its disk.", computed=True
                ),
                Attribute("status", String(), description="running or stopped.", computed=True),
                Attribute(
                    "network_ok", Bool(), description="Whether its device, addresses and routes stand.", computed=True
                ),
            ],
        )

    def ids(self) -> set[str]:
        """Return the ids of the machines."""
        return {record["uuid"] for record in store.read()["machines"].values()}

    def check(self, config: State) -> None:
        """Check name and release."""
        if "name" in config:
            store.check_name("machine", config["name"])
        if "release" in config:
            images.key(config["release"])

    def make(self, planned: State) -> State:
        """Create the machine and boot it."""
        lost = store.read()["machines"].get(planned["name"])
        if lost:
            machine.wipe_lost(planned["name"], lost["uuid"])
        spec = machine.Spec(
            name=planned["name"],
            fqdn=planned["fqdn"],
            network=planned["network"],
            firewall=planned.get("firewall") or "",
            mx_for=tuple(planned.get("mx_for") or ()),
            release=planned["release"],
            image_max_age_days=planned["image_max_age_days"],
            boot_timeout=planned["boot_timeout"],
            ssh_user=planned["ssh_user"],
            ssh_public_key=planned["ssh_public_key"],
        )
        return self._state(planned, machine.create(spec, progress=_progress, cancelled=STOP))

    def left_over(self, planned: State, known: set[str]) -> State | None:
        """Return the machine that is in the book and did not come up."""
        record = store.read()["machines"].get(planned["name"])
        if record and record["uuid"] not in known:
            return self._state(planned, machine.describe(planned["name"]))
        return None

    def look(self, current: State) -> State | None:
        """Read the machine."""
        found = machine.read(current["name"], current["id"])
        return self._state(current, found) if found else None

    def repaired(self, current: State, planned: State) -> State:
        """Plan it to run, with its network."""
        return {**planned, "status": "running", "network_ok": True}

    def change(self, current: State, planned: State) -> State:
        """Set firewall and MX, and start or repair."""
        found = machine.update(
            current["name"],
            firewall_name=planned.get("firewall") or "",
            mx_for=planned.get("mx_for") or (),
            boot_timeout=planned["boot_timeout"],
            cancelled=STOP,
        )
        return self._state(planned, found)

    def remove(self, current: State) -> None:
        """Destroy the machine."""
        machine.destroy(current["name"], current["id"])

    @staticmethod
    def _state(base: State, found: machine.Machine) -> State:
        return {
            **base,
            "id": found.uuid,
            "firewall": found.firewall or None,
            "mx_for": list(found.mx_for) if base.get("mx_for") is not None else None,
            "ipv4": found.ipv4,
            "ipv6": found.ipv6,
            "ssh_host_key": found.ssh_host_key,
            "status": found.status,
            "network_ok": found.network_ok,
        }


def _progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)  # Terraform's log; its own "Still creating…" is what the terminal shows
