"""docs/mutants.md, made from mutants.yml: PYTHONPATH=tests/mutants .venv/bin/python -m table >docs/mutants.md"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import yaml

_HEAD = """\
# Mutants: how we know that the checks see

<!-- Made from tests/mutants/mutants.yml by tests/mutants/table.py; a unit test compares. -->

Each mutant breaks one thing on a running server. `gatepost verify`, or for HST ids the tests on the host, must then
fail with the ids beside it, and must pass again once it is undone. An `or` means that either shows it: a port whose
smtpd dies at its start still accepts connections, and is found by its missing greeting. Ids are described in
[checks.md](checks.md); HST ids are the tests in `tests/testinfra/`. Marked * are our own; the others are the
reference's. `make test` tries all of them on Debian 13, `make test-full` on Debian 12 as well.
"""


def markdown(catalogue: dict[str, list[dict[str, Any]]]) -> str:
    """Return docs/mutants.md."""
    mutants, equivalents, waiting = (catalogue[part] for part in ("mutants", "equivalents", "waiting"))
    own = sum(1 for mutant in mutants if mutant.get("own"))
    lines = [
        _HEAD,
        f"## {len(mutants)} mutants, {own} of them our own\n",
        "| mutant | what is done | breaks | seen by |",
        "|---|---|---|---|",
        *(f"| {_name(m)} | {_code(m['run'])} | {_ids(m)} | {_seen_by(m)} |" for m in mutants),
        f"\n## {len(equivalents)} changes that must raise no alarm\n",
        "| change | what is done | why nothing changes |",
        "|---|---|---|",
        *(f"| {_name(e)} | {_code(e['run'])} | {e['why']} |" for e in equivalents),
        "\n## Not tried: they need a signer, which the project does not have yet\n",
        "| mutant | breaks |",
        "|---|---|",
        *(f"| {w['name']} | {_ids(w)} |" for w in waiting),
    ]
    return "\n".join(lines) + "\n"


def _name(change: dict[str, Any]) -> str:
    return change["name"] + ("*" if change.get("own") else "")


def _code(run: str) -> str:
    return "<br>".join("`` " + line.strip().replace("|", "\\|") + " ``" for line in run.strip().splitlines())


def _ids(change: dict[str, Any]) -> str:
    return ", ".join(entry.replace("|", " or ") for entry in change["breaks"])


def _seen_by(mutant: dict[str, Any]) -> str:
    hosts = [entry.startswith("HST-") or mutant.get("via") == "host" for entry in mutant["breaks"]]
    who = "host" if all(hosts) else "network, host" if any(hosts) else "network"
    return " ".join((who, *(f"`{option}`" for option in mutant.get("options", ()))))


if __name__ == "__main__":
    sys.stdout.write(markdown(yaml.safe_load((Path(__file__).parent / "mutants.yml").read_text())))
