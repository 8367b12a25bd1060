"""What a loader of its own does about everything that happens. Pure: no processes, no clock.

The deciders are those of the graph: leases.py who works on what, learning.py when a fast worker
lets go, how many are slow and what is begun early, foresight.py how far ahead to look. Here they
meet: samples are drawn, leased, finished in any order and composed into batches (batching.py).

Values are opaque: what a sample became, or what stages have reached, in whatever form the caller
keeps it. Those nobody needs any more are handed back in `unneeded`.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from actors.data.alone.batching import Batching, Composed, Share, Turn
from actors.data.foresight import Features, Horizon, window
from actors.data.learning import Learning, Timing
from actors.data.leases import LeaseTable, Poisoned
from actors.data.ordering import Key, Order
from actors.data.pacing import Pace

V = TypeVar("V")

QUARANTINED = "quarantined"

# Workers' queues where no sample keeps a worker for long: several results travel in one report.
_EVEN_QUEUE_S = 0.016


@dataclass(frozen=True, slots=True)
class Rules:
    """What is asked of a loader."""

    batch_size: int
    order: Order
    drop_last: bool
    batches_ahead: int  # at least so many are looked ahead
    most_ahead: int  # samples on their way or waiting for their turn, at most
    timeout_s: float
    max_deaths: int
    max_bad_share: float


@dataclass(frozen=True, slots=True)
class Leased(Generic[V]):
    """Tell a worker that this sample is its own."""

    worker: str
    lease: int
    epoch: int
    sample: int
    stage: int
    cutoff_s: float
    state: V | None


@dataclass(frozen=True, slots=True)
class Loss:
    """A sample that is left out from now on, and why."""

    epoch: int  # when that was found
    sample: int
    kind: str
    detail: str


class Deciding(Generic[V]):
    """All decisions of one loader."""

    def __init__(
        self,
        rules: Rules,
        samples: int,
        *,
        features: Callable[[int], Features] | None = None,
    ) -> None:
        self._rules = rules
        self.left_out: dict[int, str] = {}
        self.table = self._new_table(0)
        self.learning = Learning(samples, features=features, even_queue_s=_EVEN_QUEUE_S)
        self.refused: Counter[str] = Counter()
        self.seen = 0  # samples finished or lost, in all epochs
        self.unneeded: list[V] = []
        self._batching: Batching[V] | None = None
        self._horizon: Horizon[Turn] | None = None
        self._pace = Pace()
        self._drawn_for = -1  # turns consumed when some were last drawn
        self._states: dict[Key, V] = {}
        self._least = rules.batches_ahead * rules.batch_size
        self._farther = 0  # looked ahead beyond that, by experience
        self.held_back = False  # workers have been idle though there were turns

    def _new_table(self, first_lease: int) -> LeaseTable:
        rules = self._rules
        return LeaseTable(
            lease_s=rules.timeout_s,
            limit=1,
            max_deaths=rules.max_deaths,
            first_lease=first_lease,
            # In strict order nothing is gained by what lies far beyond the next batch.
            urgency=rules.batch_size if rules.order == "strict" else None,
        )

    # --- epochs -----------------------------------------------------------------------------------

    def begin(self, share: Share, left_out: dict[int, str], now: float) -> None:
        """An epoch begins, whatever became of the one before."""
        rules = self._rules
        self.left_out = left_out
        self.forsake(now)
        batching = Batching[V](share, rules.batch_size, rules.order, drop_last=rules.drop_last)
        self._batching = batching
        self._horizon = Horizon(batching.draw, lambda turn: self.learning.expect(turn.sample))
        self._pace = Pace()
        self._drawn_for = -1

    def forsake(self, now: float) -> None:
        """Nobody wants the rest of the epoch."""
        self.table.forget_all(now)
        self.unneeded += self._states.values()
        self._states.clear()
        self.learning.forget_all()
        if self._batching is not None:
            self.unneeded += self._batching.rest()
            self._batching = None

    @property
    def is_over(self) -> bool:
        """Every batch of the epoch has been composed."""
        return self._batching is not None and self._batching.complete

    # --- demand -----------------------------------------------------------------------------------

    def consumed(self, now: float, *, waited: bool) -> None:
        """The consumer has taken a batch; `waited`: it had to wait for it.

        If workers were idle before that, for want of turns, we had not looked ahead far enough.
        """
        self._pace.consumed(now)
        if waited:
            self.looks_farther()

    def looks_farther(self) -> bool:
        """The consumer waits: if workers are idle for want of turns, some more may come. False
        when that is not so, or all the memory there is would be used."""
        if not self.held_back or self._farther >= self._rules.most_ahead:
            return False
        self.held_back = False
        self._farther = min(self._farther + self._least, self._rules.most_ahead)
        return True

    def ahead(self) -> int:
        """How many turns may have come beyond those consumed.

        In strict order a batch waits for its slowest sample, so what is consumed during a surprise
        has to be at hand. In ready order slow samples keep nobody waiting: they come on top of
        what is looked ahead, so many that those which finish meanwhile are enough.
        """
        rules, rate = self._rules, self._pace.rate
        least = min(self._least + self._farther, max(self._least, rules.most_ahead))
        if rules.order == "strict":
            most = max(least, rules.most_ahead)
            return window(rate, self.learning.costs.surprise, least=least, most=most)
        slow = self.learning.between + self.table.parked
        meanwhile = max(rate * self.learning.costs.longest, rules.batch_size)
        return least + min(slow, int(meanwhile), rules.most_ahead)

    def _draw(self) -> None:
        batching, horizon = self._batching, self._horizon
        if batching is None or horizon is None:
            return
        queued = len(self.table.fast) + len(self.table.slow)
        if self._pace.turns == self._drawn_for and queued > self._rules.batch_size:
            return  # it is soon enough when one more batch has been taken, or those are begun
        self._drawn_for = self._pace.turns
        frontier = self._pace.turns + self.ahead()
        while horizon.turn < frontier and (turn := horizon.next()) is not None:
            self._want(batching, turn)
        for turn in horizon.early(self._pace.turns, self._pace.rate, self.learning.costs.longest):
            self._want(batching, turn)

    def _want(self, batching: Batching[V], turn: Turn) -> None:
        sample = turn.sample
        if sample in self.left_out:
            batching.gave_up(sample)
            return
        early = round(self._pace.rate * self.learning.expect(sample))
        is_slow = self.learning.is_slow(sample)
        self.table.add((batching.share.epoch, sample), turn.turn - early, slow=is_slow)

    def grants(self, now: float) -> list[Leased[V]]:
        """Leases to give out."""
        self._draw()
        self.learning.share_out(self.table, now)
        limits = self.learning.limits()
        for worker in self.table.workers.values():
            if worker.limit != limits[worker.pool]:
                self.table.allow(worker.name, limits[worker.pool])
        grants = self.table.grants(now)
        self.held_back = self.held_back or self._is_holding_back()
        return [
            Leased(
                *(grant.worker, grant.lease, *grant.key, grant.stage),
                self.learning.cutoff_of(grant, self.table.workers[grant.worker]),
                self._states.get(grant.key),
            )
            for grant in grants
        ]

    @property
    def has_queued(self) -> bool:
        """Do samples lie there that no worker has?"""
        return bool(self.table.fast or self.table.slow)

    def _is_holding_back(self) -> bool:
        batching = self._batching
        if self.has_queued or batching is None:
            return False
        if batching.drawn == len(batching.share.samples):
            return False
        return any(not worker.held for worker in self.table.workers.values())

    # --- workers ----------------------------------------------------------------------------------

    def joined(self, worker: str, life: int, now: float) -> None:
        """A worker is there."""
        self.table.join(worker, life, "fast", shares_files=True, now=now)
        self.learning.share_out_soon()

    def at_work(self, worker: str, lease: int, since: float) -> None:
        """A worker has noted that it began this, its result not having come."""
        self.table.at_work(worker, lease, since)

    def is_idle(self, worker: str) -> bool:
        """Has it nothing to do?"""
        known = self.table.workers.get(worker)
        return known is not None and known.is_idle

    def left(self, worker: str, blame: str, now: float) -> list[Loss]:
        """A worker is gone. `blame` as in `LeaseTable.leave`."""
        return self._lose(self.table.leave(worker, blame=blame, now=now))

    def expire(self, now: float) -> tuple[list[str], list[Loss]]:
        """Workers that hang, and samples that have hung once too often."""
        before = {name for name, worker in self.table.workers.items() if not worker.is_idle}
        losses = self._lose(self.table.expire(now))
        workers = self.table.workers
        return [name for name in before if workers[name].is_idle], losses

    def _lose(self, poisoned: list[Poisoned]) -> list[Loss]:
        losses: list[Loss] = []
        for item in poisoned:
            losses += self._leave_out(item.key, QUARANTINED, item.reason)
        return losses

    # --- what workers say -------------------------------------------------------------------------

    def parked(self, worker: str, lease: int, now: float) -> None:
        """A sample waits."""
        self.table.park(worker, lease, now)

    def handed_over(
        self, worker: str, lease: int, stage: int, state: V, timing: Timing, now: float
    ) -> None:
        """A sample was beyond the cut-off."""
        key = self.table.subject(lease)
        if key is None or not self.table.handed_over(worker, lease, stage, b"", now):
            self.unneeded.append(state)
            return
        self.learning.handed_over(key, timing)
        self._states[key] = state

    def finished(self, worker: str, lease: int, value: V, timing: Timing, now: float) -> bool:
        """A sample is done. False when it had been done before."""
        batching = self._batching
        key = self.table.finished(worker, lease, now)
        if key is None or batching is None:
            self.unneeded.append(value)
            return False
        self.learning.finished(key, timing)
        self._drop_state(key)
        self.seen += 1
        batching.finished(key[1], value)
        return True

    def _drop_state(self, key: Key) -> None:
        state = self._states.pop(key, None)
        if state is not None:
            self.unneeded.append(state)

    def bad(self, worker: str, lease: int, kind: str, detail: str, now: float) -> list[Loss]:
        """Nobody can use that sample."""
        key = self.table.finished(worker, lease, now)
        return [] if key is None else self._leave_out(key, kind, detail)

    def _leave_out(self, key: Key, kind: str, detail: str) -> list[Loss]:
        self.learning.forget(key)
        self._drop_state(key)
        sample = key[1]
        self.left_out[sample] = kind
        self.refused[kind] += 1
        self.seen += 1
        if self._batching is not None:
            self._batching.gave_up(sample)
        return [Loss(key[0], sample, kind, detail)]

    def is_hopeless(self) -> bool:
        """More samples were lost than the rules allow."""
        lost = sum(self.refused.values())
        if self.is_over:
            return lost > max(self._rules.max_bad_share * self.seen, 0 if lost == self.seen else 1)
        return lost >= _CERTAIN and lost > self._rules.max_bad_share * self.seen

    # --- supply -----------------------------------------------------------------------------------

    def compose(self) -> Composed[V] | None:
        """The next batch, when it is complete."""
        batching = self._batching
        batch = None if batching is None else batching.compose()
        if batching is not None and batch is not None:
            self._pace.composed(batching.composed)
        return batch


# Losses that a share can be judged by before the epoch is over.
_CERTAIN = 8
