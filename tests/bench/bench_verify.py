"""`gatepost verify` on all listeners against sslyze on the same ports one after another.

    python tests/bench/bench_verify.py

sslyze judges TLS only. It needs versions of its own, so it runs from a virtual environment that this makes in .cache/.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from environments import REPOSITORY, Environment

SSLYZE = "sslyze==6.3.1"
RUNS = 3


def sslyze() -> Path:
    """Return the program, installed if need be."""
    home = REPOSITORY / ".cache/sslyze"
    program = home / "bin/sslyze"
    if not program.exists():
        venv.create(home, with_pip=True, clear=True)
        subprocess.run([home / "bin/pip", "install", "--quiet", SSLYZE], check=True)
    return program


def main() -> None:
    """Print the figures."""
    program = sslyze()
    with tempfile.TemporaryDirectory() as directory:
        environment = Environment(Path(directory) / "bench")
        try:
            environment.gatepost("deploy")
            # sslyze opens some 580 connections a port in 2 s, which a well-kept server refuses.
            limits = "smtpd_client_connection_rate_limit=0 smtpd_client_connection_count_limit=0"
            environment.ssh(f"postconf -e {limits} && postfix reload")
            info = environment.info
            address = info["servers"][0]["ipv4"]
            ours, theirs = [], []
            for _ in range(RUNS):
                begun = time.monotonic()
                environment.gatepost("verify")
                ours.append(time.monotonic() - begun)
                begun = time.monotonic()
                for row in info["listeners"]:
                    how = [] if row["tls"] == "implicit" else ["--starttls", "smtp"]
                    done = subprocess.run(
                        [program, *how, f"{address}:{row['port']}"], capture_output=True, text=True, check=False
                    )
                    assert "SCAN RESULTS" in done.stdout.upper(), done.stdout + done.stderr
                theirs.append(time.monotonic() - begun)
        finally:
            environment.gatepost("destroy")
    ours, theirs = sorted(ours), sorted(theirs)
    print(f"sslyze, port after port (TLS only)   {theirs[RUNS // 2]:5.1f} s  median of {RUNS}")
    ratio = ours[RUNS // 2] / theirs[RUNS // 2]
    print(f"gatepost verify, every id, two addresses {ours[RUNS // 2]:5.1f} s  {ratio:4.2f} × sslyze  (bar 1.5)")


if __name__ == "__main__":
    main()
