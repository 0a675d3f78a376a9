"""Why a port cannot be reached: the layer that stops it, by what several vantage points see. Nothing is guessed."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from dataclasses import dataclass

from gatepost.verify.model import Diagnosis, Layer, Sight
from gatepost.verify.registry import Seen, ServerProbe, Unobserved
from gatepost.verify.wire.probe import Failed, Phase, Site
from gatepost.verify.wire.reach import REACH, Reached
from gatepost.verify.wire.session import Ended, Failure
from gatepost.verify.wire.vantage import Inside, Socket, Views, look


def _look(seen: Seen) -> Views:
    sites = [(Site(seen.target, li, a), reached) for li, a, reached in seen.everywhere(REACH)]
    dead = {s: r.connected for s, r in sites if isinstance(r, Reached) and isinstance(r.answer, Ended)}
    return look(seen.target, [site for site, _ in sites], dead)


VANTAGE = ServerProbe(
    "vantage",
    _look,
    phase=Phase.MAIN,
    about="A TCP connection to every listener from each login, and the greeting. Where a port does not answer from "
    "here and a login is at the server: what listens there, and whether our connections arrive at its network device.",
)


def sights(seen: Seen) -> tuple[Sight, ...]:
    """Return what each vantage point sees of each port: here first, then the logins in their order."""
    here = []
    for listener, address, reached in seen.everywhere(REACH):
        if isinstance(reached, Reached):
            found = str(reached.answer)
            here.append(Sight("here", listener.name, listener.port, address, reached.connected, found, reached.seconds))
    views = _views(seen)
    return (*here, *(sight for view in views.views for sight in view.sights)) if views else tuple(here)


def _views(seen: Seen) -> Views | None:
    try:
        views = seen.attempt(VANTAGE)
    except Unobserved:
        return None
    return None if isinstance(views, Failed) else views


def diagnoses(seen: Seen) -> tuple[Diagnosis, ...]:
    """Return why each port that cannot be reached from here cannot be."""
    views = _views(seen) or Views((), None, "", frozenset())
    found = []
    for listener, address, reached in seen.everywhere(REACH):
        if isinstance(reached, Reached) and not reached.connected:
            case = _Case(seen, views, Site(seen.target, listener, address), reached)
            found.append(_diagnosis(case))
    return tuple(found)


def why(seen: Seen) -> str:
    """Return the diagnosis of the check's own site as text to put behind what was found; empty when there is none."""
    site = seen.here
    own = [d for d in diagnoses(seen) if (d.listener, d.address) == (site.listener.name, site.address)]
    return "".join(f". What stops it: {d.layer}. {d.found}" for d in own)


def log(seen: Seen) -> str:
    """Return what Postfix's log on the server says of a port that takes connections and stays silent, else nothing."""
    views = _views(seen)
    lines = views.inside.log if views and views.inside else ()
    return f". On the server, Postfix's log: {'; '.join(lines)}" if lines else ""


def trust(seen: Seen) -> tuple[bool, str] | None:
    """Return whether the server's Postfix trusts the address that this site sees us come from, and the words for it.

    None where no login is at the server, or its lists hold tables that cannot be read from outside.
    """
    views, site = _views(seen), seen.here
    place = next((v.place for v in views.views if v.home), None) if views else None
    if place is None or not place.mynetworks:
        return None
    ours = ipaddress.ip_address(site.source or site.own_literal.strip("[]").removeprefix("IPv6:"))
    if not site.source and place.client:
        seen_by_ssh = ipaddress.ip_address(place.client)
        if seen_by_ssh.version == ours.version:  # behind a NAT it is not what this computer believes
            ours = seen_by_ssh
    lists = (("mynetworks", place.mynetworks), ("smtpd_client_event_limit_exceptions", place.exceptions))
    for name, text in lists:
        inside = _inside(ours, text)
        if inside is None:
            return None
        if inside:
            return True, f"{ours} is in {name} = {text}"
    return False, f"{ours} is not in mynetworks = {place.mynetworks}"


def _inside(address: ipaddress.IPv4Address | ipaddress.IPv6Address, networks: str) -> bool | None:
    """Whether an address matches a Postfix address list (postconf(5), mynetworks): the first match counts."""
    for word in networks.replace(",", " ").split():
        try:
            network = ipaddress.ip_network(word.removeprefix("!").replace("[", "").replace("]", ""), strict=False)
        except ValueError:
            return None  # a table, a file, a host name
        if address.version == network.version and address in network:
            return not word.startswith("!")
    return False


# -- Which layer -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Case:
    seen: Seen
    views: Views
    site: Site
    reached: Reached

    @property
    def failure(self) -> Failure | None:
        return self.reached.answer.failure if isinstance(self.reached.answer, Ended) else None

    @property
    def port(self) -> int:
        return self.site.listener.port

    def told(self, layer: Layer, found: str, remedy: str) -> Diagnosis:
        return Diagnosis(self.site.listener.name, self.port, self.site.address, layer, found, remedy)

    def elsewhere(self) -> Iterator[Sight]:
        """What hosts other than the server see of this port."""
        for view in self.views.views:
            if not view.home:
                yield from (s for s in view.sights if (s.port, s.address) == (self.port, self.site.address))

    def living(self) -> list[int]:
        """Return the ports that answer from here at the same address."""
        return [
            listener.port
            for listener, address, reached in self.seen.everywhere(REACH)
            if address == self.site.address and isinstance(reached, Reached) and reached.connected
        ]

    def listening(self) -> list[Socket]:
        assert self.views.inside is not None
        return [s for s in self.views.inside.sockets if s.port == self.port]


_ELSEWHERE = "Ask from a second place: --via ssh://USER@HOST, the server itself or any other host."


def _diagnosis(case: _Case) -> Diagnosis:
    if case.site.address in case.views.routeless:
        family = "IPv6" if ":" in case.site.address else "IPv4"
        return case.told(
            Layer.OWN_NETWORK,
            f"this computer has no {family} route to {case.site.address}",
            f"Verify from a place with {family}, or leave the {family} address out.",
        )
    if case.views.inside is not None:
        return _seen_inside(case, case.views.inside)
    return _seen_outside(case)


def _seen_inside(case: _Case, inside: Inside) -> Diagnosis:
    listening = case.listening()
    serving = [s for s in listening if _serves(s, case)]
    packets = {what for what, ours, port in inside.packets if port == case.port and ours in inside.ours}
    strangers = {ours for what, ours, port in inside.packets if port == case.port and what == "syn"} - inside.ours
    arrival = ""
    if inside.watched and "syn" not in packets:
        arrival = " Besides, our connections do not arrive at the server: a firewall on the way stops them too."
    elif case.failure is Failure.TIMED_OUT and "syn" in packets:
        arrival = " Besides, nothing answers our connections, which arrive: the host's firewall drops them too."
    if not serving:
        others = ", ".join(sorted({s.address for s in listening}))
        where = f"only on {others}" if others else "not at all"
        return case.told(
            Layer.DAEMON,
            f"On the server `ss -Hltn` shows port {case.port} {where}.{arrival}",
            f"Have the service run, and listen at {case.site.address}: systemctl status postfix, master.cf's entry for "
            f"port {case.port}, inet_interfaces, inet_protocols.",
        )
    if "syn+ack" in packets:
        return case.told(
            Layer.UNKNOWN,
            "Our connections arrive and the server answers them, but its answers do not come back: something on the "
            "way back drops them, in front of the server or in your network.",
            _ELSEWHERE,
        )
    if "syn" in packets:
        full = [s for s in serving if s.waiting > s.room]
        if full:
            return case.told(
                Layer.DAEMON,
                f"It listens and accepts nothing: {full[0].waiting} connections wait, {full[0].room} may.",
                "See why master(8) or the service hangs: systemctl status postfix, journalctl -u 'postfix*'.",
            )
        how = "rejects" if case.failure is not Failure.TIMED_OUT else "drops"
        return case.told(
            Layer.HOST_FIREWALL,
            f"The daemon listens, and our connections arrive at the server's network device, where its own firewall "
            f"{how} them ({case.reached.answer}).",
            f"Let TCP port {case.port} in: `nft list ruleset` on the server shows what does not. With Gatepost, "
            "`make converge` puts its firewall right.",
        )
    if not inside.watched or strangers:
        reason = (
            "the server could not watch its network devices (that needs root and Python 3 there)"
            if not inside.watched
            else f"connections arrive there from {', '.join(sorted(strangers))}, which may be ours behind a NAT or not"
        )
        return case.told(
            Layer.UNKNOWN,
            f"The daemon listens, and something between it and us stops us ({case.reached.answer}): {reason}.",
            "Look at the host's firewall (`nft list ruleset`), then at the one in front of it.",
        )
    return _on_the_way(case, "The daemon listens, but our connections do not arrive at the server's network device")


def _serves(listening: Socket, case: _Case) -> bool:
    if listening.address in ("*", "0.0.0.0", "::", case.site.address):
        return listening.address != "0.0.0.0" or ":" not in case.site.address
    # Behind a NAT the server has another address than the one it is known by.
    home = next((v.place.home for v in case.views.views if v.home and v.place), "")
    return home.startswith("its Postfix") and not ipaddress.ip_address(listening.address).is_loopback


def _seen_outside(case: _Case) -> Diagnosis:
    failed = [v.failed for v in case.views.views if v.failed] + [case.views.not_inside] * bool(case.views.not_inside)
    note = f" ({'; '.join(failed)})" if failed else ""
    return _on_the_way(case, f"From here: {case.reached.answer}{note}")


def _on_the_way(case: _Case, begun: str) -> Diagnosis:
    """Judge what is not known to be the server itself, by what other hosts see."""
    living = case.living()
    ports = ", ".join(map(str, living))
    others = list(case.elsewhere())
    through = [s for s in others if s.reached]
    known_up = case.views.inside is not None  # the daemon listens, and packets do not arrive
    if through:
        where = ", ".join(s.vantage for s in through)
        if living:
            return case.told(
                Layer.OWN_NETWORK,
                f"{begun}. Port {ports} of the same server answers here, and {where} reaches port {case.port}: your "
                "network does not let this port out, or something in front of the server shuts out your address alone.",
                "Many access networks and clouds block port 25 outwards. Verify from another network; a mail program "
                "needs a submission port, not 25.",
            )
        return case.told(
            Layer.UNKNOWN,
            f"{begun}. No port of {case.site.address} answers here, while {where} reaches it: your network has no way "
            "there, or the server shuts out your address (fail2ban, a source rule).",
            "Try another network, and look for your address in the server's firewall.",
        )
    if others and known_up:
        where = ", ".join(f"{s.vantage} ({s.found})" for s in others)
        return case.told(
            Layer.CLOUD_FIREWALL,
            f"{begun}, and {where} does not reach the port either: it is stopped in front of the server.",
            f"Let TCP port {case.port} in where the server is rented: security group, cloud firewall, router. Some "
            "providers open port 25 only on request.",
        )
    if known_up and case.seen.target.lab:
        # A machine of the lab stands on this very computer: there is no network of ours or a provider's in between.
        return case.told(
            Layer.CLOUD_FIREWALL,
            f"{begun}: the lab's firewall in front of it stops them.",
            "`make deploy` puts the lab's firewall right; `nft list ruleset` on this computer shows it.",
        )
    if known_up:
        return case.told(
            Layer.UNKNOWN,
            f"{begun}: either a firewall in front of it (cloud, provider, router) or your own network stops them"
            + (f"; port {ports} of the same server answers here." if living else "."),
            f"{_ELSEWHERE} A host other than the server tells the two apart.",
        )
    if others:
        where = ", ".join(f"{s.vantage} ({s.found})" for s in others)
        return case.told(
            Layer.UNKNOWN,
            f"{begun}; {where} does not reach it either: the daemon, the host's firewall or one in front of it.",
            "Ask the server itself: --via ssh://USER@SERVER.",
        )
    if case.failure is Failure.REFUSED:
        text = "the address answers that nobody listens: the daemon does not, or a firewall rejects."
    elif living:
        text = f"port {ports} of the same server answers; a firewall there, or your own network, swallows this one."
    else:
        text = "no port of this address answers: the server may be down, or the way there shut."
    return case.told(Layer.UNKNOWN, f"{begun}: {text} One place alone cannot tell which.", _ELSEWHERE)
