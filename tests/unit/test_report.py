import base64
import io
import json
import re
from dataclasses import replace
from datetime import UTC, datetime
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import jsonschema
import pytest
from rich.console import Console

from gatepost import listeners
from gatepost.errors import GatepostError
from gatepost.verify.model import Account, ExitCode, Line, Report, Result, Severity, Target, Verdict
from gatepost.verify.registry import requirements
from gatepost.verify.report import as_json, digest, docs, html, table

PASSWORD = "Corr3ct-horse<&>"
TABLE = listeners.load()
BY_PORT = {listener.port: listener for listener in TABLE.listeners}


def result(identifier, verdict, port=587, **fields):
    listener = BY_PORT.get(port)
    values = {
        "id": identifier,
        "listener": listener.name if listener else None,
        "port": port,
        "address": "198.18.0.2" if listener else None,
        "severity": Severity.MUST,
        "verdict": verdict,
        "title": f"title of {identifier}",
        "found": f"found by {identifier}",
        "expected": f"expected by {identifier}",
        "remedy": f"remedy for {identifier}",
        "source": "RFC 8314 §3.3",
        "seconds": 0.1234567,
        "transcript": (Line(0.0, "note", "connected"), Line(0.01, "recv", "220 mx"), Line(0.02, "send", "QUIT")),
    }
    return Result(**(values | fields))


def report(*results, **fields):
    target = Target(
        hostname="mx.example.test",
        addresses=("198.18.0.2", "fd00::2"),
        listeners=TABLE.listeners,
        listeners_file=TABLE.path,
        listeners_digest=TABLE.digest,
        domains=("example.test",),
        outside_domain="remote.test",
        accounts=(Account("a@example.test", PASSWORD, "alias@example.test"), Account("b@example.test", "p2-other")),
        ca_file=Path("/env/secrets/ca/ca.pem"),
    )
    values = {"started": datetime(2026, 11, 24, 6, tzinfo=UTC), "seconds": 4.2, "gatepost_version": "0.1.0"}
    return Report(target=target, results=results, **(values | fields))


MIXED = report(
    result("GEN-BAN-01", Verdict.PASS, 25),
    result("SUB-TLS-02", Verdict.FAIL, 587, found="250-AUTH PLAIN LOGIN"),
    result("SUB-TLS-02", Verdict.FAIL, 587, found="250-AUTH PLAIN LOGIN", address="fd00::2"),
    result("SUB-TLS-02", Verdict.FAIL, 2525, found="250-AUTH PLAIN LOGIN"),
    result("TLS-CIPH-05", Verdict.FAIL, 465, severity=Severity.SHOULD),
    result("CRT-03", Verdict.INCONCLUSIVE, 465),
    result("SUB-SND-01", Verdict.NOT_RUN, 587, found="no account was given"),
    result("TLS-CIPH-02", Verdict.NOT_APPLICABLE, 587, found="the certificate's key is ECDSA"),
    result("CRT-07", Verdict.PASS, None),
)


def text(subject, width=100, before=None, **console):
    stream = io.StringIO()
    table.show(subject, Console(file=stream, width=width, **console), before)
    return stream.getvalue()


def test_table_puts_failures_first_and_says_found_expected_remedy_source_and_where():
    out = text(MIXED)
    fail, unknown, warning = (
        out.index(word) for word in ("FAIL  SUB-TLS-02", "UNKNOWN  CRT-03", "WARNING  TLS-CIPH-05")
    )
    assert fail < unknown < warning < out.index("FAILED: 3 of 7")
    block = out[fail:unknown]
    for part in ("250-AUTH PLAIN LOGIN", "expected by SUB-TLS-02", "remedy for SUB-TLS-02", "RFC 8314 §3.3"):
        assert block.count(part) == 1, part  # one text for three places
    assert "submission:587 at 198.18.0.2, fd00::2" in block
    assert "submission-alt:2525 at 198.18.0.2" in block


def test_requirements_that_are_unknown_for_one_reason_share_a_block():
    why = "closed: login as a@example.test answered 535"
    unknown = report(*(result(f"SUB-SND-0{n}", Verdict.INCONCLUSIVE, found=why) for n in (1, 2)))
    for shown in (text(unknown), html.render(unknown).split("Requirements × listeners")[0]):
        assert shown.count(why) == 1
        assert "2 requirements could not be judged" in shown
        assert "title of SUB-SND-01" in shown and "title of SUB-SND-02" in shown


def test_failures_with_one_remedy_share_a_block_that_quotes_each():
    same = {"expected": "554 at RCPT", "remedy": "reject_unauth_destination", "port": 25}
    failing = report(*(result(f"MX-RLY-0{n}", Verdict.FAIL, found=f"250 to form {n}", **same) for n in (1, 2)))
    for shown in (text(failing), html.render(failing).split("Requirements × listeners")[0]):
        assert shown.count("reject_unauth_destination") == 1
        assert "2 requirements with one remedy: MX-RLY-01, MX-RLY-02" in shown
        for part in ("title of MX-RLY-01", "250 to form 1", "title of MX-RLY-02", "250 to form 2", "relay:25 at"):
            assert part in shown


def test_table_quotes_three_of_many_and_the_page_all():
    same = {"expected": "554 at RCPT", "remedy": "reject_unauth_destination", "port": 25}
    failing = report(*(result(f"MX-RLY-0{n}", Verdict.FAIL, found=f"250 to form {n}", **same) for n in range(1, 8)))
    out, page = text(failing), html.render(failing)
    assert "250 to form 3" in out and "250 to form 4" not in out and "and 4 more like these" in out
    assert "MX-RLY-01 to 07" in out and "250 to form 7" in page.split("Requirements × listeners")[0]


def test_one_requirement_with_different_findings_quotes_each_place():
    same = {"expected": "none", "remedy": "encrypt"}
    failing = report(
        result("SUB-TLS-02", Verdict.FAIL, 587, found="AUTH PLAIN", **same),
        result("SUB-TLS-02", Verdict.FAIL, 2525, found="AUTH LOGIN", **same),
    )
    out = text(failing)
    assert out.count("FAIL  ") == 1 and "encrypt" in out
    assert re.search(r"submission:587 at [^:]*:\s+AUTH PLAIN", out)
    assert re.search(r"submission-alt:2525 at [^:]*:\s+AUTH LOGIN", out)


def test_table_names_what_was_not_judged_and_why():
    out = text(MIXED)
    assert "not run: no account was given (SUB-SND-01)" in out
    assert "does not apply: the certificate's key is ECDSA (TLS-CIPH-02)" in out


def test_table_says_path_and_digest_of_the_table_it_judged_by():
    out = text(MIXED)
    assert str(TABLE.path) in out and TABLE.digest in out
    assert TABLE.digest in html.render(MIXED)


@pytest.mark.parametrize("width", [40, 60, 100])
def test_table_is_never_wider_than_the_console(width):
    long = report(result("SUB-TLS-02", Verdict.FAIL, 587, found="250-" + "X" * 300, remedy="word " * 100))
    assert max(map(len, text(long, width).splitlines())) <= width


def test_table_has_no_escape_sequences_unless_a_terminal_wants_colour(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    assert "\x1b" not in text(MIXED)
    assert "\x1b[1;31m" in text(MIXED, force_terminal=True)
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[1;31m" not in text(MIXED, force_terminal=True)


def test_what_a_server_says_moves_no_cursor_and_is_no_markup():
    hostile = report(result("GEN-BAN-01", Verdict.FAIL, 25, found="220 \x1b[2J[red]<script>alert(1)</script>\u202e"))
    out = text(hostile)
    assert "\x1b" not in out and "\u202e" not in out
    assert "\\x1b[2J[red]<script>" in out
    page = html.render(hostile)
    assert "<script" not in page and "&lt;script&gt;" in page and "\x1b" not in page


@pytest.mark.parametrize(
    ("subject", "code", "sentence"),
    [
        (report(result("A-1", Verdict.PASS)), ExitCode.PASSED, "every requirement that applies holds (1 judgements)"),
        (
            report(result("A-1", Verdict.PASS), result("A-2", Verdict.FAIL, severity=Severity.SHOULD)),
            ExitCode.PASSED,
            "every requirement that applies holds (2 judgements, 1 with a warning)",
        ),
        (report(result("A-1", Verdict.NOT_RUN)), ExitCode.PASSED, "nothing was judged"),
        (report(result("A-1", Verdict.PASS), interrupted=True), ExitCode.INCONCLUSIVE, "cut short"),
        (report(result("A-1", Verdict.INCONCLUSIVE)), ExitCode.INCONCLUSIVE, "1 could not be made"),
        (report(result("A-1", Verdict.FAIL), interrupted=True), ExitCode.FAILED, "1 of 1 judgements failed"),
    ],
)
def test_conclusion_agrees_with_the_exit_code(subject, code, sentence):
    assert subject.exit_code is code
    for shown in (text(subject), html.render(subject)):
        assert digest.OUTCOME[code].upper() in shown
        assert sentence.lower() in " ".join(shown.split()).lower()
    assert json.loads(as_json.to_json(subject))["verdict"] == digest.OUTCOME[code]


def test_a_cell_shows_the_worst_of_its_addresses_and_not_run_is_no_pass():
    both = report(
        result("A-1", Verdict.PASS), result("A-1", Verdict.NOT_RUN, address="fd00::2"), result("A-2", Verdict.PASS)
    )
    rows = digest.matrix(both).chapters[0].rows
    assert [row.cells[1].status for row in rows] == ["not run", "pass"]


def test_json_holds_to_its_schema_and_reads_back():
    written = as_json.to_json(MIXED)
    schema = json.loads(as_json.SCHEMA_FILE.read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(json.loads(written), schema)
    again = as_json.from_json(written)
    assert again.results == tuple(replace(r, seconds=0.123) for r in MIXED.results)
    assert again.started == MIXED.started and again.exit_code == MIXED.exit_code
    assert again.target.listeners == TABLE.listeners
    assert again.target == replace(
        MIXED.target, accounts=(Account("a@example.test", "", "alias@example.test"), Account("b@example.test", ""))
    )
    assert as_json.to_json(again) == written


def test_json_says_what_it_was_judged_by_and_how_it_ended():
    document = json.loads(as_json.to_json(MIXED))
    assert document["listeners"]["path"] == str(TABLE.path)
    assert document["listeners"]["sha256"] == TABLE.digest
    assert (document["verdict"], document["exit_code"]) == ("failed", 1)
    assert document["counts"] == {
        "pass": 2, "fail": 4, "inconclusive": 1, "not-run": 1, "not-applicable": 1, "info": 0
    }  # fmt: skip


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda d: d.update(schema_version=2), "schema version 2"),
        (lambda d: d["results"][0].update(verdict="maybe"), "'maybe' is not one of"),
        (lambda d: d.pop("results"), "'results' is a required property"),
        (lambda d: d["target"]["accounts"][0].update(password="x"), "'password' was unexpected"),
    ],
)
def test_json_that_is_none_of_ours_is_refused_by_name(change, named):
    document = json.loads(as_json.to_json(MIXED))
    change(document)
    with pytest.raises(GatepostError) as refusal:
        as_json.from_json(json.dumps(document), "last.json")
    assert "last.json" in str(refusal.value) and named in str(refusal.value)


def test_json_refuses_what_is_no_json():
    with pytest.raises(GatepostError, match=r"last\.json: not JSON"):
        as_json.from_json("{", "last.json")


def test_passwords_appear_in_no_report_even_if_the_server_echoes_them():
    tokens = [
        PASSWORD,
        base64.b64encode(PASSWORD.encode()).decode(),
        base64.b64encode(f"\0a@example.test\0{PASSWORD}".encode()).decode(),
    ]
    leaky = report(
        *(
            result("SUB-AUTH-06", Verdict.FAIL, found=f"535 {token}", transcript=(Line(0, "recv", f"501 {token}"),))
            for token in tokens
        )
    )
    page = html.render(leaky)
    for shown in (
        text(leaky, width=400),
        as_json.to_json(leaky),
        page,
        unescape(page),
    ):
        for token in (*tokens, PASSWORD.replace("<&>", "")):
            assert token not in shown
        assert digest.BLANK in shown


class Outline(HTMLParser):
    """Collects tags with attributes, and checks that they nest."""

    VOID = ("meta", "br", "link", "img")

    def __init__(self):
        super().__init__()
        self.open, self.tags = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def count(self, tag, **attrs):
        return sum(t == tag and attrs.items() <= a.items() for t, a in self.tags)


def test_page_is_well_formed_self_contained_and_has_table_headers():
    page = html.render(MIXED)
    outline = Outline()
    outline.feed(page)
    assert not outline.open
    columns = 1 + len(TABLE.listeners) + 1  # the server column: CRT-07
    assert outline.count("th", scope="col") == 2 * columns + 2 * 3  # overview and matrix; two tables of durations
    assert outline.count("th", scope="row") >= len({r.id for r in MIXED.results})
    assert outline.count("script") == outline.count("link") == outline.count("img") == 0
    assert not re.search(r"""src=|href="(?!#)|url\(|@import""", page)
    assert outline.count("html", lang="en") == outline.count("main") == outline.count("h1") == 1
    named = [a["aria-labelledby"] for _, a in outline.tags if "aria-labelledby" in a]
    ids = [a["id"] for _, a in outline.tags if "id" in a]
    assert set(named) <= set(ids) and len(set(ids)) == len(ids)


def test_page_has_a_cell_that_opens_for_each_requirement_and_listener():
    outline = Outline()
    page = html.render(MIXED)
    outline.feed(page)
    cells = {(r.id, r.port) for r in MIXED.results}
    assert outline.count("details", name="cell") == len(cells)
    for identifier, port in cells:
        assert f": {identifier} on {port or 'the server'}</span>" in page
    for part in ("250-AUTH PLAIN LOGIN", "expected by GEN-BAN-01", "220 mx", "QUIT", "no account was given"):
        assert part in page


def test_docs_checks_md_is_what_the_registry_says():
    written = Path(__file__).parents[2] / "docs/checks.md"
    assert written.read_text() == docs.render(), "run: python -m gatepost.verify.report.docs >docs/checks.md"


MENDS = re.compile(
    # A Postfix parameter or file, a command, Dovecot, or where else to look.
    r"\b[a-z0-9]+_[a-z0-9_]+\b|hopcount_limit|main\.cf|master\.cf|postmap|postfix|dovecot|proxy|openssl|certificate|"
    r"alias|see [A-Z-]+-\d+|firewall|report it|--source-address|address outside|renew|nothing to do|in front",
    re.IGNORECASE,
)


@pytest.mark.parametrize("row", requirements(), ids=lambda row: f"{row.id}-{row.scope.name}")
def test_a_row_says_in_plain_words_what_is_wrong_what_it_risks_and_how_to_mend_it(row):
    for words in (row.problem, row.risk):
        assert len(words.split()) >= 4 and words[-1] in ".?)", words
    assert row.problem != row.risk and row.title not in (row.problem, row.risk)
    # A newcomer reads the problem: no reply codes and no parameters of Postfix's.
    assert not re.search(r"\b[245]\d\d\b|\w_\w+_", row.problem)
    assert MENDS.search(row.remedy), row.remedy


def test_docs_have_a_heading_for_each_requirement_and_each_probe_says_what_it_sends():
    page = docs.render()
    headings = re.findall(r"^## (.*)", page, re.MULTILINE)
    ids = list(dict.fromkeys(row.id for row in requirements()))
    assert [h for h in headings if not h.startswith("Probe ")] == ids
    for row in requirements():
        for text in (row.problem, row.risk, row.remedy):
            assert docs._escaped(text) in page, row.id
    for text in page.partition("# What the probes send")[2].split("## Probe ")[1:]:
        assert text.partition("\n")[2].strip(), f"probe {text.splitlines()[0]} says nothing"
    anchors = {f"#probe-{re.sub('[^a-z0-9-]', '', h[6:])}" for h in headings if h.startswith("Probe ")}
    assert set(re.findall(r"\(#([^)]*)\)", page)) == {anchor[1:] for anchor in anchors}


def test_remedies_that_only_add_something_stand_together():
    same = {"expected": "554 at RCPT", "port": 25}
    failing = report(
        result("MX-RLY-01", Verdict.FAIL, remedy="reject.", **same),
        result("MX-RLY-02", Verdict.FAIL, remedy="reject. Here also: no routing.", **same),
        result("MX-RLY-03", Verdict.FAIL, remedy="reject. Here also: no routing.", **same),
    )
    [problem] = digest.problems(failing)
    assert problem.remedy == "reject.\nFor MX-RLY-02, MX-RLY-03 also: no routing."
    [alone] = digest.problems(report(failing.results[1]))
    assert alone.remedy == "reject. Here also: no routing."


def test_how_parameters_are_set_is_said_beside_failures_only():
    failing = report(result("A-1", Verdict.FAIL))
    assert "postfix reload" in " ".join(text(failing).split()) and "postfix reload" in html.render(failing)
    passing = report(result("A-1", Verdict.PASS))
    assert "postfix reload" not in text(passing) + html.render(passing)


def test_the_short_names_of_the_policy_are_explained_where_they_are_used():
    short = report(result("MX-RLY-01", Verdict.FAIL, 25, title="Relays for nobody: RCPT TO:<V@OUT>"))
    assert digest.LEGEND in " ".join(text(short).split())
    assert "DOM" not in text(report(result("A-1", Verdict.FAIL)))
