import pytest
from observations import LISTENERS, target

from gatepost.listeners import Listener
from gatepost.verify.model import Account
from gatepost.verify.registry import Need, Scope, requirements
from gatepost.verify.wire.probe import Probe

ROWS = requirements()
# The policy's chapters 0 to 9, and what is said of chapter 10's signer; typed by hand, so that a lost row is missed.
IDS = {
    *(f"VER-{n:02}" for n in range(1, 7)),
    "GEN-NET-01", "GEN-BAN-01", "GEN-BAN-02", *(f"GEN-EHLO-{n:02}" for n in range(1, 6)),
    *(f"GEN-CMD-{n:02}" for n in range(1, 12)), "GEN-SIZE-01", "GEN-SIZE-02", "GEN-SIZE-03",
    *(f"TLS-VER-{n:02}" for n in range(1, 6)), *(f"TLS-CIPH-{n:02}" for n in range(1, 6)),
    "TLS-GRP-01", "TLS-REN-01", "TLS-REN-02", "TLS-COMP-01", "TLS-TICK-01", "TLS-0RTT-01", "TLS-CCERT-01", "TLS-SNI-01",
    *(f"CRT-{n:02}" for n in range(1, 10)),
    "MX-TLS-01", "MX-TLS-02", "MX-TLS-03", "MX-AUTH-01", "MX-AUTH-02",
    *(f"MX-RLY-{n:02}" for n in (*range(1, 23), *range(30, 34))), *(f"MX-RCV-{n:02}" for n in range(1, 15)),
    *(f"MX-PSC-{n:02}" for n in range(1, 6)),
    *(f"SUB-TLS-{n:02}" for n in range(1, 10)), *(f"SUB-AUTH-{n:02}" for n in range(1, 17)), "SUB-AUTH-08b",
    *(f"SUB-SND-{n:02}" for n in range(1, 8)), "SUB-RCP-01", "SUB-HLO-01", "SUB-CFG-01",
    *(f"IMP-TLS-{n:02}" for n in range(1, 8)), *(f"INJ-{n:02}" for n in range(1, 16)),
    *(f"LIM-{n:02}" for n in range(1, 7)), *(f"PRV-{n:02}" for n in range(1, 5)),
    *(f"E2E-{n:02}" for n in range(5)), *(f"DKM-{n:02}" for n in range(1, 5)), "HST-DKIM-01",
}  # fmt: skip


def test_every_id_has_a_row():
    assert {row.id for row in ROWS} == IDS


def test_an_id_has_one_row_for_a_listener():
    for listener in LISTENERS.values():
        ids = [row.id for row in ROWS if row.scope.covers(listener)]
        assert len(ids) == len(set(ids))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id)
def test_a_row_says_what_is_expected_and_what_to_do(row):
    assert row.title and row.expected and row.remedy and row.source and row.probes


def test_a_probe_name_means_one_probe():
    probes = {}
    for row in ROWS:
        for probe in row.probes:
            assert probes.setdefault(probe.name, probe) is probe, probe.name


def test_a_probe_that_logs_in_is_needed_only_by_rows_that_need_an_account():
    for row in ROWS:
        if any(isinstance(probe, Probe) and probe.account is not None for probe in row.probes):
            assert row.needs & (Need.ACCOUNT | Need.SECOND_ACCOUNT | Need.LOGIN), row.id


def test_scopes_follow_purpose_and_tls_and_never_the_port():
    sources = ("0.0.0.0/0",)
    for port in (25, 26, 465, 50000):
        relay = Listener("a", port, "relay", "starttls", sources)
        submission = Listener("b", port, "submission", "starttls", sources)
        implicit = Listener("c", port, "submission", "implicit", sources)
        covered = {
            scope: [
                s for s, listener in zip("rsi", (relay, submission, implicit), strict=True) if scope.covers(listener)
            ]
            for scope in Scope
        }
        assert covered == {
            Scope.ALL: ["r", "s", "i"],
            Scope.RELAY: ["r"],
            Scope.SUBMISSION: ["s", "i"],
            Scope.STARTTLS: ["r", "s"],
            Scope.RELAY_STARTTLS: ["r"],
            Scope.SUBMISSION_STARTTLS: ["s"],
            Scope.IMPLICIT: ["i"],
            Scope.RELAY_OR_IMPLICIT: ["r", "i"],
            Scope.SERVER: [],
        }


@pytest.mark.parametrize(
    ("need", "fields", "why"),
    [
        (Need.DOMAIN, {"domains": ()}, "--domain"),
        (Need.OUTSIDE, {"outside_domain": None}, "--outside-domain"),
        (Need.ACCOUNT, {"accounts": ()}, "--account"),
        (Need.SECOND_ACCOUNT, {}, "--second-account"),
        (Need.ALIAS, {}, "second address"),
    ],
)
def test_what_is_missing_is_named(need, fields, why):
    assert why in need.missing(target(**fields))
    both = (Account("a@example.test", "x", "b@example.test"), Account("c@example.test", "y"))
    assert need.missing(target(accounts=both)) == ""


def test_a_login_is_needed_on_submission_only():
    nobody = target(accounts=())
    assert Need.LOGIN.missing(nobody, LISTENERS["submission"]) and not Need.LOGIN.missing(nobody, LISTENERS["relay"])
