"""The command line: help, exit codes, errors as three lines, and what stays out of stdout."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
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


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
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
        (["127.0.0.1", "--hostname", "x.test", "--only", "MX-RYL-01"], "perhaps MX-RLY-01"),
        (["127.0.0.1", "--hostname", "x.test", "--skip", "mx-rly-01"], "perhaps MX-RLY-01"),
        (["127.0.0.1", "--hostname", "x.test", "--allow-inconclusive", "VER-1"], "perhaps VER-01"),
        (["--explain", "CRT-1"], "perhaps CRT-01"),
        (["127.0.0.1", "--hostname", "x.test", "--via", "http://x.test"], "--via http://x.test: not a login"),
        (["127.0.0.1", "--hostname", "x.test", "--via", "ssh://-oProxyCommand=x"], "not a login"),
        (["127.0.0.1", "--hostname", "x.test", "--sink", "192.0.2.1"], "--sink 192.0.2.1: cannot listen"),
        (["127.0.0.1", "--hostname", "x.test", "--compare", "/nonexistent"], "--compare /nonexistent: No such file"),
        (["127.0.0.1", "--hostname", "x.test", "--compare", "/dev/null"], "/dev/null: not JSON"),
        (["127.0.0.1", "no.such.host.invalid", "--hostname", "x.test"], "no.such.host.invalid: no address"),
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


@pytest.fixture
def dead(tmp_path: Path) -> Iterator[tuple[str, ...]]:
    """Arguments that judge a port where nothing listens, by the ids whose judgement is quick."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound and not listening: refused
        table = tmp_path / "dead.yml"
        table.write_text(TABLE.format(unused.getsockname()[1]))
        yield "127.0.0.1", "--hostname", "mx.example.test", "--listeners", str(table)


def unwritable(directory: Path) -> dict[str, str]:
    """Paths at which no report can be written, by what is said of them."""
    (directory / "a-directory").mkdir()
    (directory / "a-file").touch()
    return {
        str(directory / "missing/report"): "No such file or directory",
        str(directory / "a-directory"): "Is a directory",
        str(directory / "a-file/report"): "Not a directory",
        "/dev/null": "neither a file nor a new name",
        "/proc/report": "No such file or directory",
    }


@pytest.mark.parametrize("option", ["--html", "--junit", "--prometheus"])
def test_a_report_path_that_cannot_be_written_is_told_before_anything_is_sent(option: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        table = tmp_path / "listeners.yml"
        table.write_text(TABLE.format(listening.getsockname()[1]))
        for path, why in unwritable(tmp_path).items():
            arguments = ["127.0.0.1", "--hostname", "x.test", "--listeners", str(table), option, path]
            result = CliRunner().invoke(cli.main, ["verify", *arguments])
            assert result.exit_code == 2 and f"{option} {path}: {why}" in result.output, result.output
        listening.settimeout(0.2)
        with pytest.raises(TimeoutError):
            listening.accept()
    assert Path("/dev/null").stat().st_rdev == os.makedev(1, 3)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_directory_without_permission_is_told_before_anything_is_sent(dead: tuple[str, ...]) -> None:
    from gatepost import verification
    from gatepost.errors import GatepostError

    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.setuid(65534)
            with pytest.raises(GatepostError, match="--html /root/x: Permission denied"):
                verification._writable(Path("/root/x"), "--html")
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_report_files_are_for_one_server_files_and_for_several_directories(
    dead: tuple[str, ...], tmp_path: Path
) -> None:
    forms = ("html", "junit", "prometheus")
    files = {form: tmp_path / form for form in forms}
    options = [word for form in forms for word in (f"--{form}", str(files[form]))]
    one = gatepost("verify", *dead, *options, "--only", "GEN-NET-01", "--json")
    assert one.returncode == 1 and one.stderr == "", one.stderr
    texts = {form: files[form].read_text() for form in forms}
    assert texts["html"].lower().startswith("<!doctype html>")
    assert "GEN-NET-01" in texts["junit"] and texts["junit"].startswith("<testsuites ")
    assert "gatepost_" in texts["prometheus"]
    assert {path.name for path in tmp_path.iterdir()} == {*forms, "dead.yml"}  # and nothing half-written
    for path in files.values():
        path.unlink()
    several = gatepost("verify", "127.0.0.2", "127.0.0.2", *dead, *options, "--only", "GEN-NET-01", "--json")
    assert several.returncode == 1 and several.stderr == "", several.stderr
    reports = json.loads(several.stdout)["reports"]
    assert [r["target"]["addresses"] for r in reports] == [["127.0.0.2"], ["127.0.0.1"]]
    assert {k: type(v) for k, v in reports[1].items()} == {k: type(v) for k, v in json.loads(one.stdout).items()}
    for form, ending in (("html", "html"), ("junit", "xml"), ("prometheus", "prom")):
        assert {p.name for p in files[form].iterdir()} == {f"127.0.0.1.{ending}", f"127.0.0.2.{ending}"}
    text = gatepost("verify", "127.0.0.2", *dead, "--only", "GEN-NET-01")
    assert text.returncode == 1
    assert [line.split(":")[0] for line in text.stdout.splitlines()[-2:]] == ["127.0.0.2  FAILED", "127.0.0.1  FAILED"]


def test_an_earlier_report_is_checked_before_the_run_and_of_the_same_server(
    dead: tuple[str, ...], tmp_path: Path
) -> None:
    old = tmp_path / "old.json"
    old.write_text(gatepost("verify", *dead, "--only", "GEN-NET-01", "--json").stdout)
    assert gatepost("verify", *dead, "--only", "GEN-NET-01", "--compare", str(old)).returncode == 1
    other = gatepost("verify", *("mail.other.test" if a == "mx.example.test" else a for a in dead), "--compare", old)
    assert other.returncode == 2 and "a report of mx.example.test, and none of mail.other.test" in other.stderr
    old.write_text(json.dumps({**json.loads(old.read_text()), "results": [{}]}))
    broken = gatepost("verify", *dead, "--compare", str(old))
    assert broken.returncode == 2 and "$.results[0]" in broken.stderr


def test_a_password_file_that_others_can_read_is_a_warning(dead: tuple[str, ...], tmp_path: Path) -> None:
    secret = tmp_path / "password"
    secret.write_text("Corr3ct-horse\n")
    secret.chmod(0o644)
    account = ("--account", "alice@example.test", "--password-file", str(secret))
    done = gatepost("verify", *dead, *account, "--only", "GEN-NET-01", "--json")
    assert done.returncode == 1 and json.loads(done.stdout)["target"]["accounts"]
    assert "Warning:" in done.stderr and f"chmod 600 {secret}" in done.stderr and "Corr3ct" not in done.stderr
    secret.chmod(0o600)
    assert gatepost("verify", *dead, *account, "--only", "GEN-NET-01").stderr == ""


def test_what_may_be_inconclusive_changes_the_exit_code(dead: tuple[str, ...]) -> None:
    assert gatepost("verify", *dead, "--only", "GEN-CMD-02").returncode == 3
    assert gatepost("verify", *dead, "--only", "GEN-CMD-02", "--allow-inconclusive", "GEN-CMD-02").returncode == 0
    assert gatepost("verify", *dead, "--only", "GEN-CMD-02", "--allow-inconclusive", "GEN-CMD-03").returncode == 3


def test_every_requirement_can_be_explained() -> None:
    from gatepost.verify import registry

    for row in registry.requirements():
        result = CliRunner().invoke(cli.main, ["verify", "--explain", row.id])
        said = " ".join(result.output.split())
        assert result.exit_code == 0
        for text in (row.id, row.title, row.expected, row.remedy, row.source, row.problem, row.risk):
            assert " ".join(text.split()) in said, f"{row.id}: {text}"
        assert "how it is seen" in said


def test_an_explanation_shows_what_is_sent_and_no_password() -> None:
    said = CliRunner().invoke(cli.main, ["verify", "--explain", "MX-RLY-01"]).output
    assert "MAIL FROM:<" in said and "RCPT TO:<" in said and "@remote.test>" in said
    assert "AUTH PLAIN …" in CliRunner().invoke(cli.main, ["verify", "--explain", "SUB-AUTH-06"]).output


def test_which_port_ends_as_it_says(dead: tuple[str, ...]) -> None:
    done = gatepost("which-port", *dead, "--json")
    assert done.returncode == 3 == json.loads(done.stdout)["exit_code"]  # the table has no port to submit to
    assert gatepost("which-port", "127.0.0.1").returncode == 2
    assert "no address" in gatepost("which-port", "no.such.host.invalid").stderr
    listing = CliRunner().invoke(cli.main, ["which-port", "--help"]).output
    assert all(f"\n    {code}  " in listing for code in range(4))


def test_verify_lists_its_requirements() -> None:
    lines = gatepost("verify", "--list").stdout.splitlines()
    assert any(line.startswith("MX-RLY-01 ") for line in lines)
    assert len({line.split()[0] for line in lines}) == len(lines)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_stopping_a_verification_is_exit_3(number: signal.Signals, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts by backlog, never greets
        table = tmp_path / "listeners.yml"
        table.write_text(TABLE.format(silent.getsockname()[1]))
        page = tmp_path / "page.html"
        command = [PYTHON, "-m", "gatepost.cli", "verify", "127.0.0.1", "--hostname", "x.test", "--listeners", table]
        command += ["--html", page]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            connection, _peer = silent.accept()
            with connection:
                time.sleep(0.3)  # into the greeting's deadline
                process.send_signal(number)
                out, error = process.communicate(timeout=60)
    assert process.returncode == 3, error
    assert "Traceback" not in error
    assert "INCONCLUSIVE" in out and "the run was cut short" in " ".join(out.split())
    assert "cut short" in page.read_text()
