import contextlib
import socket
import ssl
import struct
import threading
import time

import pytest
from observations import HOST, target
from smtp_loopback import Server, tls_context

from gatepost.listeners import Listener
from gatepost.verify.model import Account
from gatepost.verify.wire import ciphers, tls
from gatepost.verify.wire.probe import Case, Send, Site, Step, Told, case, dialogue, is_limit, tell
from gatepost.verify.wire.reach import reach
from gatepost.verify.wire.session import Ended, Failure, Reply, Session, WireError

BANNER = b"220 mx.example.test ESMTP\r\n"
EHLO = b"250-mx.example.test\r\n250-PIPELINING\r\n250 STARTTLS\r\n"


def site(port, tls_mode="starttls", purpose="relay", **fields):
    listener = Listener("probe", port, purpose, tls_mode, ("0.0.0.0/0",))
    fields = {"listeners": (listener,), "addresses": ("127.0.0.1",)} | fields
    return Site(target(**fields), listener, "127.0.0.1")


@contextlib.contextmanager
def script(play):
    """Serve every connection with play(connection) on the loopback; yield the port."""
    listening = socket.create_server(("127.0.0.1", 0))
    open_ones = []

    def serve(connection):
        with contextlib.suppress(OSError, StopIteration):
            play(connection)
        with contextlib.suppress(OSError):
            connection.close()

    def accept():
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listening.accept()
                open_ones.append(connection)
                threading.Thread(target=serve, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield listening.getsockname()[1]
    finally:
        listening.close()
        for connection in open_ones:
            connection.close()


def says(*pieces):
    """Send the pieces one by one, then keep the connection until the client leaves."""

    def play(connection):
        for piece in pieces:
            connection.sendall(piece)
        while connection.recv(65536):
            pass

    return play


def answers(*replies):
    """Send the first reply, then one more for each line received; None closes."""

    def play(connection):
        lines = connection.makefile("rb")
        for reply in replies:
            if reply is None:
                return
            connection.sendall(reply)
            if not lines.readline():
                return
        lines.read()

    return play


def first_reply(play, timeout=2.0):
    with script(play) as port, Session(site(port)) as session:
        session.connect()
        return session.reply(timeout)


def failure(play, timeout=2.0):
    with pytest.raises(WireError) as caught:
        first_reply(play, timeout)
    assert caught.value.transcript
    return caught.value


# -- reading replies -------------------------------------------------------------------------------------------------


def test_a_reply_split_byte_by_byte_is_one_reply():
    def play(connection):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in EHLO:
            connection.sendall(bytes([byte]))
            time.sleep(0.001)
        connection.recv(1)

    reply = first_reply(play)
    assert (reply.code, reply.keywords, reply.keyword("starttls")) == (250, ("PIPELINING", "STARTTLS"), "")


def test_two_replies_in_one_packet_are_two():
    with script(says(b"250 one\r\n550 5.1.1 two\r\n")) as port, Session(site(port)) as session:
        session.connect()
        assert [session.reply().code, session.reply().enhanced] == [250, "5.1.1"]


@pytest.mark.parametrize(
    ("raw", "lines"),
    [
        (b"250\r\n", ("",)),
        (b"250 bare newline\n", ("bare newline",)),
        (b"250 gr\xfc\xdfe\x00\x1b[31m\r\n", ("gr\\xfc\\xdfe\\x00\\x1b[31m",)),
        (b"250-\r\n250 \r\n", ("", "")),
    ],
)
def test_odd_replies_are_read_and_shown_harmless(raw, lines):
    reply = first_reply(says(raw))
    assert reply.lines == lines
    assert all(line.isprintable() for line in reply.lines)


@pytest.mark.parametrize(
    "raw",
    [
        b"HTTP/1.1 400 Bad Request\r\n",
        b"250-one\r\n550 two\r\n",
        b"999 no such code\r\n",
        b"\xff\xfe\x00\x01\r\n",
        b"\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n",
    ],
)
def test_what_is_no_reply_is_garbage(raw):
    assert failure(says(raw)).failure is Failure.GARBAGE


def endless(piece):
    def play(connection):
        while True:
            connection.sendall(piece)

    return play


@pytest.mark.parametrize("piece", [b"x" * 65536, b"250-more\r\n" * 6000, b"\x00" * 65536, b"220-" + b"y" * 60000])
def test_an_endless_reply_ends_in_bounded_memory(piece):
    with script(endless(piece)) as port, Session(site(port)) as session:
        session.connect()
        with pytest.raises(WireError) as caught:
            session.banner()
        assert caught.value.failure is Failure.GARBAGE
        assert len(session._buffer) <= 65536 and len(session.transcript) <= 401


def test_a_server_that_drips_meets_the_deadline_of_the_whole_reply():
    def play(connection):
        while True:
            connection.sendall(b"250-x\r\n")
            time.sleep(0.05)

    error = failure(play, 0.4)
    assert error.failure is Failure.TIMED_OUT and "lines of a reply" in error.detail


def test_a_server_that_never_answers_times_out():
    assert failure(says(), 0.3).failure is Failure.TIMED_OUT


def test_a_closed_and_a_reset_connection_are_told_apart():
    def reset(connection):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()

    assert failure(lambda connection: connection.sendall(b"220-half")).failure is Failure.CLOSED
    assert failure(reset).failure is Failure.RESET


def test_a_refused_connection():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(WireError) as caught, Session(site(port)) as session:
        session.connect()
    assert caught.value.failure is Failure.REFUSED


def test_a_source_address_that_is_not_ours_is_unreachable_and_says_so():
    with pytest.raises(WireError) as caught, Session(site(9, source_addresses=("192.0.2.77",))) as session:
        session.connect()
    assert caught.value.failure is Failure.UNREACHABLE


def test_an_interrupted_run_does_not_wait_for_a_silent_server():
    with script(says()) as port:
        where = site(port)
        threading.Timer(0.2, where.cancelled.set).start()
        with Session(where) as session, pytest.raises(WireError) as caught:
            session.connect()
            session.reply(30.0)
    assert caught.value.failure is Failure.NOT_TRIED


def test_replies_until_silence_and_until_the_end():
    with script(says(b"250 one\r\n", b"354 two\r\n")) as port, Session(site(port)) as session:
        session.connect()
        assert [r.code for r in session.replies(0.3)] == [250, 354]
    with script(lambda c: c.sendall(b"250 one\r\n")) as port, Session(site(port)) as session:
        session.connect()
        one, end = session.replies(0.3)
        assert one.code == 250 and end.failure is Failure.CLOSED


def test_raw_bytes_go_out_as_they_are():
    got = []

    def play(connection):
        connection.sendall(BANNER)
        got.append(connection.recv(100))
        connection.sendall(b"250 ok\r\n")

    with script(play) as port, Session(site(port)) as session:
        session.connect()
        session.banner()
        session.send(b"a\n.\r\n\x00\xff\r")
        assert session.reply().code == 250
    assert got == [b"a\n.\r\n\x00\xff\r"]


# -- credentials -----------------------------------------------------------------------------------------------------

SECRET = "Corr3ct-horse"


@pytest.mark.parametrize(
    "sends",
    [
        ["AUTH PLAIN AGFsaWNlAENvcnIzY3QtaG9yc2U="],
        ["auth  plain AGFsaWNlAENvcnIzY3QtaG9yc2U="],
        ["AUTH LOGIN", "QWxpY2U=", "Q29ycjNjdC1ob3JzZQ=="],
        ["AUTH PLAIN", "AGFsaWNlAENvcnIzY3QtaG9yc2U="],
    ],
)
def test_no_credential_reaches_a_transcript(sends):
    with script(answers(BANNER, *[b"334 \r\n"] * len(sends))) as port, Session(site(port)) as session:
        session.connect()
        session.banner()
        for line in sends:
            session.command(line)
        text = "\n".join(line.text for line in session.transcript)
    assert "AGFs" not in text and "Q29y" not in text and "QWxp" not in text
    assert "****" in text


def test_a_login_outside_tls_is_not_sent():
    got = []

    def play(connection):
        connection.sendall(BANNER)
        got.append(connection.recv(100))

    with script(play) as port, Session(site(port)) as session, pytest.raises(WireError):
        session.connect()
        session.banner()
        session.login(Account("alice@example.test", SECRET))
    assert got in ([], [b""])


# -- TLS -------------------------------------------------------------------------------------------------------------


def test_bytes_in_clear_behind_the_220_to_starttls_are_garbage():
    with (
        script(answers(BANNER, EHLO, b"220 go\r\n250 injected\r\n")) as port,
        Session(site(port)) as session,
        pytest.raises(WireError) as caught,
    ):
        session.open()
    assert caught.value.failure is Failure.GARBAGE


def test_garbage_in_place_of_a_handshake_is_not_an_alert():
    with (
        script(answers(BANNER, EHLO, b"220 go\r\n", b"\xff" * 100)) as port,
        Session(site(port)) as session,
        pytest.raises(WireError) as caught,
    ):
        session.open()
    assert caught.value.failure in (Failure.TLS_FAILED, Failure.RESET, Failure.CLOSED)


def test_an_alert_is_told_by_its_name():
    with (
        script(says(b"\x15\x03\x01\x00\x02\x02\x28")) as port,
        Session(site(port, "implicit")) as session,
        pytest.raises(WireError) as caught,
    ):
        session.connect()
        session.handshake()
    assert caught.value.failure is Failure.TLS_REJECTED and "handshake failure" in caught.value.detail


def test_a_certificate_that_is_not_trusted_ends_a_verified_handshake():
    with Server(tls="implicit") as server:
        where = site(server.port, "implicit", hostname=HOST)
        with Session(where) as session, pytest.raises(WireError) as caught:
            session.connect()
            session.handshake(verify=True)
        assert caught.value.failure is Failure.TLS_FAILED and "certificate not accepted" in caught.value.detail
        with Session(where) as session:
            session.connect()
            session.handshake()
            assert session.banner().code == 220


def ask(play, offer=None):
    with script(play) as port:
        return tls.ask(site(port, "implicit"), offer or tls.Offer())


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"\x15\x03\x03\x00\x02\x02\x46", "alert protocol_version"),
        (b"\x15\x03\x03\x00\x02\x02\x28", "alert handshake_failure"),
        (b"220 mx ESMTP\r\n", "garbage"),
        (b"\x16\x03\x03\xff\xff" + b"\x00" * 100, "garbage"),
        (b"\x16\x03\x03\x00\x06\x02\x00\x00\x02\x03\x03", "garbage: a message shorter than it says"),
        (b"\x17\x03\x03\x00\x01\x00", "garbage"),
        (b"\x15\x03\x03\x00\x05\x02\x46\x00\x00\x00", "garbage"),
    ],
)
def test_answers_to_a_hello_by_hand(raw, said):
    heard = ask(says(raw))
    assert not heard.accepted and heard.refusal.startswith(said)


def test_a_hello_that_is_answered_by_closing():
    assert ask(lambda connection: connection.recv(1000)).refusal == "closed"


def test_a_flight_without_end_is_cut():
    record = b"\x16\x03\x03\x40\x00" + b"\x0b\xff\xff\xff" + b"\x00" * 16380
    assert ask(endless(record)).refusal.startswith("garbage: more than")


def test_a_server_hello_split_byte_by_byte():
    hello = b"\x03\x01" + b"r" * 32 + b"\x00" + b"\x00\x2f" + b"\x01" + b"\x00\x05\xff\x01\x00\x01\x00"
    message = b"\x02" + len(hello).to_bytes(3, "big") + hello
    records = b"".join(b"\x16\x03\x01\x00\x01" + bytes([byte]) for byte in message)

    def play(connection):
        for byte in records:
            connection.sendall(bytes([byte]))
        connection.recv(1000)

    heard = ask(play)
    assert (heard.version, heard.suite, heard.deflate, heard.secure_renegotiation) == (tls.TLS10, 0x2F, True, True)


def test_an_sslv2_server_hello_is_seen():
    heard = ask(says(b"\x80\x0b\x04\x00\x00\x00\x02" + b"\x00" * 8), tls.Offer(2, ciphers.SSL2))
    assert heard.version == 2


def test_no_way_to_the_handshake_is_no_refusal():
    with script(answers(BANNER, EHLO, b"454 4.7.0 TLS not available\r\n")) as port, pytest.raises(WireError) as caught:
        tls.ask(site(port), tls.Offer())
    assert "454" in caught.value.detail


def openssl(configure):
    """An implicit TLS server of this machine's OpenSSL."""
    base = tls_context()
    context = configure(base)

    def play(connection):
        with context.wrap_socket(connection, server_side=True) as inside:
            inside.sendall(BANNER)
            inside.recv(1000)

    return play


def test_a_whole_flight_of_a_real_server():
    heard = ask(openssl(lambda context: context), tls.Offer(whole_flight=True))
    assert (heard.version, heard.group, heard.complete, heard.asks_certificate) == (tls.TLS12, 29, True, False)
    assert len(heard.certificates) == 1 and heard.secure_renegotiation and not heard.deflate


def test_a_hello_retry_request_names_the_group_of_a_real_server():
    heard = ask(openssl(lambda context: context), tls.Offer(tls.TLS13, ciphers.TLS13, (ciphers.P384,)))
    assert (heard.version, heard.group) == (tls.TLS13, ciphers.P384)


def test_a_real_server_that_asks_for_a_certificate():
    def demanding(_):
        context = tls_context.__wrapped__()
        context.verify_mode = ssl.CERT_OPTIONAL
        context.load_default_certs()
        return context

    assert ask(openssl(demanding), tls.Offer(whole_flight=True)).asks_certificate


def test_our_old_hellos_are_understood():
    assert tls.speaks_old_tls() == ""


def test_full_handshakes_tickets_and_renegotiation_of_a_real_server():
    with Server(tls="implicit") as server:
        where = site(server.port, "implicit")
        found = tls.versions(where)
        assert (found.tls13.version, found.tls12.version) == ("TLSv1.3", "TLSv1.2")
        tickets = tls.tickets(where)
        assert tickets is not None and tickets.lifetimes and not tickets.early_data
        assert len(tls.chain_of_tls13(where)) == 1
        assert tls.renegotiation(where) in ("alert no_renegotiation", "closed: TLSAbruptCloseError")


# -- reaching and dialogues ------------------------------------------------------------------------------------------


def test_a_silent_port_is_dead_and_a_greeting_one_is_not():
    with script(answers(BANNER)) as port:
        found = reach(site(port))
    assert found.answer.code == 220 and found.second.code == 220 and not found.dead and found.more == b""
    with script(lambda connection: None) as port:
        assert reach(site(port)).dead


def test_a_second_connection_that_gets_no_greeting_is_noticed():
    first = iter([True])

    def play(connection):
        if next(first, False):
            connection.sendall(BANNER)
            connection.recv(100)

    with script(play) as port:
        found = reach(site(port))
    assert found.answer.code == 220 and isinstance(found.second, Ended)


def test_text_behind_the_greeting_is_noticed():
    with script(says(BANNER + b"250 unasked\r\n")) as port:
        assert b"unasked" in reach(site(port)).more


OK = b"250 2.0.0 Ok\r\n"
NO = b"550 5.7.1 no\r\n"


def test_at_most_four_errors_on_a_connection():
    connections = []

    def play(connection):
        seen = []
        connections.append(seen)
        lines = connection.makefile("rb")
        connection.sendall(BANNER)
        for line in lines:
            seen.append(line)
            connection.sendall(EHLO if line.startswith(b"EHLO") else OK if line.startswith(b"RSET") else NO)

    with script(play) as port:
        found = tell(site(port), tuple(case(f"{n}", f"X{n}") for n in range(10)), tls=False)
    assert [t.last.code for t in found.told] == [550] * 10
    errors = [sum(line.startswith(b"X") for line in seen) for seen in connections]
    assert max(errors) <= 4 and sum(errors) == 10


def test_a_case_that_met_a_limit_is_told_again_on_a_new_connection():
    first = iter([True])

    def play(connection):
        tired = next(first, False)
        lines = connection.makefile("rb")
        connection.sendall(BANNER)
        for line in lines:
            if line.startswith(b"TWO") and tired:
                connection.sendall(b"421 4.7.0 Error: too many errors\r\n")
                return
            connection.sendall(EHLO if line.startswith(b"EHLO") else OK if line.startswith(b"RSET") else NO)

    with script(play) as port:
        found = tell(site(port), (case("one", "ONE"), case("two", "TWO"), case("three", "THREE")), tls=False)
    assert [t.last.code for t in found.told] == [550, 550, 550]
    assert [t.retried for t in found.told] == [False, True, False]


def test_a_limit_that_stays_is_kept_as_the_answer():
    def play(connection):
        lines = connection.makefile("rb")
        connection.sendall(BANNER)
        for line in lines:
            connection.sendall(EHLO if line.startswith(b"EHLO") else b"421 4.7.0 too many errors\r\n")
            if not line.startswith(b"EHLO"):
                return

    with script(play) as port:
        found = tell(site(port), (case("one", "ONE"),), tls=False)
    assert found["one"].was_limited


def test_a_greeting_of_421_is_asked_once_more_and_is_then_a_limit():
    calls = []

    def play(connection):
        calls.append(1)
        connection.sendall(b"421 4.7.0 too many connections\r\n")

    with script(play) as port, pytest.raises(WireError) as caught:
        tell(site(port), (case("one", "ONE"),), tls=False)
    assert caught.value.failure is Failure.LIMITED and len(calls) == 2


def test_a_case_in_which_the_server_may_close_is_not_told_again():
    calls = []

    def play(connection):
        calls.append(1)
        answers(BANNER, EHLO, None)(connection)

    with script(play) as port:
        found = tell(site(port), (case("get", "GET / HTTP/1.1", ends=True),), tls=False)
    assert isinstance(found["get"].last, Ended) and len(calls) == 1


def test_the_commands_behind_an_error_are_left_out_on_request():
    with script(answers(BANNER, EHLO, NO, OK)) as port:
        found = tell(site(port), (Case("mail", (Send("MAIL"), Send("DATA")), stop_on_error=True),), tls=False)
    assert len(found["mail"].steps) == 1


def test_a_dialogue_logs_in_on_submission_only():
    probe = dialogue("x", lambda _: (case("noop", "NOOP"),), account=0)
    with Server(purpose="submission") as server:
        found = probe.run(site(server.port, purpose="submission", lab=True))
        assert found.login.code == 235 and found["noop"].last.code == 250
    with Server() as server:
        assert probe.run(site(server.port)).login is None


@pytest.mark.parametrize(
    ("reply", "limit"),
    [
        (Reply(421, ("4.7.0 bye",)), True),
        (Reply(450, ("4.7.1 Error: too much mail from 192.0.2.1",)), True),
        (Reply(454, ("4.7.0 rate limit",)), True),
        (Reply(450, ("4.1.8 Sender address rejected: Domain not found",)), False),
        (Reply(450, ("4.2.0 corporate greylist",)), False),
        (Reply(550, ("5.7.1 too many",)), False),
        (Ended(Failure.CLOSED, ""), False),
    ],
)
def test_what_counts_as_a_limit(reply, limit):
    assert is_limit(reply) is limit
    assert Told("x", (Step("x", (reply,)),)).was_limited is limit
