"""The report on a terminal: what is wrong first, then what changed and what is seen from where, chapters × listeners,
and one line that says it all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from gatepost.verify.model import ExitCode, Report, Verdict
from gatepost.verify.report import compare, digest

_STYLE = {
    "fail": "bold red",
    "unknown": "bold magenta",
    "warn": "yellow",
    "note": "cyan",
    "not run": "dim",
    "pass": "green",
    "info": "cyan",
    "n/a": "dim",
}
_LONGEST = 500  # characters of one finding
_NAMED = 6  # requirements of one problem by their titles; of more the ids only
_QUOTED = 3  # findings of one problem; the whole of an open relay fills three screens
_WORD = {"fail": "FAIL", "unknown": "UNKNOWN", "warn": "WARNING", "note": "NOTE"}
_CHANGE = {"broken": "bold red", "unknown now": "bold magenta", "mended": "green"}
_CONCLUSION = {
    ExitCode.PASSED: ("PASSED", "bold green"),
    ExitCode.FAILED: ("FAILED", "bold red"),
    ExitCode.INCONCLUSIVE: ("INCONCLUSIVE", "bold magenta"),
}


def show(report: Report, console: Console | None = None, before: Report | None = None) -> None:
    """Print the report, with what changed since `before`.

    Colour only where rich finds a terminal and no NO_COLOR; no line is wider than the console.
    """
    console = console or Console()
    console.print(render(report, before))


def render(report: Report, before: Report | None = None) -> RenderableType:
    """Return the whole report for a rich console."""
    report = digest.presentable(report)
    parts: list[RenderableType] = [_head(report), Text()]
    problems = digest.problems(report)
    # What could not be judged beside a failure is most often its consequence: it is named, and no more.
    brief = any(problem.status == "fail" for problem in problems)
    for problem in problems:
        parts += [_problem(problem, brief=brief and problem.status == "unknown"), Text()]
    for hint in (digest.legend(problems), digest.HOW if brief else ""):
        if hint:
            parts += [Text(hint, "dim"), Text()]
    if before is not None:
        parts += [_changes(compare.changes(before, report)), Text()]
    views = digest.views(report)
    if not views.alike:
        parts += [_views(views), Text()]
    parts += [_summary(report), Text()]
    silences = digest.silences(report)
    parts += [_silence(silence) for silence in silences]
    if silences:
        parts.append(Text())
    word, style = _CONCLUSION[report.exit_code]
    parts.append(Text.assemble((word, style), f": {digest.conclusion(report)}, in {report.seconds:.1f} s"))
    return Group(*parts)


def _head(report: Report) -> Table:
    target = report.target
    grid = _grid()
    grid.add_row("server", Text(f"{target.hostname} ({', '.join(target.addresses)})"))
    grid.add_row("judged by", Text(f"{target.listeners_file}\nsha256 {target.listeners_digest}"))
    for label, value in digest.requests(report):
        grid.add_row(label, Text(value))
    return grid


def _problem(problem: digest.Problem, *, brief: bool) -> RenderableType:
    first = problem.first
    title = Text.assemble((_WORD[problem.status], _STYLE[problem.status]), "  ", (problem.heading, "bold"))
    grid = _grid(indent=2)
    for label, text in _facts(problem):
        grid.add_row(label, Text(text))
    if not brief and (problem.status != "unknown" or len(problem.requirements) == 1):
        for label, text in (("expected", first.expected), ("what to do", problem.remedy), ("source", first.source)):
            if text:
                grid.add_row(label, Text(text))
    return Group(title, grid)


def _facts(problem: digest.Problem) -> Iterator[tuple[str, str]]:
    sightings = problem.sightings
    several = len(problem.requirements) > 1
    if problem.status != "unknown":
        wrong = dict.fromkeys(text for text, _risk in problem.wrongs if text)
        if wrong:
            yield "problem", "\n".join(wrong)
    elif several:
        yield "which", _which(problem.requirements)
    if problem.status == "unknown" or len(sightings) == 1:
        yield "where", "\n".join(problem.places)
        yield "found", _cut(problem.first.found)
        return
    for sighting in sightings[:_QUOTED]:
        name = f"{sighting.id}  {sighting.title}\n" if several else ""
        yield "found", f"{name}{'; '.join(sighting.places)}:\n{_cut(sighting.found)}"
    if len(sightings) > _QUOTED:
        yield "", f"and {len(sightings) - _QUOTED} more like these, which the HTML and JSON reports quote"


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} … (the HTML and JSON reports quote the rest)"


def _which(requirements: Sequence[tuple[str, str]]) -> str:
    """Return some requirements by id and title, of many the ids."""
    if len(requirements) > _NAMED:
        return digest.compact([identifier for identifier, _title in requirements])
    return "\n".join(f"{identifier}  {title}" for identifier, title in requirements)


def _changes(changes: compare.Changes) -> RenderableType:
    head = Text.assemble(("CHANGES", "bold"), f" since {changes.since}")
    if not changes.same_table:
        head.append("; the two were judged by different listener tables")
    if not changes.rows:
        return head.append(": none")
    grid = _grid(indent=2)
    for change in changes.rows:
        grid.add_row(
            Text(change.kind, _CHANGE.get(change.kind, "")),
            Text.assemble(
                (f"{change.was or 'not there'} → {change.now or 'not there'}", "bold"),
                f"  {_which(change.requirements)}\n",
                ("; ".join(change.places), "dim"),
            ),
        )
    return Group(head, grid)


def _views(views: digest.Views) -> RenderableType:
    parts: list[RenderableType] = [Text("SEEN FROM WHERE", "bold")]
    for view in views.rows:
        if view.diagnosis is None and all(sight is not None and sight.reached for sight in view.sights):
            continue
        grid = _grid(indent=4)
        for vantage, sight in zip(views.vantages, view.sights, strict=True):
            word = "not tried" if sight is None else "reached" if sight.reached else "not reached"
            said = Text(word, "green" if word == "reached" else "bold red" if sight else "dim")
            grid.add_row(f"from {vantage}", said.append(f", {sight.found}", "default") if sight else said)
        layer = view.diagnosis.layer.value if view.diagnosis else "not known"  # the failure quotes the rest
        grid.add_row("stopped by", Text(layer, "bold"))
        parts += [Text(f"  {view.place}"), grid]
    return Group(*parts)


def _summary(report: Report) -> Table:
    matrix = digest.matrix(report)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("", overflow="fold")
    for column in matrix.columns:
        table.add_column(f"{column.name}\n{column.port}" if column else "server", overflow="fold")
    for chapter in matrix.chapters:
        cells = []
        for index, _ in enumerate(matrix.columns):
            judged = digest.counts(r for row in chapter.rows for r in row.cells[index].results)
            cells.append(_tally(judged))
        table.add_row(chapter.title, *cells)
    return table


def _tally(judged: dict[str, int]) -> Text:
    shown = {word: number for word, number in judged.items() if word not in ("n/a", "info")}
    if not shown:
        return Text("-", style="dim")
    return Text(", ").join(Text(f"{number} {word}", style=_STYLE[word]) for word, number in shown.items())


def _silence(silence: digest.Silence) -> Text:
    word = "does not apply" if silence.status == "n/a" else "not run"
    return Text(f"{word}: {silence.reason or Verdict.NOT_RUN.value} ({digest.compact(silence.ids)})", style="dim")


def _grid(indent: int = 0) -> Table:
    grid = Table(box=None, show_header=False, pad_edge=True, padding=(0, 2, 0, indent), collapse_padding=True)
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    return grid
