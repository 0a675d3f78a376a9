"""How long `terraform apply` of the lab takes from the cached image to an SSH login, against booting the same image by
hand.

    python tests/bench/bench_apply.py [ROUNDS]

By hand means: an overlay over the same image, the same cloud-init seed, `systemd-nspawn --network-veth`, two addresses,
and ssh until it lets one in. Both ways take turns; the ratio of the medians counts, and the exit status is 1 above the
bar.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
BAR = 2.5
_SSH = ("ssh", "-q", "-F", "none", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null",
        "-o", "BatchMode=yes", "-o", "ConnectTimeout=1")  # fmt: skip

_BY_HAND = r"""
set -e
root=$1/root; mkdir -p $1/upper $1/work $root
mount -t overlay overlay -o lowerdir=$2,upperdir=$1/upper,workdir=$1/work $root
seed=$root/var/lib/cloud/seed/nocloud; mkdir -p $seed
echo '{"instance-id": "by-hand", "local-hostname": "mx.example.test"}' > $seed/meta-data
cat > $seed/user-data <<X
#cloud-config
users:
  - {name: gatepost, shell: /bin/bash, lock_passwd: true, sudo: "ALL=(ALL) NOPASSWD:ALL", ssh_authorized_keys: ["$3"]}
X
net=$root/etc/systemd/network/10-host0.network
printf '[Match]\nName=host0\n[Network]\nAddress=192.168.213.2/24\nGateway=192.168.213.1\n' > $net
ln -s /lib/systemd/system/systemd-networkd.service $root/etc/systemd/system/multi-user.target.wants/
systemd-nspawn --quiet --register=no --keep-unit -D $root -M byhand --network-veth --boot --console=pipe \
  --resolv-conf=off </dev/null >$1/log 2>&1 &
until ip link show ve-byhand >/dev/null 2>&1; do sleep 0.02; done
ip addr add 192.168.213.1/24 dev ve-byhand
ip link set ve-byhand up
"""


def login(key: Path, address: str) -> None:
    """Try until SSH lets us in."""
    deadline = time.monotonic() + 60
    while subprocess.run([*_SSH, "-i", str(key), f"gatepost@{address}", "true"]).returncode:
        if time.monotonic() > deadline:
            sys.exit(f"no SSH login at {address} within a minute")
        time.sleep(0.05)


def by_hand(directory: Path, image: Path, key: Path) -> float:
    """Return the seconds that the hand-made machine took."""
    started = time.monotonic()
    public = key.with_suffix(".pub").read_text().strip()
    subprocess.run(["bash", "-c", _BY_HAND, "bash", str(directory), str(image), public], check=True)
    login(key, "192.168.213.2")
    took = time.monotonic() - started
    # The init of the container, which is the one whose root directory is ours.
    root = (directory / "root").stat()
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                status = (entry / "root").stat()
                ids = next(x for x in (entry / "status").read_text().splitlines() if x.startswith("NSpid:")).split()
            except OSError:
                continue
            if (status.st_dev, status.st_ino) == (root.st_dev, root.st_ino) and ids[-1] == "1":
                os.kill(int(entry.name), 9)
    while Path("/sys/class/net/ve-byhand").exists():
        time.sleep(0.05)
    while subprocess.run(["umount", str(directory / "root")], stderr=subprocess.DEVNULL).returncode:
        time.sleep(0.05)
    return took


def by_terraform(directory: Path, key: Path, environment: dict[str, str]) -> float:
    """Return the seconds that `terraform apply` and the login took; `terraform init` has been run."""
    started = time.monotonic()
    subprocess.run(
        ["terraform", "apply", "-auto-approve"], cwd=directory, env=environment, check=True, stdout=subprocess.DEVNULL
    )
    state = json.loads((directory / "terraform.tfstate").read_text())
    login(key, state["outputs"]["servers"]["value"]["bench"]["ipv4"])
    took = time.monotonic() - started
    subprocess.run(
        ["terraform", "destroy", "-auto-approve"], cwd=directory, env=environment, check=True, stdout=subprocess.DEVNULL
    )
    return took


def main() -> int:
    """Measure, print, and judge by the bar."""
    sys.path.insert(0, str(REPOSITORY / "scripts"))
    from gatepost.lab import images

    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    image = images.ensure(13, progress=print)
    environment = {
        **os.environ,
        "GATEPOST_PYTHON": sys.executable,
        "PYTHONPATH": str(REPOSITORY / "scripts"),
        "TF_CLI_CONFIG_FILE": os.devnull,
    }
    hand: list[float] = []
    terraform: list[float] = []
    with tempfile.TemporaryDirectory() as temporary:
        key = Path(temporary, "key")
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
        root = Path(temporary, "terraform/local")
        shutil.copytree(
            REPOSITORY / "terraform/local", root, ignore=shutil.ignore_patterns(".terraform", "*.tfstate*", "tests")
        )
        variables = {
            "name": "bench",
            "hostname": "mx.example.test",
            "domains": ["example.test"],
            "ssh_sources": ["198.18.0.0/15"],
            "ssh_public_key": key.with_suffix(".pub").read_text(),
            "listeners_file": str(REPOSITORY / "roles/postfix/defaults/main/listeners.yml"),
        }
        (root / "terraform.tfvars.json").write_text(json.dumps(variables))
        subprocess.run(["terraform", "init"], cwd=root, env=environment, check=True, stdout=subprocess.DEVNULL)
        for number in range(rounds):
            hand.append(by_hand(Path(temporary, f"hand{number}"), image.root, key))
            terraform.append(by_terraform(root, key, environment))
            print(f"round {number + 1}: by hand {hand[-1]:.2f} s, terraform {terraform[-1]:.2f} s", flush=True)
    ratio = statistics.median(terraform) / statistics.median(hand)
    print(
        f"median: by hand {statistics.median(hand):.2f} s, "
        f"terraform apply to SSH login {statistics.median(terraform):.2f} s, ratio {ratio:.2f} (bar {BAR})"
    )
    return ratio > BAR


if __name__ == "__main__":
    sys.exit(main())
