"""The report for other programs: JUnit XML, Prometheus text, and what changed between two reports."""

import json
import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import jsonschema
import pytest
from junitparser import JUnitXml
from prometheus_client.parser import text_string_to_metric_families
from test_report import MIXED, PASSWORD, report, result, text

from gatepost.errors import GatepostError
from gatepost.verify.model import Account, Diagnosis, Layer, Login, Severity, Sight, Verdict
from gatepost.verify.report import as_json, compare, digest, html, junit, prometheus

DOCUMENT = Path(__file__).resolve().parents[2] / "docs/reports.md"
HERE, THERE = "here", "ssh://me@mx.example.test"
BLOCKED = replace(
    report(result("GEN-NET-01", Verdict.FAIL, 25, remedy="the row's remedy"), result("GEN-NET-01", Verdict.PASS, 587)),
    sights=(
        Sight(HERE, "relay", 25, "198.18.0.2", False, "timed out", 3.0),
        Sight(THERE, "relay", 25, "198.18.0.2", True, "220 mx.example.test ESMTP", 0.02),
        Sight(HERE, "submission", 587, "198.18.0.2", True, "220 mx.example.test ESMTP", 0.01),
    ),
    diagnoses=(
        Diagnosis("relay", 25, "198.18.0.2", Layer.OWN_NETWORK, "two other servers' port 25 fails too", "another path"),
    ),
)


def cases(subject):
    [suite] = JUnitXml.fromstring(junit.render(subject))
    return {(case.classname, case.name): case for case in suite}


def test_junit_has_a_case_for_each_judgement_and_each_ends_as_the_run_says():
    allowed = replace(MIXED, allowed=("CRT-03",))
    found = cases(MIXED)
    assert len(found) == len(MIXED.results)

    def case(identifier, name, among=found):
        return among[identifier, name]

    def ends(case):
        return [type(outcome).__name__ for outcome in case.result]

    failed = case("SUB-TLS-02", "submission/587/fd00::2")
    assert ends(failed) == ["Failure"] and failed.result[0].message == "250-AUTH PLAIN LOGIN"
    assert "what to do: remedy for SUB-TLS-02" in failed.result[0].text
    assert ends(case("CRT-03", "submissions/465/198.18.0.2")) == ["Error"]
    assert ends(case("CRT-03", "submissions/465/198.18.0.2", cases(allowed))) == ["Skipped"]
    warned = case("TLS-CIPH-05", "submissions/465/198.18.0.2")
    assert (
        ends(warned) == [] and warned.system_out.startswith("warn\n") and "remedy for TLS-CIPH-05" in warned.system_out
    )
    skipped = case("SUB-SND-01", "submission/587/198.18.0.2")
    assert ends(skipped) == ["Skipped"] and "no account was given" in skipped.result[0].message
    assert ends(case("TLS-CIPH-02", "submission/587/198.18.0.2")) == ["Skipped"]
    assert ends(case("GEN-BAN-01", "relay/25/198.18.0.2")) == ends(case("CRT-07", "server")) == []


def test_junit_counts_and_says_what_was_judged():
    root = ElementTree.fromstring(junit.render(MIXED))
    [suite] = root
    assert (root.tag, suite.tag, suite.get("name")) == ("testsuites", "testsuite", "mx.example.test")
    assert [suite.get(name) for name in ("tests", "failures", "errors", "skipped")] == ["9", "3", "1", "2"]
    assert len(suite.findall("testcase/failure")) == 3 and len(suite.findall("testcase/error")) == 1
    assert {p.get("name"): p.get("value") for p in suite.iter("property")} == {
        "host": "mx.example.test",
        "listeners_sha256": MIXED.target.listeners_digest,
        "gatepost_version": "0.1.0",
        "exit_code": "1",
        "interrupted": "false",
    }


HOSTILE = '220 \x1b[2J\x00]]><script>&"\\\n\ud800\ufffe' + PASSWORD


def test_what_a_server_says_breaks_no_format():
    hostile = report(result("GEN-BAN-01", Verdict.FAIL, 25, found=HOSTILE, listener='re"lay\\\n'))
    xml, metrics = junit.render(hostile), prometheus.render(hostile)
    [case] = cases(hostile).values()
    assert "]]><script>&" in case.result[0].message
    [requirement] = [f for f in text_string_to_metric_families(metrics) if f.name == "gatepost_requirement"]
    assert requirement.samples[0].labels["id"] == "GEN-BAN-01"
    for shown in (xml, metrics):
        assert PASSWORD not in shown and "\x1b" not in shown
        shown.encode()


def samples(subject):
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(prometheus.render(subject))
        for sample in family.samples
    }


def test_prometheus_says_each_verdict_and_how_the_run_ended():
    found = samples(MIXED)

    def value(name, **labels):
        return found[f"gatepost_{name}", tuple(sorted((labels | {"host": "mx.example.test"}).items()))]

    assert value("verify_exit_code") == 1
    assert value("verify_timestamp_seconds") == pytest.approx(MIXED.started.timestamp() + 4.2)
    assert value("verify_duration_seconds") == 4.2
    assert value("verify_results", verdict="fail", severity="must") == 3
    assert value("verify_results", verdict="fail", severity="should") == 1
    assert value("verify_results", verdict="pass", severity="info") == 0
    place = {"listener": "submission", "port": "587", "address": "fd00::2", "severity": "must"}
    assert value("requirement", id="SUB-TLS-02", verdict="fail", **place) == 1
    whole = {"listener": "", "port": "", "address": "", "severity": "must"}
    assert value("requirement", id="CRT-07", verdict="pass", **whole) == 1
    assert sum(name == "gatepost_requirement" for name, _ in found) == len(MIXED.results)


def kinds(old, new):
    return [(c.kind, c.was, c.now, [i for i, _ in c.requirements], c.places) for c in compare.changes(old, new).rows]


def test_changes_name_what_broke_what_was_mended_and_what_is_unknown_now():
    old = report(
        result("A-1", Verdict.PASS, 25),
        result("A-2", Verdict.FAIL, 25),
        result("A-3", Verdict.PASS, 25),
        result("A-4", Verdict.PASS, 25),
        result("A-5", Verdict.FAIL, 25),
        result("A-6", Verdict.FAIL, 25, severity=Severity.SHOULD),
        result("A-7", Verdict.PASS, 25),
        result("A-8", Verdict.FAIL, 25),
    )
    new = report(
        result("A-1", Verdict.FAIL, 25),
        result("A-2", Verdict.PASS, 25),
        result("A-3", Verdict.INCONCLUSIVE, 25),
        result("A-5", Verdict.FAIL, 25, found="failing otherwise"),
        result("A-6", Verdict.FAIL, 25),
        result("A-7", Verdict.NOT_RUN, 25),
        result("A-8", Verdict.NOT_RUN, 25),
        result("A-9", Verdict.PASS, 25),
    )
    where = ("relay:25 at 198.18.0.2",)
    assert kinds(old, new) == [
        ("broken", "pass", "fail", ["A-1"], where),
        ("broken", "warn", "fail", ["A-6"], where),
        ("unknown now", "pass", "unknown", ["A-3"], where),
        ("new", "", "pass", ["A-9"], where),
        ("changed", "pass", "not run", ["A-7"], where),
        ("changed", "fail", "not run", ["A-8"], where),  # not looking any more mends nothing
        ("gone", "pass", "", ["A-4"], where),
        ("mended", "fail", "pass", ["A-2"], where),
    ]
    assert kinds(new, new) == []


def test_changes_are_told_per_listener_and_address_and_outlive_a_new_address():
    old = report(*(result("A-1", Verdict.PASS, p, address=a) for p in (25, 587) for a in ("198.18.0.2", "fd00::2")))
    moved = replace(old, results=tuple(replace(r, address=r.address.replace("2", "3")) for r in old.results))
    assert kinds(old, moved) == []
    broken = replace(old, results=(*old.results[:3], replace(old.results[3], verdict=Verdict.FAIL)))
    assert kinds(old, broken) == [("broken", "pass", "fail", ["A-1"], ("submission:587 at fd00::2",))]


def test_what_was_not_asked_for_is_no_change():
    everything = report(result("A-1", Verdict.PASS, 25), result("A-2", Verdict.PASS, 25))
    part = replace(report(result("A-2", Verdict.FAIL, 25)), only=("A-2",))
    assert [row[0] for row in kinds(everything, part)] == ["broken"]
    assert [row[0] for row in kinds(part, everything)] == ["mended"]


def test_changes_are_shown_on_terminal_and_page():
    old = report(result("A-1", Verdict.PASS, 25))
    new = report(result("A-1", Verdict.FAIL, 25))
    shown = text(new, before=old)
    assert "CHANGES since 2026-11-24 06:00 UTC" in shown and "pass → fail" in shown
    page = html.render(new, old)
    assert "What changed since 2026-11-24 06:00 UTC" in page and "pass → fail" in page
    assert "CHANGES since 2026-11-24 06:00 UTC: none" in text(new, before=new)
    for shown in (text(new), html.render(new)):
        assert "since 2026" not in shown
    other_table = replace(old, target=replace(old.target, listeners_digest="0" * 64))
    assert "different listener tables" in text(new, before=other_table)
    assert "different listener tables" in html.render(new, other_table)


def test_what_stops_a_port_is_said_on_terminal_and_page():
    shown = text(BLOCKED)
    assert (
        "SEEN FROM WHERE" in shown and "the network you are in" in shown and re.search(rf"from {THERE} +reached", shown)
    )
    everywhere = replace(BLOCKED, sights=(*BLOCKED.sights, replace(BLOCKED.sights[2], vantage=THERE)))
    assert "SEEN" in text(everywhere) and "submission:587" not in text(everywhere)  # that one is as it should be
    page = html.render(BLOCKED)
    assert page.count("What is seen from where") == 1 and "The network you are in" in page and "not tried" in page
    for rendered in (shown, page):
        assert "another path" in rendered and "the row's remedy" not in rendered.partition("Requirements × ")[0]
    assert "SEEN FROM WHERE" not in text(MIXED) and "What is seen from where" not in html.render(MIXED)


def test_what_was_asked_for_stands_in_every_report():
    asked = replace(
        MIXED,
        interrupted=True,
        only=("CRT-03",),
        skipped=("GEN-BAN-01",),
        allowed=("SUB-TLS-02",),
        target=replace(MIXED.target, via=(Login(THERE, ("ssh", "-i", "/secret/key")),), sink=("192.0.2.9",), slow=True),
    )
    page = html.render(asked)
    for shown in (text(asked), page):
        for part in ("CRT-03", "GEN-BAN-01", THERE, "192.0.2.9", "--slow", "cut short"):
            assert part in shown, part
        assert "/secret/key" not in shown and "--limits" not in shown
    assert "Cut short." in page and "Left out on request: GEN-BAN-01" in page
    again = as_json.from_json(as_json.to_json(asked))
    assert (again.only, again.skipped, again.allowed) == (asked.only, asked.skipped, asked.allowed)
    assert again.target.via == (Login(THERE, ()),) and again.target.sink == ("192.0.2.9",) and again.target.slow
    assert "/secret/key" not in as_json.to_json(asked)


def test_sights_and_diagnoses_read_back_from_json():
    again = as_json.from_json(as_json.to_json(BLOCKED))
    assert (again.sights, again.diagnoses) == (BLOCKED.sights, BLOCKED.diagnoses)


def test_ids_are_told_in_runs():
    ids = ["GEN-CMD-01", "GEN-CMD-02", "GEN-CMD-03", "GEN-CMD-05", "GEN-CMD-06", "SUB-AUTH-08", "SUB-AUTH-08b"]
    assert digest.compact(ids) == "GEN-CMD-01 to 03, GEN-CMD-05, GEN-CMD-06, SUB-AUTH-08, SUB-AUTH-08b"


def test_unknown_beside_a_failure_is_brief_and_alone_is_not():
    unknown = result("A-1", Verdict.INCONCLUSIVE)
    assert "remedy for A-1" in text(report(unknown))
    assert "remedy for A-1" not in text(report(unknown, result("A-2", Verdict.FAIL)))


def test_problem_and_risk_reach_the_page_and_the_problem_the_terminal():
    plain = report(result("A-1", Verdict.FAIL, problem="Anyone may pass.", risk="Then all is lost."))
    page = html.render(plain)
    assert "Anyone may pass." in page and "Then all is lost." in page
    assert "Anyone may pass." in text(plain) and "Then all is lost." not in text(plain)
    assert as_json.from_json(as_json.to_json(plain)).results[0].risk == "Then all is lost."


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)


def test_the_examples_of_the_document_are_examples():
    [example] = blocks("json")
    read = as_json.from_json(example, "docs/reports.md")
    assert read.exit_code == 1 and as_json.from_json(as_json.to_json(read)) == read
    [xml] = blocks("xml")
    assert xml.strip() == junit.render(read).strip()
    [metrics] = blocks("text")
    assert metrics.strip() == prometheus.render(read).strip()


def test_the_document_names_every_metric_and_every_kind_of_change():
    written = DOCUMENT.read_text()
    for family in text_string_to_metric_families(prometheus.render(MIXED)):
        assert f"`{family.name}`" in written, family.name
    for kind in compare._ORDER:
        assert f"| {kind} |" in written, kind


def test_several_servers_make_one_document_of_reports():
    two = json.loads(as_json.several_to_json([MIXED, BLOCKED]))
    schema = json.loads(as_json.SCHEMA_FILE.read_text())
    assert list(two) == ["reports"] and len(two["reports"]) == 2
    for document in two["reports"]:
        jsonschema.validate(document, schema)
    with pytest.raises(GatepostError):
        as_json.from_json(as_json.several_to_json([MIXED]))
    assert (
        Account("a@example.test", "", "alias@example.test")
        == as_json.from_json(json.dumps(two["reports"][0])).target.accounts[0]
    )
