"""HST-BOOT-01: a server that was rebooted is the same server, and has kept the mail in its queue."""

from __future__ import annotations

import time

import pytest
from environments import MINUTES, Environment

pytestmark = pytest.mark.lab


def _boot(server: Environment) -> str:
    """Return what names this boot, once it has come up, or nothing while one cannot log in."""
    asked = "systemctl is-system-running -q --wait; systemctl show --value -p UserspaceTimestampMonotonic"
    return server.ssh(asked, check=False).stdout


def test_a_reboot_changes_nothing_and_keeps_the_queue(server13: Environment) -> None:
    """The queued message is for a domain that cannot be reached, so it waits."""
    server13.ssh(
        "echo waits | sendmail -f '' nobody@[192.0.2.1]; until postqueue -j | grep -q 192.0.2.1; do sleep .1; done"
    )
    queued = server13.ssh('postqueue -j | grep -o \'queue_id": "[^"]*\'').stdout
    before = _boot(server13)
    server13.ssh("systemctl reboot", check=False)
    deadline = time.monotonic() + 2 * MINUTES
    while _boot(server13) in ("", before):
        assert time.monotonic() < deadline, "it did not come back"
        time.sleep(0.2)
    try:
        assert server13.ssh('postqueue -j | grep -o \'queue_id": "[^"]*\'').stdout == queued
        server13.gatepost("check", "--", "-q", "-k", "hst_svc or hst_sock or hst_fw")
        greeting = ("GEN-NET-01", "GEN-BAN-01", "GEN-EHLO-01")
        report = server13.verify(*(word for id_ in greeting for word in ("--only", id_)))
        assert report["exit_code"] == 0
    finally:
        server13.ssh("postsuper -d ALL")
