"""What changed between two reports of one server."""

from __future__ import annotations

from dataclasses import dataclass

from gatepost.verify.model import Report, Result
from gatepost.verify.report import digest

_ORDER = ("broken", "unknown now", "new", "changed", "gone", "mended")


@dataclass(frozen=True, slots=True)
class Change:
    """Requirements whose status is another one now; `was` or `now` is empty where there was no such requirement.

    What broke or was mended is told one requirement at a time; the rest only by its number.
    """

    kind: str  # one of _ORDER
    was: str
    now: str
    requirements: tuple[tuple[str, str], ...]  # id and title
    places: tuple[str, ...]  # `name:port at address, address`
    found: str  # now, in the first of the places; empty where several requirements are told


@dataclass(frozen=True, slots=True)
class Changes:
    """All changes, those to act on first."""

    since: str  # when the old run started
    rows: tuple[Change, ...]
    same_table: bool  # both runs judged by the same listener table


def changes(old: Report, new: Report) -> Changes:
    """Return what changed from `old` to `new`.

    Places are told apart by listener and kind of address, so that a server that moved to another address stays
    comparable. What either run left out (--only) is no change.
    """
    before, after = _by_place(old), _by_place(new)
    groups: dict[tuple[str, ...], list[Result]] = {}
    for key in dict.fromkeys((*after, *before)):
        was, now = before.get(key), after.get(key)
        word_was, word_now = (digest.status(r) if r else "" for r in (was, now))
        shown = now or was
        if word_was == word_now or shown is None or any(run.only and shown.id not in run.only for run in (old, new)):
            continue
        kind = _kind(word_was, word_now)
        alone = (shown.id,) if kind in ("broken", "mended") else ()
        groups.setdefault((kind, word_was, word_now, *alone), []).append(shown)
    rows = [
        Change(
            group[0],
            group[1],
            group[2],
            tuple(dict.fromkeys((r.id, r.title) for r in results)),
            digest.places(results),
            results[0].found if len(group) > 3 else "",
        )
        for group, results in groups.items()
    ]
    rows.sort(key=lambda row: _ORDER.index(row.kind))
    same = old.target.listeners_digest == new.target.listeners_digest
    return Changes(f"{old.started:%Y-%m-%d %H:%M} UTC", tuple(rows), same)


def _by_place(report: Report) -> dict[tuple[str, str | None, bool, int], Result]:
    found: dict[tuple[str, str | None, bool, int], Result] = {}
    for result in digest.presentable(report).results:
        number = 0  # of this family: servers may have several addresses of it
        while (key := (result.id, result.listener, ":" in (result.address or ""), number)) in found:
            number += 1
        found[key] = result
    return found


def _kind(was: str, now: str) -> str:
    bad = ("fail", "warn", "note")
    if not was or not now:
        return "new" if now else "gone"
    if now == "fail" or (now in bad and was not in bad):
        return "broken"
    if now == "unknown":
        return "unknown now"
    # Not looking at it any more mends nothing.
    return "mended" if was in (*bad, "unknown") and now in ("pass", "info") else "changed"
