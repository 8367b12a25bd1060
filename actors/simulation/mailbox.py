"""A process's place on the simulated wire: the real gate and the real lifeline, without sockets.

Stands in for `Mailbox` and `AsyncMailbox`. Control messages are heard at once, as the thread that
owns the sockets does; all else waits in the inbox for the computing thread's next turn.
"""

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from actors import lifeline
from actors.lifeline import Lifeline, Work
from actors.simulation.life import Exit, Life
from actors.simulation.wire import Link
from protocol import messages as m
from protocol.codec import Decoded
from protocol.gate import Gate
from protocol.messages import WIRE_VERSION, Envelope, Message, Role, Stop
from protocol.parcels import Received, Sent

if TYPE_CHECKING:
    from collections.abc import Generator

    from actors.topology import SupervisionSpec

# As actors/membership.py has it.
_EXIT_FORSAKEN = 75


class _Wait:
    """What a coroutine waits with: its next turn, in `timeout_s` at the latest."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s

    def __await__(self) -> "Generator[float, None, None]":
        yield self._timeout_s


class Log:
    """Records go into the story."""

    def __init__(self, life: Life) -> None:
        self._life = life

    def _say(self, event: str, **fields: object) -> None:
        self._life.op()
        world = self._life.world
        if world.story is not None:
            world.tell(f"{self._life}: {event} {fields or ''}")

    debug = info = warning = error = _say


class SimMailbox:
    """Belongs to one life."""

    def __init__(
        self,
        life: Life,
        connect: Sequence[str],
        bind: Sequence[str] = (),
        *,
        supervision: "SupervisionSpec | None" = None,
    ) -> None:
        """Opens the channels; with `supervision`, says hello and goes on beating."""
        self.life, self.log = life, Log(life)
        self.gate, self.work = Gate(), Work()
        self.inbox: deque[Received] = deque()
        self.stopping: Stop | None = None
        self._bound = frozenset(bind)
        self._seq = 0
        self._lifeline: Lifeline | None = None
        for name in bind:
            life.world.wire.bind(life, name)
        for name in connect:
            life.world.wire.connect(life, name)
        if supervision is not None:
            self._lifeline = Lifeline(life.name, life.incarnation, supervision, life.now())
            self._say_hello()
            self._tick()

    # --- as actors see it -------------------------------------------------------------------------

    def send(
        self,
        channel: str,
        message: Message,
        *,
        to: str = "",
        frames: Sequence[Any] = (),
        step: int = 0,
    ) -> Sent:
        """See `AsyncMailbox.send`."""
        if channel == "telemetry":
            return Sent.SENT  # nobody waits for it
        life = self.life
        life.op()
        if life.echoes():
            later_s = 0.2 * life.chance.random()
            life.later(later_s, self._again, channel, message, to, frames)
        kind = type(message).__name__
        said = Envelope(
            WIRE_VERSION, kind, life.name, life.incarnation, self._seq, step or self.work.step
        )
        self._seq += 1
        decoded = Decoded(said, message, tuple(frames))
        if channel not in self._bound:
            if life.ahead:
                life.later(0.0, life.world.wire.up, life, channel, decoded)
            else:
                life.world.wire.up(life, channel, decoded)
            return Sent.SENT
        route = self.gate.route(channel, to)
        if route is None:
            return Sent.NO_PEER
        sent = life.world.wire.down(life, channel, route, decoded)
        if sent is Sent.NO_PEER:
            self.gate.forget_route(channel, to)
        return sent

    def _again(self, channel: str, message: Message, to: str, frames: Sequence[Any]) -> None:
        """Say it once more, as a new message."""
        echo, self.life.echo_until = self.life.echo_until, 0.0
        self.send(channel, message, to=to, frames=frames)
        self.life.echo_until = echo

    def receive(self, timeout_s: float = 0.0) -> list[Received]:
        """What has arrived. The waiting is done between turns."""
        del timeout_s
        taken = list(self.inbox)
        self.inbox.clear()
        return taken

    def wake(self) -> None:
        """Nobody works beside this line."""

    def progress(self, waiting_for: str = "") -> None:
        """See `Mailbox.progress`."""
        self.work.note(waiting_for, self.life.now())

    def gauge(self, name: str, value: float) -> None:
        """See `Mailbox.gauge`."""
        self.work.gauges[name] = value

    def refuse_older(self, name: str, incarnation: int) -> None:
        """See `Node.refuse_older`."""
        self.gate.refuse_older(name, incarnation)
        self.life.world.truth.told_of(self.life, name, incarnation)

    def counters(self) -> dict[str, int]:
        """See `Node.counters`."""
        return dict(self.gate.counts)

    @property
    def step(self) -> int:
        """See `Mailbox.step`."""
        return self.work.step

    @step.setter
    def step(self, step: int) -> None:
        self.work.step = step

    @property
    def forsaken(self) -> str:
        """See `Mailbox.forsaken`."""
        return self._lifeline.forsaken if self._lifeline is not None else ""

    def goodbye(self, failed: str = "") -> None:
        """Leave on purpose; the caller ends the process."""
        if self._lifeline is not None:
            self.send("control", m.Goodbye(failed=failed))

    # --- as the wire sees it ----------------------------------------------------------------------

    def arrive(self, link: Link, decoded: Decoded, *, route: bytes | None) -> None:
        """A message; dropped where the gate says so."""
        life = self.life
        role = self.gate.judge(
            link.name, link.spec, decoded, route=route, admitted=link.admitted if route else None
        )
        if role is None:
            return
        said = decoded.envelope
        life.world.truth.believed(life, said.sender, said.incarnation)
        received = Received(
            link.name, said.sender, role, said.incarnation, said, decoded.message, decoded.frames
        )
        if self._lifeline is None or link.name != "control" or role != "supervisor":
            self._deliver(received)
            return
        todo, fate = self._lifeline.hear(decoded.message, said.incarnation, life.now())
        self._perform(todo)
        if fate == "deliver":
            self._deliver(received)
        self.stopping = self._lifeline.stopping

    def _deliver(self, received: Received) -> None:
        self.inbox.append(received)
        self.life.wake()

    # --- the lifeline -----------------------------------------------------------------------------

    def _tick(self) -> None:
        assert self._lifeline is not None
        now = self.life.world.timeline.now()
        self._perform(self._lifeline.tick(now))
        self.stopping = self._lifeline.stopping
        self.life.world.timeline.at(max(self._lifeline.due(), now + 0.01), self.life, self._tick)

    def _perform(self, todo: list[lifeline.Instruction]) -> None:
        for instruction in todo:
            match instruction:
                case lifeline.SayHello():
                    self._say_hello()
                case lifeline.SayBeat():
                    self._say_beat()
                case lifeline.RefuseOlder(name=name, incarnation=incarnation):
                    self.refuse_older(name, incarnation)
                case lifeline.TellStop(stop=stop):
                    self._told_to_stop(stop)
                case lifeline.LeaveNow():
                    raise Exit(_EXIT_FORSAKEN)

    def _told_to_stop(self, stop: Stop) -> None:
        life, self.stopping = self.life, stop
        said = Envelope(WIRE_VERSION, "Stop", life.name, life.incarnation, 0, 0)
        self._deliver(Received("control", life.name, life.role, life.incarnation, said, stop, ()))

    def _say(self, message: Message) -> None:
        """From the thread that owns the sockets, whatever the computing thread is at."""
        life = self.life
        said = Envelope(
            WIRE_VERSION, type(message).__name__, life.name, life.incarnation, self._seq, 0
        )
        self._seq += 1
        life.world.wire.up(life, "control", Decoded(said, message, ()))

    def _say_hello(self) -> None:
        who = self.life.who
        role: Role = self.life.role
        self._say(m.Hello(role=role, pid=who.pid, started_ticks=who.ticks, host=self.life.host))

    def _say_beat(self) -> None:
        assert self._lifeline is not None
        work, who = self.work, self.life.who
        self._say(
            m.Beat(
                role=self.life.role,
                pid=who.pid,
                started_ticks=who.ticks,
                host=self.life.host,
                state=self._lifeline.state(work.begun),
                progress=work.progress,
                waiting_for=work.waiting_for,
                waiting_s=work.waiting_s(self.life.world.timeline.now()),
                rss_bytes=0,
                gauges={},
            )
        )


class CoroutineMailbox(SimMailbox):
    """For actors that run as coroutines: `receive` ends the turn until something comes."""

    async def receive(self, timeout_s: float = 0.0) -> list[Received]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """See `AsyncMailbox.receive`."""
        if not self.inbox:
            await _Wait(timeout_s)
        return super().receive()
