"""The roles on real machines: from nothing, again, by themselves, and when something is wrong."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml
from bare import REPOSITORY, Bare
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

pytestmark = pytest.mark.lab

HOSTNAME = "mx.example.test"
CONFIGURATION = (
    "/etc/postfix /etc/aliases /etc/dovecot/dovecot.conf /etc/dovecot/users /etc/nftables.conf /etc/ssl/gatepost"
)


@pytest.fixture(scope="module", params=[13, 12])
def fresh(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bare]:
    """A machine without any of our packages; the tests below run over it in the order in which they stand."""
    with Bare(tmp_path_factory.mktemp("bare"), request.param) as machine:
        yield machine


def _digest(machine: Bare) -> str:
    """All managed files with content, owner and mode, and the running rules."""
    return machine.text(
        f"find {CONFIGURATION} -type f ! -name '*.db' -printf '%p %u %g %m ' -exec sha256sum {{}} \\; | sort;"
        "for table in vmailbox virtual sender_logins own_domains; do postmap -s hash:/etc/postfix/$table | sort; done;"
        "nft -s list ruleset"
    )


def test_check_mode_on_a_fresh_host_says_what_would_change_and_changes_nothing(fresh: Bare) -> None:
    run = fresh.play("--check", "--diff")
    assert run.code == 0, run.output
    assert run.changed > 0
    assert "+smtpd_tls_security_level = may" in run.output
    assert fresh.text("dpkg -l postfix 2>/dev/null | grep -c ^ii || true") == "0"
    assert fresh.text("ls -d /etc/postfix /etc/ssl/gatepost /var/vmail 2>/dev/null || true") == ""
    assert not (fresh.directory / "ca").exists()


def test_hashes_are_in_no_output(fresh: Bare) -> None:
    # The most talkative run there is, on the host where users is still to be written.
    run = fresh.play("--check", "--diff", "-vvv")
    assert run.code == 0, run.output
    for user in yaml.safe_load(fresh.inventory.read_text())["mailservers"]["vars"]["mail_users"]:
        assert user["password_hash"] not in run.output


def test_converge_from_nothing(fresh: Bare) -> None:
    run = fresh.play()
    assert run.code == 0, run.output
    assert run.changed > 0
    assert fresh.text("systemctl --failed --no-legend") == ""
    unit = "postfix@-" if fresh.release == 12 else "postfix"
    assert fresh.text(f"systemctl is-active {unit} dovecot nftables").split() == ["active"] * 3
    assert fresh.text("systemctl is-enabled postfix dovecot nftables").split() == ["enabled"] * 3
    assert fresh.text("ls /usr/sbin/policy-rc.d 2>/dev/null || true") == ""


def test_converge_again_changes_nothing(fresh: Bare) -> None:
    before = _digest(fresh)
    for arguments in ((), ("--check",)):
        run = fresh.play(*arguments)
        assert (run.code, run.changed) == (0, 0), run.output
    assert _digest(fresh) == before


def test_drift_of_every_kind_is_repaired(fresh: Bare) -> None:
    before = _digest(fresh)
    fresh.ssh(
        "echo 'inet_interfaces = loopback-only' >>/etc/postfix/main.cf; chmod 666 /etc/postfix/master.cf;"
        "chown nobody /etc/postfix/virtual; rm /etc/postfix/vmailbox.db; echo 'x: y' >>/etc/aliases;"
        "sed -i 's/^anna/mallory/' /etc/postfix/sender_logins; postmap hash:/etc/postfix/sender_logins;"
        "echo >>/etc/dovecot/users; chmod 755 /var/vmail; chmod 644 /etc/ssl/gatepost/privkey.pem;"
        "nft flush ruleset; systemctl disable -q nftables; systemctl stop postfix dovecot"
    )
    run = fresh.play()
    assert run.code == 0, run.output
    assert _digest(fresh) == before
    assert fresh.text("stat -c %a /var/vmail") == "700"
    assert fresh.text("ss -Hltn 'sport = :587' | grep -c 0.0.0.0") == "1"
    assert fresh.play().changed == 0


def test_a_table_that_does_not_match_its_source_is_compiled_again(fresh: Bare) -> None:
    fresh.ssh(
        "cd /etc/postfix && cp virtual /root/v && echo 'x@example.test ben@example.test' >virtual && postmap virtual &&"
        "cp -p virtual.db /root/v.db && cat /root/v >virtual && cat /root/v.db >virtual.db"
    )
    assert fresh.text("postmap -q x@example.test hash:/etc/postfix/virtual") == "ben@example.test"
    assert fresh.play().changed > 0
    assert fresh.text("postmap -q x@example.test hash:/etc/postfix/virtual || true") == ""


def test_a_run_cut_off_before_the_restart_is_made_good(fresh: Bare) -> None:
    started = "systemctl show -P ExecMainStartTimestampMonotonic dovecot"
    before = fresh.text(started)
    # As the first run left it, but for the restart that did not happen any more; and a socket of Dovecot's defaults.
    fresh.ssh("cd /etc/dovecot && cp -p dovecot.conf x && mv x dovecot.conf; touch /run/dovecot/anvil-auth-penalty")
    assert fresh.play().changed == 2
    assert fresh.text(started) != before
    assert fresh.text("ls /run/dovecot/anvil-auth-penalty 2>/dev/null || true") == ""
    assert fresh.play().changed == 0


def test_a_refused_candidate_leaves_the_live_files_as_they_were(fresh: Bare) -> None:
    before = _digest(fresh)
    run = fresh.play(postfix_sasl_path="private/auth\nmisspelt_parameter = yes")
    assert run.code != 0
    assert "unused parameter: misspelt_parameter=yes" in run.said
    assert "the live files are as they were" in run.said
    run = fresh.play(dovecot_mail_directory="/var/vmail\nmisspelt_setting = yes")
    assert run.code != 0
    assert "misspelt_setting" in run.said
    assert _digest(fresh) == before
    assert fresh.text("ls -d /etc/.postfix* /etc/.dovecot* 2>/dev/null || true") == ""


def test_a_firewall_that_would_lock_us_out_is_refused(fresh: Bare) -> None:
    before = _digest(fresh)
    run = fresh.play(ssh_sources=["192.0.2.0/24"])
    assert run.code != 0
    assert "This SSH connection comes from" in run.said
    assert "ssh_sources" in run.said
    assert _digest(fresh) == before


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"ssh_sources": ["192.0.2.1/24"]}, "192.0.2.1/24 is not a CIDR"),
        ({"postfix_mesage_size_limit": 1}, "postfix_mesage_size_limit: there is no such variable"),
        ({"dovecot_user": []}, "dovecot_user: there is no such variable"),
        ({"firewall_alow": []}, "firewall_alow: there is no such variable"),
        ({"certificate_sorce": "files"}, "certificate_sorce: there is no such variable"),
        ({"certificate_source": "acme"}, "value of certificate_source must be one of: lab_ca, files"),
        ({"mail_hostname": "mx"}, "certificate_hostname is mx"),
        ({"mail_postmaster": "nobody"}, "postfix_postmaster is 'nobody'"),
    ],
)
def test_bad_values_are_named_and_change_nothing(fresh: Bare, changes: dict[str, object], says: str) -> None:
    before = _digest(fresh)
    run = fresh.play(**changes)
    assert run.code != 0
    assert says in run.said
    assert _digest(fresh) == before


def test_a_fifth_row_is_a_fifth_listener(fresh: Bare, tmp_path: Path) -> None:
    table = yaml.safe_load((REPOSITORY / "roles/postfix/defaults/main/listeners.yml").read_text())
    table["postfix_listeners"].append(
        {"name": "fifth", "port": 26, "purpose": "submission", "tls": "implicit", "sources": ["198.18.0.0/15"]}
    )
    file = tmp_path / "five.yml"
    file.write_text(yaml.safe_dump(table))
    run = fresh.play("-e", f"@{file}")
    assert run.code == 0, run.output
    assert fresh.text("ss -Hltn 'sport = :26' | wc -l") == "2"
    assert "26" in fresh.text("nft list table inet filter | grep 198.18.0.0/15")
    assert fresh.text("postconf -Pxh 26/inet/smtpd_tls_wrappermode 26/inet/smtpd_sasl_auth_enable").split() == [
        "yes",
        "yes",
    ]
    run = fresh.play()
    assert run.code == 0, run.output
    assert fresh.text("ss -Hltn 'sport = :26' | wc -l") == "0"


def test_other_sources_change_the_firewall_and_nothing_else(fresh: Bare, tmp_path: Path) -> None:
    started = "systemctl show -P ExecMainStartTimestampMonotonic postfix postfix@- dovecot"
    before = fresh.text(started)
    table = yaml.safe_load((REPOSITORY / "roles/postfix/defaults/main/listeners.yml").read_text())
    table["postfix_listeners"][1]["sources"] = ["192.0.2.0/24"]
    file = tmp_path / "narrow.yml"
    file.write_text(yaml.safe_dump(table))
    run = fresh.play("-e", f"@{file}")
    assert (run.code, run.changed) == (0, 1), run.output
    assert "ip saddr 192.0.2.0/24 tcp dport 587 accept" in fresh.text("nft list table inet filter")
    assert fresh.play().changed == 1
    assert fresh.text(started) == before


# --- certificates that a person brings -------------------------------------------------------------------------------


class Issuer:
    """A CA in memory that signs what it is told to, right or wrong."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Somebody's CA")])

    def files(
        self, *, name: str = HOSTNAME, days: tuple[int, int] = (-1, 90), other_key: bool = False, server: bool = True
    ) -> dict[str, str]:
        """Write a chain and a key; return the variables that name them."""
        key = ec.generate_private_key(ec.SECP256R1())
        now = datetime.now(UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(self.name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + timedelta(days=days[0]))
            .not_valid_after(now + timedelta(days=days[1]))
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        )
        if server:
            builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        chain = builder.sign(self.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
        given = ec.generate_private_key(ec.SECP256R1()) if other_key else key
        (self.directory / "chain.pem").write_bytes(chain)
        (self.directory / "key.pem").write_bytes(
            given.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return {
            "certificate_source": "files",
            "certificate_chain_file": str(self.directory / "chain.pem"),
            "certificate_key_file": str(self.directory / "key.pem"),
        }


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"other_key": True}, "is not the key of the first certificate"),
        ({"days": (-90, -1)}, "expired on"),
        ({"days": (1, 90)}, "is valid only from"),
        ({"name": "mail.example.test"}, "is for mail.example.test, not for mx.example.test"),
        ({"server": False}, "is not for servers"),
    ],
)
def test_a_certificate_that_would_not_serve_is_refused(
    fresh: Bare, tmp_path: Path, wrong: dict[str, object], says: str
) -> None:
    before = _digest(fresh)
    run = fresh.play(**Issuer(tmp_path).files(**wrong))
    assert run.code != 0
    assert says in run.said
    assert "Expected:" in run.said
    assert _digest(fresh) == before


def _served(machine: Bare) -> str:
    return machine.text(
        "echo QUIT | openssl s_client -connect 127.0.0.1:465 -servername mx.example.test 2>/dev/null"
        " | openssl x509 -noout -fingerprint -sha256"
    )


def test_given_files_are_served_and_the_lab_ca_takes_over_again(fresh: Bare, tmp_path: Path) -> None:
    first = _served(fresh)
    variables = Issuer(tmp_path).files()
    run = fresh.play(**variables)
    assert run.code == 0, run.output
    assert fresh.play(**variables).changed == 0
    given = fresh.text("openssl x509 -in /etc/ssl/gatepost/fullchain.pem -noout -fingerprint -sha256")
    assert _served(fresh) == given != first
    run = fresh.play()
    assert run.code == 0, run.output
    assert fresh.play().changed == 0
    assert _served(fresh) not in (given, first)


def test_the_lab_ca_signs_for_the_right_name_and_the_key_stays(fresh: Bare) -> None:
    key = "openssl pkey -in /etc/ssl/gatepost/privkey.pem -pubout | sha256sum"
    before = fresh.text(key)
    run = fresh.play(mail_hostname="mx2.example.test")
    assert run.code == 0, run.output
    assert "DNS:mx2.example.test" in fresh.text(
        "openssl x509 -in /etc/ssl/gatepost/fullchain.pem -noout -ext subjectAltName"
    )
    assert fresh.play().code == 0
    assert fresh.text(key) == before
    assert (fresh.directory / "ca/ca.key").stat().st_mode & 0o777 == 0o600
    private = fresh.text("cat /etc/ssl/gatepost/privkey.pem")
    assert not any(private.encode() in path.read_bytes() for path in fresh.directory.rglob("*") if path.is_file())
    # What a renewal tool that knows no Ansible does is noticed as well.
    fresh.ssh("touch /etc/ssl/gatepost/fullchain.pem")
    assert fresh.play().changed == 1
    assert fresh.play().changed == 0


# --- each role by itself ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["certificate", "firewall", "dovecot", "postfix"])
def test_the_example_of_its_readme_works_alone(role: str, tmp_path: Path) -> None:
    """On a machine of its own, the README's play as it stands, but for what only the reader has."""
    readme = (REPOSITORY / "roles" / role / "README.md").read_text()
    play = yaml.safe_load(readme.split("```yaml\n")[1].split("```")[0])
    variables = play[0]["roles"][0]["vars"]
    with Bare(tmp_path) as machine:
        if role == "certificate":
            variables |= Issuer(tmp_path).files(name=variables["certificate_hostname"]) | {"certificate_reload": []}
        if role == "firewall":
            variables["firewall_allow"][0]["sources"].append("198.18.0.0/15")
        if role == "dovecot":
            variables["dovecot_users"][0]["password_hash"] = machine.variables["mail_users"][0]["password_hash"]
        playbook = tmp_path / "play.yml"
        playbook.write_text(yaml.safe_dump(play))
        # The inventory's variables are site.yml's; here the play must do with its own.
        inventory = yaml.safe_load(machine.inventory.read_text())
        inventory["mailservers"]["vars"] = {}
        machine.inventory.write_text(yaml.safe_dump(inventory))
        run = machine.play("--check", playbook=playbook)
        assert run.code == 0, run.output
        run = machine.play(playbook=playbook)
        assert run.code == 0, run.output
        assert machine.text("systemctl --failed --no-legend") == ""
        run = machine.play(playbook=playbook)
        assert (run.code, run.changed) == (0, 0), run.output
