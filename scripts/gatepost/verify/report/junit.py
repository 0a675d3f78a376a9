"""The report as JUnit XML, which CI systems show: a suite per listener, a test case per requirement and address.

A failed MUST is a failure, what could not be judged an error, what was not run or does not apply is skipped with the
reason. A failed SHOULD passes, since it does not fail the run; its warning is the case's output.
"""

from __future__ import annotations

from junitparser import Error, Failure, JUnitXml, Skipped, TestCase, TestSuite

from gatepost.verify.model import Report, Result, Verdict
from gatepost.verify.report import digest


def render(report: Report) -> str:
    """Return the report as one XML document."""
    report = digest.presentable(report)
    document = JUnitXml("gatepost verify")
    places: dict[str, list[Result]] = {}
    for result in report.results:
        places.setdefault(digest.place(result), []).append(result)
    for place, results in places.items():
        suite = TestSuite(f"{report.target.hostname} {place}")
        suite.timestamp = report.started.isoformat()
        suite.add_property("gatepost_version", report.gatepost_version)
        suite.add_property("listeners_sha256", report.target.listeners_digest)
        suite.add_property("interrupted", str(report.interrupted).lower())
        suite.add_testcases([_case(result, report) for result in results])
        document.add_testsuite(suite)
    document.update_statistics()  # type: ignore[no-untyped-call]  # the library leaves it without types
    text: bytes = document.tostring()  # type: ignore[no-untyped-call]  # the same
    return text.decode() + "\n"


def _case(result: Result, report: Report) -> TestCase:
    where = f" at {result.address}" if result.address else ""
    case = TestCase(f"{result.id}{where}: {result.title}", f"{report.target.hostname}.{digest.place(result)}")
    case.time = round(result.seconds, 3)
    details = "\n".join(
        f"{name}: {text}"
        for name, text in (
            ("found", result.found),
            ("expected", result.expected),
            ("what to do", result.remedy),
            ("source", result.source),
        )
        if text
    )
    match digest.status(result), result.verdict:
        case "fail", _:
            case.result = [_explained(Failure(_line(result.found), "must"), details)]
        case "unknown", _:
            allowed = " (allowed)" if result.id in report.allowed else ""
            outcome = Skipped(_line(result.found)) if allowed else Error(_line(result.found), "inconclusive")
            case.result = [_explained(outcome, details)]
        case _, Verdict.NOT_RUN | Verdict.NOT_APPLICABLE:
            case.result = [Skipped(_line(f"{digest.status(result)}: {result.found}"))]
        case ("warn" | "note") as word, _:
            case.system_out = f"{word}\n{details}"
    return case


def _line(text: str) -> str:
    return text.split("\n", 1)[0][:300]


def _explained(outcome: Failure | Error | Skipped, details: str) -> Failure | Error | Skipped:
    outcome.text = details
    return outcome
