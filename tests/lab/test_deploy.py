"""The life of an environment, driven by `gatepost` as a person drives it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import pytest
import yaml
from bare import Bare
from environments import GATEPOST, MINUTES, Environment
from footprint import Footprint

from gatepost import documents, listeners
from gatepost.lab import store

pytestmark = pytest.mark.lab

# -- on the shared server: what leaves it as it was -------------------------------------------------------------------


def stages(said: str) -> dict[str, str]:
    """Return what the stages said at their end, by name; a failed one begins with a cross."""
    found = re.findall(r"^([✓✗]) (\S+) +[\d.]+ s *(.*)$", said, re.MULTILINE)
    return {name: (f"✗ {result}" if mark == "✗" else result) for mark, name, result in found}


def test_deploy_again_changes_nothing_and_verifies(server13: Environment) -> None:
    done = server13.gatepost("deploy")
    shown = stages(done.stderr)
    assert list(shown) == ["preflight", "terraform", "ssh", "configure", "verify"]
    assert shown["terraform"] == "nothing changed"
    assert re.fullmatch(r"\d+ tasks, nothing changed", shown["configure"])
    assert re.fullmatch(r"\d\d+ passed, 0 failed, 0 inconclusive", shown["verify"])
    for row in listeners.load().listeners:
        assert re.search(rf"^  {row.port} .*{re.escape(row.policy)} +ok, \d+ checks passed$", done.stdout, re.MULTILINE)


def test_runs_one_after_another_do_not_limit_each_other(server13: Environment) -> None:
    """The server counts logins per client: each run comes from another of the lab's addresses."""
    sources = set()
    for _ in range(3):
        assert server13.gatepost("verify").returncode == 0
        sources.add(
            tuple(json.loads((server13.directory / "reports/last.json").read_text())["target"]["source_addresses"])
        )
    assert len(sources) == 3


def test_plan_has_nothing_to_say_and_its_command_works_by_hand(server13: Environment) -> None:
    done = server13.gatepost("plan")
    assert stages(done.stderr)["terraform"] == "nothing to change"
    assert stages(done.stderr)["configure"].endswith("nothing would change")
    command = re.search(r"^By hand: (.*)$", done.stderr, re.MULTILINE)
    assert command
    shell = subprocess.run(command[1], shell=True, capture_output=True, text=True, check=False)
    assert "No changes." in shell.stdout, shell.stdout + shell.stderr


def test_info_is_what_its_schema_says_and_leads_in(server13: Environment) -> None:
    document = server13.info
    jsonschema.validate(document, documents.schema_of("info"))
    [server] = document["servers"]
    done = subprocess.run([*server["ssh"]["command"], "hostname", "-f"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == server["fqdn"] == "mx.example.test"
    assert document["last_report"]["exit_code"] == 0
    assert Path(document["last_report"]["html_file"]).is_file() and Path(document["ca_file"]).is_file()


def test_the_servers_own_answers_are_right_too(server13: Environment) -> None:
    assert " passed" in server13.gatepost("check").stdout


def test_no_secret_is_in_logs_state_or_reports(server13: Environment) -> None:
    server13.gatepost("deploy", "--verbose")
    secrets = [Path(account["password_file"]).read_text().strip() for account in server13.info["test_accounts"]]
    secrets.append((server13.directory / "secrets/ssh_key").read_text().splitlines()[2])
    secrets += [line for line in (server13.directory / "secrets/ca/ca.key").read_text().splitlines() if "-" not in line]
    hashes = [user["password_hash"] for user in _variables(server13)["mail_users"]]
    places = [
        p for name in ("logs", "reports", "terraform") for p in (server13.directory / name).rglob("*") if p.is_file()
    ]
    assert any(path.suffix == ".log" for path in places) and any(path.suffix == ".tfstate" for path in places)
    for path in places:
        text = path.read_text(errors="replace")
        assert not [secret for secret in secrets + hashes if secret in text], path
    assert not any(secret in (server13.directory / "hosts.yml").read_text() for secret in secrets)


def _variables(environment: Environment) -> dict[str, list[dict[str, str]]]:
    loaded: dict[str, list[dict[str, str]]] = yaml.safe_load((environment.directory / "hosts.yml").read_text())[
        "mailservers"
    ]["vars"]
    return loaded


def test_the_lines_for_a_first_mail_work_as_printed(server13: Environment) -> None:
    said = server13.gatepost("deploy").stdout
    hint = re.search(r"^Send a first mail \((apt-get install swaks)\):$", said, re.MULTILINE)
    assert hint
    if shutil.which("swaks") is None:
        subprocess.run(f"apt-get -q update && {hint[1]} -qy", shell=True, check=True, stdout=subprocess.DEVNULL)
    send, read = (re.search(rf"^{title}.*\n  (.*)$", said, re.MULTILINE) for title in ("Send a first mail", "Read it"))
    assert send and read
    sent = subprocess.run(send[1], shell=True, capture_output=True, text=True, check=False)
    assert sent.returncode == 0, sent.stdout + sent.stderr
    mark = re.search(r"Message-Id: (<\S+>)", sent.stdout)
    assert mark
    deadline = time.monotonic() + 30
    while mark[1] not in subprocess.run(read[1], shell=True, capture_output=True, text=True, check=False).stdout:
        assert time.monotonic() < deadline, "the mail does not arrive"
        time.sleep(0.5)


def test_destroy_of_the_wrong_kind_and_a_second_run_are_refused(server13: Environment) -> None:
    with subprocess.Popen(
        [GATEPOST, "deploy", "--inventory", server13.directory],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    ) as first:
        assert first.stderr is not None
        while "preflight" not in first.stderr.readline():
            pass
        second = server13.gatepost("destroy", check=False)
        assert second.returncode == 2
        assert f"gatepost deploy, process {first.pid}" in second.stderr
        first.communicate(timeout=5 * MINUTES)
        assert first.returncode == 0


# -- an environment of its own: from nothing, through accidents, to nothing --------------------------------------------


@pytest.fixture(scope="module")
def before() -> Footprint:
    return Footprint()


@pytest.fixture(scope="module")
def own(before: Footprint, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Environment]:
    if os.geteuid() != 0:
        pytest.skip("the lab needs root")
    environment = Environment(tmp_path_factory.mktemp("own") / "inventory")
    yield environment
    environment.gatepost("destroy", check=False)


@pytest.mark.parametrize(
    ("stage", "seconds"),
    [
        ("preflight", 0),
        ("terraform", 0.3),
        ("terraform", 2),
        ("ssh", 0),
        ("configure", 3),
        ("configure", 15),
        ("verify", 1),
    ],
)
def test_ctrl_c_ends_in_good_order(own: Environment, stage: str, seconds: float) -> None:
    """As from a terminal: the whole process group gets the SIGINT. Each run goes on where the last one was stopped."""
    with subprocess.Popen(
        [GATEPOST, "deploy", "--inventory", own.directory],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith(f"{stage} …"):
                break
        time.sleep(seconds)
        os.killpg(process.pid, signal.SIGINT)
        _out, error = process.communicate(timeout=2 * MINUTES)
    assert process.returncode == 3, error
    assert "Stopped. Running the same again goes on from here." in error and "Traceback" not in error
    assert _children_of(own) == []


def _children_of(environment: Environment) -> list[str]:
    """Processes of ours that still work on the environment; ssh's shared connection may linger for a minute."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(environment.directory) in line and re.search(r"terraform|ansible-playbook|gatepost deploy", line):
            found.append(line)
    return found


def test_the_next_run_converges(own: Environment) -> None:
    own.gatepost("deploy")
    assert own.info["last_report"]["exit_code"] == 0


def test_a_fifth_listener_is_one_row(own: Environment) -> None:
    """Deployed, opened in both firewalls, verified by that alone; and gone again with the row."""
    table = own.directory / "listeners.yml"
    row = "  - {name: extra, port: 26, purpose: submission, tls: starttls, sources: ['0.0.0.0/0', '::/0']}\n"
    table.write_text(listeners.default_path().read_text() + row)
    said = own.gatepost("deploy")
    assert re.search(r"^  26 .* ok, \d+ checks passed$", said.stdout, re.MULTILINE)
    judged = json.loads((own.directory / "reports/last.json").read_text())
    assert {result["port"] for result in judged["results"]} >= {25, 26, 465, 587, 2525}
    assert [row["port"] for row in own.info["listeners"]] == [25, 587, 465, 2525, 26]
    table.unlink()
    own.gatepost("deploy")
    assert own.ssh("ss -Hltn sport = :26").stdout == ""


def test_other_sources_change_both_firewalls_and_nothing_else(own: Environment) -> None:
    table = own.directory / "other.yml"
    text = listeners.default_path().read_text()
    table.write_text(re.sub(r'(port: 2525,.*)"0\.0\.0\.0/0"', r'\1"198.18.0.0/15"', text))
    assert table.read_text() != text
    files = "find /etc/postfix /etc/dovecot /etc/ssl/gatepost -type f -exec sha256sum {} + | sort; postconf -n"
    before = own.ssh(files).stdout
    said = own.gatepost("deploy", "--listeners", str(table))
    assert stages(said.stderr)["terraform"] == "1 changed"
    assert re.fullmatch(r"\d+ tasks, [12] changed", stages(said.stderr)["configure"])
    assert own.ssh(files).stdout == before
    assert "198.18.0.0/15" in own.ssh("nft list ruleset").stdout
    # Later commands go by the table that was deployed, without being told.
    assert own.info["listeners_file"] == str(table)
    own.gatepost("deploy")
    assert own.info["listeners_file"] == str(listeners.default_path())


def test_a_machine_that_was_switched_off_is_started_again(own: Environment) -> None:
    own.ssh("systemctl --no-block poweroff", check=False)
    time.sleep(3)
    said = own.gatepost("deploy")
    assert "nothing changed" not in stages(said.stderr)["terraform"]
    assert stages(said.stderr)["configure"].endswith("nothing changed")


def test_a_new_domain_and_a_new_user_are_deployed_in_place(own: Environment) -> None:
    password = own.directory / "secrets/alice.password"
    password.write_text("correct horse battery staple\n")
    password.chmod(0o600)
    path = own.directory / "settings.yml"
    text = path.read_text()
    changed = {
        "domains": ["example.test", "second.test"],
        "users": [{"address": "alice@second.test", "password_file": "secrets/alice.password"}],
    }
    path.write_text(yaml.safe_dump({**yaml.safe_load(text), **changed}))
    said = own.gatepost("deploy")
    assert "1 added" not in stages(said.stderr)["terraform"]
    login = "doveadm auth test alice@second.test 'correct horse battery staple'"
    assert "auth succeeded" in own.ssh(login).stdout
    path.write_text(text)
    own.gatepost("deploy")
    assert own.ssh(login, check=False).returncode != 0


def test_destroy_leaves_nothing_but_settings_and_secrets(own: Environment, before: Footprint) -> None:
    book = store.read()
    [name] = [server["name"] for server in own.info["servers"]]
    network, machine = book["networks"][name], book["machines"][name]
    marks = (name, name.replace("-", "_"), machine["device"], store.device("gpp", name), network["ipv4_subnet"])
    assert any(mark in thing for mark in marks for thing in Footprint().things)
    assert stages(own.gatepost("destroy").stderr)["destroy"] == "3 removed"
    # Of this lab nothing at all; and, where no one else's lab stands on this host meanwhile, nothing whatever.
    assert [t for t in before.left() if any(mark in t for mark in marks)] == []
    assert store.read()["networks"] or before.left() == []
    left = {path.name for path in own.directory.iterdir()}
    assert {"settings.yml", "secrets"} <= left and "hosts.yml" not in left
    assert not (own.directory / "secrets/known_hosts").exists() and (own.directory / "secrets/ssh_key").exists()
    assert own.info["servers"] == []
    assert own.gatepost("destroy").returncode == 0  # again: nothing to do


# -- a server that stands already --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def standing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bare]:
    if os.geteuid() != 0:
        pytest.skip("the lab needs root")
    with Bare(tmp_path_factory.mktemp("standing"), 12) as machine:
        yield machine


def test_an_existing_server_needs_its_host_key_vouched_for(standing: Bare, tmp_path: Path) -> None:
    from gatepost.existing import fingerprint

    there = {"address": standing.machine.ipv4, "ssh_user": "gatepost", "ssh_key_file": str(standing.directory / "key")}
    environment = Environment(tmp_path / "inventory", cloud="existing", existing=there)
    path = environment.directory / "settings.yml"
    good = fingerprint(standing.machine.ssh_host_key)

    unknown = environment.gatepost("deploy", check=False)
    assert unknown.returncode == 2
    assert good in unknown.stderr and f'ssh_host_key: "{good}"' in unknown.stderr

    wrong = good[:-3] + "abc"
    path.write_text(yaml.safe_dump({"cloud": "existing", "existing": {**there, "ssh_host_key": wrong}}))
    refused = environment.gatepost("deploy", check=False)
    assert refused.returncode == 2 and wrong in refused.stderr and "other host keys" in refused.stderr
    assert not (environment.directory / "hosts.yml").exists()
    assert standing.text("ls -d /etc/postfix 2>/dev/null || true") == ""

    path.write_text(yaml.safe_dump({"cloud": "existing", "existing": {**there, "ssh_host_key": good}}))
    done = environment.gatepost("deploy")
    assert list(stages(done.stderr)) == ["preflight", "host key", "ssh", "configure", "verify"] or "host" in done.stderr
    assert environment.info["cloud"] == "existing"
    assert environment.info["servers"][0]["ipv4"] == standing.machine.ipv4
    assert environment.gatepost("converge").returncode == 0
    assert environment.gatepost("destroy", check=False).returncode == 2
