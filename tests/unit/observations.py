"""Observations by hand, for checks that are pure functions of them."""

from pathlib import Path

from gatepost.listeners import Listener
from gatepost.verify.model import Account, Target
from gatepost.verify.registry import Seen, requirements
from gatepost.verify.wire.probe import Dialogue, Site, Step, Told
from gatepost.verify.wire.session import Ended, Failure, Reply

HOST = "mx.example.test"
ADDRESS = "192.0.2.25"
LISTENERS = {
    "relay": Listener("relay", 10025, "relay", "starttls", ("0.0.0.0/0",)),
    "submission": Listener("submission", 10587, "submission", "starttls", ("0.0.0.0/0",)),
    "implicit": Listener("implicit", 10465, "submission", "implicit", ("0.0.0.0/0",)),
}
CLOSED = Ended(Failure.CLOSED, "the server closed the connection")
SILENT = Ended(Failure.TIMED_OUT, "no reply within 8.0 s")


def target(**fields):
    values = {
        "hostname": HOST,
        "addresses": (ADDRESS,),
        "listeners": tuple(LISTENERS.values()),
        "listeners_file": Path("listeners.yml"),
        "listeners_digest": "0" * 64,
        "domains": ("example.test",),
        "outside_domain": "remote.test",
        "accounts": (Account("alice@example.test", "Corr3ct-horse"),),
    }
    return Target(**(values | fields))


def reply(text):
    """`250-first\\n250 second` → Reply."""
    lines = text.split("\n")
    return Reply(int(lines[0][:3]), tuple(line[4:] for line in lines))


def told(label, *answers):
    answers = tuple(reply(a) if isinstance(a, str) else a for a in answers)
    return Told(label, tuple(Step(label, (a,)) for a in answers))


def dialogue(cases=None, *, clear=None, tls=None, greeting=f"220 {HOST} ESMTP"):
    """`cases` maps a label to its answer, or to a tuple of answers."""
    talks = tuple(told(k, *(v if isinstance(v, tuple) else (v,))) for k, v in (cases or {}).items())
    return Dialogue(reply(greeting), clear and reply(clear), tls and reply(tls), talks)


def judge(identifier, observations, *, kind="relay", others=(), **fields):
    """Run one requirement's check on {probe: observation}; `others` are (kind, the same) of more listeners."""
    listener = LISTENERS[kind]
    row = next(r for r in requirements() if r.id == identifier and (r.looks_at(listener)))
    whole = target(**fields)
    seen = {(listener.name, ADDRESS, probe.name): found for probe, found in observations.items()}
    for other, more in others:
        seen |= {(LISTENERS[other].name, ADDRESS, probe.name): found for probe, found in more.items()}
    site = None if row.scope.name == "SERVER" else Site(whole, listener, ADDRESS)
    return row.check(Seen(whole, site, seen))
