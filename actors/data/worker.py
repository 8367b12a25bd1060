"""A data worker: leases samples, runs their stages one at a time, returns them. Owns nothing.

A fast worker looks at the clock whenever a stage ends: past the cut-off it hands the sample over
with the state reached and takes the next one. It always holds a few leases, so it never waits for
an answer. While a compiler works on a sample, that one is parked and others go on. Killed at any
instant, it costs the time spent on the samples it had begun.

On another host the same worker reaches the loader over tcp with a key: `serve_remote`.
"""

import os
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from actors.data import memory
from actors.data.cutoffs import NEVER_S
from actors.data.noting import IDLE, Note, path_of
from actors.data.questions import Questions
from actors.data.rustc import CannotVerify
from actors.data.stages import (
    STAGES,
    Asking,
    Options,
    SampleProblem,
    Stage,
    StageError,
    State,
    own,
    question,
)
from actors.data.terms import options_of
from actors.data.tokenizer import Encoder, TokenizerError, load
from actors.loop import Mailbox, Remote
from actors.seat import Seat
from protocol.clock import Clock, MonotonicClock
from protocol.keys import KeyFile
from protocol.messages import (
    DataPlan,
    Goodbye,
    JoinPool,
    Lease,
    LeaseRequest,
    PeerUp,
    Pool,
    SampleHandover,
    SampleParked,
    SampleReady,
    SampleRefused,
    Stop,
    Welcome,
)
from protocol.tensors import Frames
from protocol.transport import Received

# Asked this often until a plan comes; afterwards the plan's heartbeat counts.
JOIN_S = 0.2
# Words from the loader of a run that has ended do not come. Longer than any loader takes to
# be replaced, supervisor and all.
FORSAKEN_S = 30.0
# Compiling and tokenizing leave holes that glibc would keep, 6 MB within a few hundred files:
# given back after so much text, which costs about 1 ms.
_TIDY_BYTES = 1024 * 1024
_KINDS_SHOWN = 300


@dataclass(frozen=True, slots=True)
class Task:
    """A lease and what came with it."""

    lease: Lease
    text: bytes


@dataclass(slots=True)
class Begun:
    """A sample on its way through the stages."""

    lease: Lease
    state: State
    stage: int  # that comes next
    stage_s: list[float]
    line_s: float = 0.0  # that it has kept this worker busy
    waited_s: float = 0.0
    parked_at: float = 0.0


class Worker:
    """One life of one data worker."""

    def __init__(
        self,
        mailbox: Mailbox,
        pool: Pool,
        host: str,
        *,
        channel: str,
        clock: Clock,
        stages: Mapping[str, Stage] = STAGES,
        asking: Asking = question,
        load_encoder: Callable[[bytes], Encoder] = load,
        note: Note | None = None,
    ) -> None:
        self._mailbox, self._note = mailbox, note or Note(None, 0)
        self._stages, self._asking, self._load_encoder = stages, asking, load_encoder
        self._pool: Pool = pool
        self._host = host
        self._channel = channel
        self._clock = clock
        self._plan: DataPlan | None = None
        self._chain: list[Stage] = []
        self._encoder: Encoder | None = None
        self._options = Options(max_sample_bytes=0)
        self._limit = 1
        self._queue: deque[Task] = deque()
        self._questions: Questions[Begun] = Questions(mailbox.wake)
        self._stalled: Begun | None = None  # has a question, and too many have
        self._loader = -1  # incarnation of the loader heard last
        self._heard_at = clock.now()
        self._said_at = -1e9
        self._stop = False
        self._failed = False
        self._done = 0
        self._untidy = 0  # bytes of text since memory was last given back

    @property
    def _is_remote(self) -> bool:
        return self._channel == "remote"

    def run(self) -> int:
        """Work until told to stop; the process's exit code."""
        self._mailbox.progress("a plan from the loader")
        while not self._stop:
            self.turn()
        self._mailbox.send(self._channel, Goodbye(failed=""))
        return 1 if self._failed else 0

    def turn(self) -> None:
        """Speak if that is due, hear, and work on one sample if there is one."""
        self._speak()
        begun = self._next()
        if begun is None:
            self._note.write(IDLE)
            self._mailbox.progress(self._wanting())
            self._hear(self._plan.heartbeat_s if self._plan else JOIN_S)
            return
        self._mailbox.progress()
        self._work(begun)
        self._hear(0.0)

    def _next(self) -> Begun | None:
        """Whom to go on with: those answered come first, they have waited."""
        try:
            answered = self._questions.over()
        except CannotVerify as error:  # our fault, not the sample's: another worker may
            self._fail(str(error))
            return None
        if answered is not None:
            waited_s = self._clock.now() - answered.parked_at
            answered.waited_s += waited_s
            answered.stage_s[answered.stage] += waited_s
            return answered
        if self._stalled is not None:
            if self._questions.is_full:
                return None
            begun, self._stalled = self._stalled, None
            return begun
        if not self._queue or self._stop:
            return None
        task = self._queue.popleft()
        lease = task.lease
        return Begun(lease, State(text=task.text), lease.stage, [0.0] * len(self._chain))

    def _wanting(self) -> str:
        if self._questions.waiting:
            return "a compiler"
        return "samples to work on" if self._plan else "the loader's plan"

    def _fail(self, why: str) -> None:
        """Give up: another life of ours would fare no better."""
        self._mailbox.log.error("worker gives up", why=why)
        self._failed = self._stop = True

    # --- hearing and speaking ---------------------------------------------------------------------

    def _speak(self) -> None:
        """Say that we live and how much room there is, when that is due."""
        now = self._clock.now()
        if now - self._said_at < (self._plan.heartbeat_s if self._plan else JOIN_S):
            return
        self._said_at = now
        if self._plan is None:
            self._mailbox.send(
                self._channel,
                JoinPool(pool=self._pool, host=self._host, shares_files=not self._is_remote),
            )
        else:
            room = self._limit - len(self._queue) - (self._stalled is not None)
            host = self._host if self._is_remote else ""
            request = LeaseRequest(pool=self._pool, credit=room, host=host)
            self._mailbox.send(self._channel, request)
        if self._is_remote and now - self._heard_at > FORSAKEN_S:
            self._fail(f"the loader has been silent for {now - self._heard_at:.0f} s")

    def _hear(self, timeout_s: float) -> None:
        for received in self._mailbox.receive(timeout_s):
            if received.channel == self._channel:
                self._heard_at = self._clock.now()
                if received.incarnation != self._loader:
                    self._queue.clear()  # leases of a loader that is no more
                    self._stalled = None
                    self._loader = received.incarnation
            match received.message:
                case DataPlan() as plan:
                    self._follow(plan, received)
                case Lease() as lease if self._plan is not None:
                    text = bytes(received.frames[0]) if received.frames else b""
                    self._queue.append(Task(lease, text))
                case PeerUp(name="loader"):
                    self._said_at = -1e9  # it has not heard how much room there is
                case Stop():
                    self._stop = True
                case Welcome() | _:
                    pass

    def _follow(self, plan: DataPlan, received: Received) -> None:
        """Take up a plan. One with stages or a tokenizer we do not know is refused, in words."""
        try:
            stages = [self._stage(name) for name in plan.stages]
        except StageError as error:
            self._fail(str(error))
            return
        if not received.frames:
            self._fail("no tokenizer")
            return
        if self._plan is None or plan.tokenizer_digest != self._plan.tokenizer_digest:
            try:
                self._encoder = self._load_encoder(bytes(received.frames[0]))
            except TokenizerError as error:
                self._fail(str(error))
                return
        self._plan, self._chain = plan, stages
        self._limit = max(1, int(plan.options.get("credit", 1)))
        self._options = options_of(plan, self._encoder)
        self._said_at = -1e9  # ask for samples at once

    def _stage(self, name: str) -> Stage:
        """A stage by name. Raises `StageError`."""
        if name in self._stages:
            return self._stages[name]
        if ":" in name and not self._is_remote:
            return own(name)
        raise StageError(
            f"stage {name} is not known here"
            + ("; functions of somebody's own are not run for other hosts" if ":" in name else "")
        )

    # --- working ----------------------------------------------------------------------------------

    def _work(self, begun: Begun) -> None:
        """Go on with a sample until it is done, parked, or has taken too long."""
        assert self._plan is not None
        lease, stages = begun.lease, self._chain
        self._note.write(lease.lease)
        options = replace(self._options, epoch=lease.epoch, sample=lease.sample)
        cutoff_s = lease.cutoff_s or (self._plan.cutoff_s if self._pool == "fast" else NEVER_S)
        while begun.stage < len(stages):
            stage_began = self._clock.now()
            try:
                if self._park(begun, options):
                    return
                begun.state = stages[begun.stage](begun.state, lease.ref, options)
            except SampleProblem as problem:
                self._refuse(lease, problem)
                return
            except CannotVerify as error:  # our fault, not the sample's: another worker may
                self._fail(str(error))
                return
            spent_s = self._clock.now() - stage_began
            begun.stage_s[begun.stage] += spent_s
            begun.line_s += spent_s
            begun.stage += 1
            self._mailbox.progress()
            if begun.line_s > cutoff_s and begun.stage < len(stages):
                self._hand_over(begun)
                return
            self._speak()
        self._deliver(begun)
        self._done += 1
        self._mailbox.gauge("samples", float(self._done))
        self._untidy += len(begun.state.text)
        if self._untidy > _TIDY_BYTES:
            self._untidy = 0
            memory.give_back()

    def _park(self, begun: Begun, options: Options) -> bool:
        """Whether the next stage has to wait for another program; if so the line is free, unless
        too many wait already."""
        assert self._plan is not None
        lease = begun.lease
        asked = self._asking(self._plan.stages[begun.stage], begun.state, lease.ref, options)
        if asked is None:
            return False
        if self._questions.is_full:
            self._stalled = begun
            return True
        begun.parked_at = self._clock.now()
        self._questions.ask(begun, asked)
        parked = SampleParked(lease=lease.lease, epoch=lease.epoch, sample=lease.sample)
        self._mailbox.send(self._channel, parked)
        return True

    def _refuse(self, lease: Lease, problem: SampleProblem) -> None:
        refused = SampleRefused(
            lease=lease.lease,
            epoch=lease.epoch,
            sample=lease.sample,
            kind=problem.kind[:_KINDS_SHOWN],
            detail=problem.detail[:_KINDS_SHOWN],
        )
        self._mailbox.send(self._channel, refused)

    def _hand_over(self, begun: Begun) -> None:
        lease = begun.lease
        handover = SampleHandover(
            lease=lease.lease,
            epoch=lease.epoch,
            sample=lease.sample,
            stage=begun.stage,
            elapsed_s=begun.line_s,
        )
        self._mailbox.send(self._channel, handover, frames=[begun.state.text])

    def _deliver(self, begun: Begun) -> None:
        frames, lease, state = Frames(), begun.lease, begun.state
        tokens = state.tokens if state.tokens is not None else np.empty(0, np.int32)
        ready = SampleReady(
            lease=lease.lease,
            epoch=lease.epoch,
            sample=lease.sample,
            tokens=frames.add(tokens),
            text_bytes=len(state.text),
            stage_s=tuple(begun.stage_s),
            waited_s=begun.waited_s,
        )
        self._mailbox.send(self._channel, ready, frames=frames.parts)


def main(seat: Seat) -> int:
    """A worker of the run's own host."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one core is ours, and threads cost memory
    allowed_mb = seat.topology().data.worker_memory_mb
    if allowed_mb:
        memory.bound(int(allowed_mb * 1e6))
    pool: Pool = "slow" if seat.pool == "slow" else "fast"
    with Mailbox(seat, connect=("control", "telemetry", "samples")) as mailbox:
        note = Note(path_of(seat.socket_dir, seat.name), seat.incarnation)
        host, clock = os.uname().nodename, MonotonicClock()
        return Worker(mailbox, pool, host, channel="samples", clock=clock, note=note).run()


def serve_remote(
    key: KeyFile, name: str, *, endpoint: str = "", pool: Pool = "fast", cpus: tuple[int, ...] = ()
) -> int:
    """A worker of another host, until the run ends or somebody sends SIGTERM.

    `endpoint` replaces the one in the key file (""): hosts may be reached by several addresses.
    `name` has to begin with the key's label. Raises `Refused`, in words, when the loader does not
    answer within seconds or does not know the key; `EndpointError` for addresses that are none.
    """
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    if cpus:
        os.sched_setaffinity(0, cpus)
    seat = Seat(
        run_dir="",
        run_id="",
        socket_dir="",
        name=name,
        role="data_worker",
        incarnation=_life(),
        cpus=cpus,
        pool=pool,
    )
    remote = Remote(endpoint or key.endpoint, key.curve())
    with Mailbox(seat, connect=(), remote=remote) as mailbox:
        worker = Worker(
            mailbox, pool, os.uname().nodename, channel="remote", clock=MonotonicClock()
        )
        return worker.run()


def _life() -> int:
    """Grows from one attachment under a name to the next: milliseconds by the wall clock."""
    import datetime

    return int(datetime.datetime.now(datetime.UTC).timestamp() * 1000)
