"""The roles' specifications, documents and Python, without a host."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

REPOSITORY = Path(__file__).resolve().parents[2]
ROLES = REPOSITORY / "roles"
NAMES = ["certificate", "dovecot", "firewall", "postfix"]


def _options(role: str) -> dict[str, Any]:
    document = yaml.safe_load((ROLES / role / "meta/argument_specs.yml").read_text())
    options: dict[str, Any] = document["argument_specs"]["main"]["options"]
    return options


def _defaults(role: str) -> dict[str, Any]:
    place = ROLES / role / "defaults"
    found: dict[str, Any] = {}
    for path in sorted(place.rglob("*.yml")):
        found |= yaml.safe_load(path.read_text())
    return found


def _plugin(path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROLES / path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("role", NAMES)
def test_specification_and_defaults_say_the_same(role: str) -> None:
    specified = {name: option["default"] for name, option in _options(role).items() if "default" in option}
    given = _defaults(role)
    # The table is the one place for port numbers, so the specification does not repeat it.
    given.pop("postfix_listeners", None)
    assert given == specified


@pytest.mark.parametrize("role", NAMES)
def test_every_variable_has_a_type_a_description_and_the_role_as_prefix(role: str) -> None:
    for name, option in _options(role).items():
        assert name.startswith(f"{role}_")
        assert option["type"]
        assert option["description"]
        assert ("default" in option) != option.get("required", False)


@pytest.mark.parametrize("role", NAMES)
def test_readme_names_every_variable_and_its_default(role: str) -> None:
    readme = (ROLES / role / "README.md").read_text()
    table = readme.split("## Variables")[1]
    assert set(re.findall(rf"`({role}_\w+)`", table)) == set(_options(role))
    for name, option in _options(role).items():
        row = next(line for line in table.splitlines() if line.startswith("|") and f"`{name}`" in line.split("|")[1])
        if option.get("required") and name != "postfix_listeners":
            assert "must be given" in row
        elif option["type"] in ("int", "bool"):
            assert f"`{str(option['default']).lower()}`" in row


@pytest.mark.parametrize("role", NAMES)
def test_readme_example_gives_what_must_be_given_and_nothing_unknown(role: str) -> None:
    play = yaml.safe_load((ROLES / role / "README.md").read_text().split("```yaml\n")[1].split("```")[0])
    variables = play[0]["roles"][0]["vars"]
    required = {name for name, option in _options(role).items() if option.get("required")}
    assert required - {"postfix_listeners"} <= set(variables) <= set(_options(role))


def test_port_numbers_of_the_table_stand_nowhere_else_in_what_converges() -> None:
    ports = {str(row["port"]) for row in _defaults("postfix")["postfix_listeners"]} - {"25"}
    files = [
        path
        for place in ("roles", "playbooks")
        for path in (REPOSITORY / place).rglob("*")
        if path.is_file() and path.suffix in (".yml", ".j2", ".py") and path.name != "listeners.yml"
    ]
    assert len(files) > 30
    typed = [
        (path.name, port) for path in files for port in ports if re.search(rf"(?<!\d){port}(?!\d)", path.read_text())
    ]
    assert typed == []


def test_each_role_finds_its_modules_and_knows_no_other_roles_variables() -> None:
    """A role's own directories are the only ones that Ansible searches when the role is used alone."""
    ours = {path.stem for place in ("library", "action_plugins") for path in ROLES.glob(f"*/{place}/*.py")}
    for role in NAMES:
        used = set(re.findall(r"^  (\w+):$", (ROLES / role / "tasks/main.yml").read_text(), re.MULTILINE)) & ours
        assert used
        for name in used:
            assert any((ROLES / role / place / f"{name}.py").is_file() for place in ("library", "action_plugins"))
        for other in set(NAMES) - {role}:
            for path in (ROLES / role).rglob("*"):
                if path.is_file() and path.suffix in (".yml", ".j2"):
                    assert not re.search(rf"\b(__)?{other}_\w+", path.read_text()), (path, other)


# --- mail_tables -----------------------------------------------------------------------------------------------------

ANNA = {"address": "Anna@Example.test", "aliases": ["Sales@example.test"], "may_send_as": []}
BEN = {"address": "ben@example.test", "aliases": [], "may_send_as": ["news@example.test", "sales@example.test"]}
ROW = {"name": "relay", "port": 25, "purpose": "relay", "tls": "starttls", "sources": ["::/0"]}


def _mistakes(**changes: Any) -> str:
    given: dict[str, Any] = {
        "hostname": "mx.example.test",
        "domains": ["example.test"],
        "users": [ANNA, BEN],
        "postmaster": "anna@example.test",
        "listeners": [ROW],
        **changes,
    }
    return "\n".join(_plugin("postfix/action_plugins/mail_tables.py").mistakes(**given))


def test_what_fits_together_is_no_mistake() -> None:
    assert _mistakes() == ""


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"hostname": "mx"}, "'mx' is no fully qualified name"),
        ({"hostname": "-mx.example.test"}, "no fully qualified name"),
        ({"domains": ["example.test", "a b"]}, "'a b' is no fully qualified name"),
        ({"domains": []}, "postfix_domains is empty"),
        ({"postmaster": "anna"}, "postfix_postmaster is 'anna'"),
        ({"users": [ANNA, ANNA]}, "anna@example.test belongs to both"),
        ({"users": [{**ANNA, "aliases": ["ben@example.test"]}, BEN]}, "ben@example.test belongs to both"),
        ({"users": [ANNA, {**BEN, "aliases": ["sales@EXAMPLE.test"]}]}, "sales@example.test belongs to both"),
        ({"users": [{**ANNA, "aliases": ["anna@example.test"]}]}, "anna@example.test belongs to both"),
        ({"users": [{**ANNA, "aliases": ["a@other.test"]}]}, "'a@other.test' of user anna@example.test is no address"),
        ({"users": [{**ANNA, "address": "anna"}]}, "'anna' of user anna is no address"),
        ({"users": [{**ANNA, "address": "a:b@example.test"}]}, "is no address in a hosted domain"),
        ({"users": [{**ANNA, "may_send_as": ["x"]}]}, "may send as 'x'"),
        ({"listeners": [{**ROW, "tls": "implicit"}]}, "is a relay with implicit TLS"),
        ({"listeners": [ROW, {**ROW, "name": "other"}]}, "has port 25 twice"),
        ({"listeners": [ROW, {**ROW, "port": 26}]}, "has name relay twice"),
        ({"listeners": [{**ROW, "port": 70000}]}, "has port 70000"),
        ({"listeners": [{**ROW, "name": "two words"}]}, "is named 'two words'"),
    ],
)
def test_what_does_not_fit_is_named(changes: dict[str, Any], says: str) -> None:
    said = _mistakes(**changes)
    assert says in said
    assert "Expected:" in said
    assert "Next:" in said


def test_aliases_reach_mailboxes_and_role_names_the_postmaster() -> None:
    aliases, logins = _plugin("postfix/action_plugins/mail_tables.py").tables(
        ["Example.test"], [ANNA, BEN], "Ben@example.test"
    )
    assert aliases["sales@example.test"] == "anna@example.test"
    for name in ("postmaster", "abuse", "fbl", "hostmaster", "mailer-daemon", "root"):
        assert aliases[f"{name}@example.test"] == "ben@example.test"
    assert logins["anna@example.test"] == ["anna@example.test"]
    assert logins["sales@example.test"] == ["anna@example.test", "ben@example.test"]
    assert logins["abuse@example.test"] == ["ben@example.test"]
    assert logins["news@example.test"] == ["ben@example.test"]


def test_a_mailbox_or_alias_named_like_a_role_keeps_its_mail() -> None:
    users = [{**ANNA, "address": "postmaster@example.test", "aliases": []}, {**BEN, "aliases": ["abuse@example.test"]}]
    aliases, _ = _plugin("postfix/action_plugins/mail_tables.py").tables(
        ["example.test"], users, "postmaster@example.test"
    )
    assert "postmaster@example.test" not in aliases
    assert aliases["abuse@example.test"] == "ben@example.test"
    assert aliases["root@example.test"] == "postmaster@example.test"


# --- managed_files, nftables_rules: run as Ansible runs them ----------------------------------------------------------


def _run(module: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Run a module on this machine as Ansible would, and return its result."""
    script = (
        "import sys; from ansible.module_utils import basic;"
        "basic._ANSIBLE_ARGS = sys.stdin.buffer.read(); basic._ANSIBLE_PROFILE = 'legacy';"
        f"import runpy; runpy.run_path({str(ROLES / 'postfix/library' / module)!r}, run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        input=json.dumps({"ANSIBLE_MODULE_ARGS": arguments}),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


@pytest.fixture
def live(tmp_path: Path) -> Path:
    directory = tmp_path / "service"
    directory.mkdir()
    (directory / "main").write_text("old\n")
    (directory / "main").chmod(0o644)
    return directory


def _file(path: Path, **more: Any) -> dict[str, Any]:
    import grp
    import pwd

    owner, group = pwd.getpwuid(os.geteuid()).pw_name, grp.getgrgid(os.getegid()).gr_name
    return {"path": str(path), "owner": owner, "group": group, **more}


def _manage(live: Path, *files: dict[str, Any], **more: Any) -> dict[str, Any]:
    return _run("managed_files.py", {"directory": str(live), "files": list(files), **more})


def test_a_file_is_replaced_once_and_then_left_alone(live: Path) -> None:
    wanted = _file(live / "main", content="new\n", mode="0640")
    first = _manage(live, wanted, _ansible_diff=True)
    assert first["changed"]
    assert first["diff"][0]["before"] == "old\n"
    assert (live / "main").read_text() == "new\n"
    assert (live / "main").stat().st_mode & 0o777 == 0o640
    assert not _manage(live, wanted)["changed"]
    (live / "main").chmod(0o666)
    assert _manage(live, wanted)["replaced"] == [str(live / "main")]
    assert (live / "main").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize(
    ("check", "says"),
    [
        ("echo misspelt >&2", "misspelt"),
        ("exit 3", "exit 3"),
        ("i=0; while [ $i -lt 5000 ]; do echo a line of a long complaint; i=$((i+1)); done >&2", "long complaint"),
    ],
)
def test_a_refused_candidate_replaces_nothing(live: Path, check: str, says: str) -> None:
    result = _manage(live, _file(live / "main", content="new\n"), checks=[["sh", "-c", check]])
    assert result["failed"]
    assert says in result["msg"]
    assert (live / "main").read_text() == "old\n"
    assert [path.name for path in live.parent.iterdir()] == ["service"]


def test_the_check_sees_the_candidate_and_text_on_stdout_is_no_complaint(live: Path) -> None:
    check = "echo fine; grep -qx new {candidate}/main"
    assert _manage(live, _file(live / "main", content="new\n"), checks=[["sh", "-c", check]])["changed"]


def test_a_complaint_about_the_live_directory_does_not_stop_its_repair(live: Path) -> None:
    wanted = _file(live / "main", content="new\n")
    assert _manage(live, wanted, checks=[["sh", "-c", f"echo warning: {live}/main: old >&2"]])["changed"]
    wanted = _file(live / "main", content="newer\n")
    refused = _manage(live, wanted, checks=[["sh", "-c", f"echo warning: {live}/main >&2; echo and more >&2"]])
    assert refused["failed"]


def test_check_mode_runs_the_check_and_replaces_nothing(live: Path) -> None:
    wanted = _file(live / "main", content="new\n")
    assert _manage(live, wanted, _ansible_check_mode=True)["changed"]
    assert _manage(live, wanted, _ansible_check_mode=True, checks=[["false"]])["failed"]
    assert (live / "main").read_text() == "old\n"


def test_check_mode_without_the_package_reports_a_change(tmp_path: Path) -> None:
    missing = tmp_path / "absent"
    result = _manage(missing, _file(missing / "main", content="new\n", group="nosuchgroup"), _ansible_check_mode=True)
    assert (result["changed"], result["installed"]) == (True, False)
    assert _manage(missing, _file(missing / "main", content="new\n"))["failed"]


def test_an_owner_that_is_not_there_replaces_nothing(live: Path) -> None:
    result = _manage(live, {**_file(live / "main", content="new\n"), "owner": "nosuchuser"})
    assert "no user nosuchuser" in result["msg"]
    assert (live / "main").read_text() == "old\n"


def test_a_secret_is_in_no_result(live: Path) -> None:
    result = _manage(live, _file(live / "users", secret_content="anna:hash\n", mode="0600"), _ansible_diff=True)
    assert result["changed"]
    assert (live / "users").read_text() == "anna:hash\n"
    assert "anna:hash" not in json.dumps(result)


def test_what_postmap_and_postalias_print_is_read_as_their_sources() -> None:
    entries = _plugin("postfix/library/managed_files.py").entries
    assert entries("# c\nFoo@ex.test  bar@ex.test\n\nx REJECT 5.7.1 No\n") == entries(
        "x\tREJECT 5.7.1 No\nfoo@ex.test\tbar@ex.test\n"
    )
    assert entries("root: a@ex.test\n") == entries(
        "@:\t@\nYP_LAST_MODIFIED:\t1\nYP_MASTER_NAME:\tx\nroot:\ta@ex.test\n"
    )
    assert entries("a b\n") != entries("a c\n")


def test_sources_that_are_no_cidr_are_named() -> None:
    mistakes = _plugin("firewall/library/nftables_rules.py").mistakes
    assert mistakes([{"port": 25, "sources": ["0.0.0.0/0", "2001:db8::/32"]}]) == []
    for source in ("192.0.2.1/24", "192.0.2.1", "anywhere", "::/129"):
        assert source in mistakes([{"port": 25, "sources": [source]}])[0]


def test_the_ssh_connection_must_be_among_what_is_let_in(monkeypatch: pytest.MonkeyPatch) -> None:
    import ipaddress

    rules = _plugin("firewall/library/nftables_rules.py")
    monkeypatch.setattr(rules, "ssh_connection", lambda: (ipaddress.ip_address("192.0.2.7"), 22))
    assert rules.locked_out([{"port": 22, "sources": ["2001:db8::/32", "192.0.2.0/24"]}]) == ""
    assert "192.0.2.7 to port 22" in rules.locked_out([{"port": 22, "sources": ["198.51.100.0/24"]}])
    assert "192.0.2.7 to port 22" in rules.locked_out([{"port": 23, "sources": ["192.0.2.0/24"]}])
    monkeypatch.setattr(rules, "ssh_connection", lambda: None)
    assert rules.locked_out([]) == ""


def test_the_ssh_connection_is_found_through_parents_that_hide_it() -> None:
    """As under sudo(8), which takes SSH_CONNECTION out of the environment of what it runs."""
    module = str(ROLES / "firewall/library/nftables_rules.py")
    child = (
        f"import importlib.util as u; s = u.spec_from_file_location('m', {module!r});"
        "m = u.module_from_spec(s); s.loader.exec_module(m); print(m.ssh_connection())"
    )
    done = subprocess.run(
        ["sh", "-c", '"$0" -i PYTHONDONTWRITEBYTECODE=1 "$1" -c "$2"; true', "/usr/bin/env", sys.executable, child],
        env={**os.environ, "SSH_CONNECTION": "::ffff:192.0.2.7 40000 192.0.2.1 2222"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.strip() == "(IPv4Address('192.0.2.7'), 2222)", done.stderr


# --- the lab's CA ----------------------------------------------------------------------------------------------------


def test_the_ca_survives_an_interruption_and_refuses_half_a_pair(tmp_path: Path) -> None:
    from ansible.errors import AnsibleActionFail

    plugin = _plugin("certificate/action_plugins/server_certificate.py")
    authority = plugin.Authority(tmp_path / "ca")
    assert not authority.load()
    authority.make()
    first = (tmp_path / "ca/ca.pem").read_bytes()
    plugin.Authority(tmp_path / "ca").make()
    assert (tmp_path / "ca/ca.pem").read_bytes() == first
    (tmp_path / "ca/ca.pem").unlink()  # the key is written first
    again = plugin.Authority(tmp_path / "ca")
    again.make()
    assert again.load()
    (tmp_path / "ca/ca.key").unlink()
    with pytest.raises(AnsibleActionFail, match=r"holds ca\.pem without ca\.key"):
        plugin.Authority(tmp_path / "ca").load()


def test_a_leaf_is_renewed_for_every_reason_and_for_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datetime

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

    plugin = _plugin("certificate/action_plugins/server_certificate.py")

    def request() -> x509.CertificateSigningRequest:
        return x509.CertificateSigningRequestBuilder(x509.Name([])).sign(
            ec.generate_private_key(ec.SECP256R1()), hashes.SHA256()
        )

    authority, other = plugin.Authority(tmp_path / "ca"), plugin.Authority(tmp_path / "other")
    authority.make()
    other.make()
    mine = request()
    chain = authority.sign(mine, "MX.example.test")
    assert authority.why_not(chain, mine, "mx.example.test") == ""
    assert authority.why_not("", mine, "mx.example.test") == "there is no certificate yet"
    assert authority.why_not(chain, mine, "mx2.example.test") == "it is for mx.example.test"
    assert authority.why_not(chain, request(), "mx.example.test") == "its key is another"
    assert other.why_not(chain, mine, "mx.example.test") == "it is not of this CA"
    real = plugin.now()
    for days, renewed in ((59, False), (61, True)):
        monkeypatch.setattr(plugin, "now", lambda days=days: real + datetime.timedelta(days=days))
        assert bool(authority.why_not(chain, mine, "mx.example.test")) is renewed
