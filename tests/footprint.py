"""What a lab leaves on its host: a look before, a look after, and the difference, which must be nothing.

`from footprint import Footprint` works in every test directory, since tests/conftest.py puts this directory on the
path.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from pathlib import Path

from gatepost.lab import store

_SYSCTLS = ("net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding")


class Footprint:
    """A look at processes, devices, routes, mounts, namespaces, cgroups, nft tables, lab files and forwarding."""

    def __init__(self) -> None:
        self.things = {*self._processes(), *self._network(), *self._files()}
        # Forwarding is on while any lab stands, so it can be compared only between two moments without one.
        if not store.read()["networks"]:
            self.things |= {f"sysctl {key} = {Path('/proc/sys', key).read_text().strip()}" for key in _SYSCTLS}
            self.quiet = True
        else:
            self.quiet = False

    @staticmethod
    def _processes() -> set[str]:
        found = set()
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal() and int(entry.name) != os.getpid():
                try:
                    line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                    # Whatever lives in a machine is told by its cgroup.
                    group = re.search(r"gatepost-lab-[a-z0-9-]+", (entry / "cgroup").read_text())
                except OSError:
                    continue
                if line and (group or "gatepost.lab.provider" in line or "/var/lib/gatepost" in line):
                    found.add(f"process {entry.name} {line} {group[0] if group else ''}")
        return found

    @staticmethod
    def _network() -> set[str]:
        def tool(*argv: str) -> list[dict[str, object]]:
            out = subprocess.run(argv, check=True, capture_output=True, text=True).stdout
            parsed = json.loads(out or "[]")
            return parsed["nftables"] if isinstance(parsed, dict) else parsed

        # ve- devices belong to systemd-nspawn machines that someone else started; the lab's have names of ours.
        found = {f"device {link['ifname']}" for link in tool("ip", "-j", "link") if link["ifname"][:3] != "ve-"}  # type: ignore[index]
        for family in ("-4", "-6"):
            for route in tool("ip", "-j", family, "route", "show", "table", "all"):
                # The kernel adds an anycast route to every device while forwarding is on (RFC 4291 §2.6.1).
                if str(route.get("dev"))[:3] != "ve-" and route.get("type") != "anycast":
                    found.add(f"route {route['dst']} dev {route.get('dev')}")
        for item in tool("nft", "-j", "list", "tables"):
            if table := item.get("table"):
                found.add(f"nft table {table['family']} {table['name']}")  # type: ignore[index]
        found |= {f"namespace {path.name}" for path in Path("/run/netns").glob("*")}
        return found

    @staticmethod
    def _files() -> set[str]:
        found = set()
        for line in Path("/proc/self/mounts").read_text().splitlines():
            if "gatepost" in line or "netns" in line:
                found.add(f"mount {line.split()[1]}")
        for pattern in (
            "/sys/fs/cgroup/gatepost*",
            "/sys/fs/cgroup/*/gatepost*",
            "/run/systemd/nspawn/*/gatepost*",
            "/var/lib/gatepost/lab/machines/*",
            "/var/lib/gatepost/lab/networks/*",
            "/var/lib/gatepost/lab/images/.*",
        ):
            found |= {f"file {path}" for path in Path("/").glob(pattern.lstrip("/"))}
        return found

    def left(self, *, seconds: float = 5) -> list[str]:
        """Return what is there now and was not then, but for other labs on this host; wait a little for the dying."""
        deadline = time.monotonic() + seconds
        while True:
            others = _others()
            now = Footprint()
            left = sorted(
                thing
                for thing in now.things - self.things
                if not others.search(thing) and (self.quiet or not thing.startswith("sysctl"))
            )
            if not left or time.monotonic() > deadline:
                return left
            time.sleep(0.2)


def _others() -> re.Pattern[str]:
    """Match things of the labs that stand on this host now."""
    book = store.read()
    records = [*book["networks"].items(), *book["machines"].items()]
    parts = [
        r"(gatepost-|machine-|machines/|networks/|dns-)" + re.escape(name) + r"(?![a-z0-9-])" for name, _ in records
    ]
    parts += [re.escape(record["device"]) for _, record in records]
    parts += [re.escape(store.device("gpp", name)) for name in book["networks"]]
    parts += ["gatepost_lab_" + name.replace("-", "_") + r"\b" for name in book["networks"]]
    parts += [re.escape(record["ipv4_subnet"].rsplit(".", 1)[0] + ".") for record in book["networks"].values()]
    parts += [re.escape(record["ipv6_prefix"].split("::")[0] + ":") for record in book["networks"].values()]
    return re.compile("|".join(parts) or r"(?!)")
