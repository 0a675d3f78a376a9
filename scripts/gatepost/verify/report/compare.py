"""What changed between two reports of one server."""

from __future__ import annotations

from dataclasses import dataclass

from gatepost.verify.model import Report, Result
from gatepost.verify.report import digest

_BAD = ("fail", "warn", "note", "unknown")


@dataclass(frozen=True, slots=True)
class Change:
    """One requirement in one place whose status is another one now; `was` or `now` is empty where it was not judged."""

    kind: str  # "broken", "mended", "unknown now", "new", "gone" or "changed"
    id: str
    title: str
    place: str  # name:port at address
    was: str
    now: str
    found: str  # now; of what is gone, then


@dataclass(frozen=True, slots=True)
class Changes:
    """All changes, those to act on first."""

    since: str  # when the old run started
    rows: tuple[Change, ...]
    same_table: bool  # both runs judged by the same listener table


_ORDER = ("broken", "unknown now", "new", "changed", "gone", "mended")


def changes(old: Report, new: Report) -> Changes:
    """Return what changed from `old` to `new`.

    Places are told apart by listener and kind of address, so that a server that moved to another address stays
    comparable.
    """
    before, after = _by_place(old), _by_place(new)
    rows = []
    for key in dict.fromkeys((*after, *before)):
        was, now = before.get(key), after.get(key)
        word_was, word_now = (digest.status(r) if r else "" for r in (was, now))
        if word_was == word_now:
            continue
        shown = now or was
        assert shown is not None
        where = f"{digest.place(shown)} at {shown.address}" if shown.address else digest.place(shown)
        rows.append(Change(_kind(word_was, word_now), shown.id, shown.title, where, word_was, word_now, shown.found))
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
    if not was:
        return "new"
    if not now:
        return "gone"
    if now in ("fail", "warn", "note") and was not in ("fail", "warn", "note"):
        return "broken"
    if now == "unknown":
        return "unknown now"
    if was in _BAD and now not in _BAD:
        return "mended"
    return "changed"
