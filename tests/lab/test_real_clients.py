"""Clients that no one here wrote, on a second machine of the lab, against a deployed server."""

from __future__ import annotations

import re
import secrets
import shlex
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from environments import Environment

from gatepost.lab import machine
from gatepost.listeners import Listener, load

pytestmark = pytest.mark.lab

SUBMISSION = [pytest.param(row, id=str(row.port)) for row in load().listeners if row.is_submission]
OUTSIDER = "someone@remote.test"
ARRIVES = 30  # seconds that a message may take; a deadline, not a figure


@dataclass(frozen=True)
class Neighbour:
    """A machine beside the server: mail client, and the mail server of the outside domain."""

    login: list[str]
    server: Environment

    def run(self, script: str, *, stdin: str = "") -> str:
        done = subprocess.run(
            [*self.login, "sudo", "bash", "-ec", shlex.quote(script)],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )
        assert done.returncode == 0, f"{script}\nexit code {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout


@pytest.fixture(scope="module")
def neighbour(server13: Environment) -> Iterator[Neighbour]:
    info = server13.info
    [server] = info["servers"]
    key = Path(server["ssh"]["key_file"])
    spec = machine.Spec(
        name=f"{server['name']}-b",
        fqdn="mail.remote.test",
        network=server["name"],
        ssh_public_key=key.with_suffix(".pub").read_text().strip(),
        mx_for=("remote.test",),
    )
    made = machine.create(spec)
    try:
        known = server13.directory / "neighbour_known_hosts"
        known.write_text(f"{made.ipv4} {made.ssh_host_key}\n")
        login = ["ssh", "-i", str(key), "-o", f"UserKnownHostsFile={known}", f"{spec.ssh_user}@{made.ipv4}"]
        neighbour = Neighbour(login, server13)
        # --auth-password and netrc read these; the directory is root's.
        account = info["test_accounts"][0]
        secret = Path(account["password_file"]).read_text().strip()
        neighbour.run("install -m 600 /dev/stdin /root/password", stdin=secret + "\n")
        neighbour.run("cat > /root/ca.pem", stdin=Path(info["ca_file"]).read_text())
        neighbour.run(
            "export DEBIAN_FRONTEND=noninteractive; apt-get -qq update; apt-get -qq install -y --no-install-recommends "
            "postfix ssl-cert swaks libnet-ssleay-perl curl msmtp openssl ca-certificates >/dev/null; "
            f"postconf -e myhostname={spec.fqdn} mydestination=remote.test mynetworks=127.0.0.0/8 inet_interfaces=all "
            "compatibility_level=3.6 relayhost= smtp_tls_security_level=may smtpd_tls_security_level=may "
            "smtpd_tls_chain_files=/etc/ssl/private/ssl-cert-snakeoil.key,/etc/ssl/certs/ssl-cert-snakeoil.pem; "
            f"useradd -m {OUTSIDER.partition('@')[0]}; systemctl restart postfix"
        )
        yield neighbour
    finally:
        machine.destroy(made.name, made.uuid)


def _arrived(server: Environment, mailbox: str, subject: str) -> str:
    """Return the message with this subject, read back from the mailbox, and remove it."""
    mail = f"mailbox INBOX header subject {shlex.quote(subject)}"
    deadline = time.monotonic() + ARRIVES
    while time.monotonic() < deadline:
        fetched = server.ssh(f"doveadm fetch -u {mailbox} text {mail}").stdout
        if subject in fetched:
            server.ssh(f"doveadm expunge -u {mailbox} {mail}")
            return fetched
        time.sleep(0.3)
    raise AssertionError(f"{subject!r} did not arrive in {mailbox}:\n" + server.ssh("journalctl -n 30 -o cat").stdout)


def _names(server: Environment) -> tuple[str, str, str]:
    info = server.info
    sender, reader = (account["address"] for account in info["test_accounts"])
    return info["hostname"], sender, reader


def _message(sender: str, reader: str, subject: str) -> str:
    return f"From: <{sender}>\nTo: <{reader}>\nSubject: {subject}\n\nhello\n"


@pytest.mark.parametrize("row", SUBMISSION)
def test_swaks(neighbour: Neighbour, row: Listener) -> None:
    host, sender, reader = _names(neighbour.server)
    subject = f"swaks {secrets.token_hex(6)}"
    neighbour.run(
        f"swaks --server {host} --port {row.port} {'--tls-on-connect' if row.is_implicit else '--tls'} --tls-verify "
        f"--tls-ca-path /root/ca.pem --from {sender} --to {reader} --header 'Subject: {subject}' "
        f"--auth PLAIN --auth-user {sender} --auth-password < /root/password"
    )
    _arrived(neighbour.server, reader, subject)


@pytest.mark.parametrize("row", SUBMISSION)
def test_curl(neighbour: Neighbour, row: Listener) -> None:
    host, sender, reader = _names(neighbour.server)
    subject = f"curl {secrets.token_hex(6)}"
    url = f"smtp{'s' if row.is_implicit else ''}://{host}:{row.port}/client.example.test"
    neighbour.run(
        f"printf 'machine {host} login {sender} password %s\\n' \"$(cat /root/password)\" > /root/netrc; "
        f"curl -sS --ssl-reqd --cacert /root/ca.pem --netrc-file /root/netrc --mail-from {sender} --mail-rcpt {reader} "
        f"-T - {url}",
        stdin=_message(sender, reader, subject),
    )
    _arrived(neighbour.server, reader, subject)


@pytest.mark.parametrize("row", SUBMISSION)
def test_msmtp(neighbour: Neighbour, row: Listener) -> None:
    host, sender, reader = _names(neighbour.server)
    subject = f"msmtp {secrets.token_hex(6)}"
    neighbour.run(
        f"msmtp --host={host} --port={row.port} --tls=on --tls-starttls={'off' if row.is_implicit else 'on'} "
        f"--tls-trust-file=/root/ca.pem --auth=plain --user={sender} --passwordeval='cat /root/password' "
        f"--from={sender} {reader}",
        stdin=_message(sender, reader, subject),
    )
    _arrived(neighbour.server, reader, subject)


@pytest.mark.parametrize("row", SUBMISSION)
def test_openssl(neighbour: Neighbour, row: Listener) -> None:
    """By hand, line by line, as one types it."""
    host, sender, reader = _names(neighbour.server)
    subject = f"openssl {secrets.token_hex(6)}"
    starttls = "" if row.is_implicit else "-starttls smtp"
    neighbour.run(
        f"""plain=$(printf '\\0{sender}\\0%s' "$(cat /root/password)" | base64 -w0)
        lines=("EHLO client.example.test" "AUTH PLAIN $plain" "MAIL FROM:<{sender}>" "RCPT TO:<{reader}>" DATA
          "Subject: {subject}" "" "hello" "." QUIT)
        for line in "${{lines[@]}}"; do sleep 0.5; printf '%s\\n' "$line"; done |
          openssl s_client -connect {host}:{row.port} {starttls} -servername {host} -CAfile /root/ca.pem \
            -verify_return_error -verify_hostname {host} -crlf -quiet | grep -q '^250 2.0.0 Ok: queued'"""
    )
    _arrived(neighbour.server, reader, subject)


def test_mail_from_another_server_comes_in_by_mx(neighbour: Neighbour) -> None:
    """The neighbour's Postfix finds the server by MX, uses TLS, and the mail lies in the mailbox."""
    _, _, reader = _names(neighbour.server)
    subject = f"inbound {secrets.token_hex(6)}"
    neighbour.run(f"sendmail -f {OUTSIDER} {reader}", stdin=_message(OUTSIDER, reader, subject))
    text = _arrived(neighbour.server, reader, subject)
    assert "from mail.remote.test" in text
    assert "with ESMTPS" in text


def test_mail_of_a_user_goes_out_by_mx(neighbour: Neighbour) -> None:
    """An authenticated user's mail reaches the neighbour's Postfix over 25, found by MX."""
    host, sender, _ = _names(neighbour.server)
    subject = f"outbound {secrets.token_hex(6)}"
    row = SUBMISSION[0].values[0]
    neighbour.run(
        f"msmtp --host={host} --port={row.port} --tls=on --tls-trust-file=/root/ca.pem --auth=plain --user={sender} "
        f"--passwordeval='cat /root/password' --from={sender} {OUTSIDER}",
        stdin=_message(sender, OUTSIDER, subject),
    )
    text = neighbour.run(
        f"for _ in $(seq {ARRIVES}); do grep -qs '{subject}' /var/mail/someone && break; sleep 1; done; "
        "cat /var/mail/someone"
    )
    assert subject in text
    assert f"from {host}" in text
    assert re.search(r"with (ESMTPS|UTF8SMTPS) ", text)  # msmtp asks for SMTPUTF8 where it is offered (RFC 6531 §3.7.3)
