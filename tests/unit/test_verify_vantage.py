"""Which layer stops a connection, by what several vantage points see: pure functions of observations."""

import pytest
from observations import ADDRESS, LISTENERS, reply, target

from gatepost.verify.checks import general, vantage, verifier
from gatepost.verify.checks.vantage import VANTAGE
from gatepost.verify.model import Layer, Login, Sight, Verdict
from gatepost.verify.registry import Seen
from gatepost.verify.wire.probe import Site
from gatepost.verify.wire.reach import REACH, Reached
from gatepost.verify.wire.session import Ended, Failure
from gatepost.verify.wire.ssh import Place
from gatepost.verify.wire.vantage import Inside, Socket, View, Views

OURS = "198.51.100.7"
RELAY = LISTENERS["relay"]
LOGIN = Login("ssh://root@server", ("ssh", "root@server"))
SERVER = Place(
    LOGIN, f"it has the address {ADDRESS}", "mx.example.test", "127.0.0.0/8, [::1]/128", "127.0.0.0/8", True, OURS
)
ELSEWHERE = Place(Login("ssh://other", ("ssh", "other")), "", "", "", "", False, OURS)
TIMED_OUT = Ended(Failure.TIMED_OUT, f"no answer from {ADDRESS}:{RELAY.port} within 3 s")
REFUSED = Ended(Failure.REFUSED, "connection refused")
LISTENS = (Socket("0.0.0.0", RELAY.port, 0, 100),)


def reached(answer, *, connected=False):
    return Reached(0.1, connected, False, answer, b"", None, (), implicit=False)


def inside(sockets=LISTENS, *packets, watched=True, ours=OURS, log=()):
    seen = frozenset((what, ours, RELAY.port) for what in packets)
    return Inside(tuple(sockets), watched, seen, frozenset({OURS}), log)


def other(found, *, connected=False):
    sight = Sight("ssh://other", RELAY.name, RELAY.port, ADDRESS, connected, found, 0.1)
    return View("ssh://other", ELSEWHERE, "", (sight,))


def seen(answer, *views, within=None, living=False, connected=False, routeless=(), **fields):
    observed = {(RELAY.name, ADDRESS, REACH.name): reached(answer, connected=connected)}
    if living:
        observed["submission", ADDRESS, REACH.name] = reached(reply("220 mx.example.test ESMTP"), connected=True)
    home = (View(LOGIN.url, SERVER, "", ()),) if within else ()
    observed["", "", VANTAGE.name] = Views((*home, *views), within, "", frozenset(routeless))
    whole = target(**fields)
    return Seen(whole, Site(whole, RELAY, ADDRESS), observed)


THROUGH = other("220 mx.example.test ESMTP", connected=True)
BLOCKED = other("timed out: no answer within 4 s")
CASES = {
    "daemon stopped": (seen(REFUSED, within=inside(())), Layer.DAEMON, "not at all"),
    "only on the loopback": (
        seen(REFUSED, within=inside([Socket("127.0.0.1", RELAY.port, 0, 9)], "syn")),
        Layer.DAEMON,
        "only on 127.0.0.1",
    ),
    "daemon stopped and shut in front": (
        seen(TIMED_OUT, within=inside(())),
        Layer.DAEMON,
        "a firewall on the way stops them too",
    ),
    "queue full": (
        seen(TIMED_OUT, within=inside([Socket("*", RELAY.port, 101, 100)], "syn")),
        Layer.DAEMON,
        "101 connections wait",
    ),
    "host drops": (seen(TIMED_OUT, within=inside(LISTENS, "syn")), Layer.HOST_FIREWALL, "drops them"),
    "host rejects": (seen(REFUSED, within=inside(LISTENS, "syn", "rst")), Layer.HOST_FIREWALL, "rejects them"),
    "way back": (seen(TIMED_OUT, within=inside(LISTENS, "syn", "syn+ack")), Layer.UNKNOWN, "do not come back"),
    "in front": (
        seen(TIMED_OUT, BLOCKED, within=inside(), living=True),
        Layer.CLOUD_FIREWALL,
        "in front of the server",
    ),
    "in front, or own network": (seen(TIMED_OUT, within=inside(), living=True), Layer.UNKNOWN, "or your own network"),
    "in front, in the lab": (seen(TIMED_OUT, within=inside(), lab=True), Layer.CLOUD_FIREWALL, "the lab's firewall"),
    "own network": (seen(TIMED_OUT, THROUGH, living=True), Layer.OWN_NETWORK, "ssh://other reaches port"),
    "own network, asked inside": (
        seen(TIMED_OUT, THROUGH, within=inside(), living=True),
        Layer.OWN_NETWORK,
        "do not arrive",
    ),
    "shut out altogether": (seen(TIMED_OUT, THROUGH), Layer.UNKNOWN, "shuts out your address"),
    "no route": (seen(TIMED_OUT, routeless=(ADDRESS,)), Layer.OWN_NETWORK, "no IPv4 route"),
    "nobody gets there": (seen(TIMED_OUT, BLOCKED, living=True), Layer.UNKNOWN, "does not reach it either"),
    "one place alone": (seen(TIMED_OUT, living=True), Layer.UNKNOWN, "or your own network, swallows"),
    "one place alone, refused": (seen(REFUSED), Layer.UNKNOWN, "the daemon does not, or a firewall rejects"),
    "one place alone, dead": (seen(TIMED_OUT), Layer.UNKNOWN, "may be down"),
    "not watched": (seen(TIMED_OUT, within=inside(watched=False)), Layer.UNKNOWN, "could not watch"),
    "behind a NAT": (seen(TIMED_OUT, within=inside(LISTENS, "syn", ours="203.0.113.9")), Layer.UNKNOWN, "203.0.113.9"),
}


@pytest.mark.parametrize("name", CASES)
def test_the_layer_is_named_with_what_it_is_known_by(name):
    observed, layer, words = CASES[name]
    [found] = vantage.diagnoses(observed)
    assert (found.layer, found.port, found.address) == (layer, RELAY.port, ADDRESS)
    assert words in found.found and found.remedy
    finding = general.reachable(observed)
    assert finding.verdict is Verdict.FAIL and words in finding.found and layer in finding.found


def test_every_layer_has_a_case():
    assert {layer for _, layer, _ in CASES.values()} == set(Layer)


def test_a_port_that_answers_has_no_diagnosis_and_every_vantage_point_is_shown():
    observed = seen(reply("220 mx.example.test ESMTP"), THROUGH, connected=True)
    assert vantage.diagnoses(observed) == ()
    shown = vantage.sights(observed)
    assert [(s.vantage, s.reached, s.found) for s in shown] == [
        ("here", True, "220 mx.example.test ESMTP"),
        ("ssh://other", True, "220 mx.example.test ESMTP"),
    ]


def test_a_silent_port_quotes_the_servers_log():
    silent = Ended(Failure.TIMED_OUT, "no reply within 5.0 s")
    observed = seen(silent, within=inside(log=("fatal: no SASL authentication mechanisms",)), connected=True)
    assert vantage.diagnoses(observed) == ()
    finding = general.banner(observed)
    assert finding.verdict is Verdict.FAIL and "no SASL authentication mechanisms" in finding.found


# -- VER-01, with a login at the server --------------------------------------------------------------------------------


def outsider(answer, networks, exceptions="127.0.0.0/8"):
    from observations import dialogue

    place = Place(LOGIN, "it has the address", "mx.example.test", networks, exceptions, True, OURS)
    whole = target(source_addresses=(OURS,))
    observed = {
        (RELAY.name, ADDRESS, verifier.OUTSIDER.name): dialogue({"relay": answer}),
        ("", "", VANTAGE.name): Views((View(LOGIN.url, place, "", ()),), None, "", frozenset()),
    }
    return verifier.outsider(Seen(whole, Site(whole, RELAY, ADDRESS), observed))


@pytest.mark.parametrize(
    ("answer", "networks", "exceptions", "verdict", "words"),
    [
        ("554 5.7.1 Relay access denied", "127.0.0.0/8 [::1]/128", "127.0.0.0/8", Verdict.PASS, "is not in mynetworks"),
        ("250 2.1.5 Ok", "127.0.0.0/8, 198.51.100.0/24", "", Verdict.INCONCLUSIVE, "is in mynetworks"),
        ("250 2.1.5 Ok", "127.0.0.0/8", "", Verdict.PASS, "allowed to everybody (MX-RLY-01)"),
        ("250 2.1.5 Ok", "hash:/etc/postfix/nets", "", Verdict.INCONCLUSIVE, "Either the server is an open relay"),
        ("554 5.7.1 no", "127.0.0.0/8", "198.51.100.7", Verdict.INCONCLUSIVE, "smtpd_client_event_limit_exceptions"),
        ("554 5.7.1 no", "!198.51.100.7, 198.51.100.0/24", "", Verdict.PASS, "is not in mynetworks"),
    ],
)
def test_ver_01_compares_our_address_with_the_servers_lists(answer, networks, exceptions, verdict, words):
    finding = outsider(answer, networks, exceptions)
    assert (finding.verdict, words in finding.found) == (verdict, True), finding.found
