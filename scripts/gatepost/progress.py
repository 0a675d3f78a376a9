"""What a person sees of a run: one line per stage with its time, and a log file with everything."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

from gatepost import environment

LOGS_KEPT = 20


class Progress:
    """Stages on stderr, live on a terminal and as plain lines elsewhere; the whole story in a log file."""

    def __init__(self, directory: Path, command: str, *, verbose: bool = False) -> None:
        from rich.console import Console

        self.console = Console(stderr=True, highlight=False, soft_wrap=True)
        self.verbose = verbose
        environment.private_directory(directory)
        for old in sorted(directory.glob("*.log"))[: -LOGS_KEPT + 1]:
            old.unlink(missing_ok=True)
        self.path = directory / f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{command}.log"
        environment.write(self.path, f"gatepost {command}\n")  # some bytes, so that a full disk is noticed now
        self._log: TextIO = self.path.open("a", buffering=1)
        self._lock = threading.Lock()
        self._is_lame = False
        self._detail = ""
        self.seconds: dict[str, float] = {}  # by stage, in order

    @property
    def is_live(self) -> bool:
        """Whether lines may be redrawn."""
        return self.console.is_terminal and not self.verbose

    def log(self, text: str) -> None:
        """Add to the log file; also to the screen when verbose."""
        now = f"{datetime.now(UTC):%H:%M:%S}"
        self._write("".join(f"{now} {line}\n" for line in text.rstrip("\n").split("\n")))
        if self.verbose:
            self.console.print(text.rstrip("\n"), markup=False)

    def note(self, text: str) -> None:
        """Say something that a person must know."""
        self.log(text)
        if not self.verbose:
            self.console.print(text, markup=False)

    def detail(self, text: str) -> None:
        """Say what the running stage is doing; shown while it lasts."""
        self._detail = text
        self.log(text)

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[Stage]:
        """Run a stage: a live line while it lasts, a line with its time at the end."""
        started = time.monotonic()
        stage = Stage()
        self._detail = ""
        self._begin(name)
        mark = "✗"
        try:
            with self._live(name, started):
                yield stage
            mark = "✓" if stage.passed else "✗"
        except KeyboardInterrupt:
            stage.result = "interrupted"
            raise
        finally:
            seconds = self.seconds[name] = time.monotonic() - started
            self._end(mark, name, seconds, stage.result or ("" if mark == "✓" else "failed"))

    def _begin(self, name: str) -> None:
        self.log(f"== {name}")
        if not self.console.is_terminal and not self.verbose:
            self.console.print(f"{name} …")

    def _end(self, mark: str, name: str, seconds: float, result: str) -> None:
        line = f"{mark} {name:<13} {seconds:6.1f} s  {result}".rstrip()
        self._write(f"{line}\n")
        colour = "green" if mark == "✓" else "red"
        self.console.print(f"[{colour}]{mark}[/] {name:<13} [dim]{seconds:6.1f} s[/]  ", end="")
        self.console.print(result, markup=False)

    @contextlib.contextmanager
    def _live(self, name: str, started: float) -> Iterator[None]:
        if not self.is_live:
            yield
            return
        from rich.live import Live
        from rich.spinner import Spinner
        from rich.table import Table
        from rich.text import Text

        spinner = Spinner("dots")

        def line() -> Table:
            table = Table.grid(padding=(0, 1))
            elapsed = f"{time.monotonic() - started:6.1f} s "
            detail = Text(self._detail, style="dim", no_wrap=True, overflow="ellipsis")
            table.add_row(spinner, Text(f"{name:<13}"), Text(elapsed, style="dim"), detail)
            return table

        with Live(get_renderable=line, console=self.console, transient=True, refresh_per_second=8):
            yield

    def _write(self, text: str) -> None:
        with self._lock:
            try:
                self._log.write(text)
            except OSError as error:  # a disk that fills up meanwhile must not stop Terraform halfway
                if not self._is_lame:
                    self._is_lame = True
                    self.console.print(f"{self.path}: {error.strerror}; the log ends here.", markup=False)

    def close(self) -> None:
        """Close the log."""
        with contextlib.suppress(OSError):  # told already
            self._log.close()


class Stage:
    """A running stage; `result` is shown beside its time."""

    result: str = ""
    passed: bool = True  # a stage can end in good order with a bad verdict
