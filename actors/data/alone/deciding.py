"""What a loader of its own does about everything that happens. Pure: no processes, no clock.

The deciders are those of the graph: leases.py who works on what, cutoffs.py when a fast worker lets
go, split.py how many are slow, foresight.py what is begun early and how far ahead to look. Here
they meet: samples are drawn, leased, finished in any order and composed into batches (batching.py).

Values are opaque: what a sample became, or what stages have reached, in whatever form the caller
keeps it. Those nobody needs any more are handed back in `unneeded`.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from actors.data.alone.batching import Batching, Composed, Share, Turn
from actors.data.alone.pacing import Pace
from actors.data.cutoffs import NEVER_S, Cutoff
from actors.data.foresight import Costs, Features, Horizon, window
from actors.data.leases import LeaseTable, Poisoned
from actors.data.ordering import Key, Order
from actors.data.split import Split

V = TypeVar("V")

QUARANTINED = "quarantined"
# A worker's own queue is to last this long: many times what an answer takes, yet not so long that
# samples grow old behind one that turns out to be slow.
_QUEUE_S = 0.004
_MOST_HELD = 64
# How often pools are filled anew.
_SPLIT_S = 0.25


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
class Timing:
    """How long a worker had a sample."""

    line_s: float  # busy with it
    total_s: float  # waits included


@dataclass(frozen=True, slots=True)
class Loss:
    """A sample that is left out from now on, and why."""

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
        self._features = features
        self.left_out: dict[int, str] = {}
        self.table = self._new_table(0)
        self.cutoff = Cutoff()
        self.split = Split()
        self.costs = Costs(samples)
        self.refused: Counter[str] = Counter()
        self.seen = 0  # samples finished or lost, in all epochs
        self.handovers = 0
        self.unneeded: list[V] = []
        self._lines = Costs(samples)
        self._batching: Batching[V] | None = None
        self._horizon: Horizon[Turn] | None = None
        self._pace = Pace()
        self._states: dict[Key, V] = {}
        self._spent: dict[Key, Timing] = {}  # before a hand-over
        self._fast_line_s = _QUEUE_S
        self._least = rules.batches_ahead * rules.batch_size
        self._farther = 0  # looked ahead beyond that, by experience
        self._held_back = False  # workers have been idle though there were turns
        self._split_at = 0.0

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
        self._horizon = Horizon(batching.draw, self._expect)
        self._pace = Pace()

    def forsake(self, now: float) -> None:
        """Nobody wants the rest of the epoch."""
        self.table.forget_all(now)
        self.unneeded += self._states.values()
        self._states.clear()
        self._spent.clear()
        if self._batching is not None:
            self.unneeded += self._batching.rest()
            self._batching = None

    @property
    def is_over(self) -> bool:
        """Every batch of the epoch has been composed."""
        return self._batching is not None and self._batching.complete

    def _expect(self, turn: Turn) -> float:
        return self.costs.expect(turn.sample, self._of(turn.sample))

    def _of(self, sample: int) -> Features | None:
        return None if self._features is None else self._features(sample)

    # --- demand -----------------------------------------------------------------------------------

    def consumed(self, now: float, *, waited: bool) -> None:
        """The consumer has taken a batch; `waited`: it had to wait for it.

        If workers were idle before that, for want of turns, we had not looked ahead far enough.
        """
        self._pace.consumed(now)
        if waited and self._held_back:
            self._held_back = False
            self._farther = min(self._farther + self._least, self._rules.most_ahead)

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
            return window(rate, self.costs.surprise, least=least, most=most)
        slow = len(self._spent) + self.table.parked
        meanwhile = max(rate * self.costs.longest, rules.batch_size)
        return least + min(slow, int(meanwhile), rules.most_ahead)

    def _draw(self) -> None:
        batching, horizon = self._batching, self._horizon
        if batching is None or horizon is None:
            return
        frontier = self._pace.turns + self.ahead()
        while horizon.turn < frontier and (turn := horizon.next()) is not None:
            self._want(batching, turn)
        for turn in horizon.early(self._pace.turns, self._pace.rate, self.costs.longest):
            self._want(batching, turn)

    def _want(self, batching: Batching[V], turn: Turn) -> None:
        sample = turn.sample
        if sample in self.left_out:
            batching.gave_up(sample)
            return
        early = round(self._pace.rate * self.costs.expect(sample, self._of(sample)))
        line_s = self._lines.expect(sample, self._of(sample))
        is_slow = line_s > 2 * self.cutoff.seconds
        self.table.add((batching.share.epoch, sample), turn.turn - early, slow=is_slow)

    def grants(self, now: float) -> list[Leased[V]]:
        """Leases to give out."""
        self._draw()
        if now >= self._split_at:
            self._split_at = now + _SPLIT_S
            self._fill_pools()
        made: list[Leased[V]] = []
        grants = self.table.grants(now)
        self._held_back = self._held_back or self._is_holding_back()
        for grant in grants:
            pool = self.table.workers[grant.worker].pool
            lets_go = pool == "fast" and not grant.stage and self.split.slow
            made.append(
                Leased(
                    *(grant.worker, grant.lease, *grant.key, grant.stage),
                    self.cutoff.seconds if lets_go else NEVER_S,
                    self._states.get(grant.key),
                )
            )
        return made

    def _is_holding_back(self) -> bool:
        batching = self._batching
        if self.table.fast or self.table.slow or batching is None:
            return False
        if batching.drawn == len(batching.share.samples):
            return False
        return any(worker.is_idle for worker in self.table.workers.values())

    def _fill_pools(self) -> None:
        """Who is fast and who is slow, and how much each may hold."""
        workers = self.table.workers
        parts = self.cutoff.seconds < NEVER_S
        wanted = self.split.decide(len(workers), len(self.table.slow), parts=parts)
        slow = [worker for worker in workers.values() if worker.pool == "slow"]
        fast = [worker for worker in workers.values() if worker.pool == "fast"]
        # Those who hold least change over first: what they have they keep.
        fast.sort(key=lambda worker: len(worker.held))
        for worker in slow[wanted:]:
            self.table.assign(worker.name, "fast")
        for worker in fast[: max(0, wanted - len(slow))]:
            self.table.assign(worker.name, "slow")
        held = min(2 + int(_QUEUE_S / max(self._fast_line_s, 1e-6)), _MOST_HELD)
        for worker in workers.values():
            limit = 1 if worker.pool == "slow" else held
            if worker.limit != limit:
                self.table.allow(worker.name, limit)

    # --- workers ----------------------------------------------------------------------------------

    def joined(self, worker: str, life: int, now: float) -> None:
        """A worker is there."""
        self.table.join(worker, life, "fast", shares_files=True, now=now)
        self._split_at = 0.0

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
        self.handovers += 1
        self.split.began(timing.line_s, handed_over=True)
        self._spent[key] = timing
        self._states[key] = state

    def finished(self, worker: str, lease: int, value: V, timing: Timing, now: float) -> bool:
        """A sample is done. False when it had been done before."""
        batching = self._batching
        key = self.table.finished(worker, lease, now)
        if key is None or batching is None:
            self.unneeded.append(value)
            return False
        self._learn(key, timing)
        self.seen += 1
        batching.finished(key[1], value)
        return True

    def _learn(self, key: Key, timing: Timing) -> None:
        before = self._spent.pop(key, None)
        state = self._states.pop(key, None)
        if state is not None:
            self.unneeded.append(state)
        line_s, total_s, sample = timing.line_s, timing.total_s, key[1]
        if before is None:
            self.split.began(line_s, handed_over=False)
            self._fast_line_s += 0.05 * (line_s - self._fast_line_s)
        else:
            self.split.rested(line_s)
            line_s, total_s = line_s + before.line_s, total_s + before.total_s
        self.cutoff.note(line_s)
        features = self._of(sample)
        self._lines.note(sample, line_s, features)
        self.costs.note(sample, total_s, features)

    def bad(self, worker: str, lease: int, kind: str, detail: str, now: float) -> list[Loss]:
        """Nobody can use that sample."""
        key = self.table.finished(worker, lease, now)
        return [] if key is None else self._leave_out(key, kind, detail)

    def _leave_out(self, key: Key, kind: str, detail: str) -> list[Loss]:
        self._spent.pop(key, None)
        state = self._states.pop(key, None)
        if state is not None:
            self.unneeded.append(state)
        sample = key[1]
        self.left_out[sample] = kind
        self.refused[kind] += 1
        self.seen += 1
        if self._batching is not None:
            self._batching.gave_up(sample)
        return [Loss(sample, kind, detail)]

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
