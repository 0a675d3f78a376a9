"""A report arranged for reading: problems grouped, requirements × listeners, counts, nothing unsafe to show.

The terminal table and the HTML page are two faces of this.
"""

from __future__ import annotations

import base64
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from gatepost.listeners import Listener
from gatepost.verify.model import Diagnosis, ExitCode, Report, Result, Severity, Sight, Verdict

BLANK = "(blanked)"
_ALSO = "Here also: "  # what a row's remedy adds to the one that it shares with others

HOW = (
    "Postfix's parameters: postconf -n shows those of main.cf, postconf -P the -o of each port in master.cf, which go "
    "first. Set them with postconf -e and postconf -P SERVICE/inet/NAME=VALUE, then run postfix reload. On a server "
    "that Gatepost made, gatepost converge puts them back. gatepost verify --explain ID says more about a requirement."
)
LEGEND = (
    "HN is the server's name, DOM a domain hosted there, OUT one that is not, U and V are users, NX is nobody of DOM."
)

_CHAPTERS = {
    "GEN": "Greeting and commands",
    "TLS": "TLS",
    "CRT": "Certificate",
    "MX": "Between servers (relay)",
    "SUB": "Submission",
    "IMP": "Implicit TLS",
    "INJ": "Injection and smuggling",
    "LIM": "Limits",
    "PRV": "Privacy",
    "E2E": "Delivery",
    "DKM": "Signing",
    "VER": "The verifier itself",
    "HST": "On the server itself",
}

# Several addresses share a cell, which shows the worst of them: not knowing is worse than knowing that it is good.
_WORST_FIRST = ("fail", "unknown", "warn", "note", "not run", "pass", "info", "n/a")

OUTCOME = {
    ExitCode.PASSED: "passed",
    ExitCode.FAILED: "failed",
    ExitCode.INCONCLUSIVE: "inconclusive",
}


def status(result: Result) -> str:
    """Return the one word that people are shown for a result: its verdict, weighed by its severity."""
    match result.verdict:
        case Verdict.FAIL:
            return {Severity.MUST: "fail", Severity.SHOULD: "warn", Severity.INFO: "note"}[result.severity]
        case Verdict.INCONCLUSIVE:
            return "unknown"
        case Verdict.NOT_RUN:
            return "not run"
        case Verdict.NOT_APPLICABLE:
            return "n/a"
        case Verdict.PASS | Verdict.INFO:
            return result.verdict.value


def worst(results: Iterable[Result]) -> str:
    """Return the word that stands for all of `results` (at least one)."""
    return min((status(result) for result in results), key=_WORST_FIRST.index)


def legend(found: Iterable[Problem]) -> str:
    """Return what the policy's short names mean, when some problem is told with them; else an empty string."""
    texts = (text for problem in found for r in problem.results for text in (r.title, r.expected, r.remedy))
    return LEGEND if any(re.search(r"\b(HN|DOM|OUT|NX)\b", text) for text in texts) else ""


@dataclass(frozen=True, slots=True)
class Sighting:
    """One requirement and what was found about it, in one or several places."""

    id: str
    title: str
    found: str
    places: tuple[str, ...]  # `name:port at address, address`


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing to do something about: failures with one remedy, or all that is unknown for one reason."""

    status: str
    results: tuple[Result, ...]

    @property
    def first(self) -> Result:
        """Return a result to quote: expected, remedy and source (unknown: found) are the same in all of them."""
        return self.results[0]

    @property
    def requirements(self) -> tuple[tuple[str, str], ...]:
        """Return id and title of each requirement that it is about."""
        return tuple(dict.fromkeys((result.id, result.title) for result in self.results))

    @property
    def heading(self) -> str:
        """Return it in a few words."""
        if len(self.requirements) == 1:
            return f"{self.first.id}  {self.first.title}"
        number = len(self.requirements)
        if self.status == "unknown":
            return f"{number} requirements could not be judged, for one reason"
        return f"{number} requirements with one remedy: {compact([identifier for identifier, _ in self.requirements])}"

    @property
    def remedy(self) -> str:
        """Return what to do: what the requirements share, and what some of them add."""
        shared, _, _ = self.first.remedy.partition(_ALSO)
        more: dict[str, list[str]] = {}
        for result in self.results:
            _, _, added = result.remedy.partition(_ALSO)
            if added and result.id not in more.setdefault(added, []):
                more[added].append(result.id)
        if len(more) == 1 and len(self.requirements) == 1:
            return self.first.remedy
        return "\n".join((shared.rstrip(), *(f"For {compact(ids)} also: {added}" for added, ids in more.items())))

    @property
    def wrongs(self) -> tuple[tuple[str, str], ...]:
        """Return what is wrong in plain words, and its risk, each pair once."""
        return tuple(dict.fromkeys((r.problem, r.risk) for r in self.results if r.problem or r.risk))

    @property
    def places(self) -> tuple[str, ...]:
        """Return where it shows."""
        return places(self.results)

    @property
    def sightings(self) -> tuple[Sighting, ...]:
        """Return what was found, each text once."""
        groups: dict[tuple[str, str], list[Result]] = {}
        for result in self.results:
            groups.setdefault((result.id, result.found), []).append(result)
        return tuple(
            Sighting(identifier, results[0].title, found, places(results))
            for (identifier, found), results in groups.items()
        )


def places(results: Iterable[Result]) -> tuple[str, ...]:
    """Return where results were found: `name:port at address, address`, a text for each listener."""
    where: dict[str, list[str]] = {}
    for result in results:
        addresses = where.setdefault(place(result), [])
        if result.address is not None and result.address not in addresses:
            addresses.append(result.address)
    return tuple(f"{name} at {', '.join(at)}" if at else name for name, at in where.items())


def place(result: Result) -> str:
    """Return `name:port`, or `server` for a requirement of the whole server."""
    return "server" if result.listener is None else f"{result.listener}:{result.port}"


def problems(report: Report) -> tuple[Problem, ...]:
    """Return what failed or could not be judged, worst first."""
    groups: dict[tuple[str, ...], list[Result]] = {}
    # What stops a port says better than the row what to do about it.
    known: dict[tuple[str | None, int | None, str | None], str]
    known = {(d.listener, d.port, d.address): d.remedy for d in report.diagnoses if d.remedy}
    for result in report.results:
        word = status(result)
        if word in ("fail", "unknown", "warn", "note"):
            if result.id == "GEN-NET-01":
                where = (result.listener, result.port, result.address)
                result = replace(result, remedy=known.get(where, result.remedy))
            shared = result.remedy.partition(_ALSO)[0].rstrip()
            same = (_reason(result),) if word == "unknown" else (result.expected, shared, result.source)
            alone = "" if any(same) else result.id
            groups.setdefault((word, result.severity, alone, *same), []).append(result)
    found = [Problem(key[0], tuple(results)) for key, results in groups.items()]
    # An unknown SHOULD must not stand before a failed one.
    must_first = {Severity.MUST: 0, Severity.SHOULD: 1, Severity.INFO: 2}
    return tuple(sorted(found, key=lambda p: (must_first[p.first.severity], _WORST_FIRST.index(p.status))))


def _reason(result: Result) -> str:
    """Return why it was not judged without the place it was found at: in another one it is the same reason."""
    if result.address is None:
        return result.found
    for form in (f"[{result.address}]:{result.port}", f"{result.address}:{result.port}", result.address):
        if form in result.found:
            return result.found.replace(form, "")
    return result.found


def compact(ids: Sequence[str]) -> str:
    """Return ids in a text, three or more that follow each other as `GEN-CMD-01 to 11`."""
    runs: list[list[str]] = []
    for identifier in ids:
        stem, _, number = identifier.rpartition("-")
        if runs and number.isdigit():
            last_stem, _, last = runs[-1][-1].rpartition("-")
            if stem == last_stem and last.isdigit() and int(number) == int(last) + 1:
                runs[-1].append(identifier)
                continue
        runs.append([identifier])
    shown = (f"{run[0]} to {run[-1].rpartition('-')[2]}" if len(run) > 2 else ", ".join(run) for run in runs)
    return ", ".join(shown)


@dataclass(frozen=True, slots=True)
class Silence:
    """Requirements that were not judged, with the one reason they share."""

    status: str
    reason: str
    ids: tuple[str, ...]
    results: int


def silences(report: Report) -> tuple[Silence, ...]:
    """Return what was not run or does not apply, by reason: it does not count, but it is named."""
    groups: dict[tuple[str, str], list[Result]] = {}
    for result in report.results:
        if result.verdict in (Verdict.NOT_RUN, Verdict.NOT_APPLICABLE):
            groups.setdefault((status(result), _reason(result)), []).append(result)
    return tuple(
        Silence(word, results[0].found, tuple(dict.fromkeys(r.id for r in results)), len(results))
        for (word, _), results in sorted(groups.items(), key=lambda item: item[0][0] == "n/a")
    )


@dataclass(frozen=True, slots=True)
class Cell:
    """One requirement on one listener, over all addresses; empty where it does not concern the listener."""

    results: tuple[Result, ...]

    @property
    def status(self) -> str:
        """Return the worst status, or an empty string."""
        return worst(self.results) if self.results else ""

    @property
    def share(self) -> str:
        """Return on how many of the addresses it is so, where they differ."""
        alike = sum(status(result) == self.status for result in self.results)
        return f"{alike} of {len(self.results)}" if alike < len(self.results) else ""


@dataclass(frozen=True, slots=True)
class Row:
    """One requirement across the listeners."""

    id: str
    title: str
    cells: tuple[Cell, ...]  # as Matrix.columns


@dataclass(frozen=True, slots=True)
class Chapter:
    """The requirements of one chapter of the policy."""

    title: str
    rows: tuple[Row, ...]

    def counts(self, column: int) -> dict[str, int]:
        """Return how often each status occurs in one column, worst first."""
        return counts(result for row in self.rows for result in row.cells[column].results)


@dataclass(frozen=True, slots=True)
class Matrix:
    """Requirements × listeners. The last column, None, is the whole server; it is there only if it is not empty."""

    columns: tuple[Listener | None, ...]
    chapters: tuple[Chapter, ...]


def matrix(report: Report) -> Matrix:
    """Return the matrix, ids in the order of the report."""
    by_id: dict[str, dict[int | None, list[Result]]] = {}
    for result in report.results:
        by_id.setdefault(result.id, {}).setdefault(result.port, []).append(result)
    columns: tuple[Listener | None, ...] = report.target.listeners
    if any(result.port is None for result in report.results):
        columns = (*columns, None)
    chapters: dict[str, list[Row]] = {}
    for identifier, at in by_id.items():
        prefix = identifier.split("-", 1)[0]
        cells = tuple(Cell(tuple(at.get(column.port if column else None, ()))) for column in columns)
        title = next(iter(at.values()))[0].title
        chapters.setdefault(_CHAPTERS.get(prefix, prefix), []).append(Row(identifier, title, cells))
    return Matrix(columns, tuple(Chapter(title, tuple(rows)) for title, rows in chapters.items()))


@dataclass(frozen=True, slots=True)
class View:
    """One port of one address as each vantage point sees it, and why it cannot be reached from here."""

    place: str  # name:port at address
    sights: tuple[Sight | None, ...]  # as Views.vantages
    diagnosis: Diagnosis | None


@dataclass(frozen=True, slots=True)
class Views:
    """What is seen from where."""

    vantages: tuple[str, ...]
    rows: tuple[View, ...]

    @property
    def alike(self) -> bool:
        """Whether every vantage point reaches every port: then there is nothing to explain."""
        return all(sight is not None and sight.reached for row in self.rows for sight in row.sights)


def views(report: Report) -> Views:
    """Return the comparison of the vantage points, ports in the order of the report."""
    vantages = tuple(dict.fromkeys(sight.vantage for sight in report.sights))
    seen = {(s.listener, s.port, s.address, s.vantage): s for s in report.sights}
    why = {(d.listener, d.port, d.address): d for d in report.diagnoses}
    ports = dict.fromkeys((*((s.listener, s.port, s.address) for s in report.sights), *why))
    return Views(
        vantages,
        tuple(
            View(
                f"{name}:{port} at {address}",
                tuple(seen.get((name, port, address, vantage)) for vantage in vantages),
                why.get((name, port, address)),
            )
            for name, port, address in ports
        ),
    )


@dataclass(frozen=True, slots=True)
class Duration:
    """How long one look at a server took, and which requirements were judged by it."""

    place: str  # name:port at address
    seconds: float
    ids: tuple[str, ...]


def durations(report: Report) -> tuple[Duration, ...]:
    """Return what took time, longest first. Looks go on side by side: they do not add up to the run's length."""
    groups: dict[tuple[str, float], list[str]] = {}
    for result in report.results:
        if result.seconds > 0:
            where = f"{place(result)} at {result.address}" if result.address else place(result)
            groups.setdefault((where, round(result.seconds, 3)), []).append(result.id)
    found = [Duration(where, seconds, tuple(dict.fromkeys(ids))) for (where, seconds), ids in groups.items()]
    return tuple(sorted(found, key=lambda duration: -duration.seconds))


def requests(report: Report) -> tuple[tuple[str, str], ...]:
    """Return, as label and value, what the run was told to do other than judge everything from here."""
    target = report.target
    said = (
        ("only", ", ".join(report.only)),
        ("left out", ", ".join(report.skipped)),
        ("may be unknown", ", ".join(report.allowed)),
        ("seen from", ", ".join(login.url for login in target.via)),
        ("sink", ", ".join(target.sink)),
        ("also", ", ".join(w for w, asked in (("--slow", target.slow), ("--limits", target.limits)) if asked)),
    )
    return tuple((label, value) for label, value in said if value)


def counts(results: Iterable[Result]) -> dict[str, int]:
    """Return how often each status occurs, worst first, without those that do not occur."""
    words = [status(result) for result in results]
    return {word: words.count(word) for word in _WORST_FIRST if word in words}


def conclusion(report: Report) -> str:
    """Return the run's outcome in one sentence."""
    number = counts(report.results)
    judged = sum(number.get(word, 0) for word in ("pass", "fail", "warn", "unknown", "note"))
    tail = "; the run was cut short" if report.interrupted else ""
    if report.exit_code is ExitCode.FAILED:
        return f"{number['fail']} of {judged} judgements failed{tail}"
    if report.exit_code is ExitCode.INCONCLUSIVE:
        unknown = number.get("unknown", 0)
        return f"none of {judged} judgements failed, {unknown} could not be made{tail}"
    if not number.get("pass"):
        return "nothing was judged"
    warned = f", {number['warn']} with a warning" if "warn" in number else ""
    return f"every requirement that applies holds ({judged} judgements{warned})"


def printable(text: str) -> str:
    """Return `text` with control, format and surrogate characters written out: a server's reply moves no cursor."""
    if text.isprintable():
        return text
    return "".join(
        f"\\x{ord(c):02x}" if unicodedata.category(c) in ("Cc", "Cf", "Cn", "Cs", "Zl", "Zp") and c not in "\n\t" else c
        for c in text
    )


def presentable(report: Report) -> Report:
    """Return the report without passwords, as they are or in base64, and with printable text.

    The wire layer blanks what it sends; this is the second lock, also for what a server echoes.
    """
    secrets: set[str] = set()
    for account in report.target.accounts:
        if account.password:
            user, password = account.address, account.password
            secrets |= {password} | {
                base64.b64encode(form.encode()).decode()
                for form in (password, f"\0{user}\0{password}", f"{user}\0{user}\0{password}")
            }
    longest_first = sorted(secrets, key=len, reverse=True)

    def clean(text: str) -> str:
        for secret in longest_first:
            text = text.replace(secret, BLANK)
        return printable(text)

    results = tuple(
        replace(
            result,
            title=clean(result.title),
            found=clean(result.found),
            expected=clean(result.expected),
            remedy=clean(result.remedy),
            source=clean(result.source),
            problem=clean(result.problem),
            risk=clean(result.risk),
            transcript=tuple(replace(line, text=clean(line.text)) for line in result.transcript),
        )
        for result in report.results
    )
    accounts = tuple(replace(account, password="") for account in report.target.accounts)
    return replace(
        report,
        target=replace(report.target, accounts=accounts),
        results=results,
        sights=tuple(replace(sight, found=clean(sight.found)) for sight in report.sights),
        diagnoses=tuple(replace(d, found=clean(d.found), remedy=clean(d.remedy)) for d in report.diagnoses),
    )
