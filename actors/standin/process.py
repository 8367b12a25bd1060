"""The stand-in of a trainer that runs on another host: that trainer, to everybody here.

    starting   nobody is there; invited hosts are let in at a door of its own (tcp, CURVE)
    running    one of them has the rank: its gradients go on to the shards as ours, what shards and
               loader answer goes back to it, and its beats become ours
    leaves     when it has gone, or was silent, or came anew: the next life waits for the next one

So nobody else listens on tcp or need know that a trainer is far away, and an attached trainer that
comes back is a new incarnation like any other. Nothing is computed or kept here: what is lost on
the way is asked for again by whoever lacks it.
"""

import json
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from actors import rundir
from actors.door import Door
from actors.loop import AsyncMailbox, serve
from actors.rundir import RunDir
from actors.seat import Seat
from actors.standin.forwarding import refuse_segments, unwrapped, without_segments, wrapped
from actors.standin.visit import Visit
from protocol import messages as m
from protocol.clock import Deadline, MonotonicClock
from protocol.codec import Buffer
from protocol.errors import EndpointError, Malformed, ProtocolError
from protocol.messages import Message
from protocol.tensors import Attached
from protocol.transport import Received, Sent

TICK_S = 0.05
# A message that found no room is tried again after this.
RETRY_S = 0.002
# What may wait here for one rank: a few steps of a large model. A guest that asks for more than it
# takes is sent away.
MAX_HELD_BYTES = 4 << 30
# Of what a guest says of itself: characters, messages that are named in the log, and figures.
MAX_WORDS, NAMED = 200, 20
GAUGES = ("step", "repairs", "malformed_bodies")
# Of the time a stop grants, for the guest to finish its step.
LEAVE_SHARE = 0.8


@dataclass(frozen=True, slots=True)
class _Parcel:
    channel: str
    message: Message
    to: str
    frames: tuple[Buffer, ...]
    step: int
    nbytes: int


class Post:
    """Sends in order per destination; what finds no room waits here."""

    def __init__(self, mailbox: AsyncMailbox) -> None:
        self._mailbox = mailbox
        self._held: dict[tuple[str, str], deque[_Parcel]] = {}
        self.held_bytes = 0

    def send(
        self,
        channel: str,
        message: Message,
        *,
        to: str = "",
        frames: Sequence[Buffer] = (),
        step: int = 0,
    ) -> None:
        """Send now or as soon as there is room. Raises `Unsendable`."""
        nbytes = sum(memoryview(frame).nbytes for frame in frames)
        parcel = _Parcel(channel, message, to, tuple(frames), step, nbytes)
        queue = self._held.get((channel, to))
        if queue is None and self._went(parcel):
            return
        self._held.setdefault((channel, to), deque()).append(parcel)
        self.held_bytes += nbytes

    def retry(self) -> bool:
        """Try again; whether something still waits."""
        for destination, queue in list(self._held.items()):
            while queue and self._went(queue[0]):
                self.held_bytes -= queue.popleft().nbytes
            if not queue:
                del self._held[destination]
        return bool(self._held)

    def _went(self, parcel: _Parcel) -> bool:
        sent = self._mailbox.send(
            parcel.channel, parcel.message, to=parcel.to, frames=parcel.frames, step=parcel.step
        )
        return sent is not Sent.FULL  # nobody there: it asks again when it is back


class StandIn:
    """One life of it."""

    def __init__(self, seat: Seat, mailbox: AsyncMailbox, attached: Attached) -> None:
        self._seat, self._mailbox, self._attached = seat, mailbox, attached
        self._clock = MonotonicClock()
        self._topology = seat.topology()
        self._run = RunDir(Path(seat.run_dir))
        self._rank, self._channel = seat.index, f"rank/{seat.index}"
        spec = self._topology.supervision
        self._visit = Visit(spec.silence_s, spec.hang_s)
        self._post = Post(mailbox)
        self._failed = ""
        self._nonsense = 0
        self._dismissal: m.Stop | None = None
        first = self._topology.actors.remote_ranks.start
        self._door = Door(
            self._run.keys,
            self._topology.remote,
            lambda endpoint, curve: mailbox.bind(self._channel, endpoint, curve),
            role="trainer",
            rank=self._rank,
            nth=1 + self._rank - first,
        )
        # Lives of guests that had the rank before; an older one is not let in again.
        self._last = self._run.keys / f"guest-trainer-{self._rank}.json"
        self._partners = {"batches"} | {
            f"exchange/{shard}" for shard in range(self._topology.actors.optimizer_shards)
        }

    async def run(self) -> str:
        """Until there is nobody to stand in for any more; why the run cannot go on, or ""."""
        self._open_door()
        mailbox, visit = self._mailbox, self._visit
        mailbox.log.info("waits for a host to attach", invited=self._door.is_open)
        while mailbox.stopping is None and visit.over is None:
            await self._turn()
        if visit.over is not None:
            self._say_how_it_ended()
        elif visit.guest and self._dismissal is not None:
            await self._dismiss(self._dismissal)
        return self._failed

    async def _turn(self) -> None:
        """Hear, and pass on."""
        waits = self._post.retry()
        for received in await self._mailbox.receive(RETRY_S if waits else TICK_S):
            try:
                self._hear(received)
            except ProtocolError as error:
                self._not_passed_on(received, str(error))
        self._visit.tick(self._clock.now())
        if not self._visit.guest:
            self._mailbox.progress(f"a host to attach as {self._seat.name}")
        elif self._post.held_bytes > MAX_HELD_BYTES:
            self._mailbox.log.error("the guest asks for more than it takes")
            self._visit.leaves()

    def _not_passed_on(self, received: Received, why: str) -> None:
        """Count nonsense; the first of it is named."""
        self._nonsense += 1
        self._mailbox.gauge("not_passed_on", self._nonsense)
        if self._nonsense <= NAMED:
            self._mailbox.log.warning("not passed on", sender=received.sender, why=why)

    def _open_door(self) -> None:
        """Let invited hosts in again."""
        before = rundir.read_json(self._last) or {}
        name, incarnation = before.get("name"), before.get("incarnation")
        if isinstance(name, str) and isinstance(incarnation, int):
            self._mailbox.refuse_older(name, incarnation)
        if not self._door.was_opened:
            return
        try:
            self._door.open()
        except EndpointError as error:
            self._mailbox.log.error("no trainer can attach", why=str(error))  # noqa: TRY400

    # --- hearing ----------------------------------------------------------------------------------

    def _hear(self, received: Received) -> None:
        """Raises `ProtocolError`."""
        if received.channel == self._channel:
            self._hear_guest(received)
        elif received.channel in self._partners:
            self._pass_down(received)
        elif received.channel == "control":
            self._hear_supervisor(received)

    def _hear_supervisor(self, received: Received) -> None:
        match received.message:
            case m.InviteRequest() as request:
                self._mailbox.send("control", self._door.invite(request))
            case m.PeerUp() as news if self._visit.guest:
                self._post.send(self._channel, news, to=self._visit.guest)
            case m.Stop() as stop if received.role == "supervisor":
                self._dismissal = stop
            case _:
                pass

    def _hear_guest(self, received: Received) -> None:
        name, message, now = received.sender, received.message, self._clock.now()
        if isinstance(message, m.JoinRank):
            self._join(received, message)
            return
        if isinstance(message, m.Hello | m.Beat):
            # Whoever had the rank in an earlier life of ours learns from this that we are another.
            self._mailbox.send(self._channel, self._welcome(), to=name)
        if not self._visit.is_guest(name, received.incarnation):
            return
        self._visit.speaks(now)
        match message:
            case m.Beat() as beat:
                self._beats(beat, now)
            case m.Forward() as forward:
                self._pass_up(received, forward)
            case m.WorkerLog(records=records):
                for record in records:
                    said = {**record, "actor": self._seat.name, "guest": name}
                    self._mailbox.send("telemetry", m.LogRecord(record=said))
            case m.Goodbye(failed=failed):
                self._failed = failed
                self._visit.leaves()
            case _:
                pass

    def _welcome(self) -> m.Welcome:
        return m.Welcome(peers={self._seat.name: self._seat.incarnation})

    def _join(self, received: Received, join: m.JoinRank) -> None:
        name = received.sender
        host = join.host[:MAX_WORDS] or "?"
        said = self._visit.asks(name, received.incarnation, host, self._clock.now())
        if said == "no":
            return
        if said == "new":
            self._remember(name, received.incarnation)
            self._mailbox.stand_in(self._visit.host)
            self._mailbox.log.info("attached trainer joined", trainer=name, host=self._visit.host)
        path = self._run.topology
        plan = m.RankPlan(topology=path.read_text(encoding="utf-8"), rank=self._rank)
        self._post.send(self._channel, plan, to=name)

    def _remember(self, name: str, incarnation: int) -> None:
        """For the stand-ins after us."""
        last = json.dumps({"name": name, "incarnation": incarnation})
        try:
            rundir.write_atomically(self._last, last, durable=False)
        except OSError as error:
            self._mailbox.log.warning("an earlier life of the guest may return", why=str(error))

    def _beats(self, beat: m.Beat, now: float) -> None:
        self._visit.beats(beat, now)
        self._mailbox.progress(beat.waiting_for[:MAX_WORDS])
        for name in GAUGES:
            if name in beat.gauges:
                self._mailbox.gauge(name, beat.gauges[name])

    # --- passing on -------------------------------------------------------------------------------

    def _pass_up(self, received: Received, forward: m.Forward) -> None:
        """From the guest, as if we had said it."""
        if forward.channel not in self._partners:
            raise Malformed(f"forwarded: no trainer speaks on {forward.channel[:80]!r}")
        message, frames = unwrapped(forward, received.frames, self._seat.name)
        refuse_segments(message)
        if getattr(message, "rank", self._rank) != self._rank:
            raise Malformed(f"forwarded: {forward.kind} of another rank")
        step = received.envelope.step
        self._mailbox.step = step
        self._post.send(forward.channel, message, frames=frames, step=step)

    def _pass_down(self, received: Received) -> None:
        """To the guest, all of it in frames."""
        guest = self._visit.guest
        if not guest:
            return
        message, frames = without_segments(received.message, received.frames, self._attached)
        forward, parts = wrapped(received.channel, message, frames, received.sender)
        self._post.send(self._channel, forward, to=guest, frames=parts, step=received.envelope.step)

    # --- the end ----------------------------------------------------------------------------------

    def _say_how_it_ended(self) -> None:
        over, visit = self._visit.over, self._visit
        assert over is not None
        facts = {"trainer": visit.guest, "host": visit.host, "why": over.why}
        if over.lost:
            self._mailbox.log.warning("attached trainer lost", **facts)
        else:
            self._mailbox.log.info("attached trainer left", **facts)

    async def _dismiss(self, stop: m.Stop) -> None:
        """The run ends: the guest finishes its step, and what it says still arrives."""
        self._post.send(self._channel, stop, to=self._visit.guest)
        patience = Deadline.after(self._clock, LEAVE_SHARE * stop.within_s, "the guest to leave")
        while self._visit.over is None and not patience.passed():
            await self._turn()


async def _live(seat: Seat) -> int:
    shards = [f"exchange/{k}" for k in range(seat.topology().actors.optimizer_shards)]
    connect = ("control", "telemetry", "batches", *shards)
    async with AsyncMailbox(seat, connect=connect) as mailbox:
        mailbox.stand_in("")
        with Attached(f"trireme-{seat.run_id}-") as attached:
            failed = await StandIn(seat, mailbox, attached).run()
        mailbox.close(failed=failed)
        return 0


def main(seat: Seat) -> int:
    """The stand-in's process."""
    return serve(_live(seat))
