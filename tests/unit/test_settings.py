"""settings.yml: what it means, and what is said when it is wrong."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gatepost import settings
from gatepost.environment import EXAMPLE
from gatepost.errors import GatepostError


def load(directory: Path, text: str) -> settings.Settings:
    (directory / "settings.yml").write_text(text)
    return settings.load(directory)


def test_an_empty_file_means_the_defaults(tmp_path: Path) -> None:
    loaded = load(tmp_path, "# nothing\n")
    assert (loaded.cloud, loaded.hostname, loaded.domains) == ("local", "mx.example.test", ("example.test",))
    assert [user.address for user in loaded.users] == [
        "gatepost-probe-a@example.test",
        "gatepost-probe-b@example.test",
    ]
    assert loaded.users[0].aliases == ("gatepost-probe-alias@example.test",)
    assert loaded.postmaster == "gatepost-probe-a@example.test"
    assert loaded.client_ca_file == tmp_path / "secrets/ca/ca.pem"


def test_the_example_says_the_defaults(tmp_path: Path) -> None:
    """What the example writes out is what the code fills in: the two cannot part."""
    assert load(tmp_path, (EXAMPLE / "settings.yml").read_text()) == load(tmp_path, "{}")


def test_every_commented_line_of_the_example_is_valid(tmp_path: Path) -> None:
    """Whoever takes the # away gets settings that load."""
    text = re.sub(r"(?m)^#( +(-|[a-z_]+:)| (existing|postmaster):)", r"\1", (EXAMPLE / "settings.yml").read_text())
    text = text.replace("users: []", "users:").replace("lab_ca  ", "files  ").replace("…", "A" * 43)
    text = re.sub(r"(?m)^ (postmaster|existing):", r"\1:", text)
    loaded = load(tmp_path, text)
    assert loaded.users[0].aliases == ("sales@example.test",)
    assert loaded.postmaster == "alice@example.test"
    assert loaded.existing is not None and loaded.existing.ssh_port == 22
    assert loaded.certificate.chain_file == tmp_path / "secrets/fullchain.pem"


def test_the_first_mailbox_is_postmaster_and_paths_are_relative_to_the_environment(tmp_path: Path) -> None:
    loaded = load(tmp_path, "users: [{address: alice@example.test, password_file: secrets/alice}]")
    assert loaded.postmaster == "alice@example.test"
    assert loaded.users[0].password_file == tmp_path / "secrets/alice"


def test_verify_accounts_false_removes_the_test_accounts(tmp_path: Path) -> None:
    text = "verify_accounts: false\nusers: [{address: alice@example.test, password_file: x}]"
    assert [user.address for user in load(tmp_path, text).users] == ["alice@example.test"]


def test_no_password_or_hash_is_shown_by_an_error(tmp_path: Path) -> None:
    with pytest.raises(GatepostError) as caught:
        load(tmp_path, "users: [{address: a@example.test, password_hash: my-secret}]")
    assert "my-secret" not in str(caught.value)
    assert "{SCHEME}" in caught.value.expected


USER = "users:\n- address: alice@example.test\n  password_file: x\n"


@pytest.mark.parametrize(
    ("text", "found", "advice"),
    [
        ("hostname: mx", "settings.yml:1: hostname: found 'mx': only one label", "at least one dot"),
        ("hostname: Mx.Example.test", "capital letters", "Did you mean 'mx.example.test'?"),
        ("hostname: mx.example.test.", "a dot at the end", "Did you mean 'mx.example.test'?"),
        ("hostname: 192.0.2.1", "an IP address", "Write a name"),
        ("hostname: mx_1.example.test", "'mx_1' is not a label", "hyphens"),
        ("hostname: bücher.example.test", "not ASCII", "xn--bcher-kva.example.test"),
        (f"hostname: {'a' * 64}.example.test", "is not a label", "1 to 63"),
        ("domains: []", "settings.yml:1: domains: found nothing", ""),
        ("domains: example.test", "domains: found 'example.test'", ""),
        ("domains: [example.test, example..test]", "settings.yml:1: domains[2]: found 'example..test'", ""),
        ("domains: [example.test, example.test]", "with 'example.test' twice", "Remove"),
        ("hostname: mx.other.test", "hostname mx.other.test is not under a domain hosted here", "mx.example.test"),
        ("outside_domain: sub.example.test", "overlaps with example.test", "remote.test"),
        ("hostnam: mx.example.test", "settings.yml:1: unknown key 'hostnam'", "Did you mean 'hostname'?"),
        ("\nlocal: {releas: 12}", "settings.yml:2: unknown key 'releas' in local", "Did you mean 'release'?"),
        ("local: {release: 11}", "local.release: found 11", ""),
        ("local: {image_max_age_days: 030}", "local.image_max_age_days: found 030", ""),
        ("cloud: lokal", "cloud: found 'lokal'", "Did you mean 'local'?"),
        ("cloud: existing", "no `existing:` that says which server", "Add it"),
        ("cloud: existing\nexisting: {}", "settings.yml:2: address is missing in existing", "Add address"),
        ("cloud: existing\nexisting: {address: a b}", "existing.address: found 'a b'", ""),
        ("cloud: existing\nexisting: {address: 192.0.2.1, ssh_port: 22:25}", "existing.ssh_port: found 22:25", ""),
        ("existing: {address: 192.0.2.1, ssh_host_key: 'no'}", "existing.ssh_host_key: found 'no'", ""),
        ("ssh_sources: [10.0.0.1/8]", "ssh_sources[1]: found '10.0.0.1/8': not a CIDR", "Did you mean 10.0.0.0/8?"),
        ("ssh_sources: [10.0.0.1]", "no prefix length", "Did you mean 10.0.0.1/32?"),
        ("ssh_sources: []", "ssh_sources: found nothing", ""),
        (
            "users: [{address: alice@example.test}]",
            "users[1] (alice@example.test): no password",
            "password_file: secrets",
        ),
        (USER + "  password_hash: '{BLF-CRYPT}$2b$10$abcdefghijklmnop'", "both password_file and password_hash", ""),
        ("users: [{address: a@example.test, password_hash: '{PLAIN}aaaaaaaaaaaaaaaaaaaaaaaaaa'}]", "password_hash", ""),
        (
            "users: [{address: a@other.test, password_file: x}]",
            "a@other.test is in a domain that is not hosted",
            "Add other",
        ),
        (USER + "  aliases: [a@other.test]", "aliases: a@other.test is in a domain", "Add other.test"),
        (USER + "  may_send_as: [a@other.test]", "may_send_as: a@other.test is in a domain", "Add other.test"),
        (
            "users: [{address: alice, password_file: x}]",
            "users[1].address: found 'alice': not an address",
            "NAME@DOMAIN",
        ),
        ("users: [{address: a+b@example.test, password_file: x}]", "'a+b' before the @", ""),
        ("users: [{address: Alice@example.test, password_file: x}]", "capital letters", "alice@example.test"),
        ("users: [{adress: alice@example.test, password_file: x}]", "unknown key 'adress' in users[1]", "'address'"),
        (USER + USER.partition("\n")[2], "alice@example.test stands there twice", "Remove or rename"),
        (USER + "  aliases: [alice@example.test]", "alias of itself, so mail to it would loop", "Remove"),
        (
            USER + "  aliases: [bob@example.test]\n- {address: bob@example.test, password_file: y}",
            "bob@example.test is an alias of alice@example.test and a mailbox of its own",
            "Remove bob@example.test from the aliases",
        ),
        (
            USER
            + "  aliases: [bob@example.test]\n"
            + "- {address: bob@example.test, password_file: y, aliases: [alice@example.test]}",
            "aliases of each other, so mail to them would loop",
            "Remove",
        ),
        (
            USER
            + "  aliases: [x@example.test]\n- {address: bob@example.test, password_file: y, aliases: [x@example.test]}",
            "x@example.test is an alias of both alice@example.test and bob@example.test",
            "Remove",
        ),
        (
            "users: [{address: gatepost-probe-b@example.test, password_file: x}]",
            "once as the test account that verify_accounts adds",
            "rename",
        ),
        ("verify_accounts: false", "no mailbox", "Add a user"),
        ("verify_accounts: maybe", "verify_accounts: found 'maybe'", ""),
        ("postmaster: bob@example.test", "postmaster bob@example.test is neither a mailbox nor an alias", "add a user"),
        ("certificate: {source: files, chain_file: x}", "key_file is missing", "Add key_file"),
        ("certificate: {chain_file: x}", "chain_file given, and source is lab_ca", "source: files"),
        ("certificate: {source: acme}", "certificate.source: found 'acme'", ""),
        ("cloud: local\ncloud: existing", "settings.yml:2: not valid YAML: key 'cloud' stands here twice", ""),
        ("cloud: [", "not valid YAML", "indentation"),
        ("- cloud", "the document: found ['cloud']", ""),
        ("\tcloud: local", "settings.yml:1: not valid YAML", ""),
    ],
)
def test_bad_settings_are_named_with_a_way_out(tmp_path: Path, text: str, found: str, advice: str) -> None:
    with pytest.raises(GatepostError) as caught:
        load(tmp_path, text)
    assert found in caught.value.found
    assert "settings.yml" in caught.value.found
    assert advice in caught.value.next_step
    assert advice or caught.value.expected
    assert caught.value.exit_code == 2


def test_elsewhere_the_hostname_may_lie_in_a_zone_that_is_not_hosted_here(tmp_path: Path) -> None:
    text = "cloud: existing\nhostname: mx.provider.test\nexisting: {address: 192.0.2.1}"
    assert load(tmp_path, text).hostname == "mx.provider.test"


def test_a_missing_file_names_the_way_to_an_environment(tmp_path: Path) -> None:
    with pytest.raises(GatepostError, match="cannot read the settings") as caught:
        settings.load(tmp_path)
    assert "make deploy" in caught.value.next_step


def test_a_file_that_is_not_text_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "settings.yml").write_bytes(b"cloud: \xff\xfe")
    with pytest.raises(GatepostError, match="not valid YAML"):
        settings.load(tmp_path)
