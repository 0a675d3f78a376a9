"""Servers that are broken in one way, judged, and healed; several of them side by side."""

from __future__ import annotations

import os
import queue
import re
import subprocess
import sys
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from certificates import make

from gatepost import inventory, settings, verification
from gatepost.verify.model import Report, Verdict

HERE = Path(__file__).parent
CATALOGUE: dict[str, list[dict[str, Any]]] = yaml.safe_load((HERE / "mutants.yml").read_text())
PRELUDE = (HERE / "prelude.sh").read_text()
TESTINFRA = HERE.parent / "testinfra"
CERTS = "/root/mutant-certs"
KEPT = "/etc/postfix /etc/dovecot /etc/ssl/gatepost"  # taken away and put back
ALSO_KEPT = (  # overwritten when put back
    "/etc/aliases /etc/aliases.db /etc/nftables.conf /etc/resolv.conf /var/spool/postfix/etc "
    "/usr/sbin/postdrop /var/lib/dpkg/status"
)
# What is restarted settles before it is judged: master serves at once, Dovecot when its sockets are there.
RESTART = {
    "dovecot": "systemctl restart dovecot; for _ in {1..100}; do test -S /var/spool/postfix/private/auth && break; "
    "sleep .05; done",
    "nftables": "systemctl restart nftables",
    "postfix": "systemctl restart postfix",
}
RUN_SECONDS = 180  # a deadline against hanging
_whole_run = threading.Lock()  # a run of all checks needs the computer for itself to be judged fairly


@dataclass(frozen=True, slots=True)
class Trial:
    """What was seen of one change. `failed`: as ID and ID@PORT."""

    failed: frozenset[str]
    said: str  # what did not pass while it stood, for people
    relapse: str  # the same after it was undone: empty when all is well


class Patient:
    """A lab server whose good state is kept, so that it can be broken and healed."""

    def __init__(self, environment: Path, scratch: Path) -> None:
        self.scratch = scratch
        scratch.mkdir(parents=True, exist_ok=True)
        loaded = settings.load(environment)
        standing = inventory.read(loaded)
        self.target = verification.target_of(loaded, standing, verification.table_of(loaded.directory, None, standing))
        pairs = list(zip(standing.vantage["ipv4"], standing.vantage["ipv6"], strict=True))
        spare = len(pairs) // 3  # who ran into a limit is limited for a minute
        self._limit_pairs, self._pairs = pairs[:spare], pairs[spare:]
        server = standing.servers[0]
        config = scratch / "ssh_config"
        config.write_text(
            f"Host {server.address}\n  User {server.ssh_user}\n  Port {server.ssh_port}\n"
            f"  IdentityFile {server.ssh_key_file}\n  IdentitiesOnly yes\n"
            f"  UserKnownHostsFile {loaded.known_hosts}\n  GlobalKnownHostsFile /dev/null\n"
            f"  ControlMaster auto\n  ControlPersist 60\n  ControlPath /tmp/gatepost-mutants-%C\n"
        )
        self._ssh = ["ssh", "-F", str(config), server.address]
        self._testinfra = [f"--hosts=ssh://{server.address}", "--sudo", f"--ssh-config={config}"]
        certificates = scratch / "certificates"
        certificates.mkdir(exist_ok=True)
        make(certificates, self.target.hostname, loaded.ca_dir)
        trusted = scratch / "trusted.pem"
        trusted.write_bytes((loaded.ca_dir / "ca.pem").read_bytes() + (certificates / "root.pem").read_bytes())
        self.target = replace(self.target, ca_file=trusted)
        first, second = self.target.accounts
        self.variables = "\n".join(
            (
                f"CERTS={CERTS}",
                f"HOST={self.target.hostname}",
                f"DOMAIN={self.target.domains[0]}",
                f"ACCOUNT={first.address}",
                f"SECOND={second.address}",
                f"OUTSIDE={self.target.outside_domain}",
                "KEY=$(postconf -xh smtpd_tls_chain_files | tr ', ' '\\n\\n' | head -n1)",
            )
        )
        files = "".join(f"cat >{CERTS}/{f.name} <<'EOF'\n{f.read_text()}EOF\n" for f in certificates.iterdir())
        self.ssh(
            f"umask 077; mkdir -p {CERTS}\n{files}"
            f"test -e /root/kept.tar || tar -cpf /root/kept.tar --absolute-names {KEPT} {ALSO_KEPT}"
        )

    def ssh(self, script: str) -> str:
        """Run a shell script as root there and return what it said; an exit code other than 0 is an AssertionError."""
        done = subprocess.run(
            [*self._ssh, "sudo", "bash", "-s"], input=script, capture_output=True, text=True, timeout=RUN_SECONDS
        )
        assert done.returncode == 0, f"{script}\nexit code {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def break_it(self, change: dict[str, Any]) -> None:
        restart = "\n".join(RESTART[name] for name in change.get("restart", ["postfix"]))
        self.ssh(f"{PRELUDE}\n{self.variables}\n{change['run']}\n{restart}")

    def heal(self, restart: Iterable[str] = tuple(RESTART)) -> None:
        """Put files, permissions and services back to what was kept; restart these, and what was stopped."""
        wanted = {*restart, "nftables"}
        self.ssh(
            "postsuper -d ALL >/dev/null 2>&1 || true\n"
            f"rm -rf {KEPT}\ntar -xpf /root/kept.tar --absolute-names\n"
            "for unit in postfix dovecot nftables; do\n"  # enabling makes systemd read all units again
            "systemctl is-enabled -q $unit || systemctl enable -q $unit; done\nsystemctl reset-failed\n"
            + "\n".join(
                command if name in wanted else f"systemctl is-active -q {name} || {{ {command}; }}"
                for name, command in RESTART.items()
            )
        )

    def leave(self) -> None:
        """Heal, and take away what was put there."""
        self.heal()
        self.ssh(f"rm -rf {CERTS} /root/kept.tar")
        subprocess.run([*self._ssh, "-O", "exit"], capture_output=True)

    def verify(self, only: Sequence[str] = (), options: Iterable[str] = ()) -> Report:
        """Judge over the network, from the next pair of addresses: the server counts logins per client and minute."""
        self._pairs.append(pair := self._pairs.pop(0))
        if "--limits" in options:
            self._limit_pairs.append(self._limit_pairs.pop(0))
        return verification.judge(
            replace(
                self.target,
                source_addresses=pair,
                limit_addresses=self._limit_pairs[-1],
                slow="--slow" in options,
                limits="--limits" in options,
            ),
            only=only,
        )

    def check(self, ids: Iterable[str] = ()) -> tuple[frozenset[str], str]:
        """Ask the server itself: the ids whose tests failed, of those given or of all, and what pytest said."""
        words = " or ".join(id_.lower().replace("-", "_") + "_" for id_ in ids)
        done = subprocess.run(
            [
                *(sys.executable, "-m", "pytest", TESTINFRA, f"--confcutdir={TESTINFRA}", "-p", "no:cacheprovider"),
                *("-q", "--no-header", "--tb=short", "-k", words),
                *self._testinfra,
            ],
            env={**os.environ, "LISTENERS": str(self.target.listeners_file)},
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=RUN_SECONDS,
        )
        assert done.returncode in (0, 1), done.stdout + done.stderr
        found = re.findall(r"^(?:FAILED|ERROR) .*::test_([a-z]+(?:_[a-z]+)?_\d\d)_", done.stdout, re.MULTILINE)
        return frozenset(name.upper().replace("_", "-") for name in found), done.stdout

    def look(self, change: dict[str, Any], options: Iterable[str] = ()) -> tuple[frozenset[str], str]:
        """Judge what a change can break: by the network, by the host, or both. Without `breaks`: all of the network.

        Returns what failed, and for people what did not pass.
        """
        ids = {id_.partition("@")[0] for id_ in alternatives(change)}
        host = ids if change.get("via") == "host" else {id_ for id_ in ids if id_.startswith("HST-")}
        failed: set[str] = set()
        said = ""
        if ids - host or not ids:
            with nullcontext() if ids else _whole_run:
                report = self.verify(sorted(ids - host), options)
            failed |= failures(report)
            said += troubles(report)
        if host:
            by_host, told = self.check(sorted(host))
            failed |= by_host
            said += told if by_host else ""
        return frozenset(failed), said

    def treat(self, change: dict[str, Any]) -> Trial:
        """Break, judge, heal, judge again. After a change that must do no harm there is nothing more to judge."""
        try:
            self.break_it(change)
            failed, said = self.look(change, change.get("options", ()))
        finally:
            self.heal(change.get("heal", change.get("restart", ["postfix"])))
        return Trial(failed, said, self.look(change)[1] if change.get("breaks") else "")


def alternatives(change: dict[str, Any]) -> list[str]:
    """Return every id, as ID or ID@PORT, that `breaks` names."""
    return [id_ for entry in change.get("breaks", ()) for id_ in entry.split("|")]


def failures(report: Report) -> frozenset[str]:
    """Return ID and ID@PORT of everything that failed."""
    failed = report.of(Verdict.FAIL)
    return frozenset({r.id for r in failed} | {f"{r.id}@{r.port}" for r in failed})


def troubles(report: Report) -> str:
    """Return what failed or could not be judged, a line each."""
    return "".join(
        f"{r.verdict.value} {r.id}@{r.port or 'server'} {r.address or ''}: {r.found[:300]}\n"
        for r in report.results
        if r.verdict in (Verdict.FAIL, Verdict.INCONCLUSIVE)
    )


class Ward:
    """Patients that share the changes out among them, each with a worker of its own. `trials` is by name."""

    def __init__(self, patients: Sequence[Patient], changes: Iterable[dict[str, Any]]) -> None:
        self.patients = patients
        self.trials: dict[str, Future[Trial]] = {}
        self._jobs: queue.SimpleQueue[tuple[dict[str, Any], Future[Trial]]] = queue.SimpleQueue()
        # The long ones first, so that none is left alone at the end.
        for change in sorted(changes, key=lambda c: bool(c.get("breaks")) + ("options" not in c)):
            self.trials[change["name"]] = future = Future()
            self._jobs.put((change, future))
        self._workers = [threading.Thread(target=self._work, args=(patient,), daemon=True) for patient in patients]
        for worker in self._workers:
            worker.start()

    def _work(self, patient: Patient) -> None:
        while True:
            try:
                change, future = self._jobs.get_nowait()
            except queue.Empty:
                return
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(patient.treat(change))
            except BaseException as error:  # belongs to the test of this change
                future.set_exception(error)

    def wait(self) -> None:
        """Wait until nothing is being tried any more."""
        for worker in self._workers:
            worker.join()

    def close(self) -> None:
        """Try no more, and leave the servers as they were found."""
        for trial in self.trials.values():
            trial.cancel()
        self.wait()
        for patient in self.patients:
            patient.leave()
