"""The report as JUnit XML, which CI systems show: a test case per requirement, listener and address.

A failed MUST is a failure, and what could not be judged an error. A failed SHOULD passes, since it does not fail the
run: its warning is the case's output, which `skipped` would hide. What was not run, does not apply, or is
unknown without changing the exit code (--allow-inconclusive, SHOULD) is skipped, with the reason.
"""

from __future__ import annotations

from junitparser import Error, Failure, JUnitXml, Skipped, TestCase, TestSuite

from gatepost.verify.model import Report, Result, Severity, Verdict
from gatepost.verify.report import digest


def render(report: Report) -> str:
    """Return the report as one XML document."""
    report = digest.presentable(report)
    document = JUnitXml("gatepost verify")
    suite = TestSuite(report.target.hostname)
    suite.timestamp = report.started.replace(tzinfo=None).isoformat(timespec="seconds")
    for name, value in (
        ("host", report.target.hostname),
        ("listeners_sha256", report.target.listeners_digest),
        ("gatepost_version", report.gatepost_version),
        ("exit_code", str(int(report.exit_code))),
        ("interrupted", str(report.interrupted).lower()),
    ):
        suite.add_property(name, value)
    suite.add_testcases([_case(result, report) for result in report.results])
    document.add_testsuite(suite)
    document.update_statistics()  # type: ignore[no-untyped-call]  # the library leaves it without types
    text: bytes = document.tostring()  # type: ignore[no-untyped-call]  # the same
    return text.decode() + "\n"


def _case(result: Result, report: Report) -> TestCase:
    place = "/".join(str(part) for part in (result.listener, result.port, result.address) if part is not None)
    case = TestCase(place or "server", result.id)
    case.time = round(result.seconds, 3)
    details = "\n".join(
        f"{name}: {text}"
        for name, text in (
            ("requirement", result.title),
            ("problem", result.problem),
            ("found", result.found),
            ("expected", result.expected),
            ("what to do", result.remedy),
            ("source", result.source),
        )
        if text
    )
    match digest.status(result):
        case "fail":
            case.result = [_explained(Failure(_line(result), "must"), details)]
        case "unknown" if result.id not in report.allowed and result.severity is Severity.MUST:
            case.result = [_explained(Error(_line(result), "inconclusive"), details)]
        case "unknown":
            case.result = [Skipped(f"unknown: {_line(result)}")]
        case "warn" | "note" as word:
            case.system_out = f"{word}\n{details}"
        case _ if result.verdict in (Verdict.NOT_RUN, Verdict.NOT_APPLICABLE):
            case.result = [Skipped(f"{digest.status(result)}: {_line(result)}")]
    return case


def _line(result: Result) -> str:
    return result.found.split("\n", 1)[0][:300]


def _explained(outcome: Failure | Error, details: str) -> Failure | Error:
    outcome.text = details
    return outcome
