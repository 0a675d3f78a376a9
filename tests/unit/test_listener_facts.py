"""What RFCs say about the four default rows, written by hand: the table must not be its own judge."""

import subprocess
from pathlib import Path

import pytest

from gatepost.listeners import Listener, default_path, load

ROOT = Path(__file__).resolve().parents[2]
EVERYONE = ("0.0.0.0/0", "::/0")


@pytest.fixture(scope="module")
def rows() -> dict[int, Listener]:
    assert default_path() == ROOT / "roles/postfix/defaults/main/listeners.yml"
    return {row.port: row for row in load().listeners}


def test_exactly_the_four_ports(rows: dict[int, Listener]) -> None:
    assert sorted(rows) == [25, 465, 587, 2525]


def test_25_is_relay_with_tls_on_offer(rows: dict[int, Listener]) -> None:
    """RFC 5321: mail between servers; RFC 3207 §4: STARTTLS there must not be required."""
    assert (rows[25].purpose, rows[25].tls) == ("relay", "starttls")


def test_587_is_submission_by_starttls(rows: dict[int, Listener]) -> None:
    """RFC 6409 §3.1: submission is 587; RFC 8314 §3.3: it uses STARTTLS."""
    assert (rows[587].purpose, rows[587].tls) == ("submission", "starttls")


def test_465_is_submission_by_implicit_tls(rows: dict[int, Listener]) -> None:
    """RFC 8314 §7.3 registers 465 as submissions: implicit TLS, not a second 25."""
    assert (rows[465].purpose, rows[465].tls) == ("submission", "implicit")


def test_2525_is_587_by_another_number(rows: dict[int, Listener]) -> None:
    assert (rows[2525].purpose, rows[2525].tls) == (rows[587].purpose, rows[587].tls)


def test_everybody_may_connect(rows: dict[int, Listener]) -> None:
    """RFC 5321 §4.5.5: bounces come from anywhere; clients of ours sit anywhere."""
    assert {row.sources for row in rows.values()} == {EVERYONE}


def test_port_numbers_are_typed_in_the_table_only() -> None:
    """No tool may know a port that the table does not say."""
    hits = subprocess.run(
        ["git", "grep", "-nIwE", "465|587|2525", "--", "terraform", "roles", "scripts", "playbooks"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    ).stdout.splitlines()
    prose = ("listeners.yml:", "README.md:", ".tftest.hcl:")
    typed = [
        hit
        for hit in hits
        if not any(name in hit for name in prose) and not hit.split(":", 2)[2].lstrip().startswith("#")
    ]
    assert typed == []
