"""One simulated run: all its processes, and what happens to them.

The observer (truth.py) looks on at every event; `schedules.py` runs worlds by the thousand.
"""

import random
import traceback
from pathlib import Path

from actors.process import Identity
from actors.roles import ROLES
from actors.simulation.computing import SimRecorder, SimRollout, SimTrainer
from actors.simulation.disk import Disk
from actors.simulation.exchanging import SimShard
from actors.simulation.feeding import SimLoader, SimWorker
from actors.simulation.life import Died, Exit, Life, Shell, identity
from actors.simulation.setting import Setting
from actors.simulation.supervising import SimForkserver, SimLauncher, SimSupervisor
from actors.simulation.timeline import Timeline
from actors.simulation.truth import Truth, Violation
from actors.simulation.wire import Wire
from actors.supervisor.events import Place
from protocol.channels import role_of
from protocol.errors import SegmentError

# A host that was lost is resumed after this; an operator looks a moment before resuming.
_RESUME_S = 0.5
# Workers of other hosts that die are attached again.
_ATTACH_S = 0.5


class World:
    """One run from its first launch to its last outcome."""

    def __init__(self, setting: Setting, directory: Path, *, story: bool = False) -> None:
        self.setting, self.topology = setting, setting.topology()
        self.directory = directory
        self.story: list[str] | None = [] if story else None
        self.timeline = Timeline()
        self.chance = random.Random(f"world {setting.seed}")  # noqa: S311 - replayed by its seed
        self.truth = Truth(self)
        self.disk = Disk(self, directory)
        self.wire = Wire(self)
        self.forkserver = SimForkserver(self)
        self.places = _places(setting)
        self.lives: dict[Identity, Life] = {}  # whatever the operating system runs
        self.supervisor: Life | None = None
        self.outcome: str | None = None  # of the present launch
        self.ends: list[str] = []  # of all launches
        self.over = False
        self._cursed: dict[str, tuple[float, int]] = {}  # until when, and after how much
        self._born = 0
        self._attached = 0
        self.launcher = SimLauncher(self)
        self._launch()

    def new_identity(self) -> Identity:
        """Of a process that begins."""
        self._born += 1
        return identity(self._born)

    def tell(self, text: str) -> None:
        """Add a line to the story, if one is wanted."""
        if self.story is not None:
            self.story.append(f"{self.timeline.now():9.4f}  {text}")

    # --- time -------------------------------------------------------------------------------------

    def run(self, until: float) -> None:
        """Go on until the run is over, at most to that moment. Raises `Violation`."""
        while not self.over:
            event = self.timeline.step(until)
            if event is None:
                return
            life, act, args = event
            try:
                act(*args)
            except Died:
                assert life is not None
                self._ends_later(life, "killed by SIGKILL")
            except Exit as left:
                assert life is not None
                self._ends_later(life, f"exit code {left.code}")
            except SegmentError as error:
                assert life is not None
                self.tell(f"{life}: {error}")
                self._ends_later(life, "exit code 1")
            except Violation:
                raise
            except Exception as error:  # an actor's bug is what is looked for, whatever it raises
                detail = traceback.format_exc(limit=-6)
                who = "the world" if life is None else str(life)
                raise Violation("actors do not fail", f"{who}: {error!r}\n{detail}") from error

    def _ends_later(self, life: Life, how: str) -> None:
        """At the end of what it has computed ahead."""
        if life.ahead > 0:
            life.hung = True
            self.timeline.at(life.now(), life, self.end, life, how)
        else:
            self.end(life, how)

    # --- lives ------------------------------------------------------------------------------------

    def spawn(self, name: str, incarnation: int, *, host: str = "") -> Life:
        """A process begins."""
        role = role_of(name)
        assert role is not None
        life = Life(self, name, role, incarnation, host=host)
        self.lives[life.who] = life
        self.tell(f"{life} begins")
        if name == "supervisor":
            self.supervisor = life
        until, instructions = self._cursed.get(name, (0.0, 0))
        if self.timeline.now() < until:
            life.doom = instructions
        life.wake(0.02 + 0.1 * life.chance.random())
        return life

    def shell_of(self, life: Life) -> Shell:
        """What runs in that process."""
        index = life.name.partition("/")[2]
        match life.role:
            case "supervisor":
                return SimSupervisor(life)
            case "loader":
                return SimLoader(life)
            case "optimizer_shard":
                return SimShard(life, int(index))
            case "trainer":
                return SimTrainer(life, int(index))
            case "data_worker":
                slow = not life.host and int(index) >= self.setting.fast
                return SimWorker(life, "slow" if slow else "fast")
            case "rollout":
                return SimRollout(life)
            case _:
                return SimRecorder(life)

    def of(self, name: str) -> Life | None:
        """The newest living life of that name."""
        found = [life for life in self.lives.values() if life.name == name and not life.zombie]
        return max(found, key=lambda life: life.incarnation, default=None)

    def kill(self, who: Identity) -> None:
        """SIGKILL."""
        life = self.lives.get(who)
        if life is not None:
            self.end(life, "killed by SIGKILL")

    def end(self, life: Life, how: str) -> None:
        """The process is gone."""
        if not life.alive:
            return
        life.alive = False
        del self.lives[life.who]
        self.tell(f"{life} ends: {how}")
        self.wire.ended(life, politely=how == "exit code 0")
        if life.shell is not None:
            life.shell.ended()
        if life.name == "supervisor":
            self.launcher.supervisor_ended()
        elif life.host:
            self.timeline.after(_ATTACH_S, None, self._attach, life.name)
        elif not life.zombie:
            self._report_end(life, how)

    def _report_end(self, life: Life, how: str) -> None:
        supervisor = self.supervisor
        if supervisor is not None and supervisor.alive and supervisor.shell is not None:
            shell = supervisor.shell
            assert isinstance(shell, SimSupervisor)
            after_s = 0.005 * self.chance.random()
            supervisor.later(after_s, shell.life_ended, life.name, life.incarnation, life.who, how)

    def curse(self, name: str, s: float, instructions: int) -> None:
        """Every life of that name that is there or begins within `s` seconds ends early."""
        self._cursed[name] = self.timeline.now() + s, instructions
        life = self.of(name)
        if life is not None:
            life.doom = instructions

    def presume_dead(self, life: Life, back_s: float) -> None:
        """It is frozen and declared dead; its successor lives when it wakes.

        Not before it has opened its sockets: one that opens them on waking takes its successor's
        addresses. Nothing but the supervisor's seeing real ends protects from that.
        """
        if life.shell is None:
            return
        life.zombie = True
        life.freeze()
        life.frozen_until = self.timeline.now() + back_s
        self._report_end(life, "was declared dead")
        self.timeline.after(back_s, None, life.thaw)

    def _attach(self, name: str) -> None:
        if self.outcome is None and self.of(name) is None:
            self._attached += 1
            host = name.rpartition("-")[0].partition("/")[2]
            self.spawn(name, self._attached, host=host)

    # --- launches ---------------------------------------------------------------------------------

    def _launch(self) -> None:
        self.outcome = None
        self.launcher.start()
        self.timeline.after(0.5, None, self.launcher.look)
        for index in range(self.setting.remote):
            self.timeline.after(0.5, None, self._attach, f"data_worker/far-{index}")

    def run_ended(self, end: str, reason: str) -> None:
        """The supervisor has said how. What is left is ended, and an operator's stop resumed."""
        self.tell(f"the run has ended: {end} ({reason})")
        self.outcome = end
        self.ends.append(end)
        left = [
            life
            for life in self.lives.values()
            if not life.host and not life.zombie and life.name != "supervisor"
        ]
        self.truth.require(not left, "nothing left behind", f"{left} live on")
        if end == "stopped":
            self.timeline.after(_RESUME_S, None, self.resume)
        else:
            self.truth.run_ended(end, reason)
            self.over = True

    def stop(self) -> None:
        """An operator ends the run, as soon as somebody listens."""
        supervisor = self.supervisor
        if self.outcome is not None or self.launcher.away:
            return
        shell = None if supervisor is None or not supervisor.alive else supervisor.shell
        if supervisor is None or shell is None or supervisor.frozen:
            self.timeline.after(0.5, None, self.stop)
            return
        assert isinstance(shell, SimSupervisor)
        supervisor.later(0.0, shell.stop)

    def lose_host(self, forget: int, *, stale: bool, damage: bool) -> None:
        """Every local process is gone at once, and all memory."""
        if self.over or self.outcome is not None:
            return
        self.tell("the host is lost")
        self.outcome = "lost"
        self.ends.append("lost")
        for life in list(self.lives.values()):
            if not life.host:
                self.end(life, "its host is lost")
        self.disk.lose_host(forget, stale=stale)
        if damage:
            self.disk.damage()
        self.timeline.after(_RESUME_S, None, self.resume)

    def resume(self) -> None:
        """`run.py --resume`."""
        for life in list(self.lives.values()):
            self.end(life, "is swept away")
        newest = self.disk.newest()
        if newest < 0:
            self.tell("there is no checkpoint to resume from")
            self.over = True
            return
        self.tell(f"resumed from step {newest}")
        self.disk.clear()
        self.truth.resumed(newest)
        self.launcher = SimLauncher(self, self.launcher)
        self._launch()

    def waits(self) -> str:
        """Who waits for what."""
        return "; ".join(
            f"{life}: {life.box.work.waiting_for or 'at work'}"
            for life in sorted(self.lives.values(), key=lambda life: life.name)
            if life.shell is not None
        )

    def close(self) -> None:
        """Let go of files."""
        for life in list(self.lives.values()):
            life.alive = False
            if life.shell is not None:
                life.shell.ended()


def _places(setting: Setting) -> list[Place]:
    """Whom the supervisor keeps alive."""
    names = ["recorder", "loader"]
    names += [f"optimizer_shard/{k}" for k in range(setting.shards)]
    names += [f"trainer/{rank}" for rank in range(setting.ranks)]
    names += [f"data_worker/{i}" for i in range(setting.fast + setting.slow)]
    names += [f"rollout/{i}" for i in range(setting.rollouts)]
    places: list[Place] = []
    for name in names:
        role = name.partition("/")[0]
        places.append(Place(name, role, ROLES[role].order, ROLES[role].stop_order))
    return places
