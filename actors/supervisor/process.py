"""The supervisor's process: performs what `Supervision` decides.

It owns the process table, the two forkservers, the run's shared memory and the control endpoint.
When it dies nothing else does: the launcher starts the next one, which finds the actors through
processes.json and the forkservers, checks each against its start time, and takes over.

It is started by `python -m actors.supervisor` (see __main__.py).
"""

import asyncio
import contextlib
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from actors import forkserver, leftovers, outcome, process, topology
from actors.loop_async import AsyncMailbox
from actors.process import Identity
from actors.roles import ROLES, Entry
from actors.rundir import RunDir
from actors.supervisor import adoption, control, places, segments, table
from actors.supervisor.events import (
    Bury,
    Ended,
    Event,
    Finish,
    Fork,
    Forked,
    Heard,
    Instruction,
    Kill,
    NotForked,
    Resumed,
    StopWanted,
    Tell,
    Tick,
)
from actors.supervisor.forkservers import Forkservers
from actors.supervisor.graves import Graves
from actors.supervisor.lives import End, Lives
from actors.supervisor.supervision import Supervision
from actors.topology import Topology
from protocol.clock import Clock
from protocol.messages import Beat, Guest, PeerDown, PeerUp

EXIT_CODES = {"done": 0, "failed": 3, "stopped": 130}

# How often deadlines are looked at. Ends, messages and waits before a restart come by themselves.
_TICK_S = 0.1
# How often the lock file is touched; the launcher waits for silence_s of the topology.
_PULSE_S = 0.25
# A forkserver that lives says who its children are at once.
_READY_S = 2.0
# Forkservers own nothing: they get this to leave.
_LEAVE_S = 1.0


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What tests replace: the roles, and the segments a topology needs."""

    roles: dict[str, Entry] = field(default_factory=lambda: dict(ROLES))
    segments: Callable[[str, Topology], dict[str, int]] = segments.wanted


class Supervisor:
    """One life of the supervisor, from taking over what lives to the end of the run."""

    def __init__(self, run: RunDir, incarnation: int, around: Surroundings, clock: Clock) -> None:
        """Raises `RunDirError` and `TopologyError` when the run directory is not usable."""
        self.run, self.around, self.clock = run, around, clock
        self.me = process.myself()
        self.incarnation = incarnation
        self.first_incarnation = incarnation  # of this launch
        text = run.topology.read_text(encoding="utf-8")
        self.topology = topology.decode(text, source=str(run.topology))
        self.seated = places.read(run, self.topology.actors.remote_ranks)
        self.seats = {actor.name: actor for actor in self.seated}
        self.beats: dict[str, Beat] = {}
        self.guests: tuple[Guest, ...] = ()  # workers of other hosts, as the loader sees them
        self.finish: Finish | None = None
        self.completed: tuple[int, str] | None = None  # last step, its weights_digest
        self.ready = False  # `supervision` exists
        self._told_to_stop = self._told_not_to_wait = False
        self._segments: dict[str, int] = {}  # names and bytes, once somebody was forked
        self._ticked_at = 0.0
        self._pulse_at = 0.0

    async def supervise(self) -> int:
        """Until nothing of the run is left; returns the exit code."""
        self.run.make_socket_dir()
        mine = self.seats.get("supervisor", places.Seated(name="supervisor", role="supervisor"))
        seat = places.seat(self.run, mine, self.incarnation)
        async with AsyncMailbox(seat, ("telemetry",), ("control",), signals=False) as self.mailbox:
            self.log = self.mailbox.log
            self.graves = Graves(self.run, self.log)
            self.lives = Lives(self._life_ended)
            self.forkservers = Forkservers(
                self.run,
                self.clock,
                preloads=places.preloads(self.seated, self.around.roles),
                cpus=os.sched_getaffinity(0),
                orphan_grace_s=self.topology.supervision.orphan_grace_s,
                told=self._told,
                sweep=self.sweep,
                note=lambda level, text: self.log.log(LEVELS[level], text),
            )
            self.desk = control.Desk(self)
            self._sit_down(seat.cpus)
            try:
                await self._take_over()
                await self._watch_over()
                await self.forkservers.close(_LEAVE_S)
            finally:
                self.forkservers.abandon()
                self.lives.close()
            return self._leave()

    def _sit_down(self, cpus: Sequence[int]) -> None:
        """Signals in hand, where the plan has us."""
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(_crash)
        loop.add_signal_handler(signal.SIGTERM, self._stop)
        loop.add_signal_handler(process.NOT_TO_WAIT, self._stop_at_once)
        loop.add_signal_handler(signal.SIGINT, lambda: None)  # a Ctrl-C is the launcher's
        held = {signal.SIGTERM, process.NOT_TO_WAIT}  # by the launcher
        signal.pthread_sigmask(signal.SIG_UNBLOCK, held)
        if cpus:
            with contextlib.suppress(OSError):  # the machine has changed since the plan was made
                os.sched_setaffinity(0, cpus)

    # --- Taking over ------------------------------------------------------------------------------

    async def _take_over(self) -> None:
        """Find out who lives, end whoever nobody knows, make what is missing."""
        rows = table.read(self.run)
        own = rows.get("supervisor", table.Row())
        if own.who is not None:
            self.first_incarnation = own.incarnation - own.restarts
        await self._warm_up(adoption.forkservers(rows))
        self.supervision = Supervision(
            self.topology.supervision,
            places.places(self.seated, self.around.roles),
            now=self.clock.now(),
            memories=adoption.memories(rows, self.forkservers.children()),
        )
        self.ready = True
        self.sweep()
        living = [actor for actor in self.supervision.actors.values() if actor.who is not None]
        self.log.info("supervisor started", adopted=[actor.name for actor in living])
        for actor in living:
            assert actor.who is not None
            self.lives.watch(actor.name, actor.incarnation, actor.who)
        if own.end:
            if own.weights_digest:
                self.completed = (own.step, own.weights_digest)
            self.handle(Resumed(own.end, own.reason))  # our predecessor was ending the run
        if self._told_to_stop:
            self.handle(StopWanted("interrupted", at_once=self._told_not_to_wait))
        self._save()
        self.handle(Tick())

    async def _warm_up(self, known: dict[str, Identity]) -> None:
        """Start the forkservers; those that live already say at once who their children are."""
        for preload in self.forkservers.open(known):
            end = self.clock.now() + _READY_S
            while not self.forkservers.warm(preload) and self.clock.now() < end:
                self._show_pulse()
                await asyncio.sleep(0.002)

    def sweep(self) -> None:
        """End every actor of this run that nobody knows: what a dead forkserver did not tell."""
        if not self.ready:
            return
        actors = self.supervision.actors.values()
        known = {actor.who for actor in actors if actor.who}
        known |= set(self.forkservers.living().values())
        # Of a forkserver: just forked, and about to be told of. Of an actor: its own affair.
        parents = {who.pid for who in known}
        for who in process.of_run(self.run.run_id):
            if who in known or who == self.me or not process.leads_session(who.pid):
                continue
            if process.parent(who.pid) in parents:
                continue
            self.log.warning("stray process ended", pid=who.pid)
            process.send_signal(who, signal.SIGKILL)

    # --- Watching over ----------------------------------------------------------------------------

    async def _watch_over(self) -> None:
        while self.finish is None:
            for received in await self.mailbox.receive(_TICK_S):
                self.desk.hear(received)
            if self.clock.now() - self._ticked_at >= _TICK_S:
                self._ticked_at = self.clock.now()
                self.forkservers.check()
                self._show_pulse()
                self.handle(Tick())

    def _show_pulse(self) -> None:
        """For the launcher, which ends a supervisor that does not turn any more."""
        if self.clock.now() - self._pulse_at >= _PULSE_S:
            self._pulse_at = self.clock.now()
            with contextlib.suppress(OSError):
                os.utime(self.run.supervisor_lock)

    def _stop(self) -> None:
        """SIGTERM, however often: a scheduler tells all of us, and the launcher passes it on."""
        self._told_to_stop = True
        if self.ready:
            self.handle(StopWanted("interrupted"))

    def _stop_at_once(self) -> None:
        """The launcher was told twice: do not wait for anybody."""
        self._told_to_stop = self._told_not_to_wait = True
        if self.ready:
            self.handle(StopWanted("interrupted", at_once=True))

    def soon(self, s: float, do: Callable[[], None]) -> None:
        """Do something a little later."""
        asyncio.get_running_loop().call_later(s, do)

    def handle(self, event: Event) -> None:
        """Let the decider decide, and do it."""
        instructions = self.supervision.handle(event, self.clock.now())
        if instructions or isinstance(event, Forked | Ended | StopWanted):
            self._save()  # before it is done: incarnations must not be forgotten
        for instruction in instructions:
            self._perform(instruction)

    def _perform(self, instruction: Instruction) -> None:
        match instruction:
            case Fork(name=name, incarnation=incarnation):
                entry = self.around.roles[self.seats[name].entry]
                seat = places.seat(self.run, self.seats[name], incarnation)
                self.beats.pop(name, None)
                self._make_segments()
                self.forkservers.fork(
                    entry.preload,
                    forkserver.Fork(
                        entry=entry.entry, seat=seat, stderr=str(self.run.stderr_of(name))
                    ),
                )
            case Kill(who=who, signal=number):
                self.log.warning(
                    "killing",
                    target=instruction.name,
                    signal=signal.Signals(number).name,
                    why=instruction.why,
                )
                process.send_signal(who, number)
            case Tell(name=name, message=message):
                if isinstance(message, PeerUp):
                    self.mailbox.refuse_older(message.name, message.incarnation)
                elif isinstance(message, PeerDown):
                    self.mailbox.refuse_older(message.name, message.incarnation + 1)
                for peer in (name,) if name else self.supervision.peers():
                    self.mailbox.send("control", message, to=peer)
            case Bury():
                self.graves.bury(instruction, self.beats.get(instruction.name))
                if instruction.restart_in_s:  # not as late as the next tick
                    self.soon(instruction.restart_in_s, lambda: self.handle(Tick()))
            case Finish():
                self.finish = instruction

    def _make_segments(self) -> None:
        """Those that are missing: all at first, and again when actors that found no supervisor for
        too long have removed theirs. Who takes over living actors has no need of it.
        """
        if not self._segments:
            self._segments = self.around.segments(self.run.run_id, self.topology)
        segments.make(self._segments, self._show_pulse)

    # --- Lives ------------------------------------------------------------------------------------

    def _told(self, reply: forkserver.Reply) -> None:
        """A forkserver speaks."""
        match reply:
            case forkserver.Forked(life=life):
                self.born(life.name, life.incarnation, life.who)
            case forkserver.NotForked():
                self.handle(NotForked(reply.name, reply.incarnation, reply.reason))
            case forkserver.Exited():
                self.graves.reported(reply)
                self.lives.reported(reply)
            case forkserver.Ready():
                self.log.info("forkserver ready", preload=reply.preload, threads=reply.threads)
                if self.ready:
                    self._save()

    def born(self, name: str, incarnation: int, who: Identity) -> None:
        """A life has begun, as its forkserver or it itself says. Being told twice is harmless."""
        actor = self.supervision.actors.get(name)
        if actor is None or actor.incarnation != incarnation or actor.stage == "gone":
            process.send_signal(who, signal.SIGKILL)
            return
        if actor.stage == "asked":
            self.handle(Forked(name, incarnation, who))
            self.lives.watch(name, incarnation, who)

    def heard(self, heard: Heard, who: Identity) -> bool:
        """An actor spoke; whether it is one of ours. Its word may overtake its forkserver's."""
        actor = self.supervision.actors.get(heard.name)
        if actor is None or actor.incarnation != heard.incarnation:
            return False
        if actor.stage == "asked":
            self.born(heard.name, heard.incarnation, who)
        if actor.who != who:
            return False
        self.handle(heard)
        return True

    def _life_ended(self, end: End) -> None:
        how = self.graves.how(end)
        self.handle(Ended(end.name, end.incarnation, how))

    # --- The table and the end --------------------------------------------------------------------

    def _save(self) -> None:
        step, digest = self.completed or (0, "")
        own = table.row(
            self.me,
            self.incarnation,
            restarts=self.incarnation - self.first_incarnation,
            end=self.supervision.end or "",
            reason=self.supervision.reason,
            step=step,
            weights_digest=digest,
        )
        rows: dict[str, table.Row] = {"supervisor": own}
        for preload, who in self.forkservers.living().items():
            rows[f"forkserver/{preload}"] = table.row(who)
        for actor in self.supervision.actors.values():
            rows[actor.name] = table.row(
                actor.who,
                actor.incarnation,
                restarts=actor.restarts,
                deaths=actor.rationing.deaths,
            )
        try:
            table.write(self.run, rows)
        except OSError as error:  # a full disk: the forkservers know who lives
            self.log.warning("process table not written", why=str(error))

    def _leave(self) -> int:
        """Leave nothing behind but the run directory."""
        assert self.finish is not None
        self.graves.close()
        leftovers.end_all(self.run)
        step, digest = self.completed or (0, "")
        restarts = sum(actor.restarts for actor in self.supervision.actors.values())
        restarts += self.incarnation - self.first_incarnation
        ended = outcome.Outcome(
            end=self.finish.end,
            reason=self.finish.reason,
            step=step,
            weights_digest=digest,
            restarts=restarts,
        )
        outcome.write(self.run, ended)  # first: much memory takes its time to be given back
        stuck = segments.remove(self.run.run_id, self._show_pulse)
        if stuck:
            reason = f"{ended.reason}; left in /dev/shm: {stuck}"
            outcome.write(self.run, msgspec.structs.replace(ended, reason=reason))
        return EXIT_CODES[self.finish.end]


LEVELS = {"info": 20, "warning": 30, "error": 40}


def _crash(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """A callback failed: half of what was decided is undone, and only a new life knows what."""
    loop.default_exception_handler(context)
    error = context.get("exception")
    if isinstance(error, BaseException):
        traceback.print_exception(error)
    sys.stderr.flush()
    os._exit(70)
