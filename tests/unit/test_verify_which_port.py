"""gatepost which-port: what a mail program can use from here, and why not the rest."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import threading
import time
from dataclasses import replace

import pytest
from smtp_loopback import HOST, Server

from gatepost.listeners import Listener
from gatepost.verify import which_port
from gatepost.verify.model import ExitCode
from gatepost.verify.which_port import advise, settings


@pytest.fixture
def ca_file(tmp_path):
    """The loopback server's certificate is its own CA."""
    with Server("submission", "implicit") as server:
        path = tmp_path / "ca.pem"
        path.write_text(ssl.get_server_certificate(("127.0.0.1", server.port)))
    return path


def target(*servers, ca_file, **fields):
    rows = tuple(
        Listener(
            f"row{n}", getattr(s, "port", s), getattr(s, "purpose", "submission"), getattr(s, "tls", "starttls"), ()
        )
        for n, s in enumerate(servers)
    )
    with Server() as any_server:
        whole = any_server.target(listeners=rows, ca_file=ca_file, accounts=(), domains=(), outside_domain=None)
    return replace(whole, **fields)


@pytest.fixture
def closed_port():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound and not listening: refused
        yield unused.getsockname()[1]


def test_implicit_tls_is_recommended_first_and_the_relay_never(ca_file, closed_port):
    with Server() as relay, Server("submission") as starttls, Server("submission", "implicit") as implicit:
        advice = advise(target(relay, starttls, implicit, ca_file=ca_file))
        assert advice.exit_code is ExitCode.PASSED
        assert settings(advice.best) == {
            "server": HOST,
            "port": implicit.port,
            "security": "SSL/TLS",
            "user_name": "your full mail address",
            "authentication": "normal password",
        }
        assert [v.works for v in advice.visits] == [False, True, True]
        assert not any(v.problem for v in advice.visits)
        assert all(v.version == "TLSv1.3" and v.cipher and 0 <= v.connect_ms <= v.ready_ms for v in advice.visits)
        assert not any("AUTH" in command for s in (relay, starttls, implicit) for command in s.commands)
        advice = advise(target(relay, starttls, closed_port, ca_file=ca_file))
        assert settings(advice.best)["port"] == starttls.port and settings(advice.best)["security"] == "STARTTLS"
        advice = advise(target(relay, closed_port, ca_file=ca_file))
        assert advice.best is None and advice.exit_code is ExitCode.FAILED
        assert advice.visits[1].problem.startswith("refused")


BROKEN = [
    ({"clear STARTTLS": "454 4.7.0 TLS not available"}, "TLS"),
    ({"clear EHLO": f"250-{HOST}\n250 SIZE 1000"}, "STARTTLS is not offered"),
    ({"clear EHLO": f"250-{HOST}\n250-STARTTLS\n250 AUTH PLAIN LOGIN"}, "login: offered without TLS too"),
    ({"tls EHLO": f"250-{HOST}\n250 SIZE 1000"}, "login: not offered inside TLS"),
    ({"tls EHLO": f"250-{HOST}\n250 AUTH GSSAPI"}, "GSSAPI"),
    ({"tls EHLO": "502 5.5.2 no"}, "login: not offered inside TLS"),
]


@pytest.mark.parametrize(("broken", "problem"), BROKEN)
def test_what_is_in_the_way_is_named(broken, problem, ca_file):
    with Server("submission", broken=broken) as server:
        advice = advise(target(server, ca_file=ca_file))
    assert problem in advice.visits[0].problem
    assert advice.best is None and advice.exit_code is ExitCode.FAILED


def test_a_certificate_that_is_not_good_is_told_with_the_rest(ca_file):
    with Server("submission", "implicit") as server:
        for changed, why in (({"hostname": "mail.other.test"}, "mail.other.test"), ({"ca_file": None}, "self-signed")):
            (visit,) = advise(replace(target(server, ca_file=ca_file), **changed)).visits
            assert visit.problem.startswith("certificate: ") and why in visit.problem
            assert visit.version == "TLSv1.3" and visit.mechanisms == ("PLAIN", "LOGIN")


def test_a_limit_and_no_way_there_are_no_judgement(ca_file):
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as listening:

        def play():
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listening.accept()
                    connection.sendall(b"421 4.7.0 Error: too many connections\r\n")
                    connection.close()

        threading.Thread(target=play, daemon=True).start()
        advice = advise(target(listening.getsockname()[1], ca_file=ca_file))
    assert advice.exit_code is ExitCode.INCONCLUSIVE and "try again" in advice.visits[0].problem
    nowhere = advise(target(9, ca_file=ca_file, addresses=("fe80::1",)))  # link-local without a link
    assert nowhere.exit_code is ExitCode.INCONCLUSIVE and not nowhere.here


def test_a_port_that_works_at_every_address_comes_first(ca_file):
    with Server("submission", "implicit") as implicit, Server("submission") as starttls:
        whole = target(starttls, implicit, ca_file=ca_file, addresses=("127.0.0.1", "127.0.0.2"))
        assert settings(advise(whole).best)["port"] == implicit.port  # both at the first only
        second = socket.create_server(("127.0.0.2", starttls.port))  # the same server at another address
        threading.Thread(target=type(starttls)._accept, args=(_at(starttls, second),), daemon=True).start()
        with second:
            assert settings(advise(whole).best)["port"] == starttls.port


def _at(server, listening):
    import copy

    other = copy.copy(server)
    other._listening = listening
    return other


def test_a_server_that_never_greets_costs_its_deadline_once(ca_file, monkeypatch):
    monkeypatch.setattr("gatepost.verify.wire.session.BANNER_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent, Server("submission", "implicit") as good:
        begun = time.monotonic()
        advice = advise(target(silent.getsockname()[1], good, ca_file=ca_file))
        assert time.monotonic() - begun < 30  # against hanging only
    assert advice.visits[0].problem.startswith("timeout")
    assert advice.exit_code is ExitCode.PASSED


def test_the_answer_as_json_and_as_text(ca_file, closed_port, capsys):
    with Server("submission", "implicit") as server, Server() as relay:
        advice = advise(target(relay, server, closed_port, ca_file=ca_file))
    document = json.loads(which_port.to_json(advice))
    assert document["recommendation"]["port"] == server.port and document["exit_code"] == 0
    assert [row["works"] for row in document["ports"]] == [False, True, False]
    assert document["ports"][2]["connect_ms"] is None and not document["ports"][2]["reached"]
    which_port.show(advice)
    text = capsys.readouterr().out
    assert "recommended" in text and "SSL/TLS" in text and "normal password" in text
    blocked = text[text.index("What is in the way") :]
    assert str(closed_port) in blocked and "refused" in blocked and "--via" in blocked
    assert max(map(len, text.splitlines())) <= 80
