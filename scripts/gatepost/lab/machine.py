"""A lab machine: a system container with systemd, sshd and cloud-init, on an overlay over an image.

It runs under systemd-nspawn(1) in a network namespace that is made and addressed before it boots, so that it has its
network from the first moment and keeps its addresses over restarts, as a cloud's server does.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import shlex
import shutil
import signal
import threading
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from gatepost.errors import GatepostError
from gatepost.lab import firewall, host, images, network, resolver, store

DIRECTORY = host.DIRECTORY / "machines"
SSH_PORT = 22
_HOST_KEY = "etc/ssh/ssh_host_ed25519_key.pub"


@dataclass(frozen=True, slots=True)
class Spec:
    """What a machine shall be. `mx_for`: domains whose MX the resolver points to it; `boot_timeout` in seconds."""

    name: str
    fqdn: str
    network: str
    ssh_public_key: str
    ssh_user: str = "gatepost"
    firewall: str = ""  # "" leaves it open
    mx_for: tuple[str, ...] = ()
    release: int = 13
    image_max_age_days: float = 30
    boot_timeout: float = 120


@dataclass(frozen=True, slots=True)
class Machine:
    """What a machine is. `ssh_host_key` is "ssh-ed25519 AAAA…", empty until the first boot got that far."""

    name: str
    uuid: str
    ipv4: str
    ipv6: str
    ssh_host_key: str
    status: Literal["running", "stopped"]
    network_ok: bool
    fqdn: str
    firewall: str
    mx_for: tuple[str, ...]


def root_of(name: str) -> Path:
    """Return the path at which a machine's root file system is mounted on this host."""
    return DIRECTORY / name / "root"


def _namespace(name: str) -> Path:
    return Path("/run/netns", f"gatepost-{name}")


@contextlib.contextmanager
def _alone(name: str, timeout: float = 300) -> Iterator[None]:
    with host.lock(f"machine-{name}", what=f"machine {name!r}", timeout=timeout):
        yield


def create(
    spec: Spec,
    *,
    progress: images.Progress = lambda line: None,
    cancelled: threading.Event | None = None,
) -> Machine:
    """Make a machine and boot it until SSH listens.

    What an earlier attempt of ours left half-made is wiped first. Raises GatepostError; when the machine exists by then
    and only did not come up, it is in the book (`describe` tells what there is of it, `destroy` removes it).
    """
    store.check_name("machine", spec.name)
    with _alone(spec.name):
        image = images.ensure(
            spec.release, max_age_days=spec.image_max_age_days, progress=progress, cancelled=cancelled
        )
        with images.in_use(image):
            _claim(spec, image)
            try:
                _furnish(spec)
                _start(spec.name, spec.boot_timeout, cancelled)
            except OSError as error:
                raise store.disk_error(error) from error
        with store.edit() as book:
            book["machines"][spec.name]["phase"] = "ready"
            record = book["machines"][spec.name]
        return _described(spec.name, record, status="running", network_ok=True)


def _claim(spec: Spec, image: images.Image) -> None:
    """Enter the machine into the book before anything of it exists, and give it its addresses."""
    device = store.device("gpm", spec.name)
    with store.edit() as book:
        record = book["machines"].get(spec.name)
        if record and record["phase"] == "creating":
            # We hold the machine's lock, so whoever was creating it is dead.
            _wipe(spec.name, record)
            del book["machines"][spec.name]
        elif record:
            raise GatepostError(
                f"there is a machine {spec.name!r} in the lab of this host already",
                next_step="Choose another name, or destroy the lab that it belongs to.",
            )
        namespace, directory = _namespace(spec.name), DIRECTORY / spec.name
        for taken, what, remedy in (
            (network.has_device(device), f"network device {device}", f"ip link delete {device}"),
            (namespace.exists(), f"network namespace {namespace.name}", f"ip netns delete {namespace.name}"),
            (directory.exists(), f"directory {directory.name}", f"look into it and remove {directory}"),
        ):
            if taken:
                raise GatepostError(
                    f"machine {spec.name!r}: this host has a {what} that the lab does not know",
                    next_step=f"Choose another name; or, if nothing needs it, {remedy}.",
                )
        if spec.network not in book["networks"]:
            raise GatepostError(f"machine {spec.name!r}: there is no network {spec.network!r} in the lab of this host")
        others = {n: m for n, m in book["machines"].items() if m["network"] == spec.network}
        for name, other in others.items():
            if other["fqdn"] == spec.fqdn:
                raise GatepostError(
                    f"machine {spec.name!r}: {name!r} on the same network has the host name {spec.fqdn} already",
                    next_step="Give one of them another host name.",
                )
        number = _free_number(book["networks"][spec.network], others)
        net = book["networks"][spec.network]
        book["machines"][spec.name] = {
            "uuid": str(uuid.uuid4()),
            "phase": "creating",
            "device": device,
            "image": image.path.name,
            "network": spec.network,
            "fqdn": spec.fqdn,
            "firewall": spec.firewall,
            "mx_for": list(spec.mx_for),
            "ipv4": str(ipaddress.ip_network(net["ipv4_subnet"])[number]),
            "ipv6": str(ipaddress.ip_network(net["ipv6_prefix"])[number]),
        }


def _free_number(net: dict[str, Any], others: dict[str, Any]) -> int:
    subnet = ipaddress.ip_network(net["ipv4_subnet"])
    taken = {machine["ipv4"] for machine in others.values()}
    for number in range(network.FIRST_MACHINE, subnet.num_addresses - 1):
        if str(subnet[number]) not in taken:
            return number
    raise GatepostError(f"{subnet} is full", next_step="Destroy machines that you no longer need.")


def _furnish(spec: Spec) -> None:
    """Mount the overlay and write the machine's own files: cloud-init's NoCloud seed, its name and its resolver."""
    book = store.read()
    record, net = book["machines"][spec.name], book["networks"][spec.network]
    _mount(spec.name, record)
    root = root_of(spec.name)
    seed = root / "var/lib/cloud/seed/nocloud"
    seed.mkdir(parents=True)
    (seed / "meta-data").write_text(json.dumps({"instance-id": record["uuid"], "local-hostname": spec.fqdn}))
    user = {
        "name": spec.ssh_user,
        "shell": "/bin/bash",
        "lock_passwd": True,
        "sudo": "ALL=(ALL) NOPASSWD:ALL",
        "ssh_authorized_keys": [spec.ssh_public_key],
    }
    (seed / "user-data").write_text("#cloud-config\n" + json.dumps({"users": [user], "ssh_pwauth": False}))
    short = spec.fqdn.partition(".")[0]
    (root / "etc/hostname").write_text(short + "\n")
    # 127.0.1.1 for one's own name is Debian's custom (Debian Reference §5.1.1).
    (root / "etc/hosts").write_text(
        f"127.0.0.1 localhost\n127.0.1.1 {spec.fqdn} {short}\n::1 localhost ip6-localhost ip6-loopback\n"
    )
    resolv = root / "etc/resolv.conf"
    resolv.unlink(missing_ok=True)
    resolv.write_text(f"nameserver {net['gateway_ipv4']}\nnameserver {net['gateway_ipv6']}\n")


def _mount(name: str, record: dict[str, Any]) -> None:
    base = DIRECTORY / name
    root = root_of(name)
    if os.path.ismount(root):
        return
    lower = images.DIRECTORY / record["image"] / "root"
    for part in ("upper", "work", "root"):
        (base / part).mkdir(mode=0o755, parents=True, exist_ok=True)
    base.chmod(0o700)  # a set-uid program in the machine is one on this host as well
    options = f"lowerdir={lower},upperdir={base / 'upper'},workdir={base / 'work'}"
    host.run("mount", "-t", "overlay", "gatepost-lab", "-o", options, str(root))


def _connect(book: store.Book, name: str) -> None:
    """Bring namespace, veth pair, addresses and routes to what the book says. Harmless when all stands."""
    record = book["machines"][name]
    net = book["networks"][record["network"]]
    namespace, device = _namespace(name).name, record["device"]
    # An overlay mount or a running machine keeps a namespace alive that has lost its name: it gets the name back.
    if not _namespace(name).exists():
        if not _namespace(name).parent.exists():
            book["made_netns"] = True  # `ip netns` makes and mounts the directory, and never takes it away
        leaders = host.machine_leaders(root_of(name), _namespace(name))
        host.run("ip", "netns", *(("attach", namespace, str(leaders[0])) if leaders else ("add", namespace)))
    inside = json.loads(host.run("ip", "-j", "-n", namespace, "link") or "[]")
    has_inside = any(link["ifname"] == "host0" for link in inside)
    commands = []
    if not (has_inside and network.has_device(device)):
        network.delete_device(device)
        if has_inside:
            host.run("ip", "-n", namespace, "link", "delete", "host0")
        commands.append(f"link add {device} mtu {_mtu()} type veth peer name host0 mtu {_mtu()} netns {namespace}")
    commands += [
        f"link set {device} up",
        f"addr replace {net['gateway_ipv4']}/32 dev {device}",
        f"addr replace fe80::1/64 dev {device} nodad",  # the IPv6 gateway: neighbour discovery asks on this link only
        f"route replace {record['ipv4']}/32 dev {device} src {net['gateway_ipv4']}",
        f"route replace {record['ipv6']}/128 dev {device} src {net['gateway_ipv6']}",
    ]
    host.run("ip", "-batch", "-", stdin="\n".join(commands) + "\n")
    commands = [
        "link set lo up",
        "link set host0 up",
        f"addr replace {record['ipv4']}/32 dev host0",
        f"addr replace {record['ipv6']}/128 dev host0 nodad",
        f"route replace {net['gateway_ipv4']} dev host0 scope link",
        f"route replace default via {net['gateway_ipv4']} dev host0",
        "route replace default via fe80::1 dev host0",
    ]
    host.run("ip", "-n", namespace, "-batch", "-", stdin="\n".join(commands) + "\n")


def _mtu() -> int:
    """Return the MTU of the host's way out, so that the machine need not find out by losing packets."""
    ways = {
        route["dev"] for route in json.loads(host.run("ip", "-j", "route", "show", "default") or "[]") if "dev" in route
    }
    mtus = [int(link["mtu"]) for link in json.loads(host.run("ip", "-j", "link") or "[]") if link["ifname"] in ways]
    return max(1280, min([1500, *mtus]))  # 1280: IPv6's least (RFC 8200 §5)


def _network_ok(book: store.Book, name: str) -> bool:
    record = book["machines"][name]
    net = book["networks"].get(record["network"])
    namespace, device = _namespace(name), record["device"]
    if not net or not namespace.exists() or not network.has_device(device):
        return False
    inner = ("ip", "-j", "-n", namespace.name)
    links = json.loads(host.run("ip", "-j", "addr", "show", "up") or "[]")
    inside = json.loads(host.run(*inner, "addr", "show", "up") or "[]")
    routes = json.loads(host.run("ip", "-j", "route") or "[]") + json.loads(host.run("ip", "-j", "-6", "route") or "[]")
    defaults = json.loads(host.run(*inner, "route", "show", "default") or "[]")
    defaults += json.loads(host.run(*inner, "-6", "route", "show", "default") or "[]")
    return (
        {net["gateway_ipv4"], "fe80::1"} <= _locals(links, device)
        and {record["ipv4"], record["ipv6"]} <= _locals(inside, "host0")
        and {record["ipv4"], record["ipv6"]} <= {r["dst"] for r in routes if r.get("dev") == device}
        and {net["gateway_ipv4"], "fe80::1"} <= {r.get("gateway") for r in defaults}
    )


def _locals(links: list[dict[str, Any]], device: str) -> set[str]:
    return {a["local"] for link in links if link.get("ifname") == device for a in link["addr_info"]}


def _start(name: str, boot_timeout: float, cancelled: threading.Event | None) -> None:
    with store.edit() as book:
        record = book["machines"][name]
        # Firewall before the machine: it is closed before there is anything to reach.
        firewall.load(book, record["network"])
        resolver.ensure(book, record["network"])
        _connect(book, name)
    root, log = root_of(name), DIRECTORY / name / "console.log"
    _mount(name, record)
    if not host.machine_leaders(root, _namespace(name)):
        _end_processes(name)
        host.spawn(f"machine-{name}", _nspawn(name, record["fqdn"]), log)

    def listens() -> bool:
        return bool(host.run("ss", "-N", _namespace(name).name, "-Hltn", f"sport = :{SSH_PORT}").strip())

    came_up = False
    unseen = 0

    def settled() -> bool:
        nonlocal came_up, unseen
        came_up = listens() and (root / _HOST_KEY).exists()
        # A process has no command line in the moment of its exec: only being missed many times in a row means that it
        # ended.
        unseen = 0 if host.processes(f"--directory={root}") else unseen + 1
        return came_up or unseen > 20

    in_time = host.wait_for(settled, timeout=boot_timeout, cancelled=cancelled)
    if came_up:
        return
    said = "\n".join(log.read_text(errors="replace").splitlines()[-8:]) if log.exists() else ""
    if cancelled and cancelled.is_set():
        raise GatepostError(
            f"machine {name!r}: interrupted while it booted", next_step="Run this again; it is then made anew."
        )
    how = "ended while it booted" if in_time else f"did not answer SSH within {boot_timeout:.0f} s"
    raise GatepostError(
        f"machine {name!r} {how}; the end of its console:\n{said}",
        next_step=f"Look into {log}; if this host is only slow, raise boot_timeout.",
    )


def _nspawn(name: str, fqdn: str) -> Sequence[str]:
    return (
        # Entered here rather than by --network-namespace-path, which would show the machine this host's devices in
        # /sys.
        "nsenter",
        f"--net={_namespace(name)}",
        "systemd-nspawn",
        "--quiet",
        "--boot",
        "--console=pipe",
        "--register=no",  # works without systemd as PID 1; where it is, the transient unit is the book-keeping
        "--keep-unit",
        f"--machine=gatepost-{name}",
        f"--hostname={fqdn.partition('.')[0]}",
        f"--directory={root_of(name)}",
        "--capability=CAP_NET_ADMIN",  # the machine has a firewall of its own
        "--resolv-conf=off",
        "--timezone=off",
        "--link-journal=no",
        "--suppress-sync=yes",  # a lab machine need not survive a power cut; package installation is twice as fast
    )


def update(
    name: str,
    *,
    firewall_name: str,
    mx_for: Sequence[str],
    boot_timeout: float = 120,
    cancelled: threading.Event | None = None,
) -> Machine:
    """Set firewall and MX domains, and bring the machine up with its network if it is not."""
    with _alone(name):
        with store.edit() as book:
            record = book["machines"][name]
            record["firewall"] = firewall_name
            record["mx_for"] = list(mx_for)
        _start(name, boot_timeout, cancelled)
        return _described(name, record, status="running", network_ok=True)


def stop(name: str, *, timeout: float = 60) -> None:
    """Shut a machine down in order; kill it after `timeout` seconds. It keeps its disk and its addresses."""
    with _alone(name):
        host.end(host.processes(f"--directory={root_of(name)}"), how=signal.SIGTERM, timeout=timeout)
        _end_processes(name)


def read(name: str, identity: str) -> Machine | None:
    """Look at a machine. None when there is none of ours by that name, or its disk is lost.

    Raises GatepostError when a tool fails.
    """
    book = store.read()
    record = book["machines"].get(name)
    if not record or record["uuid"] != identity or not _has_disk(name, record):
        return None
    return describe(name)


def describe(name: str) -> Machine:
    """Return what there is of a machine of ours, whatever its state."""
    book = store.read()
    running = bool(host.machine_leaders(root_of(name), _namespace(name)))
    status: Literal["running", "stopped"] = "running" if running else "stopped"
    return _described(name, book["machines"][name], status=status, network_ok=_network_ok(book, name))


def _has_disk(name: str, record: dict[str, Any]) -> bool:
    return (DIRECTORY / name / "upper/etc").is_dir() and (images.DIRECTORY / record["image"] / "root/etc").is_dir()


def _described(
    name: str, record: dict[str, Any], *, status: Literal["running", "stopped"], network_ok: bool
) -> Machine:
    key = ""
    with contextlib.suppress(OSError):
        # Read from the upper directory, which is there also while the overlay is not mounted.
        text = (DIRECTORY / name / "upper" / _HOST_KEY).read_text()
        key = " ".join(text.split()[:2])
    return Machine(
        name=name,
        uuid=record["uuid"],
        ipv4=record["ipv4"],
        ipv6=record["ipv6"],
        ssh_host_key=key,
        status=status,
        network_ok=network_ok,
        fqdn=record["fqdn"],
        firewall=record["firewall"],
        mx_for=tuple(record["mx_for"]),
    )


def destroy(name: str, identity: str) -> None:
    """Remove a machine with everything that is its own, from any state. One that is gone already is success."""
    with _alone(name), store.edit() as book:
        record = book["machines"].get(name)
        if not record or record["uuid"] != identity:
            return
        _wipe(name, record)
        del book["machines"][name]
        if record["network"] in book["networks"]:
            firewall.load(book, record["network"])
            resolver.ensure(book, record["network"])


def wipe_lost(name: str, identity: str) -> None:
    """Remove what is left of a machine whose disk is lost, so that it can be made anew."""
    if read(name, identity) is None:
        destroy(name, identity)


def _processes(name: str) -> list[int]:
    """Return every process of a machine: its supervisor and whatever lives in it, however far its start has got."""
    root = root_of(name)
    found = host.processes(f"--directory={root}") + host.members(f"machine-{name}")
    return found + host.machine_leaders(root, _namespace(name))


def _end_processes(name: str) -> None:
    """Kill what is left of a machine's processes, and remove what a killed systemd-nspawn leaves behind."""
    left = _processes(name)
    for _ in range(20):  # a supervisor in the middle of its start may fork once more
        if not left:
            break
        host.end(left, timeout=5)
        left = _processes(name)
    if left:
        raise GatepostError(
            f"machine {name!r}: its processes do not end: {left}",
            next_step="A process that waits for a disk cannot be killed; look at it, then destroy again.",
        )
    for kind in ("propagate", "unix-export"):
        directory = Path("/run/systemd/nspawn", kind, f"gatepost-{name}")
        if os.path.ismount(directory):  # systemd 256 and later mount a tmpfs there, and refuse to start over an old one
            host.run("umount", str(directory))
        shutil.rmtree(directory, ignore_errors=True)
    with contextlib.suppress(OSError):
        status = root_of(name).stat()
        Path("/run/systemd/nspawn/locks", f"inode-{status.st_dev}:{status.st_ino}").unlink(missing_ok=True)


def _wipe(name: str, record: dict[str, Any]) -> None:
    """Remove processes, mount, files, device, namespace and cgroups of a machine; every part may be missing already."""
    root = root_of(name)
    _end_processes(name)
    if os.path.ismount(root):

        def unmounted() -> bool:
            with contextlib.suppress(host.CommandError):
                host.run("umount", str(root))
            return not os.path.ismount(root)

        if not host.wait_for(unmounted, timeout=10, interval=0.05):
            raise GatepostError(
                f"{root} cannot be unmounted: something uses it",
                next_step=f"`fuser -vm {shlex.quote(str(root))}` tells what; end it, then destroy again.",
            )
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(DIRECTORY / name)
    network.delete_device(record["device"])
    if _namespace(name).exists():
        host.run("ip", "netns", "delete", _namespace(name).name)
    host.remove_cgroups(f"machine-{name}")
