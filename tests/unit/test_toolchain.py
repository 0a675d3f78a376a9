"""What must come from Debian is installed by root, and otherwise named to the letter."""

from __future__ import annotations

from pathlib import Path

import pytest

from gatepost import toolchain
from gatepost.errors import GatepostError

APT = """#!/bin/sh
echo "$DEBIAN_FRONTEND $*" >> {0}/calls
case "$*" in *update*) touch {0}/updated; exit 0;; esac
test -e {0}/updated || {{ echo 'E: Unable to locate package' >&2; exit 100; }}
test ! -e {0}/broken || {{ echo 'E: disk full' >&2; exit 100; }}
"""
TOOLS = (toolchain.Tool("gatepost-no-such", "systemd-container", "runs the lab's machines"), toolchain.SSH)


@pytest.fixture
def debian(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A PATH with an apt-get that says what it was asked, and fails until the lists were fetched; we are root."""
    (tmp_path / "apt-get").write_text(APT.format(tmp_path))
    (tmp_path / "ssh").write_text("#!/bin/sh\n")
    for name in ("apt-get", "ssh"):
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(toolchain, "_PATH", str(tmp_path))
    monkeypatch.setattr("os.geteuid", lambda: 0)
    return tmp_path


def test_what_is_there_is_left_alone(debian: Path) -> None:
    toolchain.require((toolchain.SSH,), lambda text: pytest.fail(text))
    assert not (debian / "calls").exists()


def test_root_is_told_what_is_installed_and_why(debian: Path) -> None:
    said: list[str] = []
    toolchain.require(TOOLS, said.append)
    assert said == ["Installing from Debian: systemd-container (runs the lab's machines)."]
    calls = (debian / "calls").read_text().splitlines()
    assert ["update" in call for call in calls] == [False, True, False]  # lists only when they are too old or missing
    assert all(call.startswith("noninteractive ") for call in calls)
    assert calls[-1].endswith(" install --no-install-recommends systemd-container")


def test_others_get_the_exact_line(debian: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(GatepostError, match=r"not installed: systemd-container \(runs the lab's machines\)") as caught:
        toolchain.require(TOOLS, lambda text: pytest.fail(text))
    assert caught.value.next_step == "As root: apt-get install --no-install-recommends systemd-container"
    assert not (debian / "calls").exists()


def test_apts_own_words_are_shown_when_it_fails(debian: Path) -> None:
    (debian / "broken").touch()
    with pytest.raises(GatepostError, match="disk full") as caught:
        toolchain.require(TOOLS, lambda _text: None)
    assert "apt-get install --no-install-recommends systemd-container" in caught.value.next_step
