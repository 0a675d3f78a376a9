"""hosts.yml and known_hosts: written from settings and outputs, understood by Ansible and ssh, and read back."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from gatepost import credentials, inventory, settings
from gatepost.errors import GatepostError
from gatepost.settings import Settings

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIMvREn/5eVOeCpZwzjMfjG88jBikm6/sHIY7LKoVlOiP"
OUTPUTS = {
    "servers": {
        "mx1": {
            "fqdn": "mx.example.test",
            "ipv4": "198.18.0.16",
            "ipv6": "fd00::10",
            "ssh_user": "gatepost",
            "ssh_port": 22,
            "ssh_host_key": KEY,
        }
    }
}


@pytest.fixture
def chosen(tmp_path: Path) -> Settings:
    directory = tmp_path / "an environment"  # with a space, as people have them
    directory.mkdir()
    (directory / "settings.yml").write_text(
        "users: [{address: a@example.test, password_file: a, may_send_as: [b@example.test]}]"
    )
    (directory / "a").write_text("correct horse\n")
    (directory / "a").chmod(0o600)
    return settings.load(directory)


def write(chosen: Settings, outputs: dict[str, object] = OUTPUTS) -> None:
    credentials.make_probe_passwords(chosen)
    inventory.write(
        chosen,
        inventory.servers_of(chosen, outputs),
        credentials.password_hashes(chosen),
        listeners_file=Path("/etc/my listeners.yml"),
        vantage={"ipv4": ["198.18.0.2"], "ipv6": ["fd00::2"], "sink": ["198.18.0.1", "fd00::1"]},
    )


def test_what_is_written_is_read_back(chosen: Settings) -> None:
    write(chosen)
    standing = inventory.read(chosen)
    assert standing.servers == inventory.servers_of(chosen, OUTPUTS)
    assert standing.listeners_file == Path("/etc/my listeners.yml")
    assert standing.vantage == {"ipv4": ["198.18.0.2"], "ipv6": ["fd00::2"], "sink": ["198.18.0.1", "fd00::1"]}


def test_ansible_reads_it(chosen: Settings) -> None:
    write(chosen)
    command = [Path(sys.executable).parent / "ansible-inventory", "-i", chosen.hosts_file, "--host", "mx1"]
    seen = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert seen["mail_hostname"] == "mx.example.test"
    assert seen["ansible_host"] == "198.18.0.16"
    assert seen["mail_users"][0]["may_send_as"] == ["b@example.test"]
    assert seen["mail_users"][0]["password_hash"].startswith("{BLF-CRYPT}$2b$")
    assert seen["mail_postmaster"] == "a@example.test"
    assert seen["certificate_ca_dir"] == str(chosen.ca_dir)
    assert "StrictHostKeyChecking=yes" in seen["ansible_ssh_common_args"]


def test_it_holds_no_password_and_is_private(chosen: Settings) -> None:
    write(chosen)
    assert chosen.hosts_file.stat().st_mode & 0o777 == 0o600
    assert "correct horse" not in chosen.hosts_file.read_text()


def test_ssh_understands_the_command_and_trusts_this_key_alone(chosen: Settings) -> None:
    write(chosen)
    command = inventory.ssh_command(chosen, inventory.read(chosen).servers[0])
    shown = subprocess.run(
        [*command[:1], "-G", *command[1:]], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    config = dict(line.split(" ", 1) for line in shown if " " in line)
    assert config["userknownhostsfile"].strip('"') == str(chosen.known_hosts)
    assert config["globalknownhostsfile"] == "/dev/null"
    assert config["stricthostkeychecking"] == "true"
    assert (config["user"], config["hostname"], config["port"]) == ("gatepost", "198.18.0.16", "22")
    for name in ("198.18.0.16", "fd00::10", "mx.example.test"):
        found = subprocess.run(
            ["ssh-keygen", "-F", name, "-f", chosen.known_hosts], capture_output=True, text=True, check=True
        )
        assert KEY in found.stdout


def test_another_port_is_known_by_its_port(chosen: Settings) -> None:
    outputs = {"servers": {"mx1": {**OUTPUTS["servers"]["mx1"], "ssh_port": 2222}}}
    write(chosen, outputs)
    assert f"[198.18.0.16]:2222 {KEY}" in chosen.known_hosts.read_text().splitlines()


def test_a_host_key_that_changed_replaces_the_old_one(chosen: Settings) -> None:
    write(chosen)
    other = KEY.replace("MvRE", "MvRF")
    write(chosen, {"servers": {"mx1": {**OUTPUTS["servers"]["mx1"], "ssh_host_key": other}}})
    assert KEY not in chosen.known_hosts.read_text()


def test_nothing_deployed_is_said_with_the_way_on(chosen: Settings) -> None:
    with pytest.raises(GatepostError, match="nothing stands in this environment") as caught:
        inventory.read(chosen)
    assert caught.value.next_step == "make deploy"


@pytest.mark.parametrize("text", ["", "[]", "mailservers: {hosts: {x: {}}}", "a: ["])
def test_an_edited_file_is_named(chosen: Settings, text: str) -> None:
    chosen.hosts_file.write_text(text)
    with pytest.raises(GatepostError, match="not as gatepost writes it"):
        inventory.read(chosen)
