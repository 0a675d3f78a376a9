"""The other supported release, from outside and from the box: other versions of Postfix and Dovecot."""

from __future__ import annotations

import re

import pytest
from environments import Environment

pytestmark = pytest.mark.lab


def test_it_is_debian_12(server12: Environment) -> None:
    assert 'VERSION_ID="12"' in server12.ssh("cat /etc/os-release").stdout


def test_every_requirement_holds(server12: Environment) -> None:
    report = server12.verify()
    assert report["exit_code"] == 0, [r for r in report["results"] if r["verdict"] in ("fail", "inconclusive")]
    assert {result["address"] is None or ":" in result["address"] for result in report["results"]} == {True, False}


def test_the_servers_own_answers_are_right(server12: Environment) -> None:
    assert " passed" in server12.gatepost("check").stdout


def test_the_second_deploy_changes_nothing(server12: Environment) -> None:
    said = server12.gatepost("deploy").stderr
    assert re.search(r"configure .* nothing changed", said)
