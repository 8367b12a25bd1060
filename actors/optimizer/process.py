"""The process of one optimizer shard: a mailbox around `Shard`, its segment and its checkpoints.

start   the segment holds a state: finish what a predecessor was doing and go on
        it does not: fill it from the newest whole checkpoint, or from the seed
end     a checkpoint of what has been reached, unless the newest one is already that
"""

import json
from pathlib import Path

import torch

from actors import codec_memory, leftovers
from actors.checkpoints import CheckpointError
from actors.codec_memory import CodecMemory, MemoryLost
from actors.loop import Mailbox
from actors.optimizer import restore, updates
from actors.optimizer.attendance import Elastic, Everybody, recorded
from actors.optimizer.checkpointing import Checkpoints, RunFailed
from actors.optimizer.journaling import Journal
from actors.optimizer.layout import state_layout
from actors.optimizer.replaying import Replay
from actors.optimizer.shard import Shard
from actors.optimizer.state import State, StateError
from actors.parameters import parameters
from actors.rundir import RunDir
from actors.seat import Seat
from actors.topology import Topology
from protocol import segments
from protocol.clock import Clock, Deadline, MonotonicClock
from protocol.errors import SegmentError
from protocol.messages import Metrics, RunDone, Stop
from protocol.segments import Segment, segment_name
from protocol.tensors import Attached

# How often rules that depend on time are looked at while nothing comes.
TICK_S = 0.05
# After a stop, what is still under way has arrived when nothing has come for this long.
QUIET_S = 0.2
# The end of the run is said again this often: the supervisor may just be starting anew.
DONE_AGAIN_S = 1.0
# Of the time a stop grants: for what is under way, and for the checkpoint.
DRAIN_SHARE, CLOSE_SHARE = 0.3, 0.85


def main(seat: Seat) -> int:
    """Live as `seat` says until told to stop; the exit code."""
    torch.set_num_threads(seat.threads)
    topology = seat.topology()
    leader = ("exchange/0",) if seat.index else ()
    with (
        Mailbox(seat, ("control", "telemetry", *leader), (f"exchange/{seat.index}",)) as mailbox,
        segments.attach(segment_name(seat.run_id, seat.name, "state")) as segment,
        Attached(f"trireme-{seat.run_id}-") as attached,
    ):
        try:
            life = _Life(seat, topology, mailbox, segment, attached)
            life.run()
            life.close()
        except (RunFailed, StateError, CheckpointError, MemoryLost) as error:
            mailbox.log.error("the run cannot go on", why=str(error))  # noqa: TRY400 - no bug
            mailbox.close(failed=str(error))
            return 1
    if mailbox.forsaken == "orphaned":
        # Not its own memory alone: shards of one run go on from one step, or from one checkpoint.
        leftovers.clear_last(RunDir(Path(seat.run_dir)), within_s=0.0)
    return 0


class _Life:
    """One life of a shard, with everything it holds."""

    def __init__(
        self,
        seat: Seat,
        topology: Topology,
        mailbox: Mailbox,
        segment: Segment,
        attached: Attached,
    ) -> None:
        """Raises `StateError`, `CheckpointError` or `MemoryLost` when there is nothing to go on
        from.
        """
        self._mailbox, self._topology = mailbox, topology
        self._clock: Clock = MonotonicClock()
        self._index = seat.index
        run = RunDir(Path(seat.run_dir))
        self._directory, self._device = run.checkpoints, seat.device
        self._state = State(state_layout(topology, seat.index), segment)
        self._memories = _memories(seat, topology, attached)
        self._begin_state(run.journal)
        self._shard = Shard(
            topology,
            seat.index,
            self._state,
            mailbox,
            self._clock,
            segment=segment,
            attached=attached,
            device=seat.device,
            attendance=attendance_for(topology, self._clock.now()),
        )
        self._checkpoints = Checkpoints(
            topology,
            seat.index,
            self._state,
            self._directory,
            lambda part: mailbox.send("exchange/0", part),
            mailbox.log,
            memories=self._memories,
        )
        self._shard.checkpoints = self._checkpoints
        self._journal = Journal(
            *(run.journal, run.checkpoints, seat.index, mailbox.log, self._memories),
            memory_every=topology.checkpoint.memory_every,
        )
        self._journal.resume(self._state.committed)
        self._shard.journal = self._journal
        self._done_at = 0.0

    def _begin_state(self, journal: Path) -> None:
        log, progress = self._mailbox.log, self._mailbox.progress
        if self._state.ready:
            finished = self._state.recover()
            log.info("state adopted", committed=self._state.committed, finished=finished)
            return
        found = restore.to_go_on_from(
            self._directory, lambda why: log.warning("checkpoint skipped", why=why)
        )
        if found is None:
            updates.fill_fresh(self._state, self._topology, progress)
            log.info("state made from the seed", seed=self._topology.seed)
            return
        replay = Replay(
            *(journal, self._topology, self._index, log),
            memories=self._memories,
            device=self._device,
            progress=progress,
        )
        restore.restore(
            *(self._state, found, self._topology, self._index, self._memories),
            filled=progress,
            replay=replay,
        )
        log.info("state restored", checkpoint=str(found.path), committed=self._state.committed)

    def run(self) -> None:
        """Until told to stop."""
        mailbox, shard = self._mailbox, self._shard
        shard.begin()
        while mailbox.stopping is None:
            mailbox.progress(shard.rounds.waiting_for())
            self._hear(TICK_S)
            mailbox.progress()
            shard.tick()
            self._checkpoints.tick(self._clock.now())
            self._show()
            self._say_done()

    def _hear(self, wait_s: float) -> bool:
        """Act on what comes; False when nothing did."""
        items = self._mailbox.receive(wait_s)
        for item in items:
            if not isinstance(item.message, Stop):
                self._shard.hear(item.sender, item.message, item.frames)
                self._mailbox.progress()
        return bool(items)

    def _show(self) -> None:
        shard, gauge = self._shard, self._mailbox.gauge
        self._mailbox.step = shard.rounds.complete + 1
        gauge("step", shard.rounds.committed)
        gauge("saved", self._checkpoints.saved)
        if self._journal.noted_bytes:
            gauge("noted_bytes", self._journal.noted_bytes)
        gauge("malformed_bodies", shard.malformed)
        for name in ("duplicate", "early", "foreign"):
            gauge(name, getattr(shard.rounds.refusals, name))

    def _say_done(self) -> None:
        """Shard 0: the last step is committed and on disk."""
        done = self._index == 0 and self._shard.rounds.finished
        if not done or self._checkpoints.saved < self._state.committed:
            return
        now = self._clock.now()
        if now >= self._done_at:
            self._done_at = now + DONE_AGAIN_S
            committed = self._state.committed
            digest = self._shard.weights_digest()
            self._mailbox.send("control", RunDone(step=committed, weights_digest=digest))

    def close(self) -> None:
        """The run stops here: let what is under way arrive, then save what is new."""
        stop = self._mailbox.stopping
        assert stop is not None
        if self._mailbox.forsaken == "replaced":
            return  # the state is the successor's
        now = self._clock.now()
        drain = Deadline(self._clock, now + DRAIN_SHARE * stop.within_s, "gradients under way")
        close = Deadline(self._clock, now + CLOSE_SHARE * stop.within_s, "the last checkpoint")
        while self._hear(QUIET_S) and not drain.passed():
            pass
        self._checkpoints.close()
        while not self._checkpoints.closed():
            if close.passed():
                self._mailbox.log.warning(
                    "left without a checkpoint of the last steps", kept=self._checkpoints.saved
                )
                break
            self._mailbox.progress("the last checkpoint")
            self._hear(TICK_S)
        if self._index == 0:
            # The recorder may have asked last before the last steps.
            records = tuple(self._state.records(0))
            self._mailbox.send("exchange/0", Metrics(records=records), to="recorder")
        self._journal.close()
        self._mailbox.log.info("shard leaves", reason=stop.reason, committed=self._state.committed)


def attendance_for(topology: Topology, now: float) -> Everybody:
    """Whom the steps of this run wait for. Raises `StateError` for a record that is none."""
    if topology.attendance_of:
        path = RunDir(Path(topology.attendance_of)).metrics
        names = [parameter.name for parameter in parameters(topology.model)]
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
            return recorded(map(json.loads, lines), names)
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise StateError(
                f"attendance_of: {path} does not say who took part in which step: {error}"
            ) from error
    if not topology.elastic:
        return Everybody()
    spec = topology.supervision
    return Elastic(topology.actors.trainers, after_s=spec.gone_s, start_s=spec.start_s, now=now)


def _memories(seat: Seat, topology: Topology, attached: Attached) -> list[CodecMemory]:
    """What the codecs of every rank remember. Raises `MemoryLost`."""
    if not codec_memory.segment_bytes(topology):
        return []
    names = [f"trainer/{rank}" for rank in range(topology.actors.trainers)]
    try:
        found = [attached.get(segment_name(seat.run_id, name, "memory")) for name in names]
    except SegmentError as error:
        raise MemoryLost(
            f"{error}: it holds what the gradient codec remembers; stop the run, then resume it"
        ) from error
    return [CodecMemory(topology, memory) for memory in found]
