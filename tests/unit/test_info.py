"""`gatepost info`: for scripts as its schema says, for people as text."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
from click.testing import CliRunner
from test_inventory import OUTPUTS

from gatepost import cli, credentials, documents, info, inventory, settings
from gatepost.settings import Settings


@pytest.fixture
def chosen(tmp_path: Path) -> Settings:
    (tmp_path / "settings.yml").write_text("{}")
    return settings.load(tmp_path)


def deployed(chosen: Settings) -> None:
    credentials.make_probe_passwords(chosen)
    hashes = credentials.password_hashes(chosen)
    inventory.write(chosen, inventory.servers_of(chosen, OUTPUTS), hashes, listeners_file=None)


def valid(document: object) -> None:
    jsonschema.validate(document, documents.schema_of("info"))


def test_before_a_deploy_it_is_valid_and_empty(chosen: Settings) -> None:
    document = info.gather(chosen)
    valid(document)
    assert document["servers"] == [] and document["last_report"] is None
    assert "none yet: make deploy" in info.for_people(document)


def test_after_a_deploy_it_says_how_to_get_in(chosen: Settings) -> None:
    deployed(chosen)
    result = CliRunner().invoke(cli.main, ["info", "--json", "--inventory", str(chosen.directory)])
    document = json.loads(result.stdout)
    valid(document)
    (server,) = document["servers"]
    assert (server["fqdn"], server["ipv4"], server["ipv6"]) == ("mx.example.test", "198.18.0.16", "fd00::10")
    assert server["ssh"]["key_file"] == str(chosen.secrets / "ssh_key")
    assert server["ssh"]["command"][-1] == "gatepost@198.18.0.16"
    assert [row["port"] for row in document["listeners"]] == [25, 587, 465, 2525]
    assert document["ca_file"] == str(chosen.ca_dir / "ca.pem")
    for account in document["test_accounts"]:
        assert Path(account["password_file"]).read_text().strip() not in result.output
    people = CliRunner().invoke(cli.main, ["info", "--inventory", str(chosen.directory)]).output
    assert "gatepost-probe-a@example.test  password in" in people


def test_a_public_ca_and_no_test_accounts(tmp_path: Path) -> None:
    text = (
        "verify_accounts: false\nusers: [{address: a@example.test, password_file: a}]\n"
        "certificate: {source: files, chain_file: c, key_file: k}"
    )
    (tmp_path / "settings.yml").write_text(text)
    document = info.gather(settings.load(tmp_path))
    valid(document)
    assert document["ca_file"] is None and document["test_accounts"] == []


def test_a_broken_hosts_file_is_an_error_not_an_empty_answer(chosen: Settings) -> None:
    chosen.hosts_file.write_text("[]")
    result = CliRunner().invoke(cli.main, ["info", "--json", "--inventory", str(chosen.directory)])
    assert result.exit_code == 2 and result.stdout == ""


def test_the_schema_refuses_a_document_that_lacks_something(chosen: Settings) -> None:
    document = info.gather(chosen)
    del document["ca_file"]
    with pytest.raises(jsonschema.ValidationError):
        valid(document)
