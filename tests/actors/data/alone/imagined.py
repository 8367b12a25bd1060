"""Imagined workers and an imagined consumer around the real decisions of a loader: no processes, a
clock of their own, so a minute with a hundred workers takes a second or two.

Samples have stages that compute, or wait. Cores are not shared here: one worker, one core.
"""

import heapq
import itertools
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from actors.data.alone.batching import Plan
from actors.data.alone.deciding import Deciding, Leased, Rules
from actors.data.foresight import Features
from actors.data.learning import Timing
from actors.data.ordering import Order

ANSWER_S = 0.0002  # from a worker to the loader and back


@dataclass(frozen=True)
class Stage:
    """How long one stage of one sample takes."""

    seconds: float
    waits: bool = False


Work = Callable[[int], tuple[Stage, ...]]


@dataclass
class _Worker:
    name: str
    tasks: deque[Leased[int]] = field(default_factory=deque[Leased[int]])
    returned: deque[Any] = field(default_factory=deque[Any])  # whose wait is over
    busy: bool = False
    spent: dict[int, list[float]] = field(default_factory=dict[int, list[float]])


class World:
    """One epoch."""

    def __init__(
        self,
        work: Work,
        *,
        workers: int = 2,
        samples: int = 100_000,
        batch: int = 16,
        order: Order = "strict",
        ahead: int = 8,
        interval_s: float = 0.0,
        features: Callable[[int], Features] | None = None,
        shuffle: bool = True,
    ) -> None:
        rules = Rules(batch, order, False, ahead, 4096, 60.0, 3, 0.01)
        self.work, self.interval_s, self.batch = work, interval_s, batch
        self.deciding = Deciding[int](rules, samples, features=features)
        self.plan = Plan(samples, 1, shuffle)
        self.now = 0.0
        self._events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._order = itertools.count()
        self.workers = {f"w{i}": _Worker(f"w{i}") for i in range(workers)}
        self.ready: deque[tuple[int, ...]] = deque()
        self.wanting_since = 0.0
        self.is_wanting = True
        self.taken: list[tuple[float, tuple[int, ...]]] = []
        self.waits: list[tuple[float, float]] = []
        self.waited_s = self.busy_s = 0.0
        self.most_out = 0
        for name in self.workers:
            self.deciding.joined(name, 1, 0.0)
        self.epoch = 0
        self.deciding.begin(self.plan.share(0, np.zeros(samples, np.bool_), ()), {}, 0.0)

    def at(self, when: float, act: Callable[..., None], *args: Any) -> None:
        heapq.heappush(self._events, (when, next(self._order), act, args))

    def run(self, seconds: float) -> "World":
        self._decide()
        while self._events and self._events[0][0] <= seconds:
            self.now, _, act, args = heapq.heappop(self._events)
            act(*args)
        self.now = max(self.now, min(seconds, self.now)) if self._events else self.now
        return self

    # --- the loader -------------------------------------------------------------------------------

    def _decide(self) -> None:
        deciding = self.deciding
        while (composed := deciding.compose()) is not None:
            self.ready.append(composed.samples)
        leases = deciding.grants(self.now)
        while self.is_wanting and not self.ready and deciding.looks_farther():
            leases += deciding.grants(self.now)
        for lease in leases:
            self.at(self.now + ANSWER_S, self._receive, self.workers[lease.worker], lease)
        deciding.table.check() if next(self._order) % 997 == 0 else None
        self.most_out = max(self.most_out, deciding.table.unfinished())
        if self.is_wanting and self.ready:
            self._take()

    def _take(self) -> None:
        self.is_wanting = False
        self.waited_s += self.now - self.wanting_since
        self.waits.append((self.now, self.now - self.wanting_since))
        self.taken.append((self.now, self.ready.popleft()))
        self.deciding.consumed(self.now, waited=self.now > self.wanting_since)
        self.at(self.now + self.interval_s, self._want)

    def _want(self) -> None:
        self.is_wanting, self.wanting_since = True, self.now
        self._decide()

    # --- workers ----------------------------------------------------------------------------------

    def _receive(self, worker: _Worker, lease: Leased[int]) -> None:
        worker.tasks.append(lease)
        self._next(worker)

    def _next(self, worker: _Worker) -> None:
        if worker.busy:
            return
        if worker.returned:
            lease, stage = worker.returned.popleft()
        elif worker.tasks:
            lease = worker.tasks.popleft()
            stage = lease.stage
            worker.spent[lease.lease] = [0.0, self.now]
        else:
            return
        self._stage(worker, lease, stage)

    def _stage(self, worker: _Worker, lease: Leased[int], index: int) -> None:
        stages = self.work(lease.sample)
        spent = worker.spent[lease.lease]
        if index == len(stages):
            del worker.spent[lease.lease]
            worker.busy = False
            timing = Timing(spent[0], self.now - spent[1])
            self.deciding.finished(worker.name, lease.lease, lease.sample, timing, self.now)
            self._decide()
            self._next(worker)
        elif stages[index].waits:
            self.deciding.parked(worker.name, lease.lease, self.now)
            worker.busy = False
            self.at(self.now + stages[index].seconds, self._return, worker, lease, index + 1)
            self._decide()
            self._next(worker)
        elif spent[0] > lease.cutoff_s and index:
            del worker.spent[lease.lease]
            worker.busy = False
            timing = Timing(spent[0], self.now - spent[1])
            self.deciding.handed_over(
                worker.name, lease.lease, index, lease.sample, timing, self.now
            )
            self._decide()
            self._next(worker)
        else:
            worker.busy = True
            seconds = stages[index].seconds
            spent[0] += seconds
            self.busy_s += seconds
            self.at(self.now + seconds, self._stage, worker, lease, index + 1)

    def _return(self, worker: _Worker, lease: Leased[int], index: int) -> None:
        worker.returned.append((lease, index))
        self._next(worker)

    # --- what is measured -------------------------------------------------------------------------

    def rate(self, since: float = 0.0) -> float:
        """Samples a second."""
        late = [(at, batch) for at, batch in self.taken if at >= since]
        return sum(len(b) for _, b in late[1:]) / max(late[-1][0] - late[0][0], 1e-9)

    def of_bound(self, since: float = 0.0) -> float:
        """Computing of delivered samples, as a share of the workers' time."""
        late = [(at, batch) for at, batch in self.taken if at >= since]
        computing = sum(self.computing(i) for _, batch in late[1:] for i in batch)
        return computing / len(self.workers) / (late[-1][0] - late[0][0])

    def waiting(self, since: float) -> float:
        """Share of the consumer's time that it waited."""
        waits = [(at, s) for at, s in self.waits if at >= since]
        return sum(s for _, s in waits[1:]) / (waits[-1][0] - waits[0][0])

    def computing(self, sample: int) -> float:
        return sum(stage.seconds for stage in self.work(sample) if not stage.waits)

    @property
    def used(self) -> float:
        """Share of the workers' time that was computing."""
        return self.busy_s / len(self.workers) / self.now


def mixture(share: float, *, waiting: bool = False, samples: int = 100_000, seed: int = 7) -> Work:
    """The benchmark's workloads."""
    chance = np.random.default_rng(seed)
    quick = chance.uniform(0.001, 0.005, samples)
    slow = np.where(chance.random(samples) < share, chance.uniform(0.1, 0.5, samples), 0.0)

    def work(i: int) -> tuple[Stage, ...]:
        part = (0.8 * quick[i] + (0.0 if waiting else slow[i])) / 3
        rest = (Stage(part), Stage(part), Stage(part))
        if waiting:
            return Stage(0.2 * quick[i]), Stage(slow[i], waits=True), *rest
        return Stage(0.2 * quick[i]), *rest

    return work
