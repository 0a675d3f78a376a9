"""Judges several servers side by side, each in a process of its own.

A run is mostly waiting, but 50 of them are more Python than one interpreter lock lets through. The processes are forked
after everything is imported, so that imports cost their time and memory once, and end with their server, so that what
was seen of it is given back.
"""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkProcess

import gatepost
from gatepost.verify import runner
from gatepost.verify.model import Report, Target
from gatepost.verify.registry import requirements
from gatepost.verify.wire.tls import speaks_old_tls

AT_ONCE = 12  # servers; each is mostly waiting, and its process costs some 8 MB


def run(
    targets: Sequence[Target],
    *,
    only: Collection[str] = (),
    skip: Collection[str] = (),
    allowed: Collection[str] = (),
    progress: Callable[[int, int], None] | None = None,  # servers done, servers in all
) -> tuple[Report, ...]:
    """Judge the targets and return their reports in the same order.

    KeyboardInterrupt ends all runs early with partial reports; those that had not begun have one without results.
    """
    # Once for all of them: what a run finds out about this computer, and the modules that it imports for it.
    requirements()
    speaks_old_tls()
    gc.collect()
    gc.freeze()  # else the children's collector writes to every page that they share
    context = multiprocessing.get_context("fork")
    left = list(enumerate(targets))[::-1]
    under_way: dict[Connection, tuple[int, ForkProcess]] = {}
    reports: dict[int, Report] = {}

    def collect() -> None:
        for connection in wait(list(under_way)):
            assert isinstance(connection, Connection)
            number, process = under_way.pop(connection)
            with connection, contextlib.suppress(EOFError):  # the process died; what it saw is unknown
                reports[number] = connection.recv()
            process.join()
            if progress is not None:
                progress(len(reports), len(targets))

    def start() -> None:
        number, target = left.pop()
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_judge, args=(theirs, ours, target, only, skip, allowed))
        process.start()
        under_way[ours] = (number, process)
        theirs.close()

    try:
        while left or under_way:
            while left and len(under_way) < AT_ONCE:
                start()
            collect()
    except KeyboardInterrupt:
        with _deaf():
            for _number, process in under_way.values():
                process.terminate()
            while under_way:
                collect()
    return tuple(reports.get(n) or _nothing(t, only, skip, allowed) for n, t in enumerate(targets))


@contextlib.contextmanager
def _deaf() -> Iterator[None]:
    """Let a second Ctrl-C wait until the partial reports are there: it takes a moment only."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _judge(
    theirs: Connection,
    ours: Connection,
    target: Target,
    only: Collection[str],
    skip: Collection[str],
    allowed: Collection[str],
) -> None:
    """In the child: judge and send the report. A terminal's Ctrl-C comes to the parent too, which then says SIGTERM."""
    ours.close()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    stopped = threading.Event()

    def stop(_number: int, _frame: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        stopped.set()
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
    try:
        report = runner.run(target, only=only, skip=skip, allowed=allowed)
        # Python drops an exception that comes up in a destructor, and the run then goes on to its end.
        theirs.send(replace(report, interrupted=report.interrupted or stopped.is_set()))
    finally:
        theirs.close()
        os._exit(0)  # threads that still wait for a server are not waited for


def _nothing(target: Target, only: Collection[str], skip: Collection[str], allowed: Collection[str]) -> Report:
    return Report(
        target=target,
        started=datetime.now(UTC),
        seconds=0.0,
        results=(),
        gatepost_version=gatepost.__version__,
        interrupted=True,
        only=tuple(only),
        skipped=tuple(skip),
        allowed=tuple(allowed),
    )
