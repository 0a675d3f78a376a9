"""The catalogue of mutants is sound, and docs/mutants.md says what it says."""

from __future__ import annotations

import re
from pathlib import Path

import yaml
from mutants.table import markdown

from gatepost.verify.registry import requirements

TESTS = Path(__file__).resolve().parents[1]
CATALOGUE = yaml.safe_load((TESTS / "mutants/mutants.yml").read_text())
KEYS = {"name", "own", "run", "breaks", "restart", "heal", "options", "via", "why"}


def test_the_document_is_the_catalogue() -> None:
    assert (TESTS.parent / "docs/mutants.md").read_text() == markdown(CATALOGUE)


def test_names_are_unique_and_keys_are_known() -> None:
    changes = [change for part in CATALOGUE.values() for change in part]
    names = [change["name"] for change in changes]
    assert len(names) == len(set(names))
    assert [change["name"] for change in changes if change.keys() - KEYS] == []


def _by_host() -> set[str]:
    return {
        name.upper().replace("_", "-")
        for file in (TESTS / "testinfra").glob("test_*.py")
        for name in re.findall(r"^def test_([a-z]+(?:_[a-z]+)?_\d\d)_", file.read_text(), re.MULTILINE)
    }


def test_every_id_is_one_that_something_judges() -> None:
    known = {row.id for row in requirements()} | _by_host()
    named = {
        alternative.partition("@")[0]
        for mutant in CATALOGUE["mutants"]
        for entry in mutant["breaks"]
        for alternative in entry.split("|")
    }
    assert named - known == set()


def test_every_host_check_has_a_mutant() -> None:
    """But the clock's, which a container has from its host."""
    broken = {entry for mutant in CATALOGUE["mutants"] for entry in mutant["breaks"]}
    assert _by_host() - broken == {"HST-TIME-01"}
