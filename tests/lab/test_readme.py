"""The README's commands, as written, in a fresh clone."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
from environments import MINUTES, REPOSITORY
from footprint import Footprint

pytestmark = pytest.mark.lab


def test_from_nothing_to_a_verified_server_and_back(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("the lab needs root")
    deploy, tests = re.findall(r"```sh\n(.*?)\n```", (REPOSITORY / "README.md").read_text(), re.DOTALL)
    assert tests == "make test"  # this very run
    before = Footprint()
    clone = tmp_path / "gatepost"
    subprocess.run(["git", "clone", "--quiet", REPOSITORY, clone], check=True)

    def make(command: str) -> str:
        done = subprocess.run(
            command, shell=True, cwd=clone, capture_output=True, text=True, timeout=30 * MINUTES, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    try:
        said = make(deploy)
        assert "Made inventory/ from inventory.example/" in said
        for port in (25, 587, 465, 2525):
            assert re.search(rf"^  {port} .* ok, \d+ checks passed$", said, re.MULTILINE)
        again = make(deploy)
        assert re.search(r"✓ terraform .* nothing changed", again) and re.search(r"configure .* nothing changed", again)
        assert " passed" in make("make check")
        assert "mx.example.test" in make("make info")
    finally:
        make("make destroy")
    assert before.left(seconds=30) == []
    assert subprocess.run(
        ["git", "status", "--porcelain"], cwd=clone, capture_output=True, text=True, check=True
    ).stdout == ""  # fmt: skip
