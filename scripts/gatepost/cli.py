"""The command line. Everything heavy is imported by the command that needs it, so that --help is quick."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from gatepost import __version__
from gatepost.errors import GatepostError
from gatepost.verify.model import ExitCode

if TYPE_CHECKING:
    from gatepost.verification import Subject
    from gatepost.verify.model import Report

EXIT_CODES = """\b
Exit codes:
  0  done; where the server was judged, it meets every requirement (MUST) that applies
  1  the server was judged, and fails a requirement
  2  wrong use: arguments, settings, listener table, or this computer
  3  could not be judged: a stage failed, a check was inconclusive, or the run was cut short"""

WHICH_EXIT_CODES = """\b
Exit codes:
  0  a port can be recommended
  1  none works for a mail program from here
  2  wrong use: arguments, or listener table
  3  could not be judged: this computer has no way to the server, or the server limits us just now"""

F = TypeVar("F", bound=Callable[..., Any])


class _Group(click.Group):
    """Turns what goes wrong into text and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        # Both mean the same as Ctrl-C: end the children in good order.
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, _interrupt)
        try:
            return super().invoke(ctx)
        except GatepostError as error:
            click.echo(f"{click.style('Error:', fg='red')} {error}", err=True)
            ctx.exit(error.exit_code)
        except KeyboardInterrupt:
            click.echo("Stopped. Running the same again goes on from here.", err=True)
            ctx.exit(ExitCode.INCONCLUSIVE)


def _interrupt(_number: int, _frame: object) -> None:
    raise KeyboardInterrupt


@click.group(
    cls=_Group, epilog=EXIT_CODES, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110}
)
@click.version_option(__version__, prog_name="gatepost")
def main() -> None:
    """Stand up a mail server and prove that its doors are right.

    An environment is a directory with settings.yml; --inventory names it (default: inventory).
    """


def _environment(function: F) -> F:
    for option in (
        click.option(
            "--inventory",
            type=click.Path(path_type=Path),
            default=Path("inventory"),
            show_default=True,
            metavar="DIR",
            help="The environment.",
        ),
        click.option("--listeners", type=click.Path(path_type=Path), metavar="FILE", help="Another listener table."),
        click.option("-v", "--verbose", is_flag=True, help="Show all output."),
    ):
        function = option(function)
    return function


@main.command(epilog=EXIT_CODES)
@_environment
def deploy(inventory: Path, listeners: Path | None, verbose: bool) -> None:
    """Build, configure and verify the server. Makes the environment from inventory.example/ when there is none."""
    from gatepost import deploy as pipeline
    from gatepost import info as information
    from gatepost.verify.report import table

    with pipeline.begin(inventory, listeners, "deploy", verbose=verbose, create=True) as run:
        report = pipeline.deploy(run)
        if report.exit_code is not ExitCode.PASSED:
            table.show(report)
        make = "".join(
            f" {name}={value}"
            for name, value in (("INVENTORY", inventory), ("LISTENERS", listeners))
            if value not in (None, Path("inventory"))
        )
        click.echo(information.summary(run.settings, run.table, report, make))
    sys.exit(report.exit_code)


@main.command(epilog=EXIT_CODES)
@_environment
def plan(inventory: Path, listeners: Path | None, verbose: bool) -> None:
    """Show what deploy would change, and change nothing."""
    from gatepost import deploy as pipeline

    with pipeline.begin(inventory, listeners, "plan", verbose=verbose, create=True) as run:
        pipeline.plan(run)


@main.command(epilog=EXIT_CODES)
@_environment
def converge(inventory: Path, listeners: Path | None, verbose: bool) -> None:
    """Configure the servers that stand again: Ansible only."""
    from gatepost import deploy as pipeline

    with pipeline.begin(inventory, listeners, "converge", verbose=verbose) as run:
        pipeline.converge(run)


@main.command(epilog=EXIT_CODES)
@_environment
def destroy(inventory: Path, listeners: Path | None, verbose: bool) -> None:
    """Remove what deploy built. Settings and secrets stay."""
    from gatepost import deploy as pipeline

    with pipeline.begin(inventory, listeners, "destroy", verbose=verbose) as run:
        pipeline.destroy(run)


@main.command(epilog=EXIT_CODES)
@click.argument("hosts", metavar="[HOST]...", nargs=-1)
@_environment
@click.option("--hostname", metavar="NAME", help="The server's name in its certificate. Default: HOST.")
@click.option("--domain", "domains", multiple=True, help="A domain whose mail is delivered there; may be repeated.")
@click.option("--outside-domain", help="A domain that exists and is not delivered there.")
@click.option("--account", metavar="ADDRESS", help="A mailbox to log in with.")
@click.option(
    "--password-file", type=click.Path(path_type=Path), help="Its password, on the only line of a file of mode 0600."
)
@click.option("--second-account", metavar="ADDRESS", help="Another mailbox.")
@click.option("--second-password-file", type=click.Path(path_type=Path), help="Its password.")
@click.option(
    "--ca-file", type=click.Path(path_type=Path, exists=True), help="The CA to trust, in PEM. Default: the system's."
)
@click.option(
    "--source-address",
    "source_addresses",
    multiple=True,
    help="Connect from this address of this computer; one for each of IPv4 and IPv6. A second one is for --limits.",
)
@click.option(
    "--via",
    multiple=True,
    metavar="URL",
    help="A host to log in to, as ssh://[USER@]HOST[:PORT]: the server, to read test mails back and remove them, or "
    "any other, as a second vantage point; may be repeated.",
)
@click.option(
    "--sink",
    "sinks",
    multiple=True,
    metavar="ADDRESS",
    help="An address of this computer to which the outside domain's MX leads: mail for it is taken on port 25.",
)
@click.option("--slow", is_flag=True, help="Also what takes long or costs many failed logins.")
@click.option("--limits", is_flag=True, help="Also run into the server's limits, last of all.")
@click.option("--only", multiple=True, metavar="ID", help="Judge these requirements only.")
@click.option("--skip", multiple=True, metavar="ID", help="Leave these out.")
@click.option(
    "--allow-inconclusive",
    "allowed",
    multiple=True,
    metavar="ID",
    help="Exit 0 though this could not be judged; may be repeated.",
)
@click.option(
    "--compare", type=click.Path(path_type=Path), metavar="OLD.json", help="Say what changed since this report."
)
@click.option("--json", "as_json", is_flag=True, help="Write the report to stdout as JSON, and nothing else there.")
@click.option("--html", type=click.Path(path_type=Path), metavar="FILE", help="Write the report as an HTML page.")
@click.option("--junit", type=click.Path(path_type=Path), metavar="FILE", help="… as JUnit XML.")
@click.option("--prometheus", type=click.Path(path_type=Path), metavar="FILE", help="… as Prometheus text.")
@click.option("--list", "list_ids", is_flag=True, help="List the requirements and exit.")
@click.option("--explain", metavar="ID", help="Explain a requirement and exit: what is sent, how to mend it.")
def verify(
    hosts: tuple[str, ...],
    inventory: Path,
    listeners: Path | None,
    verbose: bool,
    only: tuple[str, ...],
    skip: tuple[str, ...],
    allowed: tuple[str, ...],
    compare: Path | None,
    as_json: bool,
    html: Path | None,
    junit: Path | None,
    prometheus: Path | None,
    list_ids: bool,
    explain: str | None,
    **given: Any,
) -> None:
    """Judge mail servers from outside, on every port of the listener table.

    Without HOST: the servers of the environment. With HOST, a name or an address: any server, with what the options
    say. Several are judged side by side; FILE is then a directory, with a file for each of them.
    """
    from gatepost import verification
    from gatepost.verify import registry

    if list_ids:
        _list_requirements()
        return
    if explain is not None:
        _explain(explain)
        return
    registry.check_ids((*only, *skip, *allowed))
    subjects = _hosts(tuple(dict.fromkeys(hosts)), listeners, given) if hosts else _servers(inventory, listeners, given)
    before = verification.Before(compare, subjects)
    files = verification.Files(subjects, {"html": html, "junit": junit, "prometheus": prometheus})
    reports = _judge(subjects, only, skip, allowed)
    shown = list(zip(subjects, reports, strict=True))
    if as_json:
        click.echo(verification.document(reports), nl=False)
    else:
        from gatepost.verify.report import table

        for subject, report in shown:
            table.show(report, before=before.of(subject))
    for subject, report in shown:
        if subject.kept and not only and not skip and not report.interrupted:
            page = verification.keep(report, subject.kept, before.of(subject))
            if not as_json:
                click.echo(f"Report: {page}")
        files.write(subject, report, before.of(subject))
    if len(shown) > 1 and not as_json:
        width = max(len(subject.name) for subject in subjects)
        click.echo("\n".join(f"{s.name:<{width}}  {verification.outcome(r)}" for s, r in shown))
    sys.exit(verification.worst(reports))


def _list_requirements() -> None:
    from gatepost.verify import registry

    rows: dict[str, registry.Requirement] = {}
    for row in registry.requirements():
        rows.setdefault(row.id, row)  # an id may have a row for each kind of listener
    for row in rows.values():
        click.echo(f"{row.id:<14} {row.severity.value:<7} {row.title}")


def _explain(identifier: str) -> None:
    from gatepost.verify import registry
    from gatepost.verify.report import explain

    registry.check_ids((identifier,))
    for row in registry.requirements():
        if row.id == identifier:
            explain.show(row)


def _warn(text: str) -> None:
    click.echo(f"{click.style('Warning:', fg='yellow')} {text}", err=True)


def _servers(directory: Path, listeners: Path | None, given: dict[str, Any]) -> tuple[Subject, ...]:
    """Return the environment's servers as subjects; refuse what its settings say already."""
    from gatepost import settings, verification

    fixed = {
        "--hostname": "hostname",
        "--domain": "domains",
        "--outside-domain": "outside_domain",
        "--account": "account",
        "--password-file": "password_file",
        "--second-account": "second_account",
        "--second-password-file": "second_password_file",
        "--ca-file": "ca_file",
    }
    surplus = [option for option, name in fixed.items() if given[name]]
    if surplus:
        raise click.UsageError(f"{', '.join(surplus)}: only with HOST; the environment's settings say it otherwise.")
    return verification.servers(settings.load(directory), listeners, verification.vantage(given))


def _hosts(hosts: tuple[str, ...], listeners: Path | None, given: dict[str, Any]) -> tuple[Subject, ...]:
    from gatepost import verification

    common = {
        **verification.vantage(given),
        "domains": given["domains"],
        "outside_domain": given["outside_domain"],
        "ca_file": given["ca_file"],
        "accounts": tuple(
            account
            for option, address, file in (
                ("--account", given["account"], given["password_file"]),
                ("--second-account", given["second_account"], given["second_password_file"]),
            )
            if (account := verification.account_from(address, file, option, _warn)) is not None
        ),
    }
    return tuple(verification.host(name, listeners, given["hostname"], common) for name in hosts)


def _judge(
    subjects: tuple[Subject, ...], only: tuple[str, ...], skip: tuple[str, ...], allowed: tuple[str, ...]
) -> tuple[Report, ...]:
    from gatepost import verification

    targets = tuple(subject.target for subject in subjects)
    how: dict[str, Any] = {"only": only, "skip": skip, "allowed": allowed}
    if not sys.stderr.isatty():
        return verification.judge_all(targets, **how)
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    what = "probes" if len(targets) == 1 else "servers"
    # Without a thread that refreshes: several servers are judged in forked processes, and threads do not fork well.
    with Live(console=Console(stderr=True), auto_refresh=False, transient=True) as live:

        def show(done: int, of: int) -> None:
            live.update(Text(f"verifying: {done} of {of} {what}", "dim"), refresh=True)

        return verification.judge_all(targets, progress=show, **how)


@main.command("which-port", epilog=WHICH_EXIT_CODES)
@click.argument("host")
@click.option("--listeners", type=click.Path(path_type=Path), metavar="FILE", help="Another listener table.")
@click.option("--hostname", metavar="NAME", help="The server's name in its certificate. Default: HOST.")
@click.option(
    "--ca-file", type=click.Path(path_type=Path, exists=True), help="The CA to trust, in PEM. Default: the system's."
)
@click.option("--via", multiple=True, metavar="URL", help="A second place to look from, as ssh://[USER@]HOST[:PORT].")
@click.option("--json", "as_json", is_flag=True, help="Write the answer to stdout as JSON.")
def which_port(
    host: str, listeners: Path | None, hostname: str | None, ca_file: Path | None, via: tuple[str, ...], as_json: bool
) -> None:
    """Say which port a mail program should use from here, and what to type into it.

    Tries every port of the listener table as a mail program does, up to the login. Sends no password and no mail.
    """
    from gatepost import verification
    from gatepost.verify import which_port as ports

    common = {"ca_file": ca_file, "via": tuple(verification.login_at(url) for url in via)}
    advice = ports.advise(verification.host(host, listeners, hostname, common).target)
    if as_json:
        click.echo(ports.to_json(advice), nl=False)
    else:
        ports.show(advice)
    sys.exit(advice.exit_code)


@main.command()
@_environment
@click.argument("pytest_arguments", nargs=-1)
def check(inventory: Path, listeners: Path | None, verbose: bool, pytest_arguments: tuple[str, ...]) -> None:
    """Ask the servers themselves (tests/testinfra). Changes nothing there. Exit code: pytest's."""
    from gatepost import environment, settings, verification
    from gatepost import inventory as hosts

    loaded = settings.load(inventory)
    table = verification.table_of(loaded.directory, listeners, hosts.read(loaded))
    tests = environment.CHECKOUT / "tests/testinfra"
    command = [
        *(sys.executable, "-m", "pytest", str(tests), f"--confcutdir={tests}", "-p", "no:cacheprovider"),
        f"--hosts=ansible://{hosts.GROUP}",
        f"--ansible-inventory={loaded.hosts_file}",
        *pytest_arguments,
    ]
    # testinfra looks for ansible-inventory on PATH.
    path = f"{Path(sys.executable).parent}:{os.environ.get('PATH', os.defpath)}"
    config = str(environment.CHECKOUT / "ansible.cfg")
    env = {**os.environ, "LISTENERS": str(table.path), "ANSIBLE_CONFIG": config, "PATH": path}
    sys.exit(subprocess.run(command, env=env, check=False).returncode)


@main.command(context_settings={"ignore_unknown_options": True})
@_environment
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def ssh(inventory: Path, listeners: Path | None, verbose: bool, command: tuple[str, ...]) -> None:
    """Log in to the server, or run COMMAND there."""
    from gatepost import inventory as hosts
    from gatepost import settings

    loaded = settings.load(inventory)
    argv = [*hosts.ssh_command(loaded, hosts.read(loaded).servers[0]), *command]
    os.execvp(argv[0], argv)


@main.command()
@_environment
@click.option("--json", "as_json", is_flag=True, help="For scripts: schemas/info.json describes it.")
def info(inventory: Path, listeners: Path | None, verbose: bool, as_json: bool) -> None:
    """Show what stands and how to reach it."""
    import json

    from gatepost import info as information
    from gatepost import settings

    document = information.gather(settings.load(inventory), listeners)
    click.echo(json.dumps(document, indent=2) if as_json else information.for_people(document))


if __name__ == "__main__":
    main()
