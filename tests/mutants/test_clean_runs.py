"""Nothing is wrong with an untouched server, and the verifier says so, run after run."""

from __future__ import annotations

import time

import pytest
from environments import Environment
from patients import Patient, troubles

RUNS = 20
PAIRS = 8  # of addresses to connect from; each may log in again after a minute (smtpd_client_auth_rate_limit)
MINUTE = 60

pytestmark = pytest.mark.lab


@pytest.fixture(scope="module", params=["server13", "server12"])
def untouched(request: pytest.FixtureRequest) -> Environment:
    server: Environment = request.getfixturevalue(request.param)
    return server


@pytest.mark.parametrize("run", [1, 2, *(pytest.param(n, marks=pytest.mark.full) for n in range(3, RUNS + 1))])
def test_a_clean_run_finds_nothing(untouched: Environment, run: int) -> None:
    if run % (PAIRS - 1) == 0:
        time.sleep(MINUTE)
    report = untouched.verify()
    wrong = [r for r in report["results"] if r["verdict"] in ("fail", "inconclusive")]
    assert (report["exit_code"], wrong) == (0, [])


def test_the_limits_hold(untouched: Environment, tmp_path_factory: pytest.TempPathFactory) -> None:
    patient = Patient(untouched.directory, tmp_path_factory.mktemp("limits"))
    report = patient.verify(options=["--slow", "--limits"])
    patient.leave()
    assert (report.exit_code, troubles(report)) == (0, "")
