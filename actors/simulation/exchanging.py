"""The simulated optimizer shards: the real `Shard`, `State`, `Checkpoints` and their files.

The state lies in anonymous memory that outlives its shard. Every store into it is a place to die,
and a store of several words may be torn. Files are real ones in a directory of their own; the
thread that writes them is an event.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

from actors import checkpoints
from actors.optimizer import restore
from actors.optimizer.checkpointing import Checkpoints, RunFailed
from actors.optimizer.layout import Layout
from actors.optimizer.process import attendance_for
from actors.optimizer.shard import Shard
from actors.optimizer.state import State
from actors.published import Array, digest
from actors.simulation.life import Died, Exit, Life
from actors.simulation.mailbox import SimMailbox
from actors.simulation.setting import layout, update
from actors.topology import Topology
from protocol.messages import Metrics, RunDone, Stop
from protocol.segments import Segment
from protocol.tensors import Attached

if TYPE_CHECKING:
    from actors.optimizer.updates import Update

# As optimizer/process.py has them; the tick is longer, because every tick costs real time here.
TICK_S = 0.25
QUIET_S = 0.2
DONE_AGAIN_S = 1.0
DRAIN_SHARE, CLOSE_SHARE = 0.3, 0.85


class SimState(State):
    """The real state; every store is an instruction at which the process may die."""

    def __init__(self, life: Life, layout: Layout, memory: Segment) -> None:
        self._life = life

        def store(target: Array, value: Any) -> None:
            try:
                life.op()
            except Died:
                if target.size > 1:
                    tear(target, value)
                raise
            target[...] = value

        vars(self)["_store"] = store
        super().__init__(layout, memory)

    def update(self, index: int, version: int, tensors: Any) -> None:
        """See `State.update`."""
        super().update(index, version, tensors)
        self._life.world.truth.moved(self, index)

    def commit(self, step: int, record: Any = None) -> None:
        """See `State.commit`."""
        super().commit(step, record)
        self._life.world.truth.committed(self.layout.shard, step)


def tear(target: Array, value: Any) -> None:
    """Store the first half of it."""
    whole = target.copy()
    whole[...] = value
    flat, torn = target.reshape(-1), whole.reshape(-1)
    flat[: flat.size // 2] = torn[: flat.size // 2]


class SimAttached(Attached):
    """Segments of the simulated host."""

    def __init__(self, life: Life) -> None:
        super().__init__("trireme-")
        self._life = life

    def get(self, name: str) -> Segment:
        """See `Attached.get`."""
        return self._life.world.disk.segment(name)


class _Writing:
    """The thread that writes a checkpoint: it runs at one moment, a little later."""

    def __init__(self, life: Life, work: Callable[[], None]) -> None:
        self._life, self._work, self._done = life, work, False
        life.later(0.3 * life.chance.random() ** 3, self._run)

    def join(self, timeout: float | None = None) -> None:
        """Wait for its end: within one turn, that is now."""
        if timeout:
            self._run()

    def is_alive(self) -> bool:
        """Whether it is still to be done."""
        return not self._done

    def _run(self) -> None:
        if not self._done:
            self._life.op()
            self._work()
            self._done = True
            self._life.wake()


class SimShard:
    """The process of one shard, as optimizer/process.py has it."""

    def __init__(self, life: Life, index: int) -> None:
        self._life, self._index = life, index
        topology = life.world.topology
        leader = ("exchange/0",) if index else ()
        self._box = life.box = SimMailbox(
            life,
            ("control", "telemetry", *leader),
            (f"exchange/{index}",),
            supervision=topology.supervision,
        )
        self._act: Callable[[], float] = self._begin
        self._done_at = 0.0
        self._saved = -1
        self._drain_by = self._close_by = 0.0
        self._state: State
        self._shard: Shard
        self._checkpoints: Checkpoints

    def proceed(self) -> float:
        """Go on with what this life is at."""
        try:
            s = self._act()
        except RunFailed as error:
            self._box.goodbye(failed=str(error))
            raise Exit(1) from error
        self._shard.rounds.check()
        if self._checkpoints.saved != self._saved:
            self._saved = self._checkpoints.saved
            self._life.world.disk.checkpoints_checked()
        return s

    def ended(self) -> None:
        """The segment stays."""

    def _begin(self) -> float:
        life, world = self._life, self._life.world
        memory = world.disk.segment(f"trireme-state-{self._index}")
        self._state = SimState(life, layout(world.topology, self._index), memory)
        self._begin_state()
        self._shard = Shard(
            world.topology,
            self._index,
            self._state,
            cast("Any", self._box),
            life,
            attached=SimAttached(life),
            update=cast("Update", self._update),
            attendance=attendance_for(world.topology, life.now()),
        )
        self._checkpoints = Checkpoints(
            world.topology,
            self._index,
            self._state,
            world.disk.checkpoints,
            lambda part: self._box.send("exchange/0", part),
            self._box.log,
            background=lambda work: _Writing(life, work),
        )
        self._shard.checkpoints = self._checkpoints
        self._shard.begin()
        self._act = self._run
        return 0.0

    def _update(self, topology: Topology, *given: Any) -> dict[str, Array]:
        """The arithmetic of an update takes a while."""
        each_s = self._life.world.setting.step_s / 10
        self._life.ahead += each_s * self._life.chance.random()
        return update(topology, *given)

    def _begin_state(self) -> None:
        log, world = self._box.log, self._life.world
        if self._state.ready:
            log.info("state adopted", finished=self._state.recover())
            for index in range(len(self._state.layout.parameters)):
                world.truth.moved(self._state, index)
            return
        found = checkpoints.newest(
            world.disk.checkpoints, lambda why: log.warning("checkpoint skipped", why=why)
        )
        checkpoints.put_aside(world.disk.checkpoints, -1 if found is None else found.step)
        if found is not None:
            restore.restore(self._state, found, world.topology, self._index)
            log.info("state restored", step=found.step)
            return
        for index, place in enumerate(self._state.layout.places):
            zeros = {name: slot * 0 for name, slot in self._state.kept(index).items()}
            shown = {"dense": zeros["master"]}
            self._state.fill(index, 0, zeros)
            self._state.publish(index, 0, shown, digest(place.parameter, shown))
        self._state.set_ready(0)

    def _run(self) -> float:
        box, shard = self._box, self._shard
        box.progress(shard.rounds.waiting_for())
        self._hear()
        box.progress()
        shard.tick()
        self._checkpoints.tick(self._life.now())
        self._say_done()
        if box.stopping is None:
            return TICK_S
        if box.forsaken == "replaced":
            self._leave()
        now, stop = self._life.now(), box.stopping
        self._drain_by = now + DRAIN_SHARE * stop.within_s
        self._close_by = now + CLOSE_SHARE * stop.within_s
        self._act = self._drain
        return QUIET_S

    def _hear(self) -> bool:
        items = self._box.receive()
        for item in items:
            if not isinstance(item.message, Stop):
                self._shard.hear(item.sender, item.message, item.frames)
                self._box.progress()
        return bool(items)

    def _say_done(self) -> None:
        done = self._index == 0 and self._shard.rounds.finished
        if not done or self._checkpoints.saved < self._state.committed:
            return
        now = self._life.now()
        if now >= self._done_at:
            self._done_at = now + DONE_AGAIN_S
            committed, found = self._state.committed, self._shard.weights_digest()
            self._box.send("control", RunDone(step=committed, weights_digest=found))

    def _drain(self) -> float:
        """Let what is under way arrive."""
        if self._hear() and self._life.now() < self._drain_by:
            return QUIET_S
        self._checkpoints.close()
        self._act = self._close
        return 0.0

    def _close(self) -> float:
        """Wait for the last checkpoint."""
        self._hear()
        if not self._checkpoints.closed() and self._life.now() < self._close_by:
            self._box.progress("the last checkpoint")
            return TICK_S
        if self._index == 0:
            records = tuple(self._state.records(0))
            self._box.send("exchange/0", Metrics(records=records), to="recorder")
        self._leave()
        raise AssertionError

    def _leave(self) -> None:
        self._box.goodbye()
        raise Exit(0)
