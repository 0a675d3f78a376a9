"""How long our roles take, as ratios to what else does the work, measured in one run on machines of the lab.

    python tests/bench/bench_converge.py [--release 13] [--runs 3]

First run: site.yml on a fresh machine, against one shell script that installs the same packages, copies the finished
files and starts the daemons on a fresh machine (floor.sh). Second run: site.yml with nothing to do, every managed file
compared, against a play of the shape and size of a widely used Postfix role (four_tasks.yml) on the same machine. Both
take turns; a ratio is that of the medians.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bare import Bare, Run

HERE = Path(__file__).parent
FINISHED = (
    "/etc/postfix/main.cf /etc/postfix/master.cf /etc/postfix/vmailbox /etc/postfix/virtual /etc/postfix/sender_logins "
    "/etc/postfix/own_domains /etc/postfix/submission_header_checks /etc/aliases /etc/dovecot/dovecot.conf "
    "/etc/dovecot/users /etc/nftables.conf /etc/ssl/gatepost"
)


def succeeded(run: Run, *, changed: bool) -> float:
    """Return the run's seconds; stop the benchmark when it did not do what is measured."""
    if run.code != 0 or bool(run.changed) != changed:
        sys.exit(f"exit code {run.code}, changed {run.changed}\n{run.output}")
    return run.seconds


def floor(machine: Bare, files: bytes) -> float:
    """Return the seconds that the shell script takes, with the files on its standard input."""
    started = time.monotonic()
    machine.ssh((HERE / "floor.sh").read_text(), stdin=files)
    seconds = time.monotonic() - started
    listening = machine.text("ss -Hltn | wc -l")
    if int(listening) < 10:  # four ports of Postfix's and SSH, twice
        sys.exit(f"the floor's server does not stand: {listening} sockets listen")
    return seconds


def ratio(what: str, ours: list[float], theirs: list[float], bar: float) -> None:
    """Print one ratio with what it is made of."""
    a, b = statistics.median(ours), statistics.median(theirs)
    runs = " ".join(f"{x:.1f}/{y:.1f}" for x, y in zip(ours, theirs, strict=True))
    print(f"{what}: {a / b:.2f} (bar {bar})   ours {a:.1f} s, theirs {b:.1f} s   each: {runs}")


def main() -> None:
    """Run both comparisons and print their ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--release", type=int, default=13, choices=[12, 13])
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    first: tuple[list[float], list[float]] = ([], [])
    second: tuple[list[float], list[float]] = ([], [])
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        for number in range(options.runs):
            with Bare(directory, options.release) as machine:
                machine.ssh("true")
                first[0].append(succeeded(machine.play(), changed=True))
                files = machine.ssh(f"tar -C / -cf - {FINISHED} 2>/dev/null").stdout
                if number == 0:
                    succeeded(machine.play(), changed=False)
                    for _ in range(2 * options.runs):
                        second[0].append(succeeded(machine.play(), changed=False))
                        second[1].append(succeeded(machine.play(playbook=HERE / "four_tasks.yml"), changed=False))
            with Bare(directory, options.release) as machine:
                machine.ssh("true")
                first[1].append(floor(machine, files))
    ratio("configure a fresh machine / shell script", *first, 1.6)
    ratio("second run, four roles / one role of four tasks", *second, 2.0)


if __name__ == "__main__":
    main()
