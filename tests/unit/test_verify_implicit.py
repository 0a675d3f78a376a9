import pytest
from smtp_loopback import Server, tls_context

from gatepost.verify.checks import implicit
from gatepost.verify.model import Verdict
from gatepost.verify.wire import implicit as wire

IDS = [row.id for row in implicit.REQUIREMENTS]
EHLO = "250-mx.example.test\n250-PIPELINING\n250 "


@pytest.fixture(autouse=True, scope="module")
def short_silence():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wire, "SILENCE_SECONDS", 0.3)
        patch.setattr(wire, "ANSWER_SECONDS", 0.5)
        yield


@pytest.fixture(scope="module")
def sound():
    with Server("submission", "implicit") as server:
        return server.judge(*IDS)


@pytest.mark.parametrize("identifier", IDS)
def test_passes_on_a_sound_server(sound, identifier):
    expected = Verdict.INFO if identifier == "IMP-TLS-06" else Verdict.PASS
    assert sound[identifier].verdict is expected, sound[identifier].found


class InClear(Server):
    """Greets in clear and speaks no TLS, as Postfix without wrapper mode."""

    def __init__(self):
        super().__init__("submission", "implicit", greets_in_clear=True)


class AnswersInClear(Server):
    """Says nothing unasked, but answers SMTP in clear; TLS works too."""

    def _serve(self, connection):
        connection.settimeout(2)
        if connection.recv(1, 2) == b"\x16":  # MSG_PEEK: a TLS record
            super()._serve(connection)
        else:
            connection.recv(512)
            connection.sendall(b"500 5.5.2 Error: speak TLS\r\n")
            connection.close()


class WantsName(Server):
    """Breaks off a handshake without SNI."""

    def _serve(self, connection):
        context = tls_context()
        context.sni_callback = lambda _socket, name, _context: None if name else 112
        try:
            super()._serve(connection)
        finally:
            context.sni_callback = None


class Web(Server):
    """Hands a connection with ALPN to a web server."""

    def _serve(self, connection):
        context = tls_context()
        context.set_alpn_protocols(["http/1.1"])
        with context.wrap_socket(connection, server_side=True) as inside:
            inside.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")


BROKEN = [
    ("IMP-TLS-01", InClear, {}, "220 mx.example.test"),
    ("IMP-TLS-02", InClear, {}, "250-mx.example.test"),
    ("IMP-TLS-02", AnswersInClear, {"purpose": "submission", "tls": "implicit"}, "500 5.5.2"),
    ("IMP-TLS-03", InClear, {}, "no greeting inside TLS"),
    ("IMP-TLS-04", Server, {"broken": {"tls EHLO": f"{EHLO}AUTH LOGIN"}}, "AUTH LOGIN"),
    ("IMP-TLS-04", Server, {"broken": {"tls EHLO": "250-mx\n250-STARTTLS\n250 AUTH PLAIN LOGIN"}}, "STARTTLS"),
    ("IMP-TLS-05", Server, {"broken": {"tls STARTTLS": "220 2.0.0 Ready"}}, "220"),
    ("IMP-TLS-06", Web, {}, "ALPN http/1.1"),
    ("IMP-TLS-07", WantsName, {}, "without SNI"),
]


@pytest.mark.parametrize(("identifier", "server", "how", "quoted"), BROKEN, ids=lambda value: str(value)[:40])
def test_fails_and_quotes_what_is_broken(identifier, server, how, quoted):
    how = how if server is InClear else {"purpose": "submission", "tls": "implicit"} | how
    with server(**how) as broken:
        result = broken.judge(identifier)[identifier]
    assert result.verdict is Verdict.FAIL, result.found
    assert quoted in result.found


def test_every_requirement_has_a_failing_case():
    assert set(IDS) == {identifier for identifier, *_ in BROKEN}


def test_a_port_that_speaks_no_tls_passes_nothing():
    with InClear() as server:
        assert Verdict.PASS not in {result.verdict for result in server.judge(*IDS).values()}
