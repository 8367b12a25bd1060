"""One epoch's samples in batches: which come next, and when a batch is complete. Pure.

    strict   batches of the permutation's order, so batch k is a function of (seed, epoch, k)
    ready    batches of what is finished first; which it was is recorded before anybody gets it

A sample nobody can use leaves no gap: the next one moves up. The last batch has what is left over.
Batches composed in an earlier life and not known to have been used come first, as they were.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from actors.data.ordering import Buffer, Order, permutation

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Turn:
    """One sample's turn in an epoch."""

    turn: int
    sample: int


@dataclass(frozen=True, slots=True)
class Composed(Generic[T]):
    """A batch: samples and what was made of them."""

    samples: tuple[int, ...]
    items: tuple[T, ...]
    replays: bool = False  # batches composed before are still to come


@dataclass(frozen=True, slots=True)
class Share:
    """What of an epoch is this rank's to deliver."""

    epoch: int
    samples: NDArray[np.int64]  # in turn
    recorded: tuple[tuple[int, ...], ...] = ()  # batches composed before


@dataclass(frozen=True, slots=True)
class Plan:
    """How an epoch is cut."""

    samples: int  # of the whole data set
    seed: int
    shuffle: bool
    rank: int = 0
    ranks: int = 1

    def order(self, epoch: int) -> NDArray[np.int64]:
        """All samples in the epoch's order."""
        everything = np.arange(self.samples, dtype=np.int64)
        return permutation(self.seed, epoch, everything) if self.shuffle else everything

    def share(
        self,
        epoch: int,
        settled: NDArray[np.bool_],
        left_out: Iterable[int],
        recorded: Sequence[Sequence[int]] = (),
        over: NDArray[np.bool_] | None = None,
    ) -> Share:
        """What is still to be delivered here. `settled`: by sample, whether that has been.

        Ranks take turns at what was open when the epoch was cut, which all of them know alike:
        everything, but for `over` (by sample), where a run with another number of ranks had begun
        it. So shares never overlap, whatever each has delivered or left out since, all together
        they are the epoch, and they differ by one sample at most.
        """
        order = self.order(epoch)
        cut = order if over is None else order[~over[order]]
        open_ = ~settled
        open_[np.fromiter(left_out, np.int64)] = False
        mine = cut[self.rank :: self.ranks]
        mine = mine[open_[mine]]
        known = tuple(tuple(batch) for batch in recorded)
        first = np.array([sample for batch in known for sample in batch], np.int64)
        if len(first):
            first = first[np.isin(first, mine)]
            mine = np.concatenate([first, mine[~np.isin(mine, first)]])
        return Share(epoch, mine, known)


class Batching(Generic[T]):
    """One epoch under way."""

    def __init__(
        self, share: Share, batch_size: int, order: Order, *, drop_last: bool = False
    ) -> None:
        self.share = share
        self.drawn = 0  # turns that have come
        self.over = 0  # of those, finished or given up
        self.composed = 0  # of those, in batches or given up
        self._batch_size = batch_size
        self._drop_last = drop_last
        self._turns: dict[int, int] = {}  # sample -> turn, on their way
        self._buffer: Buffer[tuple[int, T]] = Buffer(order)
        self._row: list[tuple[int, T]] = []
        # Batches of an earlier life: their samples, those not over, and what was made of the rest.
        here = set(share.samples.tolist()) if share.recorded else set[int]()
        kept = (tuple(sample for sample in batch if sample in here) for batch in share.recorded)
        self._recorded = deque(batch for batch in kept if batch)
        self._awaited = {sample for batch in self._recorded for sample in batch}
        self._again: dict[int, T] = {}
        self._firsts = len(self._awaited)

    def draw(self) -> Turn | None:
        """The next turn; None when all have been."""
        if self.drawn == len(self.share.samples):
            return None
        turn = Turn(self.drawn, int(self.share.samples[self.drawn]))
        self._turns[turn.sample] = turn.turn
        self.drawn += 1
        return turn

    def wants(self, sample: int) -> bool:
        """Is it on its way?"""
        return sample in self._turns

    def finished(self, sample: int, item: T) -> None:
        """A sample is done. One that is not on its way is ignored."""
        turn = self._turns.pop(sample, -1)
        if turn < 0:
            return
        self.over += 1
        if turn < self._firsts:
            self._awaited.remove(sample)
            self._again[sample] = item
        else:
            self._buffer.put(turn - self._firsts, (sample, item))

    def gave_up(self, sample: int) -> None:
        """Nothing will come of a sample."""
        turn = self._turns.pop(sample, -1)
        if turn < 0:
            return
        self.over += 1
        self.composed += 1
        if turn < self._firsts:
            self._awaited.remove(sample)
        else:
            self._buffer.put(turn - self._firsts, None)

    def rest(self) -> list[T]:
        """What was made and has not left in a batch."""
        kept = [item for _, item in self._row] + list(self._again.values())
        while (found := self._buffer.pop()) is not None:
            kept.append(found[1])
        return kept + [item for _, item in self._buffer.waiting()]

    @property
    def complete(self) -> bool:
        """Every turn is over."""
        return self.over == len(self.share.samples)

    def compose(self) -> Composed[T] | None:
        """The next batch, when it is there."""
        while self._recorded:
            if not self._awaited.isdisjoint(self._recorded[0]):
                return None
            batch = self._recorded.popleft()
            row = [(sample, self._again.pop(sample)) for sample in batch if sample in self._again]
            if row:
                return self._composed(row)
        while len(self._row) < self._batch_size and (item := self._buffer.pop()) is not None:
            self._row.append(item)
        is_last = self._row and self.complete and not self._drop_last
        if len(self._row) < self._batch_size and not is_last:
            return None
        row, self._row = self._row, []
        return self._composed(row)

    def _composed(self, row: list[tuple[int, T]]) -> Composed[T]:
        self.composed += len(row)
        samples, items = tuple(sample for sample, _ in row), tuple(item for _, item in row)
        return Composed(samples, items, replays=bool(self._recorded))
