"""With postscreen(8) in front of the relay listener everything else is judged as before, and so is postscreen."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from environments import Environment

pytestmark = pytest.mark.lab

DEEP = "postscreen_pipelining_enable=yes postscreen_non_smtp_command_enable=yes postscreen_bare_newline_enable=yes"
ON = """set -e
tar -cpf /root/before-postscreen.tar --absolute-names /etc/postfix
entry=$(postconf -M | awk '$2 == "inet" && ($1 == "25" || $1 == "smtp") {print $1}')
postconf -M# "$entry/inet"
postconf -Me "$entry/inet=$entry inet n - y - 1 postscreen" 'smtpd/pass=smtpd pass - - y - - smtpd' \\
  'tlsproxy/unix=tlsproxy unix - - y - 0 tlsproxy' 'dnsblog/unix=dnsblog unix - - y - 0 dnsblog'
"""
OFF = """set -e
rm -rf /etc/postfix
tar -xpf /root/before-postscreen.tar --absolute-names
systemctl restart postfix
rm -f /root/before-postscreen.tar /var/lib/postfix/postscreen_cache*
"""


@pytest.fixture(scope="module", params=["server13", pytest.param("server12", marks=pytest.mark.full)])
def screened(request: pytest.FixtureRequest) -> Iterator[Environment]:
    server: Environment = request.getfixturevalue(request.param)
    server.ssh(ON)
    yield server
    server.ssh(OFF)


def judged(server: Environment, settings: str, *arguments: str) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the report, and the verdicts of the postscreen ids, of a run from addresses that postscreen never met."""
    server.ssh(f"postconf -e {settings}; rm -f /var/lib/postfix/postscreen_cache*; systemctl restart postfix")
    report = server.verify(*arguments)
    return report, {r["id"]: r["verdict"] for r in report["results"] if r["id"].startswith("MX-PSC")}


def test_nothing_else_changes_and_deep_tests_put_no_probe_off(screened: Environment) -> None:
    report, verdicts = judged(screened, f"postscreen_greet_action=enforce {DEEP}")
    wrong = [r for r in report["results"] if r["verdict"] in ("fail", "inconclusive")]
    assert (report["exit_code"], wrong) == (0, [])
    assert verdicts == {
        "MX-PSC-01": "pass",
        "MX-PSC-02": "info",
        "MX-PSC-03": "pass",
        "MX-PSC-04": "pass",
        "MX-PSC-05": "info",
    }
    [deep] = [r["found"] for r in report["results"] if r["id"] == "MX-PSC-03"]
    assert "450 4.3.2" in deep and "then 250" in deep


def test_a_test_that_is_logged_only_fails(screened: Environment) -> None:
    report, verdicts = judged(screened, "postscreen_greet_action=ignore", "--only", "MX-PSC-01")
    assert (report["exit_code"], verdicts) == (1, {"MX-PSC-01": "fail"})


@pytest.mark.full
def test_hanging_up_is_as_good(screened: Environment) -> None:
    report, verdicts = judged(screened, "postscreen_greet_action=drop", "--only", "MX-PSC-01")
    assert (report["exit_code"], verdicts) == (0, {"MX-PSC-01": "pass"})
