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
    from gatepost.verify.model import Report, Target

EXIT_CODES = """\b
Exit codes:
  0  done; where the server was judged, it meets every requirement (MUST) that applies
  1  the server was judged, and fails a requirement
  2  wrong use: arguments, settings, listener table, or this computer
  3  could not be judged: a stage failed, a check was inconclusive, or the run was cut short"""

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
@click.argument("host", required=False)
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
    help="Connect from this address of this computer; one for each of IPv4 and IPv6.",
)
@click.option("--json", "as_json", is_flag=True, help="Write the report to stdout as JSON, and nothing else there.")
@click.option("--html", type=click.Path(path_type=Path), help="Write the report as an HTML page.")
@click.option("--only", multiple=True, metavar="ID", help="Judge these requirements only.")
@click.option("--skip", multiple=True, metavar="ID", help="Leave these out.")
@click.option("--list", "list_ids", is_flag=True, help="List the requirements and exit.")
def verify(
    host: str | None,
    inventory: Path,
    listeners: Path | None,
    verbose: bool,
    hostname: str | None,
    domains: tuple[str, ...],
    outside_domain: str | None,
    account: str | None,
    password_file: Path | None,
    second_account: str | None,
    second_password_file: Path | None,
    ca_file: Path | None,
    source_addresses: tuple[str, ...],
    as_json: bool,
    html: Path | None,
    only: tuple[str, ...],
    skip: tuple[str, ...],
    list_ids: bool,
) -> None:
    """Judge a mail server from outside, on every port of the listener table.

    Without HOST: the server of the environment. With HOST, a name or an address: any server, with what the options say.
    """
    from gatepost import verification

    if list_ids:
        _list_requirements()
        return
    sources = tuple(verification.check_source(address) for address in source_addresses)
    keep: Path | None = None
    if host is None:
        given = {
            "--hostname": hostname,
            "--domain": domains,
            "--outside-domain": outside_domain,
            "--account": account,
            "--second-account": second_account,
            "--ca-file": ca_file,
        }
        surplus = [name for name, value in given.items() if value]
        if surplus:
            raise click.UsageError(
                f"{', '.join(surplus)}: only with HOST; the environment's settings say it otherwise."
            )
        target, keep = _environments_target(inventory, listeners, sources)
    else:
        target = _hosts_target(
            host,
            listeners,
            hostname=hostname,
            domains=domains,
            outside_domain=outside_domain,
            ca_file=ca_file,
            source_addresses=sources,
            accounts=(
                verification.account_from(account, password_file, "--account"),
                verification.account_from(second_account, second_password_file, "--second-account"),
            ),
        )
    report = _judge(target, only, skip)
    if keep is not None and not only and not skip and not report.interrupted:
        verification.keep(report, keep)
    if html is not None:
        verification.write_html(report, html)
    if as_json:
        from gatepost.verify.report import as_json as json_report

        click.echo(json_report.to_json(report), nl=False)
    else:
        from gatepost.verify.report import table

        table.show(report)
        if keep is not None and not only and not skip and not report.interrupted:
            click.echo(f"Report: {keep / 'last.html'}")
    sys.exit(report.exit_code)


def _list_requirements() -> None:
    from gatepost.verify import registry

    for row in registry.requirements():
        click.echo(f"{row.id:<14} {row.severity.value:<7} {row.title}")


def _environments_target(directory: Path, listeners: Path | None, sources: tuple[str, ...]) -> tuple[Target, Path]:
    import dataclasses

    from gatepost import inventory, settings, verification

    loaded = settings.load(directory)
    standing = inventory.read(loaded)
    target = verification.target_of(loaded, standing, verification.table_of(loaded.directory, listeners, standing))
    return dataclasses.replace(target, source_addresses=sources or target.source_addresses), loaded.reports


def _hosts_target(
    host: str, listeners_file: Path | None, *, hostname: str | None, accounts: tuple[Any, ...], **rest: Any
) -> Target:
    import ipaddress

    from gatepost import listeners, verification
    from gatepost.verify.model import Target

    table = listeners.load(listeners_file)
    if hostname is None:
        try:
            ipaddress.ip_address(host)
        except ValueError:
            hostname = host
        else:
            raise click.UsageError(f"HOST is the address {host}: say with --hostname which name its certificate has.")
    return Target(
        hostname=hostname,
        addresses=verification.resolve(host),
        listeners=table.listeners,
        listeners_file=table.path,
        listeners_digest=table.digest,
        accounts=tuple(account for account in accounts if account is not None),
        **rest,
    )


def _judge(target: Target, only: tuple[str, ...], skip: tuple[str, ...]) -> Report:
    from gatepost import verification

    if not sys.stderr.isatty():
        return verification.judge(target, only=only, skip=skip)
    from rich.console import Console

    with Console(stderr=True).status("verifying") as status:
        return verification.judge(
            target, only=only, skip=skip, progress=lambda done, of: status.update(f"verifying: {done} of {of} probes")
        )


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
