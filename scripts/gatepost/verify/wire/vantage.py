"""The listeners as other vantage points see them, and what the server itself knows of ports that do not answer."""

from __future__ import annotations

import contextlib
import json
import shlex
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from gatepost.verify.model import Login, Sight, Target
from gatepost.verify.wire import ssh
from gatepost.verify.wire.probe import Site, own_address
from gatepost.verify.wire.session import WireError
from gatepost.verify.wire.ssh import Place

LISTEN_SECONDS = 2.5  # for which the server watches for our connections
KNOCK_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class View:
    """What one login sees."""

    url: str
    place: Place | None  # None: it cannot be used, for the reason in `failed`
    failed: str
    sights: tuple[Sight, ...]

    @property
    def home(self) -> bool:
        """Whether this is the server itself."""
        return self.place is not None and bool(self.place.home)


@dataclass(frozen=True, slots=True)
class Socket:
    """A listening TCP socket, as ss(8) shows it."""

    address: str  # `*` and `::` take in IPv4 too, unless the socket is for IPv6 alone
    port: int
    waiting: int  # connections that the program has not accepted yet
    room: int  # how many may wait


@dataclass(frozen=True, slots=True)
class Inside:
    """What the server itself says, while we knock from here."""

    sockets: tuple[Socket, ...]
    watched: bool  # whether the server could watch its network devices: needs root and Python there
    packets: frozenset[tuple[str, str, int]]  # what ("syn", "syn+ack", "rst"), our side's address, port
    ours: frozenset[str]  # addresses by which it knows us
    log: tuple[str, ...]  # the last fatal lines of Postfix


@dataclass(frozen=True, slots=True)
class Views:
    """All that is known of the ways to the server, besides our own connections."""

    views: tuple[View, ...]
    inside: Inside | None  # None: every port answers, or there is no login at the server
    not_inside: str  # why the server could not be asked though there is a login
    routeless: frozenset[str]  # addresses of the server to which this computer has no route at all


def look(target: Target, sites: Sequence[Site], dead: Mapping[Site, bool]) -> Views:
    """See the sites from every login; and for those that are `dead` from here, ask the server itself.

    The value of a dead site tells whether it takes connections at least.
    """
    with ThreadPoolExecutor(max(1, len(target.via)), "vantage") as pool:
        views = tuple(pool.map(lambda login: _view(login, target, sites), target.via))
    routeless = frozenset(address for address in target.addresses if not _route(address))
    inside, why = None, ""
    home = next((v.place for v in views if v.place is not None and v.place.home), None)
    if dead and home is not None:
        try:
            inside = _inside(home, dead)
        except WireError as error:
            why = str(error)
    return Views(views, inside, why, routeless)


def _route(address: str) -> str:
    """Return the address from which this computer would connect to another; empty where it has no route."""
    try:
        return own_address(address)
    except OSError:
        return ""


# -- Another place's view ----------------------------------------------------------------------------------------------

# Behind implicit TLS nothing is said before a hello, so there the connection is all that can be seen this way.
_SEE = r"""
see() {
  began=$(date +%s%N)
  said=$(timeout 4 bash -c '
    exec 3<>"/dev/tcp/$0/$1" || exit 1
    echo connected
    [ "$2" = implicit ] && exit 0
    IFS= read -r line <&3
    printf "%s\n" "$line"
    printf "QUIT\r\n" >&3' "$2" "$3" "$4" 2>&1)
  echo "$1 $? $(( ($(date +%s%N) - began) / 1000000 )) $(printf %s "$said" | tr -d '\r' | tr '\n' ' ' | cut -c 1-300)"
}
"""


def _view(login: Login, target: Target, sites: Sequence[Site]) -> View:
    calls = [
        f"see {number} {shlex.quote(site.address)} {site.listener.port} {site.listener.tls} &"
        for number, site in enumerate(sites)
    ]
    try:
        place = ssh.place(login, target)
        said = ssh.run(login, f"{_SEE}\n" + "\n".join(calls) + "\nwait\n")
    except WireError as error:
        return View(login.url, None, str(error), ())
    rows = {}
    for line in said.splitlines():
        number, code, milliseconds, text = (*line.split(" ", 3), "", "")[:4]
        if number.isdigit() and milliseconds.isdigit() and int(number) < len(sites):
            rows[int(number)] = _sight(login.url, sites[int(number)], code, int(milliseconds) / 1000, text)
    return View(login.url, place, "", tuple(rows[number] for number in sorted(rows)))


def _sight(vantage: str, site: Site, code: str, seconds: float, text: str) -> Sight:
    reached = text.startswith("connected")
    if reached:
        greeting = text.removeprefix("connected").strip()
        found = greeting or ("connected" if site.listener.is_implicit else "connected, and no greeting within 4 s")
    elif code == "124":  # timeout(1)
        found = "timed out: no answer within 4 s"
    else:
        # bash's message is `bash: connect: Connection refused` and another line with the file's name.
        found = text.partition("connect: ")[2].partition(" bash:")[0].strip() or text or f"exit code {code}"
    listener = site.listener
    return Sight(vantage, listener.name, listener.port, site.address, reached, found, seconds)


# -- The server's own view ---------------------------------------------------------------------------------------------

# Packet sockets see what comes in before the host's firewall does, and what goes out behind it (packet(7)).
_WATCH = """
import json, select, socket, struct, time
wanted, seen = {ports}, set()
tap = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(3))
end = time.time() + {seconds}
while time.time() < end:
    if not select.select([tap], [], [], 0.1)[0]:
        continue
    data, (device, protocol, kind, _, _) = tap.recvfrom(128)
    if device == "lo":
        continue
    if protocol == 0x0800 and len(data) > 20 and data[9] == 6:
        ends, tcp = [socket.inet_ntop(socket.AF_INET, data[i : i + 4]) for i in (12, 16)], data[(data[0] & 15) * 4 :]
    elif protocol == 0x86DD and len(data) > 40 and data[6] == 6:
        ends, tcp = [socket.inet_ntop(socket.AF_INET6, data[i : i + 16]) for i in (8, 24)], data[40:]
    else:
        continue
    if len(tcp) < 14:
        continue
    source, target = struct.unpack("!HH", tcp[:4])
    flags = tcp[13]
    if kind == socket.PACKET_OUTGOING and source in wanted and flags & 4:
        seen.add(("rst", ends[1], source))
    elif kind == socket.PACKET_OUTGOING and source in wanted and flags & 18 == 18:
        seen.add(("syn+ack", ends[1], source))
    elif kind != socket.PACKET_OUTGOING and target in wanted and flags & 18 == 2:
        seen.add(("syn", ends[0], target))
print("packets " + json.dumps(sorted(seen)))
"""
_INSIDE = """
ss -Hltn | sed 's/^/socket /'
python3 - <<'END' 2>/dev/null
{watch}
END
{{ journalctl -q --no-pager -o cat -u 'postfix*' --since -3min || cat /var/log/mail.log; }} 2>/dev/null |
  grep -E 'fatal:|panic:|throttling' | tail -n 3 | sed 's/^/log /'
:
"""


def _inside(place: Place, dead: Mapping[Site, bool]) -> Inside:
    shut = [site for site, connects in dead.items() if not connects]
    ports = sorted({site.listener.port for site in shut})
    watch = _WATCH.format(ports=json.dumps(ports), seconds=LISTEN_SECONDS if shut else 0)
    done = threading.Event()
    with ThreadPoolExecutor(len(dead), "knock") as pool:
        for site in shut:
            pool.submit(_knock, site, done)
        try:
            said = ssh.run(place.login, _INSIDE.format(watch=watch), root=True, seconds=20.0)
        finally:
            done.set()
    sockets: list[Socket] = []
    packets: frozenset[tuple[str, str, int]] | None = None
    log: list[str] = []
    for line in said.splitlines():
        kind, _, rest = line.partition(" ")
        fields = rest.split()
        if kind == "socket" and len(fields) >= 4:
            address, _, port = fields[3].rpartition(":")
            plain = address.strip("[]").partition("%")[0]
            sockets.append(Socket(plain, int(port), int(fields[1]), int(fields[2])))
        elif kind == "packets":
            packets = frozenset((what, ours, port) for what, ours, port in json.loads(rest))
        elif kind == "log":
            log.append(rest)
    ours = frozenset({place.client, *(site.source or _route(site.address) for site in dead)} - {""})
    return Inside(tuple(sockets), packets is not None, packets or frozenset(), ours, tuple(dict.fromkeys(log)))


def _knock(site: Site, done: threading.Event) -> None:
    """Connect again and again, so that the server has something to see whenever it begins to look."""
    while not done.is_set() and not site.cancelled.is_set():
        began = time.monotonic()
        source = (site.source, 0) if site.source else None
        with contextlib.suppress(OSError):
            socket.create_connection((site.address, site.listener.port), KNOCK_SECONDS, source).close()
        done.wait(max(0.05, KNOCK_SECONDS - (time.monotonic() - began)))
