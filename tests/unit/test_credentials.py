"""SSH key, passwords and their hashes."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import bcrypt
import pytest

from gatepost import credentials, settings
from gatepost.errors import GatepostError
from gatepost.settings import Settings


@pytest.fixture
def chosen(tmp_path: Path) -> Settings:
    (tmp_path / "settings.yml").write_text("users: [{address: alice@example.test, password_file: alice}]\n")
    (tmp_path / "alice").write_text("correct horse\n")
    (tmp_path / "alice").chmod(0o600)
    loaded = settings.load(tmp_path)
    credentials.make_probe_passwords(loaded)
    return loaded


def test_the_ssh_key_is_made_once_and_openssh_reads_it(chosen: Settings) -> None:
    public = credentials.ssh_public_key(chosen)
    assert credentials.ssh_public_key(chosen) == public
    private = chosen.secrets / "ssh_key"
    assert private.stat().st_mode & 0o777 == 0o600
    done = subprocess.run(["ssh-keygen", "-y", "-f", private], capture_output=True, text=True, check=True)
    assert done.stdout.split()[:2] == public.split()[:2]
    assert (chosen.secrets / "ssh_key.pub").read_text().strip() == public


def test_a_broken_ssh_key_is_not_replaced(chosen: Settings) -> None:
    (chosen.secrets / "ssh_key").write_text("not a key")
    with pytest.raises(GatepostError, match="not a private SSH key"):
        credentials.ssh_public_key(chosen)
    assert (chosen.secrets / "ssh_key").read_text() == "not a key"


def test_probe_passwords_are_made_once_each_its_own_and_private(chosen: Settings) -> None:
    files = [user.password_file for user in chosen.probes]
    first = [file.read_text() for file in files if file]
    credentials.make_probe_passwords(chosen)
    assert [file.read_text() for file in files if file] == first
    assert len(set(first)) == 2 and all(len(text) > 20 for text in first)
    assert all(file.stat().st_mode & 0o777 == 0o600 for file in files if file)


def test_hashes_are_bcrypt_of_the_passwords_and_stay(chosen: Settings) -> None:
    hashes = credentials.password_hashes(chosen)
    assert hashes["alice@example.test"].startswith("{BLF-CRYPT}$2b$10$")
    assert all(hashes[user.address].startswith("{BLF-CRYPT}$2b$05$") for user in chosen.probes)
    assert bcrypt.checkpw(b"correct horse", hashes["alice@example.test"].removeprefix("{BLF-CRYPT}").encode())
    assert credentials.password_hashes(chosen) == hashes
    assert (chosen.secrets / "password_hashes.json").stat().st_mode & 0o777 == 0o600


def test_a_changed_password_gets_a_new_hash_and_a_touched_one_does_not(chosen: Settings) -> None:
    before = credentials.password_hashes(chosen)
    file = chosen.directory / "alice"
    file.write_text("correct horse\n")  # the same again, so another time
    assert credentials.password_hashes(chosen) == before
    file.write_text("battery staple\n")
    after = credentials.password_hashes(chosen)
    assert after["alice@example.test"] != before["alice@example.test"]
    assert {k: v for k, v in after.items() if "alice" not in k} == {k: v for k, v in before.items() if "alice" not in k}


def test_a_lost_or_broken_cache_is_made_anew(chosen: Settings) -> None:
    credentials.password_hashes(chosen)
    (chosen.secrets / "password_hashes.json").write_text("[")
    assert set(credentials.password_hashes(chosen)) == {user.address for user in chosen.users}


def test_a_user_that_is_gone_leaves_the_cache(chosen: Settings, tmp_path: Path) -> None:
    credentials.password_hashes(chosen)
    (tmp_path / "settings.yml").write_text("{}")
    credentials.password_hashes(settings.load(tmp_path))
    assert "alice@example.test" not in json.loads((chosen.secrets / "password_hashes.json").read_text())


@pytest.mark.parametrize(
    ("text", "mode", "found"),
    [
        ("secret\n", 0o644, "others than its owner can read it"),
        ("", 0o600, "empty"),
        ("\n", 0o600, "empty"),
        ("one\ntwo\n", 0o600, "more than one line"),
        ("ü" * 37, 0o600, "74 bytes"),
        (None, 0o600, "No such file"),
    ],
)
def test_a_password_file_that_will_not_do_is_named(chosen: Settings, text: str | None, mode: int, found: str) -> None:
    file = chosen.directory / "alice"
    if text is None:
        file.unlink()
    else:
        file.write_text(text)
        file.chmod(mode)
    with pytest.raises(GatepostError) as caught:
        credentials.password_hashes(chosen)
    assert found in caught.value.found
    assert "alice@example.test: password_file" in caught.value.found
    assert "secret" not in str(caught.value)
