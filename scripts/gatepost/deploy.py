"""The pipeline: preflight, Terraform, wait for SSH, configure, verify. Each stage can be run again after a failure."""

from __future__ import annotations

import hashlib
import ipaddress
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from gatepost import (
    ansible,
    certificates,
    credentials,
    environment,
    existing,
    inventory,
    settings,
    terraform,
    toolchain,
    verification,
)
from gatepost.errors import GatepostError
from gatepost.listeners import ListenerTable
from gatepost.progress import Progress
from gatepost.settings import Settings
from gatepost.verify.model import ExitCode, Report, Verdict

PLAYBOOK = environment.CHECKOUT / "playbooks/site.yml"
SSH_SECONDS = 90  # a cloud's machine may still be booting


@dataclass(slots=True)
class Run:
    """One run in one environment: what it knows so far."""

    settings: Settings
    given: Path | None  # LISTENERS=
    table: ListenerTable
    progress: Progress
    root: terraform.Root | None = None

    @property
    def listeners_file(self) -> Path | None:
        """Return the table's path where it is not the default one."""
        from gatepost import listeners

        return None if self.table.path == listeners.default_path().resolve() else self.table.path


@contextmanager
def begin(directory: Path, given: Path | None, command: str, *, verbose: bool, create: bool = False) -> Iterator[Run]:
    """Load an environment and hold its lock; with `create`, make it from the example first."""
    created = create and environment.prepare(directory)
    if not directory.is_dir():
        raise GatepostError(
            f"{directory}: no such environment",
            expected="a directory with settings.yml",
            next_step="make deploy makes one.",
        )
    with environment.lock(directory, command):
        loaded = settings.load(directory)
        standing = inventory.read(loaded) if command in ("converge",) else None
        table = verification.table_of(loaded.directory, given, standing)
        progress = Progress(loaded.logs, command, verbose=verbose)
        try:
            if created:
                progress.note(
                    f"Made {directory}/ from inventory.example/: edit {directory / settings.FILE_NAME} to your taste."
                )
            progress.note(f"Log: {progress.path}")
            yield Run(loaded, given, table, progress)
        except GatepostError as error:
            progress.log(str(error))
            raise
        finally:
            progress.close()


def preflight(run: Run) -> dict[str, str]:
    """Check everything that can be checked before anything is changed; return the password hashes."""
    with run.progress.stage("preflight") as stage:
        _check(run)
        if run.settings.cloud == "local":
            from gatepost.lab import host

            if os.geteuid() == 0:  # otherwise host.check says so
                toolchain.require(toolchain.LAB, run.progress.note)
            host.check()
        else:
            toolchain.require((toolchain.SSH,), run.progress.note)
        credentials.make_probe_passwords(run.settings)
        hashes = credentials.password_hashes(run.settings)
        if run.settings.cloud == "local":
            binary = terraform.find(run.progress.note)
            run.root = terraform.Root(run.settings, binary, run.progress.log)
            stage.result = f"{run.settings.cloud}, Terraform {binary.version}"
        else:
            stage.result = run.settings.cloud
        return hashes


def _check(run: Run) -> None:
    chosen = run.settings
    ssh_port = chosen.existing.ssh_port if chosen.cloud == "existing" and chosen.existing else 22
    for listener in run.table.listeners:
        if listener.port == ssh_port:
            raise GatepostError(
                f"{run.table.path}: {listener.name} has port {ssh_port}, where SSH listens",
                expected="another port",
                next_step="Change the row; Gatepost would lock itself out.",
            )
    if chosen.certificate.source == "files":
        certificates.check(chosen.certificate, chosen.hostname)
    _check_ssh_sources(chosen)


def _check_ssh_sources(chosen: Settings) -> None:
    """Refuse ssh_sources that shut out this computer, as far as its own address can be known."""
    if chosen.hosts_file.exists():
        address = inventory.read(chosen).servers[0].address
    elif chosen.existing is not None and chosen.cloud == "existing":
        address = verification.resolve(chosen.existing.address)[0]
    else:
        from gatepost.lab.network import RANGE  # where the network, and our address on it, will be

        _require_source(chosen, RANGE)
        return
    own = own_address_towards(address)
    if own is None:
        return
    source, target = ipaddress.ip_network(own), ipaddress.ip_address(address)
    if not source.is_private or target.is_private:  # otherwise a NAT in between shows the server another address
        _require_source(chosen, source)


def own_address_towards(address: str) -> str | None:
    """Return the source address that this computer would use towards another, or None without a route."""
    import socket

    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:  # connecting a datagram socket sends nothing
        try:
            probe.connect((address, 22))
        except OSError:
            return None
        return str(probe.getsockname()[0])


def _require_source(chosen: Settings, source: ipaddress.IPv4Network | ipaddress.IPv6Network) -> None:
    networks = [ipaddress.ip_network(network) for network in chosen.ssh_sources]
    if not any(n.version == source.version and source.subnet_of(n) for n in networks):  # type: ignore[arg-type] # same version
        raise GatepostError(
            f"{chosen.directory / settings.FILE_NAME}: ssh_sources {', '.join(chosen.ssh_sources)} shuts out {source}",
            expected="the address from which this computer reaches the server, or SSH would be shut to Gatepost",
            next_step=f"Add {source} to ssh_sources.",
        )


def build(run: Run) -> tuple[tuple[inventory.Server, ...], dict[str, list[str]]]:
    """Have Terraform make the server, or find the existing one; return servers and the lab's vantage addresses."""
    if run.root is None:
        with run.progress.stage("host key") as stage:
            server = existing.server_of(run.settings)
            stage.result = f"{server.address}, {existing.fingerprint(server.ssh_host_key)}"
        return (server,), {}
    with run.progress.stage("terraform") as stage:
        run.root.write_variables(variables(run))
        run.progress.log(f"By hand: {run.root.by_hand()}")
        run.root.init()
        outcome = run.root.apply(run.progress.detail)
        outputs = run.root.outputs()
        stage.result = outcome.summary()
        return inventory.servers_of(run.settings, outputs), outputs.get("vantage") or {}


def variables(run: Run) -> dict[str, object]:
    """Return the Terraform variables that settings and listener table mean."""
    chosen = run.settings
    assert run.root is not None
    return {
        # Unique among the labs of this computer, and kept when the directory moves.
        "name": run.root.name or f"gatepost-{hashlib.sha256(os.fsencode(chosen.directory)).hexdigest()[:6]}",
        "hostname": chosen.hostname,
        "domains": list(chosen.domains),
        "outside_domain": chosen.outside_domain,
        "listeners_file": str(run.table.path),
        "ssh_public_key": credentials.ssh_public_key(chosen),
        "ssh_sources": list(chosen.ssh_sources),
        "release": chosen.local.release,
        "image_max_age_days": chosen.local.image_max_age_days,
    }


def wait_for_ssh(run: Run, servers: tuple[inventory.Server, ...]) -> None:
    """Log in to every server, and see that sudo asks for no password."""
    with run.progress.stage("ssh") as stage:
        for server in servers:
            command = inventory.ssh_command(run.settings, server)
            command[1:1] = ["-o", "BatchMode=yes", "-o", "ConnectTimeout=10", "-o", "LogLevel=ERROR"]
            remote = "id -u" if server.ssh_user == "root" else "sudo -n id -u"
            deadline = time.monotonic() + SSH_SECONDS
            while True:
                run.progress.detail(f"{server.ssh_user}@{server.address} port {server.ssh_port}")
                done = subprocess.run(
                    [*command, remote], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
                )
                if done.returncode == 0 and done.stdout.strip() == "0":
                    break
                said = done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}"
                run.progress.log(said)
                if "verification failed" in said or done.returncode != 255 or time.monotonic() > deadline:
                    raise _ssh_failure(server, said, command)
                time.sleep(0.5)
        stage.result = ", ".join(f"{server.ssh_user}@{server.address}" for server in servers)


def _ssh_failure(server: inventory.Server, said: str, command: list[str]) -> GatepostError:
    where = f"SSH to {server.ssh_user}@{server.address} port {server.ssh_port}: {said}"
    if "verification failed" in said or "IDENTIFICATION" in said:
        step = "The server shows another host key than the one it was built with. Find out why before going on."
    elif "Permission denied" in said:
        step = "Check the user and the key file; the server's /var/log/auth.log or journal says more."
    elif "sudo" in said or "password is required" in said:
        step = f"Let {server.ssh_user} use sudo without a password, or log in as root."
    else:
        step = "Check that the server runs, and ssh_sources and firewalls in between."
    import shlex

    return GatepostError(
        where,
        expected="a login with root rights",
        next_step=f"{step}\n  By hand: {shlex.join(command)}",
        exit_code=ExitCode.INCONCLUSIVE,
    )


def configure(run: Run, *, check: bool = False) -> None:
    """Run the roles."""
    with run.progress.stage("configure") as stage:
        outcome = ansible.run(run.settings, PLAYBOOK, run.progress, listeners_file=run.listeners_file, check=check)
        word = "would change" if check else "changed"
        stage.result = f"{outcome.tasks} tasks, {outcome.changed or 'nothing'} {word}"
    if check:
        for change in outcome.changes:
            run.progress.note(f"  would change: {change}")


def verify(run: Run) -> Report:
    """Judge the server from outside and keep the report."""
    with run.progress.stage("verify") as stage:
        target = verification.target_of(run.settings, inventory.read(run.settings), run.table)
        report = verification.judge(target, progress=lambda done, of: run.progress.detail(f"{done} of {of} probes"))
        verification.keep(report, run.settings.reports)
        failed = len(report.of(Verdict.FAIL))
        unclear = len(report.of(Verdict.INCONCLUSIVE))
        stage.result = f"{len(report.of(Verdict.PASS))} passed, {failed} failed, {unclear} inconclusive"
        stage.passed = report.exit_code is ExitCode.PASSED
    if report.interrupted:
        raise KeyboardInterrupt
    return report


def deploy(run: Run) -> Report:
    """Run the whole pipeline."""
    hashes = preflight(run)
    servers, vantage = build(run)
    inventory.write(run.settings, servers, hashes, listeners_file=run.listeners_file, vantage=vantage)
    wait_for_ssh(run, servers)
    configure(run)
    return verify(run)


def converge(run: Run) -> None:
    """Configure again the servers that stand; settings may have changed meanwhile."""
    with run.progress.stage("preflight"):
        _check(run)
        toolchain.require((toolchain.SSH,), run.progress.note)
        credentials.make_probe_passwords(run.settings)
        hashes = credentials.password_hashes(run.settings)
        standing = inventory.read(run.settings)
    inventory.write(run.settings, standing.servers, hashes, listeners_file=run.listeners_file, vantage=standing.vantage)
    wait_for_ssh(run, standing.servers)
    configure(run)


def plan(run: Run) -> None:
    """Say what deploy would change, in Terraform's part and, where a server stands, in Ansible's."""
    preflight(run)
    rebuilt = False
    if run.root is not None:
        with run.progress.stage("terraform") as stage:
            run.root.write_variables(variables(run))
            run.root.init()
            outcome = run.root.plan(run.progress.detail)
            stage.result = outcome.summary(planned=True)
            rebuilt = any(action.split()[0] in ("create", "replace", "delete") for action in outcome.actions)
        for action in outcome.actions:
            run.progress.note(f"  would {action}")
        run.progress.note(f"By hand: {run.root.by_hand()}")
    if run.settings.hosts_file.exists() and not rebuilt:
        configure(run, check=True)
    else:
        run.progress.note("The server is not there yet, so there is nothing to compare its configuration with.")


def destroy(run: Run) -> None:
    """Remove what Terraform built. Settings and secrets stay."""
    if run.settings.cloud == "existing":
        raise GatepostError(
            "cloud is existing: this server was not built by Gatepost",
            expected="a server that Terraform built",
            next_step="Remove it where you got it from.",
        )
    with run.progress.stage("destroy") as stage:
        if os.geteuid() != 0:
            from gatepost.lab import host

            host.check()
        run.root = terraform.Root(run.settings, terraform.find(run.progress.note), run.progress.log)
        if run.root.state.exists():
            run.root.write_variables(variables(run))
            run.root.init()
            stage.result = run.root.destroy(run.progress.detail).summary()
        else:
            stage.result = "nothing stands"
        for path in (run.settings.hosts_file, run.settings.known_hosts):
            path.unlink(missing_ok=True)
