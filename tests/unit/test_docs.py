"""What the documents say is so, as far as a program can tell. (The README's commands are run in tests/lab.)"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from gatepost import listeners

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted(
    ROOT / name
    for name in subprocess.run(
        ["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", document.read_text())
    assert [link for link in links if not (document.parent / link).exists()] == []


def test_every_make_target_of_the_readme_exists_and_help_names_all() -> None:
    named = set(re.findall(r"(?:^|`)make ([a-z-]+)", (ROOT / "README.md").read_text(), re.MULTILINE))
    shown = subprocess.run(
        ["make", "--no-print-directory"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    targets = set(re.findall(r"^  make ([a-z-]+)", shown, re.MULTILINE))
    assert named <= targets
    assert targets == set(re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE))


def test_exit_codes_of_the_readme_are_those_of_help() -> None:
    rows = re.findall(r"^\| ([0-3]) \| (.*) \|$", (ROOT / "README.md").read_text(), re.MULTILINE)
    program = Path(sys.executable).parent / "gatepost"
    shown = subprocess.run([program, "--help"], capture_output=True, text=True, check=True).stdout
    assert [code for code, _ in rows] == re.findall(r"^ +([0-3])  ", shown, re.MULTILINE)


def test_the_fifth_row_of_ports_md_is_a_row(tmp_path: Path) -> None:
    [row] = re.findall(r"^  - \{.*\}$", (ROOT / "docs/ports.md").read_text(), re.MULTILINE)
    table = tmp_path / "listeners.yml"
    table.write_text(listeners.default_path().read_text() + row + "\n")
    assert len(listeners.load(table).listeners) == 5


def test_the_settings_of_the_readme_are_settings(tmp_path: Path) -> None:
    from gatepost import documents

    [block] = re.findall(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    wanted = yaml.safe_load(block)
    wanted["existing"]["ssh_host_key"] = "SHA256:" + "A" * 43
    documents.validate(wanted, "settings", where="README.md")
