"""Runs probes side by side, lets the checks judge, and makes the Report.

Order of things: each port is looked at once (reachable? does it greet?), so that a dead or silent one costs its own
deadline and nothing else (VER-03, VER-06). Then every probe that some asked-for requirement needs runs once per site,
at most `PER_PORT` connections to a port and `IN_ALL` altogether, phase by phase (:class:`Phase`): what looks at what
others left there waits for them, and limits come last, from an address of their own. Credentials wait until the
certificate of their site is judged good.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import gatepost
from gatepost.verify.checks import certificate, vantage
from gatepost.verify.checks.certificate import CERTIFICATE
from gatepost.verify.checks.delivery import DELIVERY
from gatepost.verify.checks.tls import VERSIONS, has_tls
from gatepost.verify.model import Finding, Report, Result, Target, Verdict
from gatepost.verify.registry import (
    Key,
    NotObserved,
    Requirement,
    Scope,
    Seen,
    ServerProbe,
    Unobserved,
    check_ids,
    key,
    requirements,
)
from gatepost.verify.wire import delivery, message
from gatepost.verify.wire.delivery import Delivered
from gatepost.verify.wire.probe import Failed, Logins, Phase, Probe, Site
from gatepost.verify.wire.reach import REACH
from gatepost.verify.wire.session import Failure, Stop, WireError

PER_PORT = 10
IN_ALL = 40
# A phase ends after so many seconds whatever the server does, and what it did not get to is not run; a whole run on our
# own server takes 5 to 10 s without limits, and AFTER alone 100 s with --slow. Each phase has its own limit, so that
# test mails are removed (AFTER) even where MAIN did not come to its end.
PHASE_SECONDS = {Phase.MAIN: 180.0, Phase.AFTER: 180.0, Phase.LAST: 420.0}
REACH_SECONDS = 40.0  # for the first look: three deadlines where postscreen greets, and its second visit
PAUSES = (0.5, 2.0)  # seconds before a probe is tried again that was greeted by a limit: 421, too many connections
SILENCES = 2  # a port that let this many probes time out at its greeting has gone silent: the rest is not tried

Progress = Callable[[int, int], None]  # probes done, probes in all


def run(
    target: Target,
    *,
    only: Collection[str] = (),
    skip: Collection[str] = (),
    allowed: Collection[str] = (),
    progress: Progress | None = None,
) -> Report:
    """Judge the target and return the report; `only`, `skip` and `allowed` (to be inconclusive) take requirement ids.

    KeyboardInterrupt, and a phase that takes longer than PHASE_SECONDS, end the run early with a partial report
    (`interrupted`). Raises GatepostError for an unknown id.
    """
    started, began = datetime.now(UTC), time.monotonic()
    rows = requirements()
    check_ids({*only, *skip, *allowed})
    asked = [row for row in rows if not only or row.id in only]
    judged = [row for row in asked if row.id not in skip]
    watch = Watch(target, progress)
    interrupted = False
    try:
        watch.look(judged)
        interrupted = bool(watch.overdue)
    except KeyboardInterrupt:
        interrupted = True
    watch.clean_up()
    seen = Seen(target, None, watch.observations)
    results = [result for row in asked for result in _results(row, watch, skipped=row.id in skip)]
    return Report(
        target=target,
        started=started,
        seconds=time.monotonic() - began,
        results=tuple(results),
        gatepost_version=gatepost.__version__,
        interrupted=interrupted,
        only=tuple(only),
        skipped=tuple(skip),
        allowed=tuple(allowed),
        sights=vantage.sights(seen),
        diagnoses=vantage.diagnoses(seen),
    )


class Watch:
    """The observations of one run, and how they are gathered."""

    def __init__(self, target: Target, progress: Progress | None = None) -> None:
        self.target = target
        self.progress = progress
        self.cancelled = Stop()
        self.ends = {phase: Stop() for phase in Phase}
        self.overdue: list[Phase] = []  # phases that met their time limit
        logins = Logins()
        self.sites = [Site(target, li, a, self.cancelled, logins) for li in target.listeners for a in target.addresses]
        self.observations: dict[Key, Any] = {}
        self.seconds: dict[Key, float] = {}
        self.dead: dict[Site, str] = {}
        self.judged: frozenset[str] = frozenset()  # ids of the rows of this run
        self._silences: dict[Site, int] = {}
        self._lock = threading.Lock()
        self._one_at_a_time = threading.Lock()
        self._done = self._all = 0

    def look(self, rows: Collection[Requirement]) -> None:
        """Run every probe that the rows need, once per site. KeyboardInterrupt leaves what was seen so far."""
        self.judged = frozenset(row.id for row in rows)
        pools: dict[int, ThreadPoolExecutor] = {}
        of_server = ThreadPoolExecutor(4, "server")
        ports = {site.listener.port for site in self.sites}
        try:
            for port in ports:
                pools[port] = ThreadPoolExecutor(max(2, min(PER_PORT, IN_ALL // len(ports))), f"port-{port}")
            reached = {s: pools[s.listener.port].submit(self._observe, s, REACH) for s in self.sites}
            if wait(reached.values(), REACH_SECONDS).not_done:
                endless = Failed(Failure.TIMED_OUT, f"no end of the first look within {REACH_SECONDS:g} s")
                with self._lock:
                    for site in self.sites:
                        self.observations.setdefault(key(site, REACH), endless)
            for site in self.sites:
                found = self.observations[key(site, REACH)]
                why = str(found) if isinstance(found, Failed) else found.dead
                if why:
                    self.dead[site] = why
            for phase in Phase:
                futures = self._start(rows, pools, phase)
                futures += self._start_server(rows, of_server, phase)
                if wait(futures, PHASE_SECONDS[phase]).not_done:
                    self.overdue.append(phase)
                    for future in futures:
                        future.cancel()
                    self.ends[phase].set()
        finally:
            with self._lock:
                self.cancelled.set()
            for end in self.ends.values():
                end.set()
            for pool in (*pools.values(), of_server):
                pool.shutdown(wait=False, cancel_futures=True)

    @property
    def cut_short(self) -> str:
        """Return by which time limits the run was cut short, empty when it was not."""
        limits = " and ".join(f"{PHASE_SECONDS[phase]:g} s of the phase {phase.name.lower()}" for phase in self.overdue)
        return f"the run's time limit, {limits}, came before this was looked at" if limits else ""

    def clean_up(self) -> None:
        """Remove the test messages that were delivered and not read back: of a run that was cut short, or of LAST."""
        read = isinstance(self.observations.get(key(None, DELIVERY)), Delivered) and not self.target.limits
        if self.target.via and message.written() and not read:
            with contextlib.suppress(WireError, KeyboardInterrupt):
                delivery.clean_up(self.target)

    def chosen(self, site: Site) -> bool:
        """Whether once-only work is done here: on the listener's first living address, on the first when none lives."""
        same = [s for s in self.sites if s.listener == site.listener]
        living = [s for s in same if s not in self.dead]
        return site == (living or same)[0]

    def _start_server(
        self, rows: Collection[Requirement], pool: ThreadPoolExecutor, phase: Phase
    ) -> list[Future[None]]:
        probes = {
            p.name: p
            for row in rows
            for p in row.probes
            if isinstance(p, ServerProbe) and p.phase is phase and not (row.needs | p.needs).missing(self.target)
        }
        futures = [pool.submit(self._observe_server, probe) for probe in probes.values()]
        with self._lock:
            self._all += len(futures)
        return futures

    def _start(
        self, rows: Collection[Requirement], pools: Mapping[int, ThreadPoolExecutor], phase: Phase
    ) -> list[Future[None]]:
        due: list[tuple[Site, Probe[Any], Future[None] | None]] = []
        futures: list[Future[None]] = []
        for site in self.sites:
            if site in self.dead:
                continue
            probes = {p.name: p for row in rows for p in self._probes_at(row, site) if p.phase is phase}
            probes.pop(REACH.name, None)
            trusted: Future[None] | None = None
            log_in = any(p.account_at(site) is not None for p in probes.values())
            if log_in and key(site, CERTIFICATE) not in self.observations:
                probes.pop(CERTIFICATE.name, None)
                trusted = pools[site.listener.port].submit(self._observe, site, CERTIFICATE)
                futures.append(trusted)
            due += [(site, p, trusted if p.account_at(site) is not None else None) for p in probes.values()]
        # Slow ones first, so that their waiting is filled. Those that log in wait for `trusted`, submitted before
        # them to the same pool, so that it is running or done by then.
        for site, probe, trusted in sorted(due, key=lambda d: not d[1].slow):
            futures.append(pools[site.listener.port].submit(self._observe, site, probe, trusted))
        with self._lock:
            self._all += len(futures)
        return futures

    def _probes_at(self, row: Requirement, site: Site) -> tuple[Probe[Any], ...]:
        if (
            row.needs.missing(self.target, site.listener)
            or not row.looks_at(site.listener)
            or (row.once and not self.chosen(site))
        ):
            return ()
        probes = (*row.probes, VERSIONS) if row.needs_tls else row.probes
        return tuple(p for p in probes if isinstance(p, Probe) and (not p.once or self.chosen(site)))

    def _observe_server(self, probe: ServerProbe[Any]) -> None:
        self._keep(None, probe, lambda: probe.run(Seen(self.target, None, dict(self.observations), tuple(self.sites))))

    def _observe(self, site: Site, probe: Probe[Any], trusted: Future[None] | None = None) -> None:
        def look() -> Any:
            if trusted is not None:
                trusted.result()
            return self._not_now(site, probe) or self._patiently(self._from_where(site, probe), probe)

        self._keep(site, probe, look)

    def _patiently(self, site: Site, probe: Probe[Any]) -> Any:
        """Run a probe, and where it was greeted by a limit once more, alone with others of that kind (VER-05)."""
        try:
            return probe.run(site)
        except WireError as error:
            if error.failure is not Failure.LIMITED or probe.phase is Phase.LAST or not _of_greeting(error):
                raise
        with self._one_at_a_time:
            for pause in PAUSES:
                site.cancelled.wait(pause)
                try:
                    return probe.run(site)
                except WireError as error:
                    if error.failure is not Failure.LIMITED or not _of_greeting(error) or pause == PAUSES[-1]:
                        raise
        raise AssertionError("PAUSES is empty")

    def _from_where(self, site: Site, probe: Probe[Any]) -> Site:
        site = replace(site, cancelled=self.ends[probe.phase])
        if probe.phase is not Phase.LAST or not self.target.limit_addresses:
            return site
        return replace(site, target=replace(self.target, source_addresses=self.target.limit_addresses))

    def _keep(self, site: Site | None, probe: Probe[Any] | ServerProbe[Any], look: Callable[[], Any]) -> None:
        """Keep what `look` returns, or how it failed, as what `probe` saw."""
        began = time.monotonic()
        if self.cancelled.is_set():
            return
        result: Any
        try:
            result = look()
        except WireError as error:
            result = Failed(error.failure, error.detail, error.transcript)
            if error.failure is Failure.TIMED_OUT and site is not None:
                with self._lock:
                    self._silences[site] = self._silences.get(site, 0) + 1
        except Exception as error:  # a mistake of ours in one probe costs its own checks, not the run
            result = Failed(Failure.BROKEN, f"the probe {probe.name} broke: {type(error).__name__}: {error}")
        with self._lock:
            # Too late: the report is being made, or what was seen is how we shut the connection.
            if self.cancelled.is_set() or self.ends[probe.phase].is_set():
                return
            self.observations[key(site, probe)] = result
            self.seconds[key(site, probe)] = time.monotonic() - began
            self._done += 1
            if self.progress is not None:
                self.progress(self._done, max(self._all, self._done))

    def _not_now(self, site: Site, probe: Probe[Any]) -> Failed | None:
        if 0 < self._silences.get(site, 0) < SILENCES:
            self.cancelled.wait(0.5)  # probes that began together time out together: let them say so first
        if self._silences.get(site, 0) >= SILENCES:
            return Failed(Failure.TIMED_OUT, f"{site} has gone silent in the course of this run")
        why = self.distrusted(site) if probe.account_at(site) is not None else ""
        return Failed(Failure.NOT_TRIED, why) if why else None

    def distrusted(self, site: Site) -> str:
        """Return why real credentials must not be shown to this site; empty in the lab, or when CRT-01 and CRT-02
        pass."""
        if self.target.lab:
            return ""
        seen = Seen(self.target, site, self.observations)
        for name, check in (("CRT-01", certificate.chain), ("CRT-02", certificate.name)):
            try:
                finding = check(seen)
            except (NotObserved, KeyError):
                return f"credentials are not shown to a server whose {name} could not be judged"
            if finding.verdict is not Verdict.PASS:
                return f"credentials are not shown to a server whose {name} did not pass: {finding.found}"
        return ""


def _of_greeting(error: WireError) -> bool:
    # A login that met a limit is not repeated: logins are budgeted.
    return error.detail.startswith("greeted")


def _results(row: Requirement, watch: Watch, *, skipped: bool) -> Iterator[Result]:
    if row.scope is Scope.SERVER:
        yield _result(row, watch, None, skipped=skipped)
        return
    for site in watch.sites:
        if row.scope.covers(site.listener) and not (row.once and not watch.chosen(site)):
            yield _result(row, watch, site, skipped=skipped)


def _result(row: Requirement, watch: Watch, site: Site | None, *, skipped: bool) -> Result:
    finding = _finding(row, watch, site, skipped=skipped)
    keys = [key(site, p) for p in row.probes if site or isinstance(p, ServerProbe)]
    return Result(
        id=row.id,
        listener=site.listener.name if site else None,
        port=site.listener.port if site else None,
        address=site.address if site else None,
        severity=finding.severity or row.severity,
        verdict=finding.verdict,
        title=row.title,
        found=finding.found,
        expected=row.expected,
        remedy=row.remedy,
        source=row.source,
        seconds=max((watch.seconds.get(k, 0.0) for k in keys), default=0.0),
        transcript=finding.transcript,
        problem=row.problem,
        risk=row.risk,
    )


def _blocked(watch: Watch, why: str, *told_by: str) -> Finding:
    """What could not be tried is not run where another row of this run fails for it, else unknown: never silence."""
    telling = [identifier for identifier in told_by if identifier in watch.judged]
    return Finding(Verdict.NOT_RUN if telling else Verdict.INCONCLUSIVE, f"{why} ({', '.join(telling or told_by)})")


def _finding(row: Requirement, watch: Watch, site: Site | None, *, skipped: bool) -> Finding:
    if skipped:
        return Finding(Verdict.NOT_RUN, "left out on request (--skip)")
    missing = row.needs.missing(watch.target, site.listener if site else None)
    if missing:
        return Finding(Verdict.NOT_RUN, missing)
    others = [p for p in row.probes if p.name not in (REACH.name, vantage.VANTAGE.name)]
    if site in watch.dead and others:
        return _blocked(watch, f"the port does not answer: {watch.dead[site]}", "GEN-NET-01", "GEN-BAN-01")
    seen = Seen(watch.target, site, watch.observations)
    try:
        if row.needs_tls and site is not None and not has_tls(seen):
            return _blocked(watch, "no TLS handshake succeeded on this port", "TLS-VER-01", "TLS-VER-02")
        return row.check(seen)
    except NotObserved as error:
        if error.failed.failure is Failure.LOGIN_REFUSED:
            return _blocked(watch, str(error.failed), "SUB-AUTH-05")
        verdict = Verdict.NOT_RUN if error.failed.failure is Failure.NOT_TRIED else Verdict.INCONCLUSIVE
        return Finding(verdict, str(error.failed), error.failed.transcript)
    except Unobserved:
        return Finding(Verdict.NOT_RUN, watch.cut_short or "the run was interrupted before this was looked at")
    except Exception as error:  # a mistake in one check must be seen in its own row and must not end the run
        return Finding(Verdict.INCONCLUSIVE, f"the check broke: {type(error).__name__}: {error}")
