"""How we know that the checks see: each mutant breaks one thing on a running server, and the right ids must fail."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from environments import MINUTES, Environment
from patients import CATALOGUE, Patient, Ward, failures, troubles

MACHINES = 3  # of one release, side by side: more than two cores keep busy, since most of the time is waiting
LONGEST = 40 * MINUTES  # a deadline against hanging

pytestmark = pytest.mark.lab


@pytest.fixture(scope="module", params=[13, pytest.param(12, marks=pytest.mark.full)])
def ward(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ward]:
    """The chosen changes, being tried on machines of one release."""
    chosen = [
        item.callspec.params["change"]
        for item in request.session.items
        if isinstance(item, pytest.Function)
        and item.path == request.path
        and "change" in item.callspec.params
        and item.callspec.params["ward"] == request.param
    ]
    shared: Environment = request.getfixturevalue(f"server{request.param}")
    scratch: Path = tmp_path_factory.mktemp("ward")
    extra = [
        Environment(scratch / f"environment-{n}", local={"release": request.param})
        for n in range(1, min(MACHINES, len(chosen)))
    ]
    try:
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda environment: environment.gatepost("deploy"), extra))
        ward = Ward(
            [Patient(server.directory, scratch / f"patient-{n}") for n, server in enumerate([shared, *extra])], chosen
        )
        try:
            yield ward
        finally:
            ward.close()
    finally:
        for environment in extra:
            environment.gatepost("destroy", check=False)


def _each(part: str) -> list[Any]:
    return [pytest.param(change, id=change["name"]) for change in CATALOGUE[part]]


@pytest.mark.parametrize("change", _each("mutants"))
def test_a_mutant_is_seen(ward: Ward, change: dict[str, Any]) -> None:
    trial = ward.trials[change["name"]].result(LONGEST)
    missed = [entry for entry in change["breaks"] if not trial.failed & set(entry.split("|"))]
    assert missed == [], f"did not fail, though broken by {change['run']!r}; seen was:\n{trial.said}"
    assert trial.relapse == "", "after it was undone"


@pytest.mark.parametrize("change", _each("equivalents"))
def test_a_harmless_change_raises_no_alarm(ward: Ward, change: dict[str, Any]) -> None:
    assert ward.trials[change["name"]].result(LONGEST).said == ""


def test_the_healed_servers_pass_everything(ward: Ward) -> None:
    ward.wait()
    for patient in ward.patients:
        patient.heal()
        report = patient.verify()
        assert (report.exit_code, failures(report), troubles(report)) == (0, frozenset(), "")
        failed, said = patient.check()
        assert failed == frozenset(), said
