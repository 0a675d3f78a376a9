"""The command line: help, exit codes, errors as three lines, and what stays out of stdout."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from gatepost import cli

PYTHON = Path(sys.executable)
TABLE = "postfix_listeners: [{{name: relay, port: {}, purpose: relay, tls: starttls, sources: ['0.0.0.0/0']}}]"


def gatepost(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    command = [PYTHON, "-m", "gatepost.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload,no-any-return] # options of run


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    (tmp_path / "settings.yml").write_text("{}")
    return tmp_path


@pytest.mark.parametrize("command", ["deploy", "plan", "converge", "destroy", "verify"])
def test_help_names_the_exit_codes(command: str) -> None:
    for arguments in (["--help"], [command, "--help"]):
        result = CliRunner().invoke(cli.main, arguments)
        assert result.exit_code == 0
        for code in range(4):
            assert f"\n    {code}  " in result.output


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from click.testing import CliRunner; from gatepost import cli; "
        "assert CliRunner().invoke(cli.main, ['verify', '--help']).exit_code == 0; print(*sys.modules)"
    )
    loaded = set(subprocess.run([PYTHON, "-c", code], capture_output=True, text=True, check=True).stdout.split())
    assert "click" in loaded
    assert not loaded & {"jsonschema", "rich", "cryptography", "ansible_runner", "jinja2", "tf", "dns", "ssl"}


def test_an_error_is_three_lines_and_no_traceback(environment: Path) -> None:
    (environment / "settings.yml").write_text("hostname: mx_1.example.test")
    done = gatepost("plan", "--inventory", str(environment))
    assert done.returncode == 2
    lines = done.stderr.splitlines()
    assert lines[0].startswith(f"Error: {environment}/settings.yml:1: hostname: found 'mx_1.example.test'")
    assert lines[1].startswith("Expected: ") and lines[2].startswith("Next: ")
    assert len(lines) == 3 and done.stdout == ""


@pytest.mark.parametrize("command", ["converge", "destroy", "verify", "check", "ssh", "info"])
def test_without_an_environment_nothing_is_made(command: str, tmp_path: Path) -> None:
    done = gatepost(command, "--inventory", "none", cwd=tmp_path)
    assert done.returncode == 2
    assert "make deploy" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["converge", "verify", "check", "ssh"])
def test_before_a_deploy_the_way_there_is_named(command: str, environment: Path) -> None:
    done = gatepost(command, "--inventory", str(environment))
    assert done.returncode == 2
    assert "nothing stands in this environment" in done.stderr and "Next: make deploy" in done.stderr


def test_a_server_that_we_did_not_build_is_not_destroyed(environment: Path) -> None:
    (environment / "settings.yml").write_text("cloud: existing\nexisting: {address: 192.0.2.1}")
    done = gatepost("destroy", "--inventory", str(environment))
    assert done.returncode == 2 and "was not built by Gatepost" in done.stderr


def test_a_listener_on_the_ssh_port_is_refused_before_anything_is_done(environment: Path) -> None:
    table = environment / "listeners.yml"
    table.write_text(TABLE.format(22))
    done = gatepost("deploy", "--inventory", str(environment))  # the environment's own table is found by itself
    assert done.returncode == 2 and "relay has port 22, where SSH listens" in done.stderr
    assert not (environment / "terraform").exists()


def test_ssh_sources_that_shut_this_computer_out_are_refused(environment: Path) -> None:
    (environment / "settings.yml").write_text("ssh_sources: [192.0.2.0/24, '::/0']")
    done = gatepost("deploy", "--inventory", str(environment))
    assert done.returncode == 2
    assert "shuts out 198.18.0.0/15" in done.stderr and "Add 198.18.0.0/15 to ssh_sources" in done.stderr
    (environment / "settings.yml").write_text("cloud: existing\nexisting: {address: 127.0.0.1}\nssh_sources: ['::/0']")
    assert "shuts out 127.0.0.1/32" in gatepost("deploy", "--inventory", str(environment)).stderr


@pytest.mark.skipif(os.geteuid() == 0, reason="is about not being root")
def test_the_lab_without_root_is_one_clear_error(environment: Path) -> None:
    done = gatepost("deploy", "--inventory", str(environment))
    assert done.returncode == 2 and "root" in done.stderr and "cloud: existing" in done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
@pytest.mark.skipif(
    any(not parent.stat().st_mode & 0o001 for parent in Path(__file__).resolve().parents),
    reason="this checkout lies where other users cannot read it",
)
def test_the_lab_as_another_user_is_one_clear_error(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from gatepost import cli, deploy, info; import rich.console\n"
        "import gatepost.lab.host, gatepost.lab.network, gatepost.verify.report.table, yaml, jsonschema, rich.live\n"
        "d = Path(sys.argv[1]); os.setgid(65534); os.setuid(65534); (d / 'settings.yml').write_text('{}')\n"
        "os.environ['HOME'] = str(d); cli.main(['deploy', '--inventory', str(d)])"
    )
    work = Path("/tmp") / tmp_path.name  # pytest's own directories are closed to other users
    work.mkdir()
    work.chmod(0o777)  # whatever the umask
    try:
        done = subprocess.run([PYTHON, "-c", code, work], capture_output=True, text=True, check=False, cwd="/")
    finally:
        subprocess.run(["rm", "-rf", work], check=True)
    assert done.returncode == 2, done.stderr
    assert "root" in done.stderr and "cloud: existing" in done.stderr
    assert "Traceback" not in done.stderr


def test_options_of_a_host_are_refused_for_an_environment(environment: Path) -> None:
    done = gatepost("verify", "--inventory", str(environment), "--domain", "x.test")
    assert done.returncode == 2 and "--domain: only with HOST" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (["no.such.host.invalid"], "no address"),
        (["192.0.2.1"], "--hostname"),
        (["127.0.0.1", "--hostname", "x.test", "--account", "a@x.test"], "--password-file is missing"),
        (["127.0.0.1", "--hostname", "x.test", "--password-file", "/x"], "--account is missing"),
        (["127.0.0.1", "--hostname", "x.test", "--listeners", "/nonexistent"], "cannot read the listener table"),
        (["127.0.0.1", "--hostname", "x.test", "--only", "GEN-XXX-99"], "no such requirement: GEN-XXX-99"),
        (["127.0.0.1", "--hostname", "x.test", "--source-address", "192.0.2.1"], "192.0.2.1"),
        (["127.0.0.1", "--hostname", "x.test", "--ca-file", "/nonexistent"], "/nonexistent"),
    ],
)
def test_wrong_use_of_verify_is_exit_2(arguments: list[str], found: str) -> None:
    done = gatepost("verify", *arguments)
    assert done.returncode == 2 and done.stdout == ""
    assert found in done.stderr and "Traceback" not in done.stderr


def test_verify_writes_json_to_stdout_alone_and_the_page_where_asked(tmp_path: Path) -> None:
    """Against a port where nothing listens: a requirement fails, so exit 1."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound and not listening: refused
        table = tmp_path / "listeners.yml"
        table.write_text(TABLE.format(unused.getsockname()[1]))
        page = tmp_path / "page.html"
        done = gatepost(
            *("verify", "127.0.0.1", "--hostname", "mx.example.test", "--listeners", str(table), "--json"),
            *("--html", str(page)),
        )
    document = json.loads(done.stdout)
    assert done.returncode == document["exit_code"] != 0
    assert page.read_text().startswith("<!DOCTYPE html>") or page.read_text().startswith("<!doctype html>")


def test_verify_lists_its_requirements() -> None:
    lines = gatepost("verify", "--list").stdout.splitlines()
    assert any(line.startswith("MX-RLY-01 ") for line in lines)
    assert len({line.split()[0] for line in lines}) == len(lines)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_stopping_a_verification_is_exit_3(number: signal.Signals, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts by backlog, never greets
        table = tmp_path / "listeners.yml"
        table.write_text(TABLE.format(silent.getsockname()[1]))
        command = [PYTHON, "-m", "gatepost.cli", "verify", "127.0.0.1", "--hostname", "x.test", "--listeners", table]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            connection, _peer = silent.accept()
            with connection:
                time.sleep(0.3)  # into the greeting's deadline
                process.send_signal(number)
                _out, error = process.communicate(timeout=60)
    assert process.returncode == 3, error
    assert "Traceback" not in error
