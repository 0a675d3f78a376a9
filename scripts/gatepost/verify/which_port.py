"""Which port works as a mail client from here, and what to type into a mail program."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from gatepost.verify.checks import vantage
from gatepost.verify.model import Diagnosis, ExitCode, Layer, Target
from gatepost.verify.registry import Key, Seen, key
from gatepost.verify.report import digest
from gatepost.verify.wire.client import Visit, visit
from gatepost.verify.wire.probe import Site
from gatepost.verify.wire.reach import REACH, Reached
from gatepost.verify.wire.session import Ended, Failure, Reply, WireError

SCHEMA_VERSION = 1
SECURITY = {True: "SSL/TLS", False: "STARTTLS"}  # as mail programs call implicit TLS and STARTTLS
_SLOW = 1000  # ms to AUTH-ready, from which a person notices


@dataclass(frozen=True, slots=True)
class Advice:
    """All visits, in the table's order, and what follows from them."""

    target: Target
    visits: tuple[Visit, ...]
    interrupted: bool = False
    diagnoses: tuple[Diagnosis, ...] = ()  # of the ports that no connection comes to

    @property
    def best(self) -> Visit | None:
        """Return the visit of the port to recommend: RFC 8314 §3.3 prefers implicit TLS to STARTTLS.

        A port that works at some addresses only comes behind those that work at all of them: programs try them in
        turn, and wait at those that do not answer.
        """
        works = [v for v in self.visits if v.works]

        def rank(this: Visit) -> tuple[bool, bool]:
            same = [v for v in self.here if v.site.listener == this.site.listener]
            return (not all(v.works for v in same), not this.site.listener.is_implicit)

        return min(works, key=rank, default=None)

    @property
    def here(self) -> tuple[Visit, ...]:
        """Return the visits that say something: not those of a family (IPv6, mostly) that this computer has not."""
        return tuple(v for v in self.visits if not self._no_route(v))

    def _no_route(self, visit: Visit) -> bool:
        family = [v for v in self.visits if (":" in v.site.address) == (":" in visit.site.address)]
        return all(v.failure is Failure.UNREACHABLE for v in family)

    def stops(self, visit: Visit) -> Diagnosis | None:
        """Return what stops the connection to a port."""
        where = (visit.site.listener.name, visit.site.address)
        return next((d for d in self.diagnoses if (d.listener, d.address) == where), None)

    @property
    def exit_code(self) -> ExitCode:
        """Return 0 when a port can be recommended, 1 when none, 3 when that could not be found out."""
        if self.best is not None:
            return ExitCode.PASSED
        asked = [v for v in self.here if v.site.listener.is_submission]
        unknown = not asked or any(v.failure in (Failure.LIMITED, Failure.BUSY, Failure.BROKEN) for v in asked)
        return ExitCode.INCONCLUSIVE if unknown or self.interrupted else ExitCode.FAILED


def advise(target: Target) -> Advice:
    """Visit every listener at every address, side by side. KeyboardInterrupt leaves what was seen so far.

    Where a port cannot be reached, the target's logins are asked what they see of it.
    """
    sites = [Site(target, listener, address) for listener in target.listeners for address in target.addresses]
    found: dict[Site, Visit] = {}
    lock = threading.Lock()

    def look(site: Site) -> None:
        seen = visit(site)
        with lock:
            found[site] = seen

    pool = ThreadPoolExecutor(max(1, len(sites)), "which-port")
    interrupted = False
    try:
        wait([pool.submit(look, site) for site in sites])
    except KeyboardInterrupt:
        interrupted = True
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    with lock:
        visits = tuple(found[site] for site in sites if site in found)
    return Advice(target, visits, interrupted, () if interrupted else _diagnoses(target, visits))


def _diagnoses(target: Target, visits: tuple[Visit, ...]) -> tuple[Diagnosis, ...]:
    if all(v.connect_ms is not None for v in visits):
        return ()
    seen: dict[Key, Any] = {key(v.site, REACH): _reached(v) for v in visits}
    if target.via:
        with contextlib.suppress(WireError):
            seen[key(None, vantage.VANTAGE)] = vantage.VANTAGE.run(Seen(target, None, seen))
    return vantage.diagnoses(Seen(target, None, seen))


def _reached(v: Visit) -> Reached:
    """Return a visit as the verifier's first look at a port would have it."""
    answer = Ended(v.failure or Failure.CLOSED, v.detail) if v.failure or v.connect_ms is None else Reply(220, ("",))
    return Reached(
        seconds=(v.connect_ms or 0) / 1000,
        connected=v.connect_ms is not None,
        tls=bool(v.version),
        answer=answer,
        more=b"",
        second=None,
        transcript=(),
        implicit=v.site.listener.is_implicit,
    )


def settings(best: Visit) -> dict[str, Any]:
    """Return what to type into a mail program."""
    listener = best.site.listener
    return {
        "server": best.site.target.hostname,
        "port": listener.port,
        "security": SECURITY[listener.is_implicit],
        "user_name": "your full mail address",
        "authentication": "normal password",
    }


def to_json(advice: Advice) -> str:
    """Return the document of `--json`; docs/verify.md describes it."""
    best = advice.best
    document = {
        "schema_version": SCHEMA_VERSION,
        "hostname": advice.target.hostname,
        "exit_code": int(advice.exit_code),
        "interrupted": advice.interrupted,
        "recommendation": None if best is None else settings(best),
        "ports": [
            {
                "listener": v.site.listener.name,
                "port": v.site.listener.port,
                "purpose": v.site.listener.purpose,
                "address": v.site.address,
                "works": v.works,
                "problem": digest.printable(v.problem),
                "stopped_by": stopped.layer.value if (stopped := advice.stops(v)) else None,
                "reached": v.connect_ms is not None,
                "tls_version": v.version or None,
                "cipher": v.cipher or None,
                "certificate": v.certificate or None,
                "auth": list(v.mechanisms),
                "auth_in_clear": v.auth_in_clear,
                "connect_ms": v.connect_ms,
                "ready_ms": v.ready_ms,
            }
            for v in advice.visits
        ],
    }
    return json.dumps(document, indent=2) + "\n"


def show(advice: Advice, console: Console | None = None) -> None:
    """Print the advice."""
    (console or Console()).print(render(advice))


def render(advice: Advice) -> RenderableType:
    """Return the advice for a rich console."""
    best = advice.best
    target = advice.target
    table = _grid()
    last = None
    for v in advice.here:
        listener = v.site.listener
        table.add_row(str(listener.port) if listener != last else "", _verdict(v, best), _details(v))
        last = listener
    parts: list[RenderableType] = [Text.assemble((target.hostname, "bold"), ", from here:"), Text(), table, Text()]
    parts += [Text(line, "dim") for line in _left_out(advice)]
    if best is None:
        code = advice.exit_code
        word, style = ("NONE", "bold red") if code is ExitCode.FAILED else ("UNKNOWN", "bold magenta")
        why = "no port works for a mail program" if code is ExitCode.FAILED else "it could not be found out"
        parts.append(Text.assemble((word, style), f": {why} from here"))
    else:
        parts += [Text("Type into your mail program, for outgoing mail (SMTP):", "bold"), _typed(best)]
    problems = tuple(dict.fromkeys(_problems(advice)))
    if problems:
        grid = _grid()
        for where, text in problems:
            grid.add_row(where, "", text)
        parts += [Text(), Text("What is in the way:", "bold"), grid]
    return Group(*parts)


def _grid() -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold", justify="right", no_wrap=True)
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    return grid


def _verdict(v: Visit, best: Visit | None) -> Text:
    if v.works:
        recommended = best is not None and best.site.listener == v.site.listener
        return Text("recommended", "bold green") if recommended else Text("works", "green")
    if v.site.listener.is_submission:
        return Text("does not work", "bold red")
    return Text("between servers", "dim") if v.answers else Text("no answer", "dim")


def _details(v: Visit) -> Text:
    times = [f"{what} {ms} ms" for what, ms in (("connected", v.connect_ms), ("ready", v.ready_ms)) if ms is not None]
    text = Text(f"{v.site.address}  {', '.join(times)}", "yellow" if (v.ready_ms or 0) > _SLOW else "")
    if v.version:
        text.append(f"\n{v.version} {v.cipher}, ", "dim")
        good = v.certificate == "good"
        text.append("certificate good" if good else "certificate not good", "dim" if good else "red")
        text.append(f", {'AUTH ' + ' '.join(v.mechanisms) if v.mechanisms else 'no AUTH'}", "dim")
        if v.auth_in_clear:
            text.append(", AUTH in clear too", "red")
    return text


def _typed(best: Visit) -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True, min_width=18)
    grid.add_column(style="bold", overflow="fold")
    for name, value in settings(best).items():
        grid.add_row(f"  {name.replace('_', ' ')}", Text(str(value)))
    return grid


def _problems(advice: Advice) -> Iterator[tuple[str, str]]:
    for v in advice.here:
        if not v.problem:
            continue
        everywhere = [o for o in advice.here if o.site.listener == v.site.listener]
        same = len({_said(advice, o).replace(o.site.address, "") for o in everywhere}) == 1
        port = str(v.site.listener.port)
        if not same:
            yield port, f"{v.site.address}  {_said(advice, v)}"
        elif v is everywhere[0]:
            yield port, _said(advice, v)


def _said(advice: Advice, v: Visit) -> str:
    stopped = advice.stops(v)
    if stopped is None:
        return digest.printable(v.problem)
    layer = "" if stopped.layer is Layer.UNKNOWN else f"What stops it: {stopped.layer}. "
    return f"{layer}{digest.printable(stopped.found)}\n{stopped.remedy}"


def _left_out(advice: Advice) -> Sequence[str]:
    families = dict.fromkeys("IPv6" if ":" in v.site.address else "IPv4" for v in advice.visits if v not in advice.here)
    return [
        f"This computer has no way to the server's {family} address; that says nothing of it." for family in families
    ]
