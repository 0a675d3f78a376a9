"""terraform/local when things go wrong: interruption, sudden death, two at once, names that are taken."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import REPOSITORY, Root, wait

from gatepost.lab import host, images, machine, store

pytestmark = pytest.mark.lab
NewRoot = Callable[..., Root]


def booting(name: str) -> bool:
    return store.read()["machines"].get(name, {}).get("phase") == "creating" and bool(
        host.processes(f"--directory={machine.root_of(name)}")
    )


def providers(process: int) -> list[int]:
    """Return the provider processes that a terraform process has started."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                if parent == process and b"gatepost.lab.provider" in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


def test_ctrl_c_during_the_boot_then_apply_converges(new_root: NewRoot) -> None:
    root = new_root()
    process = root.start("apply", "-no-color", "-auto-approve")
    wait(lambda: booting(root.name))
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the whole process group
    output = process.communicate(timeout=60)[0]
    assert "Plugin did not respond" not in output
    # Whatever was made is in the state, or nothing was: never a machine that Terraform does not know.
    if root.name in store.read()["machines"]:
        assert "lab_machine.server" in root.run("state", "list")
    root.apply()
    root.ssh("true")
    assert root.plan() == {}


@pytest.mark.parametrize("whom", ["terraform", "provider", "both"])
def test_sudden_death_during_the_boot_then_apply_converges(new_root: NewRoot, whom: str) -> None:
    root = new_root()
    process = root.start("apply", "-no-color", "-auto-approve")
    wait(lambda: booting(root.name))
    pids = providers(process.pid)
    assert pids
    if whom != "provider":
        process.kill()
    if whom != "terraform":
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
    process.communicate(timeout=60)
    wait(lambda: all(host.end([], timeout=0) and not Path(f"/proc/{pid}/exe").exists() for pid in pids), seconds=40)
    lock = root.directory / ".terraform.tfstate.lock.info"
    lock.unlink(missing_ok=True)
    root.apply(ok=True) if "lab_network" in root.run("state", "list", ok=True) else _adopt(root)
    root.ssh("true")
    assert root.plan() == {}


def _adopt(root: Root) -> None:
    """Terraform died before it wrote any state: the lab refuses to adopt, and its book tells what to remove."""
    output = root.apply(ok=False)
    assert f"there is a network '{root.name}'" in output
    pytest.fail("the state was lost although Terraform writes it after every resource")


def test_a_boot_that_fails_is_tainted_and_made_anew(new_root: NewRoot) -> None:
    root = new_root(ssh_public_key=None)
    root.write(ssh_public_key=root.key.with_suffix(".pub").read_text())
    root.run("apply", "-no-color", "-auto-approve", "-target=lab_firewall.server")
    process = root.start("apply", "-no-color", "-auto-approve")
    wait(lambda: booting(root.name))
    namespace = Path("/run/netns", f"gatepost-{root.name}")
    wait(lambda: host.machine_leaders(machine.root_of(root.name), namespace))
    host.end(host.machine_leaders(machine.root_of(root.name), namespace))
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 1
    assert "ended while it booted" in output
    assert root.plan() == {"lab_machine.server": ["delete", "create"]}
    root.apply()
    root.ssh("true")


def test_two_applies_at_once_on_one_state(new_root: NewRoot) -> None:
    root = new_root()
    first = root.start("apply", "-no-color", "-auto-approve")
    wait(lambda: (root.directory / ".terraform.tfstate.lock.info").exists())
    assert "Error acquiring the state lock" in root.apply(ok=False)
    assert first.wait(timeout=60) == 0


def test_two_labs_made_at_once_stand_side_by_side(new_root: NewRoot) -> None:
    roots = [new_root(), new_root()]
    applies = [root.start("apply", "-no-color", "-auto-approve") for root in roots]
    for process in applies:
        output = process.communicate(timeout=120)[0]
        assert process.returncode == 0, output
    one, two = (root.server() for root in roots)
    assert one["ipv4"].rsplit(".", 1)[0] != two["ipv4"].rsplit(".", 1)[0]
    for root in roots:
        # Two systemd that shared a cgroup would wait for each other's processes here.
        root.ssh("sudo systemctl restart ssh")
        root.ssh("true")
    roots[0].destroy()
    roots[1].ssh("true")
    assert roots[1].plan() == {}


def test_a_name_that_another_root_has_is_refused_and_that_one_is_left_alone(new_root: NewRoot) -> None:
    first, second = new_root(), new_root()
    second.write(name=first.name)
    first.apply()
    output = second.apply(ok=False)
    assert f"there is a network '{first.name}' in the lab of this host already" in output
    assert "Choose another name" in output
    assert first.plan() == {}
    first.ssh("true")


@contextmanager
def stranger(make: str, unmake: str) -> Iterator[None]:
    subprocess.run(make.split(), check=True)
    try:
        yield
    finally:
        subprocess.run(unmake.split(), check=True)


@pytest.mark.parametrize(
    ("make", "unmake", "words"),
    [
        (
            "ip link add gpn-{n} type veth peer name gpx-{n}",
            "ip link delete gpn-{n}",
            "a device gpn-{n} that is not the lab's",
        ),
        ("nft add table inet gatepost_lab_{n}", "nft delete table inet gatepost_lab_{n}", "an nft table"),
        ("ip link add gpm-{n} type veth peer name gpx-{n}", "ip link delete gpm-{n}", "a network device gpm-{n} that"),
        ("ip netns add gatepost-{n}", "ip netns delete gatepost-{n}", "a network namespace gatepost-{n} that"),
        (
            "mkdir -p /var/lib/gatepost/lab/machines/{n}",
            "rmdir /var/lib/gatepost/lab/machines/{n}",
            "a directory {n} that",
        ),
    ],
)
def test_what_a_stranger_has_is_refused_and_left_alone(new_root: NewRoot, make: str, unmake: str, words: str) -> None:
    root = new_root()
    with stranger(make.format(n=root.name), unmake.format(n=root.name)):  # unmake fails if it was taken away
        output = " ".join(root.apply(ok=False).split())
        assert words.format(n=root.name) in output
        assert "Choose another name" in output
    root.apply()  # and without the stranger it goes on from where it was
    root.ssh("true")


def test_a_subnet_that_a_stranger_routes_is_passed_over(new_root: NewRoot) -> None:
    taken = {record["ipv4_subnet"] for record in store.read()["networks"].values()}
    free = next(f"198.18.{i}.0/24" for i in range(256) if f"198.18.{i}.0/24" not in taken)
    with stranger(f"ip route add blackhole {free}", f"ip route delete blackhole {free}"):
        root = new_root()
        root.apply()
        assert store.read()["networks"][root.name]["ipv4_subnet"] != free


def test_without_root_there_is_one_clear_error_and_nothing_is_forgotten(new_root: NewRoot) -> None:
    root = new_root()
    root.apply()
    code = "import sys; from gatepost.lab import host; host.check()"
    done = subprocess.run(
        ["setpriv", "--reuid=65534", "--clear-groups", sys.executable, "-c", code],
        env={"PYTHONPATH": str(REPOSITORY / "scripts")},
        capture_output=True,
        text=True,
    )
    if "PermissionError" not in done.stderr:  # a venv below /root cannot even be read by others
        assert "GatepostError: the local lab needs root, and this runs as user id 65534" in done.stderr
        assert "cloud: existing" in done.stderr
    assert root.plan() == {}


def test_an_unreadable_book_is_an_error_and_never_means_deleted(new_root: NewRoot) -> None:
    root = new_root()
    root.apply()
    # nft fails: what the firewall is cannot be told. The provider must say so, not report the firewall as gone.
    broken = root.directory / "bin"
    broken.mkdir()
    (broken / "nft").write_text(
        "#!/bin/sh\n[ \"$1 $2\" = 'list tables' ] && exit 0\necho 'nft: out of order' >&2; exit 1\n"
    )
    (broken / "nft").chmod(0o755)
    path = os.environ["PATH"]
    os.environ["PATH"] = f"{broken}:{path}"
    try:
        output = root.run("plan", "-no-color", ok=False)
    finally:
        os.environ["PATH"] = path
    assert "nft: out of order" in output
    assert root.plan() == {}


def test_the_image_is_not_built_where_the_disk_is_full(tmp_path: Path) -> None:
    """On a real file system of 64 MB, once with the look at the free space and once with a build that runs into it."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(tmp_path)], check=True)
    try:
        for needed in (images.NEEDED_BYTES, 0):
            error = build(tmp_path, needed=needed)
            assert str(tmp_path) in error
            assert re.search("MB free on its file system|disk is full", error)
            assert "Free space there" in error
            assert list(tmp_path.iterdir()) == []
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_the_image_is_not_built_without_a_network(tmp_path: Path) -> None:
    left = tmp_path / f".building-13-{os.getpid()}-1"
    (left / "root/etc").mkdir(parents=True)  # of a build that died
    error = build(tmp_path, before=("unshare", "--net"))
    assert "could not build the image from" in error
    assert "Check the network, the mirror" in error
    assert list(tmp_path.iterdir()) == []
    assert images.newest(13, tmp_path) is None


def test_an_interrupted_build_keeps_nothing(tmp_path: Path) -> None:
    error = build(tmp_path, code="cancelled=threading.Timer(3, lambda: cancel.set()).start() or cancel")
    assert "interrupted" in error
    assert list(tmp_path.iterdir()) == []
    time.sleep(1)
    mounts = Path("/proc/self/mounts").read_text()
    assert str(tmp_path) not in mounts
    shutil.rmtree(tmp_path)


def build(directory: Path, *, needed: int = 0, before: tuple[str, ...] = (), code: str = "") -> str:
    """Build an image elsewhere in a process of its own; return the error that it ended with."""
    script = (
        "import sys, threading; from pathlib import Path; from gatepost.lab import images;"
        f"cancel = threading.Event(); images.NEEDED_BYTES = {needed};"
        f"images.ensure(13, directory=Path(sys.argv[1]), {code})"
    )
    done = subprocess.run(
        [*before, sys.executable, "-c", script, str(directory)],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY / "scripts")},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 1
    assert "gatepost.errors.GatepostError" in done.stderr, done.stderr
    return done.stderr
