"""The simulated network: what ZeroMQ promises, and not a bit more.

A DEALER has one connection to whoever binds its channel. Messages arrive in order on a connection,
each after a delay of its own. They are lost with the process they were on their way to or from:
what a dead sender had not handed to the kernel, what a dead receiver had not read. Messages for a
binder that is not there wait in the DEALER and reach its successor. A ROUTER notices a lost peer
a little late, and refuses to send beyond the high-water mark.

    stall    nothing arrives for a while; nothing is lost
    cut      the connection breaks, with what is on it, and is made again later
    echo     messages are sent twice, the second time as new ones: what a resend does
"""

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from protocol.channels import Channel, address, channel
from protocol.codec import Decoded
from protocol.keys import Admission
from protocol.parcels import Sent

if TYPE_CHECKING:
    from actors.simulation.life import Life
    from actors.simulation.world import World

# Seconds: a local message takes up to _LOCAL_S, one in thirty up to _SLOW_S; over tcp _FARTHER
# times as long.
_LOCAL_S, _SLOW_S, _FARTHER = 0.003, 0.06, 12.0
_RECONNECT_S = 0.25
# How long a ROUTER goes on sending into a connection that has broken.
_UNNOTICED_S = 0.02
# Of an ended process's last messages, those in the kernel's hands arrive.
_WAITING = 2000


@dataclass(slots=True, eq=False)
class Parcel:
    """A message on its way."""

    decoded: Decoded
    lost: bool = False


@dataclass(slots=True, eq=False)
class Link:
    """One DEALER's connection."""

    dealer: "Life"
    name: str
    spec: Channel
    route: bytes  # the ROUTER's address of it
    admitted: Admission | None
    binder: "Life | None" = None
    waiting: deque[Parcel] = field(default_factory=deque[Parcel])  # for a binder to appear
    up: deque[Parcel] = field(default_factory=deque[Parcel])
    down: deque[Parcel] = field(default_factory=deque[Parcel])
    up_at: float = 0.0  # when the last message under way arrives
    down_at: float = 0.0

    def __repr__(self) -> str:
        return f"{self.dealer}:{self.name}"


class Wire:
    """All connections."""

    def __init__(self, world: "World") -> None:
        self._world = world
        self._chance = world.chance
        self._binders: dict[str, Life] = {}
        self._links: dict[Life, dict[str, Link]] = {}  # by dealer
        self._routes: dict[tuple[Life, str], dict[bytes, Link]] = {}
        self._strangers = 0

    # --- connections ------------------------------------------------------------------------------

    def bind(self, life: "Life", name: str) -> None:
        """From now on `life` listens on this channel; peers of a dead predecessor come over."""
        self._binders[name] = life
        self._routes[life, name] = {}
        for links in self._links.values():
            link = links.get(name)
            if link is not None and link.binder is None:
                self._connect_soon(link)

    def connect(self, life: "Life", name: str) -> None:
        """Open a connection to whoever listens, now or later."""
        spec = channel(name)
        route, admitted = address(life.name, life.incarnation), None
        if spec.curve:
            self._strangers += 1
            route = b"stranger %d" % self._strangers
            label = life.name.partition("/")[2].rpartition("-")[0]
            admitted = Admission("data_worker", label)
        link = self._links.setdefault(life, {})[name] = Link(life, name, spec, route, admitted)
        self._connect_soon(link, 0.01)

    def _connect_soon(self, link: Link, within_s: float = _RECONNECT_S) -> None:
        after_s = within_s * self._chance.random()
        self._world.timeline.after(after_s, None, self._connect, link)

    def _connect(self, link: Link) -> None:
        binder = self._binders.get(link.name)
        if link.binder is not None or not link.dealer.alive or binder is None or not binder.alive:
            return  # `bind` tries again
        link.binder = binder
        self._routes[binder, link.name][link.route] = link
        while link.waiting:
            self._send_up(link, link.waiting.popleft())

    # --- messages ---------------------------------------------------------------------------------

    def up(self, life: "Life", name: str, decoded: Decoded) -> None:
        """DEALER to ROUTER."""
        link, parcel = self._links[life][name], Parcel(decoded)
        if link.binder is not None:
            self._send_up(link, parcel)
        elif len(link.waiting) < _WAITING:
            link.waiting.append(parcel)

    def _send_up(self, link: Link, parcel: Parcel) -> None:
        assert link.binder is not None
        link.up_at = max(link.up_at, self._world.timeline.now() + self._delay_s(link))
        link.up.append(parcel)
        self._world.timeline.at(link.up_at, link.binder, self._arrive_up, link, parcel)

    def _arrive_up(self, link: Link, parcel: Parcel) -> None:
        if not parcel.lost:
            assert link.up.popleft() is parcel, "messages of one connection out of order"
            assert link.binder is not None
            link.binder.box.arrive(link, parcel.decoded, route=link.route)

    def down(self, life: "Life", name: str, route: bytes, decoded: Decoded) -> Sent:
        """ROUTER to DEALER."""
        link = self._routes[life, name].get(route)
        if link is None:
            return Sent.NO_PEER
        if len(link.down) >= link.spec.high_water:
            return Sent.FULL
        parcel = Parcel(decoded)
        link.down_at = max(link.down_at, self._world.timeline.now() + self._delay_s(link))
        link.down.append(parcel)
        self._world.timeline.at(link.down_at, link.dealer, self._arrive_down, link, parcel)
        return Sent.SENT

    def _arrive_down(self, link: Link, parcel: Parcel) -> None:
        if not parcel.lost:
            assert link.down.popleft() is parcel, "messages of one connection out of order"
            link.dealer.box.arrive(link, parcel.decoded, route=None)

    def _delay_s(self, link: Link) -> float:
        chance = self._chance.random
        s = _LOCAL_S * chance() if chance() > 0.03 else _SLOW_S * chance()
        return s * _FARTHER if link.dealer.host else s

    # --- trouble ----------------------------------------------------------------------------------

    def ended(self, life: "Life", *, politely: bool) -> None:
        """A process is gone, and its sockets with it; `politely`: after they were emptied."""
        for link in self._links.pop(life, {}).values():
            if not politely:
                self._lose_tail(link.up)
            link.down.clear()
            self._unroute(link, _UNNOTICED_S * self._chance.random())
        for name in [name for binder, name in self._routes if binder is life]:
            for link in self._routes.pop((life, name)).values():
                if link.binder is not life:
                    continue
                # What had been read, or lay in its own kernel's buffers, is gone.
                kept = self._chance.randint(0, len(link.up))
                for parcel in list(link.up)[len(link.up) - kept :]:
                    link.waiting.append(Parcel(parcel.decoded))
                self._lose_all(link.up)
                if not politely:
                    self._lose_tail(link.down)
                link.binder = None
                self._connect_soon(link)
            if self._binders.get(name) is life:
                del self._binders[name]

    def cut(self, life: "Life", name: str, back_s: float) -> None:
        """The connection breaks and comes back after a while."""
        link = self._links.get(life, {}).get(name)
        if link is None or link.binder is None:
            return
        self._lose_all(link.up)
        self._lose_all(link.down)
        self._unroute(link, 0.0)
        link.binder = None
        self._world.timeline.after(back_s, None, self._connect, link)

    def stall(self, life: "Life", name: str, s: float) -> None:
        """What is said from now on arrives `s` seconds later."""
        link = self._links.get(life, {}).get(name)
        if link is not None:
            link.up_at = max(link.up_at, self._world.timeline.now() + s)
            link.down_at = max(link.down_at, self._world.timeline.now() + s)

    def channels(self, life: "Life") -> list[str]:
        """What this process is connected to, where anything is said."""
        return [name for name in self._links.get(life, {}) if name != "telemetry"]

    def links_to(self, life: "Life", name: str) -> list[Link]:
        """Connections others have to this process."""
        return list(self._routes.get((life, name), {}).values())

    def _unroute(self, link: Link, after_s: float) -> None:
        routes = self._routes.get((link.binder, link.name)) if link.binder else None
        if routes is not None:
            self._world.timeline.after(after_s, None, self._forget, routes, link)

    def _forget(self, routes: dict[bytes, Link], link: Link) -> None:
        if routes.get(link.route) is link and (link.binder is None or not link.dealer.alive):
            del routes[link.route]

    def _lose_all(self, parcels: deque[Parcel]) -> None:
        for parcel in parcels:
            parcel.lost = True
        parcels.clear()

    def _lose_tail(self, parcels: deque[Parcel]) -> None:
        for _ in range(self._chance.randint(0, len(parcels))):
            parcels.pop().lost = True
