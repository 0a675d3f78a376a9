"""The front door: make targets call the glue, pass what was asked, and never use a half-made toolchain."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gatepost.environment import CHECKOUT

TARGETS = {"deploy", "plan", "converge", "verify", "check", "destroy", "ssh", "info"}
OTHERS = {"help", "test", "test-full", "lint", "clean", "venv"}
# Not what a surrounding make (`make test`) hands down.
OUTER = ("INVENTORY", "LISTENERS", "V", "MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES")
BARE = {name: value for name, value in os.environ.items() if name not in OUTER}


def make(*arguments: str, cwd: Path = CHECKOUT, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["make", *arguments], cwd=cwd, env={**BARE, **env}, capture_output=True, text=True, check=False, timeout=120
    )


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The files that make a toolchain, and a requirements.lock that needs nothing from the network."""
    directory = tmp_path / "check out"
    directory.mkdir()
    for name in ("Makefile", "requirements-dev.lock"):
        shutil.copy(CHECKOUT / name, directory)
    (directory / "requirements.lock").write_text("# nothing\n")
    (directory / "pyproject.toml").write_text('[project]\nname = "x"\nversion = "1"\n')
    return directory


def test_help_is_the_default_and_lists_every_target() -> None:
    shown = make().stdout
    assert shown == make("help").stdout
    assert set(re.findall(r"^  make ([a-z-]+) ", shown, re.MULTILINE)) == TARGETS | OTHERS


@pytest.mark.parametrize("target", sorted(TARGETS))
def test_a_target_is_one_call_of_the_glue(target: str) -> None:
    lines = [line for line in make("-n", target).stdout.splitlines() if ".venv/bin/gatepost" in line]
    assert [line.split() for line in lines] == [[".venv/bin/gatepost", target]]


def test_what_was_asked_is_passed_on() -> None:
    line = make("-n", "deploy", "INVENTORY=inventory/my prod", "LISTENERS=/x y.yml", "V=1").stdout.splitlines()[-1]
    assert line == '.venv/bin/gatepost deploy --inventory "inventory/my prod" --listeners "/x y.yml" --verbose'
    assert (
        make("-n", "verify", INVENTORY="prod").stdout.splitlines()[-1].rstrip()
        == '.venv/bin/gatepost verify --inventory "prod"'
    )
    assert "--verbose" not in make("-n", "deploy", "V=0").stdout


def test_every_requirement_is_locked_with_hashes() -> None:
    for name in ("requirements.lock", "requirements-dev.lock", "requirements-terraform.lock"):
        text = (CHECKOUT / name).read_text()
        entries = re.split(r"\n(?=\S)", text.strip())
        assert len(entries) >= 1
        for entry in entries:
            assert re.match(r"[a-z0-9][a-z0-9._-]*==\S+", entry), entry
            assert "--hash=sha256:" in entry, entry
        assert "://" not in text  # no address of an index


def test_the_locks_hold_what_pyproject_asks_for() -> None:
    import tomllib

    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    base = {*project["dependencies"], *extras["deploy"], *extras["build"]}
    for name, wanted in {
        "requirements.lock": base,
        "requirements-dev.lock": {*base, *extras["dev"], *extras["terraform"]},
        "requirements-terraform.lock": set(extras["terraform"]),
    }.items():
        locked = {line.split(" ")[0].lower() for line in (CHECKOUT / name).read_text().splitlines() if "==" in line}
        for requirement in wanted:
            assert requirement.lower() in locked or any(
                entry.startswith(requirement.lower() + "==") for entry in locked
            ), f"{requirement} is not in {name}"


def test_python_without_venv_is_told_the_apt_line(checkout: Path) -> None:
    python = checkout / "python3"
    python.write_text(f'#!/bin/sh\ncase "$*" in *ensurepip*) exit 1;; esac\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    done = make("venv", "PYTHON=./python3", cwd=checkout)
    assert done.returncode == 2 and "Next: apt-get install python3-venv" in done.stderr
    assert not (checkout / ".venv").exists()


@pytest.mark.parametrize("python", ["/nonexistent/python3", "/bin/false"])
def test_a_missing_or_old_python_is_told_the_way_out(checkout: Path, python: str) -> None:
    done = make("venv", f"PYTHON={python}", cwd=checkout)
    assert done.returncode == 2 and "older than 3.11" in done.stderr and "apt-get install python3" in done.stderr


def test_a_toolchain_that_was_cut_short_is_made_afresh(checkout: Path) -> None:
    """pip fails at a lock that cannot be met: no stamp, a clear end; the next make starts with an empty .venv."""
    (checkout / "requirements.lock").write_text("gatepost-is-not-there==1 --hash=sha256:" + "0" * 64 + "\n")
    environment = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "", "PIP_RETRIES": "0"}
    first = make("venv", cwd=checkout, **environment)
    assert first.returncode == 2 and "The next make starts afresh" in first.stderr
    assert not list((checkout / ".venv").glob(".made-*"))
    (checkout / ".venv/half").write_text("left over")
    assert make("venv", cwd=checkout, **environment).returncode == 2
    assert not (checkout / ".venv/half").exists()


def test_another_lock_or_place_is_another_toolchain(checkout: Path, tmp_path: Path) -> None:
    def stamp(directory: Path) -> str:
        found = re.search(r"\.made-[0-9a-f]{16}", make("-n", "venv", cwd=directory).stdout)
        assert found
        return found[0]

    first = stamp(checkout)
    assert stamp(checkout) == first
    (checkout / "requirements.lock").write_text("# other\n")
    second = stamp(checkout)
    moved = checkout.rename(tmp_path / "elsewhere")  # a .venv does not survive being moved
    assert len({first, second, stamp(moved)}) == 3


def test_clean_keeps_environments(checkout: Path) -> None:
    for name in ("inventory", ".venv", ".mypy_cache", "a/__pycache__"):
        (checkout / name).mkdir(parents=True)
        (checkout / name / "file").write_text("")
    assert make("clean", cwd=checkout).returncode == 0
    assert (checkout / "inventory/file").exists()
    assert not any((checkout / name).exists() for name in (".venv", ".mypy_cache", "a/__pycache__"))
