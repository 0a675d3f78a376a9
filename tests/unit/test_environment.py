"""An environment's directory: made whole or not at all, held by one run, written in one step."""

from __future__ import annotations

import filecmp
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from gatepost import environment
from gatepost.errors import GatepostError


def test_the_example_is_copied_whole_and_only_once(tmp_path: Path) -> None:
    directory = tmp_path / "deep/inventory"
    assert environment.prepare(directory)
    compared = filecmp.dircmp(environment.EXAMPLE, directory)
    assert not compared.left_only and not compared.right_only and not compared.diff_files
    (directory / "settings.yml").write_text("hostname: mx.example.test\n")
    assert not environment.prepare(directory)
    assert (directory / "settings.yml").read_text() == "hostname: mx.example.test\n"
    assert [path.name for path in directory.parent.iterdir()] == ["inventory"]


def test_an_empty_directory_becomes_an_environment(tmp_path: Path) -> None:
    directory = tmp_path / "inventory"
    directory.mkdir()
    assert environment.prepare(directory)
    assert (directory / "settings.yml").is_file()


def test_a_directory_with_other_things_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(GatepostError, match=r"has no settings\.yml") as caught:
        environment.prepare(tmp_path)
    assert "INVENTORY=" in caught.value.next_step
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


def test_a_file_in_its_place_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "inventory").write_text("x")
    with pytest.raises(GatepostError):
        environment.prepare(tmp_path / "inventory")


@pytest.mark.parametrize(
    "act", [environment.prepare, environment.private_directory, lambda p: environment.write(p, "")]
)
def test_a_place_that_cannot_be_written_is_an_error_with_a_way_out(act) -> None:  # type: ignore[no-untyped-def]
    place = Path("/proc/gatepost")  # not even root can make it
    with pytest.raises(GatepostError, match="cannot write") as caught:
        act(place)
    assert "environment directory that you can write" in caught.value.expected


def test_two_runs_at_once_the_second_is_told_who_and_since_when(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from gatepost import environment\n"
        "with environment.lock(Path(sys.argv[1]), 'deploy'): print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None and holder.stdin is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(GatepostError) as caught, environment.lock(tmp_path, "deploy"):
            pytest.fail("the lock was given twice")
        assert f"gatepost deploy, process {holder.pid}" in caught.value.found
        assert "UTC" in caught.value.found
        holder.stdin.close()
    with environment.lock(tmp_path, "destroy"):  # free again, also after a process that was killed
        assert f"gatepost destroy, process {os.getpid()}" in (tmp_path / "lock").read_text()


def test_a_file_is_written_in_one_step_with_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_text("old")
    path.chmod(0o644)
    stop, seen = threading.Event(), set()

    def watch() -> None:
        while not stop.is_set():
            seen.add(path.read_text())

    watcher = threading.Thread(target=watch)
    watcher.start()
    for _ in range(50):
        environment.write(path, "new" * 100_000)
    stop.set()
    watcher.join()
    assert seen <= {"old", "new" * 100_000}
    assert path.stat().st_mode & 0o777 == 0o600
    assert [p.name for p in tmp_path.iterdir()] == ["secret"]


def test_a_private_directory_is_closed_to_others(tmp_path: Path) -> None:
    (tmp_path / "secrets").mkdir(mode=0o755)
    environment.private_directory(tmp_path / "secrets")
    assert (tmp_path / "secrets").stat().st_mode & 0o777 == 0o700
