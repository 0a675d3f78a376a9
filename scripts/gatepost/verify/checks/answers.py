"""Judging single replies: what most checks have in common (VER-04 and VER-05 live here)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

from gatepost.verify.model import Finding, Verdict
from gatepost.verify.registry import failed, inconclusive, passed
from gatepost.verify.wire.probe import Told, is_limit
from gatepost.verify.wire.session import Answer, Ended, Reply


def refusal(told: Told, codes: Collection[int] = (), *, close_is_refusal: bool = False) -> Finding:
    """Pass when the last answer is a 5xx (one of `codes` where given).

    A 4xx is a failure (VER-04), save a limit of the server's (421, "too many …"), which is inconclusive (VER-05). A
    connection that ended is inconclusive unless `close_is_refusal`.
    """
    return judge(told, lambda reply: reply.code in codes if codes else reply.code >= 500, close_passes=close_is_refusal)


def acceptance(told: Told, code: int = 250) -> Finding:
    """Pass when every answer but those before the last has `code`-like success and the last one is `code`."""
    return judge(told, lambda reply: reply.code == code)


def judge(told: Told, good: Callable[[Reply], bool], *, close_passes: bool = False) -> Finding:
    """Judge the last answer of a case by `good`; see :func:`refusal` for limits and closed connections."""
    answer: Answer = told.last
    found = str(told)
    if isinstance(answer, Ended):
        if close_passes:
            return passed(found, transcript=told.transcript)
        return inconclusive(f"no reply: {found}", transcript=told.transcript)
    if good(answer):
        return passed(found, transcript=told.transcript)
    if is_limit(answer):
        return inconclusive(f"the server answered by a limit: {found}", transcript=told.transcript)
    return failed(found, transcript=told.transcript)


def together(findings: Iterable[Finding]) -> Finding:
    """Make one finding of several about the same requirement: failed if one is, else inconclusive if one is.

    What decided it is quoted; a pass quotes all.
    """
    findings = tuple(findings)
    for verdict in (Verdict.FAIL, Verdict.INCONCLUSIVE, Verdict.PASS):
        deciding = [finding for finding in findings if finding.verdict is verdict]
        if deciding:
            found = "\n".join(dict.fromkeys(finding.found for finding in deciding))
            # Several findings may stem from one dialogue.
            transcripts = dict.fromkeys(finding.transcript for finding in deciding)
            return Finding(verdict, found, tuple(line for transcript in transcripts for line in transcript))
    raise ValueError("no findings")


def extensions(reply: Reply) -> str:
    """Return what an EHLO reply offers, as people read it."""
    return ", ".join(reply.keywords) or "nothing"
