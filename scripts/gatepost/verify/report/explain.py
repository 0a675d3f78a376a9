"""One requirement on a terminal: what is asked of the server, how it is found out, and how to mend it."""

from __future__ import annotations

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from gatepost.verify.model import Severity
from gatepost.verify.registry import Requirement
from gatepost.verify.report import docs

_SEVERITY = {
    Severity.MUST: "must: when it fails, the run fails",
    Severity.SHOULD: "should: when it fails, the run warns",
    Severity.INFO: "info: recorded only",
}
_EXAMPLE = (
    "Sent as to an example server: mx.example.test at 192.0.2.25 with the domain example.test and the users alice and"
    " bob; remote.test is not hosted there. A ⏎ stands between commands of one transaction, which ends with RSET."
)


def show(row: Requirement, console: Console | None = None) -> None:
    """Print the requirement."""
    (console or Console()).print(render(row))


def render(row: Requirement) -> RenderableType:
    """Return all that is known of a requirement, for a rich console."""
    parts: list[RenderableType] = [Text(f"{row.id}  {row.title}", "bold"), Text()]
    needs = docs.needs(row)
    concerns = row.scope.value + ("; on one address of each" if row.once else "")
    parts.append(
        _grid(
            (
                ("problem", row.problem),
                ("risk", row.risk),
                ("passes", row.expected),
                ("how to mend", row.remedy),
                ("source", row.source),
                ("severity", _SEVERITY[row.severity]),
                ("concerns", concerns),
                ("needs", ", ".join(needs).replace("`", "")),
            )
        )
    )
    sent = False
    for probe in row.probes:
        parts += [Text(), Text.assemble(("how it is seen  ", "dim"), (probe.name, "bold"))]
        parts.append(_indented(docs.about(probe)))
        lines = list(docs.commands(probe))
        sent = sent or bool(lines)
        parts += [_indented(line, "cyan") for line in lines]
    if sent:
        parts += [Text(), Text(_EXAMPLE, "dim")]
    return Group(*parts)


def _grid(rows: tuple[tuple[str, str], ...]) -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for label, text in rows:
        if text:
            grid.add_row(label, Text(text))
    return grid


def _indented(text: str, style: str = "") -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(width=0)
    grid.add_column(overflow="fold", style=style)
    grid.add_row("", Text(text))
    return grid
