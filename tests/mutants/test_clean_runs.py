"""Nothing is wrong with an untouched server, and the verifier says so, run after run."""

from __future__ import annotations

import pytest
from environments import Environment

RUNS = 20

pytestmark = pytest.mark.lab


@pytest.fixture(scope="module", params=["server13", "server12"])
def untouched(request: pytest.FixtureRequest) -> Environment:
    server: Environment = request.getfixturevalue(request.param)
    return server


def _finds_nothing(server: Environment, *options: str) -> None:
    report = server.verify(*options)
    wrong = [r for r in report["results"] if r["verdict"] in ("fail", "inconclusive")]
    assert (report["exit_code"], wrong) == (0, [])


@pytest.mark.parametrize("run", [1, 2, *(pytest.param(n, marks=pytest.mark.full) for n in range(3, RUNS + 1))])
def test_a_clean_run_finds_nothing(untouched: Environment, run: int) -> None:
    _finds_nothing(untouched)


@pytest.mark.parametrize(
    "options",
    [("--limits",), ("--slow", "--only", "SUB-AUTH-08", "--only", "SUB-AUTH-08b")],
    ids=["limits", "failed-logins"],
)
def test_nor_does_what_is_judged_on_request_only(untouched: Environment, options: tuple[str, ...]) -> None:
    _finds_nothing(untouched, *options)
