"""The report as one self-contained page: no script, no request, readable on paper and by a screen reader."""

from __future__ import annotations

from pathlib import Path

import jinja2

from gatepost.verify.model import Report
from gatepost.verify.report import compare, digest

_TEMPLATE = "report.html.j2"


def render(report: Report, before: Report | None = None) -> str:
    """Return the page, with what changed since `before`. All text is escaped: what a server says stays text."""
    report = digest.presentable(report)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(_TEMPLATE).render(
        report=report,
        outcome=digest.OUTCOME[report.exit_code],
        conclusion=digest.conclusion(report),
        counts=digest.counts(report.results),
        problems=digest.problems(report),
        silences=digest.silences(report),
        matrix=digest.matrix(report),
        how=digest.HOW,
        legend=digest.LEGEND,
        status=digest.status,
        compact=digest.compact,
        views=digest.views(report),
        durations=digest.durations(report),
        requests=digest.requests(report),
        changes=compare.changes(before, report) if before else None,
    )
