"""A worker: samples in, values out, one at a time, and those that wait beside.

Its line is the one thread that computes. Past the cut-off, at the next boundary between two steps,
the line lets go of a sample: what was reached goes back to the loader, for a slow worker to go on
with. A step that waits leaves the line at once, to a thread or an event loop, and its sample comes
back to the line when the wait is over; so nobody waits for a wait, and no work is done twice.

What it is doing stands in shared memory before it begins: when it dies, the loader knows which
sample it was, though the results before may not have been sent yet.
"""

import os
import resource
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from actors.data import memory
from actors.data.alone import talk
from actors.data.alone.payload import Bytes, Untransferable, pack, unpack
from actors.data.alone.slots import Arena, Room, Slot
from actors.data.alone.steps import Chance, Step
from actors.data.alone.waits import Waits

# Results wait this long for others to travel with, and longer while more than half of the samples
# that came last are still to be begun: a report costs both sides some 50 us, whatever is in it.
_GATHER_S, _GATHER_MORE_S = 0.001, 0.01
# The loader is listened to this often while there is work, and while there is plenty.
_LISTEN_S, _LISTEN_LESS_S = 0.001, 0.005
# While the line is busy somebody else looks so often whether results lie behind a long step.
_MIND_S = 0.02
_DETAIL_CHARACTERS = 300


@dataclass(frozen=True, slots=True)
class Job:
    """What all workers do."""

    steps: tuple[Step, ...]
    seed: int
    seed_modules: bool
    max_sample_bytes: int
    memory_bytes: int  # that a worker may use beyond what it was forked with


@dataclass(slots=True)
class _Sample:
    """One on its way through the steps."""

    task: talk.Task
    value: Any
    step: int
    began: float
    line_s: float = 0.0
    problem: Exception | None = None


@dataclass(slots=True)
class _Report:
    """What has not been said yet."""

    parked: list[int] = field(default_factory=list[int])
    over: list[talk.Over] = field(default_factory=list[talk.Over])
    done: list[talk.Done] = field(default_factory=list[talk.Done])
    bad: list[talk.Bad] = field(default_factory=list[talk.Bad])
    nbytes: int = 0
    since: float = 0.0

    def __bool__(self) -> bool:
        return bool(self.parked or self.over or self.done or self.bad)


class TooLarge(ValueError):
    """A sample beyond `max_sample_bytes`."""


class Nothing(ValueError):
    """A step made nothing of a sample."""


class Worker:
    """One life."""

    def __init__(
        self,
        link: socket.socket,
        arena: Arena,
        seat: int,
        job: Job,
        taken: tuple[tuple[int, int], ...],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._link, self._arena, self._seat, self._job = link, arena, seat, job
        self._clock = clock
        self._chance = Chance(job.seed, modules=job.seed_modules)
        self._room = Room(arena.region_bytes)
        self._room.reserve(Slot(*slot) for slot in taken)
        self._note = arena.notes[seat]
        self._tasks: deque[talk.Task] = deque()
        self._waits: Waits[_Sample] = Waits(job.steps)
        self._report = _Report()
        self._speaking = threading.RLock()  # whoever adds to the report or sends it
        self._is_asleep = self._is_minded = False
        self._has_work = threading.Semaphore(0)  # for whoever minds the report
        self._came = 0  # samples to be begun when some had come last
        self._listen_at = 0.0
        self._leaving = False
        try:
            self._schedule = os.open("/proc/thread-self/schedstat", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:  # a kernel that does not count waits for a core
            self._schedule = -1
        self._cpu_clock = time.pthread_getcpuclockid(threading.get_ident())
        self._computed = self._computing()  # by the last report
        self._poll = select.poll()
        for source in (link, self._waits):
            self._poll.register(source, select.POLLIN)

    def run(self) -> None:
        """Work until told to leave, or until nobody is there to tell."""
        threading.Thread(target=self._mind, name="report", daemon=True).start()
        while not self._leaving:
            sample = self._waits.over()
            if sample is not None:
                self._work(sample)
            elif self._tasks:
                self._begin(self._tasks.popleft())
            else:
                self._send()
                self._note[0] = -1
                self._sleep()
            now, has_plenty = self._clock(), 2 * len(self._tasks) > self._came
            if not self._tasks or now >= self._listen_at:
                self._hear()
                self._listen_at = now + (_LISTEN_LESS_S if has_plenty else _LISTEN_S)
            gather_s = _GATHER_MORE_S if has_plenty else _GATHER_S
            if self._report and now - self._report.since > gather_s:
                self._send()

    def _sleep(self) -> None:
        """Until somebody has something to do."""
        self._is_asleep = True
        with self._waits.asleep() as is_quiet:
            if is_quiet:
                self._poll.poll()
        self._is_asleep = False
        if not self._is_minded:
            self._is_minded = True
            self._has_work.release()

    def _mind(self) -> None:
        """Send results that would lie behind a step that takes long. A thread's, which sleeps when
        the line does."""
        pause = select.poll()
        while not self._leaving:
            self._has_work.acquire()
            while self._is_minded and not self._leaving:
                pause.poll(1000 * _MIND_S)
                with self._speaking:
                    if self._report and self._clock() - self._report.since > _GATHER_MORE_S:
                        self._send()
                if self._is_asleep:
                    self._is_minded = False
                    self._is_minded = not self._is_asleep  # it may have woken just before

    # --- hearing ----------------------------------------------------------------------------------

    def _hear(self) -> None:
        while not self._leaving:
            try:
                packet = self._link.recv(2 * talk.PACKET_BYTES, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except ConnectionError:
                packet = b""
            said = talk.ToWorker.decode(packet) if packet else talk.Leave()
            match said:
                case talk.Work(tasks, freed):
                    self._tasks += tasks
                    self._came = len(self._tasks)
                    for offset in freed:
                        self._room.give(offset)
                case talk.Leave():
                    self._leaving = True

    # --- working ----------------------------------------------------------------------------------

    def _begin(self, task: talk.Task) -> None:
        sample = _Sample(task, task.sample, task.stage, self._clock())
        if task.state is not None:
            try:
                sample.value = self._value(task.state)
            except (ImportError, MemoryError) as error:
                sample.problem = error
        self._work(sample)

    def _value(self, state: talk.Value) -> Any:
        """What another worker made, out of its region."""
        views = [self._arena.view(state.seat, Slot(*slot)) for slot in state.slots]
        # A copy: the slots are given back when this sample is done, its arrays may live on.
        parts = [view.copy() for view in views]
        return unpack(parts.pop().data if state.far else state.body, parts)

    def _work(self, sample: _Sample) -> None:
        """Go on with a sample until it is done, waits, or has taken too long."""
        task, steps = sample.task, self._job.steps
        self._note[0], self._note[1] = task.lease, time.monotonic_ns()
        began = self._clock()
        line_s = sample.line_s
        if sample.problem is not None:
            self._refuse(task.lease, sample.problem)
            return
        try:
            while sample.step < len(steps):
                self._check(sample)
                step = steps[sample.step]
                if step.parallel:
                    sample.line_s = line_s + self._clock() - began
                    self._park(sample, step)
                    return
                if step.may_draw:
                    self._chance.seed_modules(task.epoch, task.sample, sample.step)
                sample.value = self._call(step, sample)
                sample.step += 1
                sample.line_s = line_s + self._clock() - began
                is_late = sample.line_s > task.cutoff_s and sample.step < len(steps)
                if is_late and self._hand_over(sample):
                    return
            self._check(sample)
            self._deliver(sample)
        except Exception as error:  # noqa: BLE001 - whatever users' functions raise is counted
            self._refuse(task.lease, error)

    def _check(self, sample: _Sample) -> None:
        """Has anything come of the steps so far?"""
        if sample.value is None:
            raise Nothing(f"{self._job.steps[sample.step - 1].name} returned nothing")

    def _computing(self) -> float:
        """Seconds that the line has computed, or stood ready to while others had its core; and
        that programs have which it ran and waited for."""
        below = resource.getrusage(resource.RUSAGE_CHILDREN)
        below_s = below.ru_utime + below.ru_stime
        if self._schedule < 0:
            return time.clock_gettime(self._cpu_clock) + below_s
        ran_ns, stood_ns = os.pread(self._schedule, 64, 0).split()[:2]
        return (int(ran_ns) + int(stood_ns)) / 1e9 + below_s

    def _call(self, step: Step, sample: _Sample) -> Any:
        if not step.takes_rng:
            return step.call(sample.value)
        task = sample.task
        rng = self._chance.generator(task.epoch, task.sample, sample.step)
        return step.call(sample.value, rng=rng)

    def _park(self, sample: _Sample, step: Step) -> None:
        """Its wait begins; the line is free."""
        task = sample.task
        value, sample.value = sample.value, None
        kept: dict[str, Any] = {}
        if step.takes_rng:
            kept["rng"] = self._chance.generator(task.epoch, task.sample, sample.step)

        def over(outcome: Any, problem: Exception | None) -> None:
            sample.value, sample.problem = outcome, problem
            sample.step += 1

        self._waits.begin(sample.step, sample, over, value, kept)
        with self._speaking:
            self._tell().parked.append(task.lease)

    # --- what came of it --------------------------------------------------------------------------

    def _deliver(self, sample: _Sample) -> None:
        body, parts = pack(sample.value)
        total = len(body) + sum(part.nbytes for part in parts)
        if total > self._job.max_sample_bytes:
            raise TooLarge(f"{total:,} bytes; max_sample_bytes is {self._job.max_sample_bytes:,}")
        with self._speaking:
            value = self._placed(body, parts) or self._in_pieces(body, parts)
            total_s = self._clock() - sample.began
            done = talk.Done(sample.task.lease, value, sample.line_s, total_s)
            self._tell(len(value.body)).done.append(done)
            if value.pieces:
                self._send()

    def _hand_over(self, sample: _Sample) -> bool:
        """Let a slow worker go on; False when what was reached cannot leave this process."""
        try:
            value = self._placed(*pack(sample.value))
        except Untransferable:
            return False
        if value is None:
            return False
        total_s = self._clock() - sample.began
        over = talk.Over(sample.task.lease, sample.step, value, sample.line_s, total_s)
        with self._speaking:
            self._tell(len(value.body)).over.append(over)
            self._send()  # the next one may be as slow
        return True

    def _refuse(self, lease: int, error: Exception) -> None:
        kind = "does not fit in memory" if isinstance(error, MemoryError) else type(error).__name__
        with self._speaking:
            self._tell().bad.append(talk.Bad(lease, kind, str(error)[:_DETAIL_CHARACTERS]))

    def _placed(self, body: bytes, parts: list[Bytes]) -> talk.Value | None:
        """The value, its parts in slots; None when there is no room."""
        far = len(body) > talk.REPORT_BYTES
        if far:
            parts = [*parts, np.frombuffer(body, np.uint8)]
        if not parts:
            return talk.Value(body)
        slots: list[Slot] = []
        for part in parts:
            slot = self._room.take(part.nbytes)
            if slot is None:
                for taken in slots:
                    self._room.give(taken.offset)
                return None
            slots.append(slot)
        for slot, part in zip(slots, parts, strict=True):
            self._arena.write(self._seat, slot, part)
        where = tuple((slot.offset, slot.nbytes) for slot in slots)
        return talk.Value(b"" if far else body, self._seat, where, far)

    def _in_pieces(self, body: bytes, parts: list[Bytes]) -> talk.Value:
        """The value, sent before the report that names it."""
        self._send()
        memories = [part.data for part in parts] + [memoryview(body)]
        for index, part in enumerate(memories):
            for start in range(0, max(1, part.nbytes), talk.PACKET_BYTES):
                piece = bytes(part[start : start + talk.PACKET_BYTES])
                self._link.sendall(talk.encode(talk.Piece(index, piece)))
        return talk.Value(b"", pieces=len(memories))

    # --- speaking ---------------------------------------------------------------------------------

    def _tell(self, nbytes: int = 0) -> _Report:
        """The report to add to, with room for so much."""
        if self._report.nbytes + nbytes > talk.REPORT_BYTES:
            self._send()
        if not self._report:
            self._report.since = self._clock()
        self._report.nbytes += nbytes + 64
        return self._report

    def _send(self) -> None:
        with self._speaking:
            if not self._report:
                return
            said, self._report = self._report, _Report()
            before, self._computed = self._computed, self._computing()
            cpu_s = self._computed - before
            report = talk.Report(said.parked, said.over, said.done, said.bad, cpu_s)
            try:
                self._link.sendall(talk.encode(report))
            except ConnectionError:
                self._leaving = True


def main(
    link: socket.socket, arena: Arena, seat: int, job: Job, taken: tuple[tuple[int, int], ...]
) -> int:
    """The worker's process."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one core is ours
    memory.bound(job.memory_bytes)
    Worker(link, arena, seat, job, taken).run()
    return 0
