"""`gatepost verify` on 50 servers by one command against one.

    python tests/bench/bench_hosts.py

The servers are simulated, on addresses of the loopback, and say hello only: a greeting, EHLO, and 502 to everything
else. Time is the command's, with start and reports; memory is the largest sum of the PSS of all its processes, so that
pages which they share count once, seen 20 times a second.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import resource
import subprocess
import tempfile
import threading
import time
from pathlib import Path

import yaml

from gatepost import listeners

GATEPOST = Path(__file__).resolve().parents[2] / ".venv/bin/gatepost"
HOSTS = 50
RATIO, MEGABYTES = 8.0, 300.0
OFFSET = 20_000  # the default table's ports, where no root is needed


async def _hello(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError, asyncio.LimitOverrunError, ValueError):
        writer.write(b"220 mx.example.test ESMTP\r\n")
        while line := await reader.readline():
            verb = line[:4].upper()
            if verb == b"QUIT":
                writer.write(b"221 2.0.0 Bye\r\n")
                break
            writer.write(b"250 mx.example.test\r\n" if verb == b"EHLO" else b"502 5.5.2 not known here\r\n")
            await writer.drain()
    writer.close()


def _serve(ports: list[int], ready: threading.Event) -> None:
    async def serve() -> None:
        for number in range(1, HOSTS + 1):
            for port in ports:
                await asyncio.start_server(_hello, f"127.0.1.{number}", port, backlog=500)
        ready.set()
        await asyncio.Event().wait()

    asyncio.run(serve())


def _tree(root: int) -> list[int]:
    """Return a process and its descendants."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(stat.parent.name))
    found = [root]
    for process in found:
        found += children.get(process, [])
    return found


def _pss(process: int) -> float:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) / 1024
    return 0.0


def verify(table: Path, numbers: range) -> tuple[float, float]:
    """Judge these servers; return seconds and megabytes."""
    hosts = [f"127.0.1.{n}" for n in numbers]
    arguments = ["--hostname", "mx.example.test", "--listeners", table, "--domain", "example.test", "--json"]
    with tempfile.TemporaryFile("w+") as out:
        begun = time.monotonic()
        process = subprocess.Popen([GATEPOST, "verify", *hosts, *arguments], stdout=out)
        most = 0.0
        while process.poll() is None:
            most = max(most, sum(map(_pss, _tree(process.pid))))
            time.sleep(0.05)
        seconds = time.monotonic() - begun
        out.seek(0)
        document = json.load(out)
    reports = document.get("reports", [document])
    assert process.returncode == 1 and len(reports) == len(hosts), "such servers fail, all of them"
    assert not any(report["interrupted"] for report in reports)
    return seconds, most


def main() -> None:
    """Print the figures, and fail when one of them misses its bar."""
    with tempfile.TemporaryDirectory() as directory:
        rows = [
            {"name": r.name, "port": r.port + OFFSET, "purpose": r.purpose, "tls": r.tls, "sources": list(r.sources)}
            for r in listeners.load().listeners
        ]
        table = Path(directory) / "listeners.yml"
        table.write_text(yaml.safe_dump({listeners.KEY: rows}))
        ready = threading.Event()
        threading.Thread(target=_serve, args=([row["port"] for row in rows], ready), daemon=True).start()
        ready.wait()
        one = sorted(verify(table, range(1, 2))[0] for _ in range(3))[1]
        many, megabytes = verify(table, range(1, HOSTS + 1))
    largest = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    print(f"one server            {one:6.1f} s  median of 3")
    print(f"{HOSTS} servers            {many:6.1f} s  {many / one:4.2f} × one  (bar {RATIO:g})")
    print(f"memory, all processes {megabytes:6.0f} MB (bar {MEGABYTES:g}); the largest {largest:.0f} MB")
    assert many <= RATIO * one and megabytes <= MEGABYTES


if __name__ == "__main__":
    main()
