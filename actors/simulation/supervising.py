"""The simulated supervisor, its forkserver and its launcher.

`Supervision`, `Desk`, `Rationing` and `adoption` are the real ones; the processes they are about
are simulated. This is supervisor/process.py without descriptors, signals and files.
"""

import signal
from typing import TYPE_CHECKING, Any, cast

from actors import forkserver
from actors.process import Identity
from actors.simulation.life import Exit, Life
from actors.simulation.mailbox import SimMailbox
from actors.simulation.truth import Violation
from actors.supervisor import adoption, control, table
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
    Resumed,
    StopWanted,
    Tell,
    Tick,
)
from actors.supervisor.rationing import Rationing
from actors.supervisor.supervision import Supervision
from protocol.messages import Beat, PeerDown, PeerUp

if TYPE_CHECKING:
    from actors.simulation.world import World

# The real one ticks five times as often; every tick costs real time here.
_TICK_S = 0.1
_LOOK_S = 0.25


class SimSupervisor:
    """One life of the supervisor. Attributes are what `control.Desk` asks of its home."""

    def __init__(self, life: Life) -> None:
        self._life, self._world = life, life.world
        self.mailbox = life.box = SimMailbox(life, (), ("control",))
        self.log = self.mailbox.log
        self.beats: dict[str, Beat] = {}
        self.completed: tuple[int, str] | None = None
        self._desk = control.Desk(cast("Any", self))
        self._watched: set[Identity] = set()
        self._finish: Finish | None = None
        self._ticked_at = 0.0
        self.supervision: Supervision
        self._ready = False

    # --- turns ------------------------------------------------------------------------------------

    def proceed(self) -> float:
        """Take over, then watch."""
        if not self._ready:
            self._take_over()
        for received in self.mailbox.receive():
            self._desk.hear(received)
        now = self._life.now()
        if now - self._ticked_at >= _TICK_S:
            self._ticked_at = now
            self._world.launcher.pulse = now
            self.handle(Tick())
        self.supervision.check()
        if self._finish is not None:
            self._world.launcher.finished(self._finish)
            raise Exit(0)
        return _TICK_S

    def ended(self) -> None:
        """The table stays, and so do the actors."""

    def _take_over(self) -> None:
        world = self._world
        rows = world.disk.table
        own = rows.get("supervisor", table.Row())
        children = [
            forkserver.Life(name=life.name, incarnation=life.incarnation, who=life.who)
            for life in world.lives.values()
            if not life.host and life.name != "supervisor" and not life.zombie
        ]
        self.supervision = Supervision(
            world.topology.supervision,
            world.places,
            now=self._life.now(),
            memories=adoption.memories(rows, children),
        )
        self._ready = True
        world.disk.make_segments()
        for actor in self.supervision.actors.values():
            if actor.who is not None:
                self._watch(actor.name, actor.incarnation, actor.who)
        if own.end:
            self.handle(Resumed(own.end, own.reason))
        self.handle(Tick())

    # --- events -----------------------------------------------------------------------------------

    def handle(self, event: Event) -> None:
        """Let the decider decide, and do it."""
        instructions = self.supervision.handle(event, self._life.now())
        if instructions or isinstance(event, Forked | Ended | StopWanted):
            self._save()
        for instruction in instructions:
            self._perform(instruction)

    def heard(self, heard: Heard, who: Identity) -> bool:
        """See `Supervisor.heard`."""
        actor = self.supervision.actors.get(heard.name)
        if actor is None or actor.incarnation != heard.incarnation:
            return False
        if actor.stage == "asked":
            self.born(heard.name, heard.incarnation, who)
        if actor.who != who:
            return False
        self.handle(heard)
        return True

    def born(self, name: str, incarnation: int, who: Identity) -> None:
        """See `Supervisor.born`."""
        if not self._ready:
            return
        actor = self.supervision.actors.get(name)
        if actor is None or actor.incarnation != incarnation or actor.stage == "gone":
            self._world.kill(who)
            return
        if actor.stage == "asked":
            self.handle(Forked(name, incarnation, who))
            self._watch(name, incarnation, who)

    def _watch(self, name: str, incarnation: int, who: Identity) -> None:
        self._watched.add(who)
        life = self._world.lives.get(who)
        if life is None or life.zombie:
            self._life.later(0.0, self.life_ended, name, incarnation, who, "ended unseen")

    def stop(self) -> None:
        """An operator asks for the end of the run."""
        if self._ready:
            self.handle(StopWanted("stopped by an operator"))

    def life_ended(self, name: str, incarnation: int, who: Identity, how: str) -> None:
        """A pidfd says so."""
        if who in self._watched:
            self._watched.remove(who)
            self._world.truth.ended(name, self._life.now())
            self.handle(Ended(name, incarnation, how))

    # --- instructions -----------------------------------------------------------------------------

    def _perform(self, instruction: Instruction) -> None:
        self._life.op()
        world = self._world
        match instruction:
            case Fork(name=name, incarnation=incarnation):
                self.beats.pop(name, None)
                world.disk.make_segments()
                world.truth.begun(name, self._life.now())
                world.forkserver.fork(name, incarnation)
            case Kill(who=who, signal=number):
                world.tell(f"supervisor: {signal.Signals(number).name} to {instruction.name}")
                if number == signal.SIGKILL:
                    world.kill(who)
            case Tell(name=name, message=message):
                if isinstance(message, PeerUp):
                    self.mailbox.refuse_older(message.name, message.incarnation)
                elif isinstance(message, PeerDown):
                    self.mailbox.refuse_older(message.name, message.incarnation + 1)
                for peer in (name,) if name else self.supervision.peers():
                    self.mailbox.send("control", message, to=peer)
            case Bury():
                world.tell(f"supervisor: buries {instruction.name}: {instruction.why}")
            case Finish():
                self._finish = instruction

    def _save(self) -> None:
        rows = {
            "supervisor": table.row(
                self._life.who,
                self._life.incarnation,
                end=self.supervision.end or "",
                reason=self.supervision.reason,
            )
        }
        for actor in self.supervision.actors.values():
            rows[actor.name] = table.row(
                actor.who,
                actor.incarnation,
                restarts=actor.restarts,
                deaths=actor.rationing.deaths,
            )
        self._world.disk.save_table(rows)


class SimForkserver:
    """Forks, and tells whichever supervisor then lives. It outlives all of them."""

    def __init__(self, world: "World") -> None:
        self._world = world

    def fork(self, name: str, incarnation: int) -> None:
        """A child of that name exists a moment later."""
        after_s = 0.01 + 0.05 * self._world.chance.random()
        self._world.timeline.after(after_s, None, self._fork, name, incarnation)

    def _fork(self, name: str, incarnation: int) -> None:
        world = self._world
        if world.outcome is not None:
            return
        life = world.spawn(name, incarnation)
        tells_s = 0.02 * world.chance.random()
        world.timeline.after(tells_s, None, self._tell, life)

    def _tell(self, life: Life) -> None:
        supervisor = self._world.supervisor
        if supervisor is not None and supervisor.alive and supervisor.shell is not None:
            shell = cast("SimSupervisor", supervisor.shell)
            supervisor.later(0.0, shell.born, life.name, life.incarnation, life.who)


class SimLauncher:
    """Keeps a supervisor alive, as actors/launcher.py does, until the run has an outcome."""

    def __init__(self, world: "World", before: "SimLauncher | None" = None) -> None:
        """`before`: the one of an earlier launch of this run."""
        self._world, spec = world, world.topology.supervision
        self._silence_s = spec.silence_s
        self._rationing = self._new_rationing()
        self.pulse = 0.0  # when the supervisor turned; in the future while the machine sleeps
        self.away = False  # nobody restarts a supervisor
        self._lives = 0 if before is None else before._lives

    def _new_rationing(self) -> Rationing:
        spec = self._world.topology.supervision
        return Rationing(
            intensity=spec.intensity,
            period_s=spec.period_s,
            backoff_s=spec.backoff_s,
            backoff_max_s=spec.backoff_max_s,
        )

    def start(self) -> None:
        """Begin a supervisor's life, or wait for the one that lives."""
        world = self._world
        if world.outcome is not None or self.away:
            return
        if world.supervisor is None or not world.supervisor.alive:
            self._lives += 1
            self.pulse = world.timeline.now()
            world.spawn("supervisor", self._lives)

    def look(self) -> None:
        """A supervisor that does not turn any more is killed."""
        world = self._world
        if world.outcome is not None:
            return
        world.timeline.after(_LOOK_S, None, self.look)
        late_s = world.timeline.now() - self.pulse
        supervisor = world.supervisor
        if supervisor is not None and late_s > self._silence_s and not self.away:
            self.pulse = world.timeline.now()
            world.kill(supervisor.who)

    def supervisor_ended(self) -> None:
        """It died, or left because the run is over."""
        world = self._world
        if world.outcome is not None or self.away:
            return
        wait_s = self._rationing.died(world.timeline.now())
        if wait_s is None:
            raise Violation("restarts rationed", "the launcher gives the supervisor up")
        world.timeline.after(wait_s + 0.05, None, self.start)

    def leave(self, back_s: float) -> None:
        """It dies together with the supervisor; a person starts it again after a while."""
        if self.away:
            return
        self.away = True
        supervisor = self._world.supervisor
        if supervisor is not None and supervisor.alive:
            self._world.end(supervisor, "killed by SIGKILL")
        self._world.timeline.after(back_s, None, self._return)

    def _return(self) -> None:
        """`run.py --resume`: take over what lives, or begin again from the last checkpoint."""
        self.away = False
        if self._world.outcome is not None:
            return
        if any(not life.host and not life.zombie for life in self._world.lives.values()):
            self._rationing = self._new_rationing()
            self.start()
        else:
            self._world.resume()

    def finished(self, finish: Finish) -> None:
        """The supervisor says that nothing of the run lives any more."""
        self._world.run_ended(finish.end, finish.reason)
