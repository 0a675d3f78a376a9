"""What a person sees of a run, on a terminal and elsewhere, and what the log keeps."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from gatepost.progress import LOGS_KEPT, Progress


def run(directory: Path, *, verbose: bool = False, fail: bool = False) -> Path:
    progress = Progress(directory, "deploy", verbose=verbose)
    with progress.stage("terraform") as stage:
        progress.detail("create lab_machine.server")
        progress.log("a wall of text")
        if fail:
            raise KeyboardInterrupt
        stage.result = "3 added [red]not markup[/red]"
    progress.note("a note")
    progress.close()
    return progress.path


def test_elsewhere_than_on_a_terminal_the_lines_are_plain(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = run(tmp_path)
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert lines[0] == "terraform …"
    assert re.fullmatch(r"✓ terraform +0\.0 s  3 added \[red\]not markup\[/red\]", lines[1])
    assert lines[2:] == ["a note"]
    text = path.read_text()
    assert "a wall of text" in text and "create lab_machine.server" in text and "✓ terraform" in text
    assert path.stat().st_mode & 0o777 == 0o600


def test_verbose_shows_what_the_log_keeps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path, verbose=True)
    err = capsys.readouterr().err
    assert "a wall of text" in err and err.count("a note") == 1


def test_a_stage_that_is_stopped_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, fail=True)
    assert re.search(r"✗ terraform +0\.0 s  interrupted", capsys.readouterr().err)


def test_on_a_terminal_a_live_line_shows_the_detail_and_is_gone_at_the_end(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from gatepost.progress import Progress\n"
        "p = Progress(Path(sys.argv[1]), 'deploy')\n"
        "with p.stage('terraform') as s:\n    p.detail('create x'); time.sleep(0.5); s.result = 'ok'\n"
    )
    main, child = pty.openpty()
    command = [sys.executable, "-c", code, str(tmp_path)]
    env = {**os.environ, "TERM": "xterm", "COLUMNS": "100", "NO_COLOR": "1"}
    with subprocess.Popen(command, stdin=child, stdout=child, stderr=child, env=env) as process:
        os.close(child)
        shown = b""
        while True:
            try:
                part = os.read(main, 4096)
            except OSError:  # the other end is closed
                break
            if not part:
                break
            shown += part
    os.close(main)
    assert process.returncode == 0
    text = shown.decode()
    assert "create x" in text and "terraform …" not in text
    last = text.rpartition("\x1b[2K")[2]  # what stands after the live line was erased
    assert re.search(r"✓.* terraform .*ok", last) and "create x" not in last


def test_old_logs_go(tmp_path: Path) -> None:
    for number in range(30):
        (tmp_path / f"20200101T0000{number:02}Z-deploy.log").write_text("")
    run(tmp_path)
    left = sorted(path.name for path in tmp_path.glob("*.log"))
    assert len(left) == LOGS_KEPT and left[0] == "20200101T000011Z-deploy.log"


def test_a_log_that_cannot_be_written_is_told_once_and_stops_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    progress = Progress(tmp_path, "deploy")
    progress._log.close()
    # Every write to it fails: no space left on device.
    progress._log = Path("/dev/full").open("a", buffering=1)  # noqa: SIM115 - progress.close() closes it
    with progress.stage("terraform") as stage:
        progress.log("one")
        stage.result = "3 added"
    progress.close()
    err = capsys.readouterr().err
    assert err.count("No space left on device; the log ends here.") == 1
    assert "3 added" in err
