"""Hostile servers: whatever they do, a run ends, in bounded memory, and claims nothing that it did not see."""

from __future__ import annotations

import contextlib
import random
from concurrent.futures import ThreadPoolExecutor

import pytest
import smtp_zoo
from smtp_loopback import Server
from test_verify_wire import says, script, site

from gatepost.verify.model import Verdict
from gatepost.verify.registry import requirements
from gatepost.verify.wire import session
from gatepost.verify.wire.probe import Dialogue, case, tell
from gatepost.verify.wire.session import Reply, Session, WireError

SIDE_BY_SIDE = 6
MEMORY = 80 * 1024 * 1024  # bytes that a run may take; a tame server costs 16 MB, a reply of 100 MB must not cost that
# LIM-06 has two rows, and one of them is asked in clear.
NEED_TLS = {row.id for row in requirements() if row.needs_tls or row.id.startswith(("TLS-", "CRT-"))} - {"LIM-06"}


@pytest.fixture(scope="module")
def runs():
    """Return {beast: its run}, begun side by side."""
    with ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
        futures = {name: pool.submit(smtp_zoo.meet, name) for name in smtp_zoo.ZOO}
        yield futures
        for future in futures.values():
            future.cancel()


@pytest.mark.parametrize("name", smtp_zoo.ZOO)
def test_a_run_ends_and_claims_only_what_it_saw(runs, name):
    met, kind = runs[name].result(), smtp_zoo.ZOO[name]
    assert [r for r in met.results if "broke:" in r.found or "broken:" in r.found] == []
    assert met.peak < MEMORY
    passed = {(r.id, r.listener) for r in met.results if r.verdict is Verdict.PASS and r.listener is not None}
    in_clear = {(i, where) for i, where in passed if where.endswith("starttls")}
    if kind.comes is smtp_zoo.NOTHING:
        assert {i for i, _ in in_clear} <= {"GEN-NET-01"}
    if kind.comes is not smtp_zoo.TLS:
        assert not {i for i, _ in in_clear} & NEED_TLS
    if kind.stage == "handshake":
        assert {i for i, where in passed if where.endswith("implicit")} <= {"GEN-NET-01"}
    for text in kind.says:
        assert any(text in r.found for r in met.results), f"no finding says {text!r}"
    if kind.healthy:
        tame = {(r.id, r.listener): r.verdict for r in runs["Tame"].result().results}
        assert {(r.id, r.listener): r.verdict for r in met.results} == tame
    elif kind.comes is not smtp_zoo.TLS:
        assert any(r.verdict in (Verdict.FAIL, Verdict.INCONCLUSIVE) for r in met.results)


# -- A seeded fuzzer of the wire layer: real replies, changed at random -----------------------------------------------


@pytest.fixture(scope="module")
def corpus():
    """Return what a real conversation's server said, in clear."""
    heard = []
    with Server() as server:
        where = site(server.port)
        told = tell(where, _cases(), tls=False)
        heard += [told.greeting, told.ehlo_clear, *(a for t in told.told for s in t.steps for a in s.answers)]
    assert all(isinstance(reply, Reply) for reply in heard) and len(heard) >= 8
    return [
        b"".join(f"{r.code}{'-' if n < len(r.lines) - 1 else ' '}{line}\r\n".encode() for n, line in enumerate(r.lines))
        for r in heard
    ]


def _cases():
    return (
        case("noop", "NOOP"),
        case("relay", "MAIL FROM:<a@remote.test>", "RCPT TO:<b@remote.test>"),
        case("here", "MAIL FROM:<>", "RCPT TO:<alice@example.test>"),
        case("unknown", "FOO"),
    )


def _changed(reply, chance):
    data = bytearray(reply)
    for _ in range(chance.choice((0, 0, 1, 1, 2, 5))):
        at = chance.randrange(len(data) + 1)
        data[at : at + chance.choice((0, 0, 1, 4))] = chance.choice(
            (b"", b"\r", b"\n", b"\r\n", b"\0", b"-", b" ", b"\xff", b"2", b"5", b"250-x\r\n", b"421 no\r\n",
             b"y" * 5000, chance.randbytes(3), bytes(data[:20]))
        )  # fmt: skip
    return bytes(data)


def _round(corpus, seed):
    """Talk to a server that says changed replies in changed pieces; return what came of it."""
    chance = random.Random(seed)

    def play(connection):
        for reply in corpus:
            data = _changed(reply, chance)
            while data:
                size = chance.choice((1, 2, 7, len(data)))
                connection.sendall(data[:size])
                data = data[size:]
            if chance.random() < 0.03:
                return
            connection.settimeout(0.05)
            with contextlib.suppress(TimeoutError):
                if not connection.recv(4096):
                    return

    with script(play) as port:
        where = site(port)
        outcomes = []
        try:
            told = tell(where, _cases(), tls=False)
            outcomes.append(told)
        except WireError as error:
            outcomes.append(error)
        with Session(where, seconds=0.5) as one:
            try:
                one.connect()
                outcomes.append(one.banner())
                outcomes.append(one.replies(0.05))
                outcomes.append(one.read(0.05))
            except WireError as error:
                outcomes.append(error)
    return outcomes


def _fuzz(corpus, seeds, monkeypatch):
    for name in ("BANNER_SECONDS", "POSTSCREEN_SECONDS", "REPLY_SECONDS"):
        monkeypatch.setattr(session, name, 0.2)
    monkeypatch.setattr("gatepost.verify.wire.probe.LIMIT_PAUSE", 0.01)
    with ThreadPoolExecutor(16) as pool:
        rounds = list(pool.map(lambda seed: _round(corpus, seed), seeds))
    kinds = {type(outcome) for outcomes in rounds for outcome in outcomes}
    assert {Dialogue, WireError, Reply, tuple, bytes} <= kinds  # it came to everything that can come of it
    for outcomes in rounds:
        for outcome in outcomes:
            lines = getattr(outcome, "transcript", ())
            assert all(line.text.isprintable() for line in lines)
            if isinstance(outcome, Reply):
                assert 200 <= outcome.code <= 599 and outcome.text.replace("\n", "").isprintable()


def test_changed_replies_lead_to_an_answer_or_a_named_failure(corpus, monkeypatch):
    _fuzz(corpus, range(300), monkeypatch)


@pytest.mark.full
def test_many_more_changed_replies_do_too(corpus, monkeypatch):
    _fuzz(corpus, range(1000, 6000), monkeypatch)


def test_a_connection_that_was_reset_before_the_handshake_is_not_taken_for_tls():
    with script(says(b"220 mx.example.test\r\n")) as port, Session(site(port)) as one:
        one.connect()
        one.banner()
        one.raw_socket.shutdown(2)
        with pytest.raises(WireError):
            one.handshake()
        assert not one.tls
