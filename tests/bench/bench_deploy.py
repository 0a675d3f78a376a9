"""`make deploy` against a shell script that does the same by hand (floor.sh), and the second deploy against the first.

    python tests/bench/bench_deploy.py

Image cached and .venv there, as on any but the very first run. The floor's machine is up before its clock starts.
"""

from __future__ import annotations

import re
import sys
import tempfile
import time
from base64 import b64decode
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bare import Bare
from bench_converge import FINISHED, floor
from environments import Environment

from gatepost.lab import images


def seconds(output: str, stage: str) -> float:
    """Return the time of a stage as `gatepost` printed it."""
    found = re.search(rf"^✓ {stage}\s+([\d.]+) s", output, re.MULTILINE)
    assert found, output
    return float(found[1])


def main() -> None:
    """Print the figures."""
    images.ensure(13, max_age_days=30)
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        environment = Environment(directory / "bench")
        try:
            begun = time.monotonic()
            first = environment.gatepost("deploy").stderr
            whole = time.monotonic() - begun
            begun = time.monotonic()
            environment.gatepost("deploy")
            again = time.monotonic() - begun
            with Bare(directory / "floor") as machine:
                machine.ssh("true")
                files = b64decode(environment.ssh(f"tar -C / -cf - {FINISHED} 2>/dev/null | base64").stdout)
                by_hand = floor(machine, files)
        finally:
            environment.gatepost("destroy")
    configure = seconds(first, "configure")
    print(f"one shell script              {by_hand:6.1f} s")
    print(f"first deploy, whole           {whole:6.1f} s  {whole / by_hand:5.2f} × the script (bar 2.0)")
    print(f"first deploy, configure alone {configure:6.1f} s  {configure / by_hand:5.2f} × the script (bar 1.6)")
    print(f"second deploy, whole          {again:6.1f} s  {again / whole:5.2f} × the first   (bar 0.5)")


if __name__ == "__main__":
    main()
