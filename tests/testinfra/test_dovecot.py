"""HST-SASL, HST-DOV: who may log in, and by which sockets Postfix asks."""

from __future__ import annotations

import re

import pytest
from testinfra.host import Host


def _setting(dovecot: str, name: str) -> str:
    found = re.search(rf"^{name} = (.*)$", dovecot, re.MULTILINE)
    return found[1].strip() if found else ""


def test_hst_sasl_01_auth_socket(host: Host) -> None:
    path = host.check_output("postconf -xh queue_directory") + "/private/auth"
    file = host.file(path)
    assert file.is_socket
    assert (file.user, file.group) == ("postfix", "postfix")
    assert file.mode in (0o660, 0o600)


def test_hst_sasl_02_user_database(host: Host, dovecot: str) -> None:
    paths = set(re.findall(r"passwd_file_path = (\S+)", dovecot)) | set(re.findall(r"args = (?:.*\s)?(/\S+)", dovecot))
    if not paths:
        pytest.skip("Dovecot's users are not in a passwd-file")
    for path in paths:
        file = host.file(path)
        assert (file.user, file.group, file.mode) == ("root", "dovecot", 0o640)
        hashes = host.check_output("grep -v '^#' %s | cut -d: -f2", path).split()
        weak = [
            h[:12]
            for h in hashes
            if not re.match(r"\{(ARGON2ID?|BLF-CRYPT|SHA512-CRYPT)\}|\$(argon2id?|2[aby]|6)\$", h)
        ]
        assert weak == []


def test_hst_sasl_03_lmtp_socket(host: Host) -> None:
    transport = host.check_output("postconf -xh virtual_transport")
    if not transport.startswith("lmtp:unix:"):
        pytest.skip(f"mail is delivered through {transport}")
    file = host.file(host.check_output("postconf -xh queue_directory") + "/" + transport.removeprefix("lmtp:unix:"))
    assert file.is_socket
    assert (file.user, file.mode) == ("postfix", 0o600)


def test_hst_dov_01_mechanisms(dovecot: str) -> None:
    assert set(_setting(dovecot, "auth_mechanisms").split()) == {"plain", "login"}


def test_hst_dov_01_failures_are_delayed(host: Host) -> None:
    delay = host.check_output("doveconf -h auth_failure_delay 2>/dev/null")
    number, unit = re.fullmatch(r"(\d+) ?(\w*)", delay.strip()).groups()
    assert int(number) >= (2000 if unit.startswith("ms") else 2)


def test_hst_dov_01_no_clear_text_no_master_no_open_door(dovecot: str) -> None:
    """In the words of Dovecot 2.3 and of 2.4."""
    assert "disable_plaintext_auth = no" not in dovecot
    assert "auth_allow_cleartext = yes" not in dovecot
    assert "nopassword" not in dovecot
    assert not _setting(dovecot, "auth_master_user_separator")
    passdbs = re.sub(r"^userdb .*?\{.*?^\}", "", dovecot, flags=re.S | re.M)
    assert not re.search(r"^\s*(master = yes|driver = static|passdb static \{)\s*$", passdbs, re.M)
