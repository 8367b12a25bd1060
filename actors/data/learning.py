"""What samples cost, and what follows from it: the cut-off, who is slow, what to begin early. Pure.

One for a run's loader and for a loader of its own: both tell it how long workers had samples, and
ask it what to tell workers.
"""

from collections.abc import Callable
from dataclasses import dataclass

from actors.data.cutoffs import NEVER_S, Cutoff
from actors.data.foresight import Costs, Features
from actors.data.leases import LeaseTable
from actors.data.ordering import Key
from actors.data.split import Split
from actors.data.works import Grant, Worker
from protocol.messages import Pool

# A worker's own queue is to last this long: many times what an answer takes, yet not so long that
# samples grow old behind one that turns out to be slow.
QUEUE_S = 0.004
MOST_HELD = 64
# How often pools are filled anew.
_SPLIT_S = 0.25
# Samples expected to take so many cut-offs are not begun by fast workers at all.
_CLEARLY_SLOW = 2.0


@dataclass(frozen=True, slots=True)
class Timing:
    """How long a worker had a sample."""

    line_s: float  # busy with it
    total_s: float  # waits included


class Learning:
    """All that is known of samples' costs."""

    def __init__(
        self,
        samples: int,
        *,
        features: Callable[[int], Features] | None = None,
        cutoff_s: float = NEVER_S,
        even_queue_s: float = QUEUE_S,
    ) -> None:
        """`cutoff_s` holds until enough is known. `even_queue_s`: what a worker's own queue lasts
        where no sample keeps it for much longer than others."""
        self.cutoff = Cutoff(cutoff_s)
        self.split = Split()
        self.costs = Costs(samples)  # from begin to end
        self.handovers = 0
        self._lines = Costs(samples)  # busy with it
        self._features = features
        self._spent: dict[Key, Timing] = {}  # before a hand-over
        self._even_queue_s = even_queue_s
        self._new_line_s = QUEUE_S
        self._split_at = 0.0
        self._slow = 0  # workers

    # --- what was seen ----------------------------------------------------------------------------

    def handed_over(self, key: Key, timing: Timing) -> None:
        """A sample was let go of, after so long."""
        self.handovers += 1
        self.split.began(timing.line_s, handed_over=True)
        self._spent[key] = timing

    def finished(self, key: Key, timing: Timing) -> None:
        """A sample is done; the worker that finished it had it for so long."""
        before = self._spent.pop(key, None)
        line_s, total_s, sample = timing.line_s, timing.total_s, key[1]
        if before is None:
            self.split.began(line_s, handed_over=False)
            self._new_line_s += 0.05 * (line_s - self._new_line_s)
        else:
            self.split.rested(line_s)
            line_s, total_s = line_s + before.line_s, total_s + before.total_s
        self.cutoff.note(line_s)
        features = self._of(sample)
        self._lines.remember(sample, line_s, features)
        self.costs.note(sample, total_s, features)

    def forget(self, key: Key) -> None:
        """Nothing will come of it."""
        self._spent.pop(key, None)

    def forget_all(self) -> None:
        """Nobody wants anything any more."""
        self._spent.clear()

    @property
    def between(self) -> int:
        """Samples handed over and not finished."""
        return len(self._spent)

    # --- what follows -----------------------------------------------------------------------------

    def expect(self, sample: int) -> float:
        """Seconds it will take; 0 when nothing tells."""
        return self.costs.expect(sample, self._of(sample))

    def is_slow(self, sample: int) -> bool:
        """Would a fast worker only have to hand it over?"""
        return self._lines.expect(sample, self._of(sample)) > _CLEARLY_SLOW * self.cutoff.seconds

    def cutoff_of(self, grant: Grant, worker: Worker) -> float:
        """When `worker` is to let go of what it is granted."""
        lets_go = worker.pool == "fast" and not grant.stage and self._slow
        return self.cutoff.seconds if lets_go else NEVER_S

    def share_out(self, table: LeaseTable, now: float) -> None:
        """Say who is slow, now and then."""
        if now < self._split_at:
            return
        self._split_at = now + _SPLIT_S
        workers = table.workers
        parts = self.cutoff.seconds < NEVER_S
        slow = [worker for worker in workers.values() if worker.pool == "slow"]
        self._slow = len(slow)
        if parts and slow and not self.split.knows:
            return  # as they were configured
        wanted = self._slow = self.split.decide(len(workers), len(table.slow), parts=parts)
        fast = [worker for worker in workers.values() if worker.pool == "fast"]
        # Those who hold least change over first: what they have they keep.
        fast.sort(key=lambda worker: len(worker.held))
        for worker in slow[wanted:]:
            table.assign(worker.name, "fast")
        for worker in fast[: max(0, wanted - len(slow))]:
            table.assign(worker.name, "slow")

    def share_out_soon(self) -> None:
        """Somebody has come or gone."""
        self._split_at = 0.0

    def limits(self) -> dict[Pool, int]:
        """Leases that workers of each pool do well to hold."""
        is_even = self.cutoff.knows and self.cutoff.seconds == NEVER_S
        queue_s = self._even_queue_s if is_even else QUEUE_S
        fast = min(2 + int(queue_s / max(self._new_line_s, 1e-6)), MOST_HELD)
        return {"fast": fast, "slow": 1}

    def _of(self, sample: int) -> Features | None:
        return None if self._features is None else self._features(sample)
