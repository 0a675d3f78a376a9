"""The listener table's loader: what it refuses, and with which words."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from gatepost import listeners
from gatepost.errors import GatepostError

ROW = "{name: relay, port: 25, purpose: relay, tls: starttls, sources: ['0.0.0.0/0']}"


def load(directory: Path, *rows: str) -> listeners.ListenerTable:
    path = directory / "listeners.yml"
    path.write_text("postfix_listeners:\n" + "".join(f"  - {row}\n" for row in rows))
    return listeners.load(path)


def test_a_table_is_read_with_its_digest(tmp_path: Path) -> None:
    table = load(tmp_path, ROW)
    assert table.listeners == (listeners.Listener("relay", 25, "relay", "starttls", ("0.0.0.0/0",)),)
    assert table.digest == hashlib.sha256(table.path.read_bytes()).hexdigest()


def test_a_fifth_row_is_just_another_row(tmp_path: Path) -> None:
    text = listeners.default_path().read_text()
    path = tmp_path / "listeners.yml"
    path.write_text(text + '  - {name: extra, port: 26, purpose: submission, tls: starttls, sources: ["::/0"]}\n')
    assert [row.port for row in listeners.load(path).listeners][-1] == 26
    assert len(listeners.load(path).listeners) == 5


def test_sources_are_put_into_one_form(tmp_path: Path) -> None:
    assert load(tmp_path, ROW.replace("0.0.0.0/0", "2001:DB8:0::/32")).listeners[0].sources == ("2001:db8::/32",)


@pytest.mark.parametrize(
    ("old", "new", "found", "advice"),
    [
        ("port: 25", "port: 0465", "postfix_listeners[1].port: found 0465", "0465 and 22:25"),
        ("port: 25", "port: 22:25", "postfix_listeners[1].port: found 22:25", "0465 and 22:25"),
        ("port: 25", "port: 0x19", "postfix_listeners[1].port: found 0x19", "0465"),
        ("port: 25", "port: 2_5", "postfix_listeners[1].port: found 2_5", "0465"),
        ("port: 25", "port: '25'", "postfix_listeners[1].port: found '25'", "0465"),
        ("port: 25", "port: 0", "postfix_listeners[1].port: found 0", ""),
        ("port: 25", "port: 65536", "postfix_listeners[1].port: found 65536", ""),
        ("port: 25", "port: -25", "postfix_listeners[1].port: found -25", ""),
        ("port: 25", "port: smtp", "postfix_listeners[1].port: found 'smtp'", ""),
        ("port: 25", "port: true", "postfix_listeners[1].port: found True", ""),
        ("port: 25, ", "", "port is missing in postfix_listeners[1] (relay)", "Add port"),
        ("port: 25", "ports: 25", "unknown key 'ports'", "Did you mean 'port'?"),
        ("purpose: relay", "purpose: realy", "postfix_listeners[1].purpose: found 'realy'", "Did you mean 'relay'?"),
        ("purpose: relay", "purpose: null", "postfix_listeners[1].purpose: found nothing", ""),
        ("tls: starttls", "tls: ssl", "postfix_listeners[1].tls: found 'ssl'", ""),
        ("name: relay", "name: Re_lay", "postfix_listeners[1].name: found 'Re_lay'", "log name"),
        ("['0.0.0.0/0']", "[]", "postfix_listeners[1].sources: found nothing", "better removed"),
        ("['0.0.0.0/0']", "0.0.0.0/0", "postfix_listeners[1].sources: found '0.0.0.0/0'", ""),
        ("['0.0.0.0/0']", "[all]", "postfix_listeners[1].sources[1]: found 'all'", ""),
        ("['0.0.0.0/0']", "['10.1.2.3/8']", "not a CIDR", "Did you mean 10.0.0.0/8?"),
        ("['0.0.0.0/0']", "['::1']", "no prefix length", "Did you mean ::1/128?"),
        ("['0.0.0.0/0']", "[10]", "postfix_listeners[1].sources[1]: found 10", ""),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, old: str, new: str, found: str, advice: str) -> None:
    assert old in ROW
    with pytest.raises(GatepostError) as caught:
        load(tmp_path, ROW.replace(old, new))
    assert found in caught.value.found
    assert f"{tmp_path / 'listeners.yml'}:2: " in caught.value.found
    assert advice in caught.value.next_step
    assert caught.value.expected


def test_a_port_twice_is_named_with_both_rows(tmp_path: Path) -> None:
    with pytest.raises(GatepostError, match="rows 1 and 2 both have port 25"):
        load(tmp_path, ROW, ROW.replace("name: relay", "name: other"))


def test_a_name_twice_is_named_with_both_rows(tmp_path: Path) -> None:
    with pytest.raises(GatepostError, match="rows 1 and 2 both have name relay"):
        load(tmp_path, ROW, ROW.replace("25", "26"))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", "postfix_listeners is missing"),
        ("postfix_listeners: []\n", "found nothing"),
        ("postfix_listeners:\n", "found nothing"),
        ("postfix_listener: []\n", "unknown key 'postfix_listener'"),
        ("postfix_listeners: [{a: [}]\n", "not valid YAML"),
    ],
)
def test_what_is_no_table_is_refused(tmp_path: Path, text: str, found: str) -> None:
    path = tmp_path / "listeners.yml"
    path.write_text(text)
    with pytest.raises(GatepostError) as caught:
        listeners.load(path)
    assert found in caught.value.found


def test_a_missing_table_names_the_switch(tmp_path: Path) -> None:
    with pytest.raises(GatepostError, match="cannot read the listener table") as caught:
        listeners.load(tmp_path / "none.yml")
    assert "LISTENERS=" in caught.value.next_step
