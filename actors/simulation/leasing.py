"""How a run's loader fares with many workers: its real rules, imagined workers and trainers.

Every message is a real one, encoded and decoded as on the wire. The lease table, what is learned of
costs, the feed and those who deal with workers (crew.py) are the loader's own, on a simulated
clock; but what they compute is measured as it is computed, and lasts as long in the simulation: the
loader hears nothing meanwhile. So a loader that has more workers than it can serve is seen to.
Workers take as long for a sample as real stages took for real files, on this machine, just before
(stage_times.py). Nothing is waited for by time: a minute of a hundred workers takes a minute or so.

Not covered: sockets (about 10 us a message, in a thread of their own) and the ledger's disk (one
transaction a step).
"""

import heapq
import itertools
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np

from actors.data.crew import Crew, Outcome
from actors.data.feed import Feed, Recorded, Refusal
from actors.data.learning import Learning
from actors.data.leases import LeaseTable, Poisoned
from actors.data.loader import IDLE_S, URGENT_TURNS
from actors.data.packing import Document
from actors.data.terms import Terms, shape_of
from actors.simulation.stage_times import Measured
from actors.topology import Topology
from protocol import codec
from protocol import messages as m
from protocol.messages import Pool, SampleRef
from protocol.parcels import Received, Sent
from protocol.tensors import Frames

# One way, to a worker here and to one elsewhere.
_HERE_S, _ELSEWHERE_S = 0.0001, 0.0025
# Messages a loader takes at a time, as its transport does.
_AT_ONCE = 256
# Samples of the imagined data set: more than are used up.
_SAMPLES = 1_000_000


@dataclass(slots=True)
class Report:
    """What was seen, after a first third in which all begins."""

    seconds: float = 0.0
    samples: int = 0
    tokens: int = 0
    handed_over: int = 0
    worker_busy_s: float = 0.0
    consumer_waited_s: float = 0.0
    turns: int = 0
    messages: int = 0
    leases: int = 0
    slow_workers: int = 0
    cutoff_s: float = 0.0
    computed_s: dict[str, float] = field(default_factory=dict[str, float])  # by the loader, by part
    queues: dict[str, list[int]] = field(default_factory=dict[str, list[int]])

    @property
    def us_per_sample(self) -> dict[str, float]:
        """Of the loader's computing, by part."""
        return {part: 1e6 * s / max(self.samples, 1) for part, s in self.computed_s.items()}


@dataclass(slots=True)
class _Worker:
    name: str
    role_pool: Pool
    is_remote: bool
    queue: deque[tuple[m.Lease, bytes]] = field(default_factory=deque[tuple[m.Lease, bytes]])
    busy: bool = False
    seq: int = 0

    @property
    def delay_s(self) -> float:
        return _ELSEWHERE_S if self.is_remote else _HERE_S

    @property
    def channel(self) -> str:
        return "remote" if self.is_remote else "samples"


class _Corpus:
    """A million samples, each one of the files that were measured."""

    def __init__(self, files: Sequence[Measured], seed: int) -> None:
        self.files = files
        self._which = np.random.default_rng(seed).integers(0, len(files), _SAMPLES)

    def file(self, sample: int) -> Measured:
        return self.files[int(self._which[sample])]

    def ref(self, sample: int) -> SampleRef:
        return self.file(sample).ref


class _Quiet:
    """Nobody reads this log."""

    def info(self, event: str, **fields: object) -> None:
        """Nothing."""

    def warning(self, event: str, **fields: object) -> None:
        """Nothing."""


class Leasing:
    """One simulation."""

    def __init__(
        self,
        topology: Topology,
        terms: Terms,
        files: Sequence[Measured],
        *,
        workers: int,
        remote: int = 0,
        tokens_per_s: float = 0.0,
        seed: int = 0,
    ) -> None:
        """`tokens_per_s`: what the trainers use up; 0: all there is."""
        data, self._shape = topology.data, shape_of(topology)
        self._terms, self._corpus = terms, _Corpus(files, seed)
        self._chance = np.random.default_rng(seed)
        self.learning = Learning(_SAMPLES, features=self._features, cutoff_s=terms.plan.cutoff_s)
        self.table = LeaseTable(
            lease_s=data.lease_s,
            limit=data.credit,
            max_deaths=data.max_deaths_per_sample,
            urgency=URGENT_TURNS if data.order == "strict" else None,
        )
        corpus, log = cast("Any", self._corpus), _Quiet()
        self._crew = Crew(self.table, corpus, terms, self._send, log, self.learning)
        self._feed = Feed(
            self._shape, np.arange(_SAMPLES), Recorded(),
            seed=seed, order=data.order, expect=self.learning.expect,
        )  # fmt: skip
        step_tokens = self._shape.step_rows * self._shape.row_tokens
        self._interval_s = step_tokens / tokens_per_s if tokens_per_s else 0.0
        self._step, self._asked_at, self._composed = 0, 0.0, 0
        self.now, self._events, self._order = 0.0, list[Any](), itertools.count()
        self._inbox: deque[tuple[str, str, tuple[Any, ...]]] = deque()
        self._outbox: list[tuple[_Worker, m.Lease, bytes]] = []
        self._is_busy, self._began_at = False, 0.0
        self.report = Report()
        slow = max(1, round(workers * topology.actors.slow_workers / max(1, _workers(topology))))
        made = [
            _Worker(f"data_worker/{i}", "slow" if i >= workers - slow else "fast", False)
            for i in range(workers)
        ] + [_Worker(f"data_worker/far-{i}", "fast", True) for i in range(remote)]
        self._workers = {worker.name: worker for worker in made}

    def _features(self, sample: int) -> tuple[str, float]:
        file = self._corpus.file(sample)
        return file.ref.language, float(len(file.text))

    def run(self, seconds: float) -> Report:
        """So long, by the simulated clock. What is reported begins after a third."""
        for worker in self._workers.values():
            share = not worker.is_remote
            joining = m.JoinPool(pool=worker.role_pool, host="elsewhere", shares_files=share)
            self._at(self._chance.random() * 0.01, self._say, worker, joining, ())
            self._at(0.02 + self._chance.random() * self._beat_s, self._beat, worker)
        self._at(0.0, self._ask)
        self._at(IDLE_S, self._wake)
        self._began_at = seconds / 3
        self._at(self._began_at, self._reset)
        while self._events[0][0] <= seconds:
            self.now, _, act, args = heapq.heappop(self._events)
            act(*args)
        report, learning = self.report, self.learning
        report.seconds = seconds - self._began_at
        report.handed_over = learning.handovers - report.handed_over
        report.slow_workers, report.cutoff_s = learning.split.slow, learning.cutoff.seconds
        return report

    def _reset(self) -> None:
        self.report = Report(handed_over=self.learning.handovers)

    def _at(self, when: float, act: Callable[..., None], *args: Any) -> None:
        heapq.heappush(self._events, (when, next(self._order), act, args))

    # --- the loader -------------------------------------------------------------------------------

    def _arrive(self, sender: str, channel: str, parts: tuple[Any, ...]) -> None:
        self._inbox.append((sender, channel, parts))
        if not self._is_busy:
            self._turn()

    def _wake(self) -> None:
        if not self._is_busy:
            self._turn()
        self._at(self.now + IDLE_S, self._wake)

    def _turn(self) -> None:
        """One turn of the loader, as long as it really takes."""
        self._is_busy = True
        count = min(len(self._inbox), _AT_ONCE)
        taken = [self._inbox.popleft() for _ in range(count)]
        clock = [time.thread_time()]
        heard = [_decoded(*one) for one in taken]
        clock.append(time.thread_time())
        for received in heard:
            self._learn(self._crew.hear(received, self.now))
        clock.append(time.thread_time())
        self._learn(self._crew.watch(self.now))
        clock.append(time.thread_time())
        while self._feed.compose() is not None:
            self._composed += 1
        clock.append(time.thread_time())
        self._lease()
        clock.append(time.thread_time())
        parts = ("decode", "hear", "watch", "compose", "lease and encode")
        for part, began, ended in zip(parts, clock, clock[1:], strict=False):
            spent_s = self.report.computed_s.get(part, 0.0)
            self.report.computed_s[part] = spent_s + ended - began
        self._note(count)
        self._at(self.now + clock[-1] - clock[0], self._done)

    def _done(self) -> None:
        self._is_busy = False
        for worker, lease, frame in self._outbox:
            self._at(self.now + worker.delay_s, self._receive, worker, lease, frame)
        self._outbox.clear()
        self._deliver()
        if self._inbox:
            self._turn()

    def _learn(self, outcomes: list[Outcome]) -> None:
        for outcome in outcomes:
            match outcome:
                case Document():
                    self.report.samples += 1
                    self.report.tokens += len(outcome.tokens)
                    self._feed.finished(outcome)
                case Refusal():
                    self._feed.refuse(outcome)
                case Poisoned():
                    self._feed.quarantine(outcome.key)

    def _lease(self) -> None:
        while True:
            self._feed.foresee(self.now, self.learning.costs.longest)
            draws = self._feed.draw()
            for draw in draws:
                is_slow = self.learning.is_slow(draw.sample)
                self.table.add(draw.key, self._feed.due(draw), slow=is_slow)
            outcomes = self._crew.lease(self.now)
            if not draws and not outcomes:
                return
            self._learn(outcomes)

    def _send(
        self, channel: str, message: m.Message, *, to: str = "", frames: Sequence[Any] = ()
    ) -> Sent:
        codec.encode(_envelope("loader", 0, message), message)
        if isinstance(message, m.Lease):
            self.report.leases += 1
            self._outbox.append((self._workers[to], message, frames[0] if frames else b""))
        return Sent.SENT

    def _note(self, messages: int) -> None:
        report, table = self.report, self.table
        report.turns += 1
        report.messages += messages
        figures = {
            "new": len(table.fast),
            "handed over": len(table.slow),
            "leased": table.leased,
            "unheard": len(self._inbox),
            "steps ahead": max(0, self._composed - self._step),
        }
        for name, value in figures.items():
            report.queues.setdefault(name, []).append(value)

    # --- trainers ---------------------------------------------------------------------------------

    def _ask(self) -> None:
        self._step += 1
        self._asked_at = self.now
        for rank in range(self._shape.ranks):
            self._feed.requested(self._step, rank)
        self._deliver()
        if not self._is_busy:
            self._turn()

    def _deliver(self) -> None:
        if self._asked_at >= 0 and self._composed >= self._step > 0:
            self.report.consumer_waited_s += self.now - max(self._asked_at, self._first())
            self._asked_at = -1.0
            self._at(self.now + self._interval_s, self._ask)

    def _first(self) -> float:
        """Since when it is reported."""
        return self._began_at if self.now >= self._began_at else 0.0

    # --- workers ----------------------------------------------------------------------------------

    @property
    def _beat_s(self) -> float:
        return self._terms.plan.heartbeat_s

    def _beat(self, worker: _Worker) -> None:
        """Every worker says so often what it has room for."""
        room = 2 - len(worker.queue)
        asking = m.LeaseRequest(pool=worker.role_pool, credit=max(0, room), host="elsewhere")
        self._say(worker, asking, ())
        self._at(self.now + self._beat_s, self._beat, worker)

    def _say(self, worker: _Worker, message: m.Message, frames: Sequence[Any]) -> None:
        worker.seq += 1
        parts = codec.encode(_envelope(worker.name, worker.seq, message), message)
        arrival = (worker.name, worker.channel, (*parts, *frames))
        self._at(self.now + worker.delay_s, self._arrive, *arrival)

    def _receive(self, worker: _Worker, lease: m.Lease, frame: bytes) -> None:
        worker.queue.append((lease, frame))
        if not worker.busy:
            self._work(worker)

    def _work(self, worker: _Worker) -> None:
        """The next sample, up to its end or its hand-over."""
        if not worker.queue:
            worker.busy = False
            return
        worker.busy = True
        lease, _ = worker.queue.popleft()
        file = self._corpus.file(lease.sample)
        cutoff_s = lease.cutoff_s or self._terms.plan.cutoff_s
        stage, spent_s = lease.stage, list[float]()
        while stage < len(file.stage_s):
            spent_s.append(file.stage_s[stage])
            stage += 1
            if sum(spent_s) > cutoff_s:
                break
        self.report.worker_busy_s += sum(spent_s)
        self._at(self.now + sum(spent_s), self._finish, worker, lease, stage, tuple(spent_s))

    def _finish(
        self, worker: _Worker, lease: m.Lease, stage: int, spent_s: tuple[float, ...]
    ) -> None:
        file = self._corpus.file(lease.sample)
        about = {"lease": lease.lease, "epoch": lease.epoch, "sample": lease.sample}
        if stage < len(file.stage_s):
            over = m.SampleHandover(**about, stage=stage, elapsed_s=sum(spent_s))
            self._say(worker, over, [file.text])
        else:
            frames = Frames()
            ready = m.SampleReady(
                **about,
                tokens=frames.add(file.tokens),
                text_bytes=max(1, len(file.text)),
                stage_s=spent_s,
            )
            self._say(worker, ready, frames.parts)
        self._work(worker)


def _workers(topology: Topology) -> int:
    return topology.actors.fast_workers + topology.actors.slow_workers


def _envelope(sender: str, seq: int, message: m.Message) -> m.Envelope:
    return m.Envelope(m.WIRE_VERSION, type(message).__name__, sender, 1, seq, 0)


def _decoded(sender: str, channel: str, parts: tuple[Any, ...]) -> Received:
    found = codec.decode(parts)
    frames = tuple(memoryview(frame) for frame in found.frames)
    return Received(channel, sender, "data_worker", 1, found.envelope, found.message, frames)
