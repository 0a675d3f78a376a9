"""Writes docs/checks.md from the registry: `python -m gatepost.verify.report.docs >docs/checks.md`.

One heading per requirement, so that an id in a report leads to its explanation, and one per probe, with what it sends.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gatepost.listeners import Listener
from gatepost.verify.model import Account, Severity, Target
from gatepost.verify.registry import Need, Requirement, ServerProbe, requirements
from gatepost.verify.wire.probe import Probe, Send, Site

_HEAD = """\
# The requirements, one by one

Written by `python -m gatepost.verify.report.docs` from the registry (`scripts/gatepost/verify/registry.py`); a test
fails when the two part. `gatepost verify --list` shows the same ids.

A *must* that fails fails the run, a *should* is a warning, an *info* is recorded only. A refusal counts whether it
comes at MAIL or at RCPT; 4xx is no refusal; what could not be judged is *unknown* and never passes. No probe sends a
message to a third party: relay probes end with RSET.

In the rows, HN is the server's name, DOM a domain hosted here, OUT one that is not, U and V users, NX nobody of DOM.
In the dialogues these are mx.example.test, example.test, remote.test, alice@example.test, bob@example.test, and the
server's address is 192.0.2.25.
"""
_SITE = Site(
    Target(
        hostname="mx.example.test",
        addresses=("192.0.2.25",),
        listeners=(),
        listeners_file=Path("listeners.yml"),
        listeners_digest="",
        domains=("example.test",),
        outside_domain="remote.test",
        accounts=(Account("alice@example.test", "", "alice.alias@example.test"), Account("bob@example.test", "")),
    ),
    Listener("example", 25, "relay", "starttls", ()),
    "192.0.2.25",
)
_NEEDS = {
    Need.DOMAIN: "a domain hosted there",
    Need.OUTSIDE: "an outside domain",
    Need.ACCOUNT: "an account",
    Need.SECOND_ACCOUNT: "a second account",
    Need.ALIAS: "an alias of the first account",
    Need.VIA: "a login at the server (`--via`)",
    Need.SINK: "a sink for the outside domain's mail (`--sink`)",
    Need.SLOW: "`--slow`",
    Need.LIMITS: "`--limits`",
}


def render() -> str:
    """Return docs/checks.md."""
    rows = requirements()
    probes = {probe.name: probe for row in rows for probe in row.probes}
    ids = [row.id for row in rows]
    # Where an id has rows for several kinds of listener, they share its heading.
    sections = (_row(row, heading=row.id not in ids[:number]) for number, row in enumerate(rows))
    parts = [_HEAD, *sections, "# What the probes send\n", *(_probe(p) for p in probes.values())]
    return "\n".join(parts)


def _row(row: Requirement, *, heading: bool) -> str:
    severity = {Severity.MUST: "must", Severity.SHOULD: "should (a warning)", Severity.INFO: "info (recorded only)"}
    lines = [
        *([f"## {row.id}\n"] if heading else []),
        f"**{_escaped(row.title)}**\n",
        f"- Problem: {_escaped(row.problem)}",
        f"- Risk: {_escaped(row.risk)}",
        f"- Concerns: {row.scope.value}; {severity[row.severity]}" + ("; one address" if row.once else ""),
        *([f"- Needs: {', '.join(needs(row))}"] if needs(row) else []),
        f"- Sent: {', '.join(f'[{probe.name}](#probe-{_anchor(probe.name)})' for probe in row.probes)}",
        f"- Passes: {_escaped(row.expected)}",
        f"- What to do: {_escaped(row.remedy)}",
        f"- Source: {_escaped(row.source)}",
    ]
    return "\n".join(lines) + "\n"


def needs(row: Requirement) -> tuple[str, ...]:
    """Return what a run must be given for a requirement to be judged."""
    return tuple(words for need, words in _NEEDS.items() if need in row.needs)


def _probe(probe: Probe[Any] | ServerProbe[Any]) -> str:
    text = f"## Probe {probe.name}\n\n{about(probe)}\n"
    sent = list(commands(probe))
    return text + "\n```\n" + "\n".join(sent) + "\n```\n" if sent else text


def about(probe: Probe[Any] | ServerProbe[Any]) -> str:
    """Return in a sentence or two what a probe does."""
    return " ".join((probe.about or (inspect.getdoc(probe.run) or "").split("\n\n")[0]).split())


def commands(probe: Probe[Any] | ServerProbe[Any]) -> Iterator[str]:
    """Return what a dialogue sends to the example server, a line for each case; nothing for other probes."""
    for this in probe.cases(_SITE) if isinstance(probe, Probe) and probe.cases else ():
        yield " ⏎ ".join(_shown(send) for send in this.sends)


def _shown(send: Send) -> str:
    text = send.data if isinstance(send.data, str) else repr(send.data)[2:-1]
    if len(text) > 200:
        text = f"{text[:60]} … {text[-60:]}"
    text = re.sub(r"(?i)^(AUTH \S+ )\S{2,}", r"\1…", text)
    # Invented for one run, and this machine's own address: neither may make this file change.
    text = re.sub(r"(no-such-\w+-)[0-9a-f]+", r"\1…", text)
    return text.replace(_SITE.own_literal, "[our address]") if "[" in text else text


def _anchor(name: str) -> str:
    return re.sub(r"[^a-z0-9-]", "", name.lower())


def _escaped(text: str) -> str:
    """Return text with what Markdown would take for a tag or emphasis protected."""
    return re.sub(r"[<>*_|]", r"\\\g<0>", text)


if __name__ == "__main__":
    print(render(), end="")
