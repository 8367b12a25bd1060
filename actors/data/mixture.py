"""How often each sample comes in an epoch, exact for every source. Pure.

A source of weight w lets each of its n samples come floor(w) times in every epoch, and round(r n)
of them once more, r being what is left of w: other ones in every epoch, in turn, so that all come
equally often in the long run. A sample that comes k times has k entries in the corpus, its copies;
so the identity (epoch, entry) is met once, as everywhere.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from actors.data.ordering import permutation

Choose = Callable[[int], NDArray[np.int64]]  # entries of an epoch


def copies(weight: float) -> int:
    """Entries that a sample of this weight has."""
    return max(1, math.ceil(weight))


@dataclass(frozen=True, slots=True)
class Portion:
    """Entries of which a share comes in each epoch."""

    entries: NDArray[np.int64]
    share: float  # above 0, below 1

    def of(self, seed: int, epoch: int) -> NDArray[np.int64]:
        """Those that come."""
        n = len(self.entries)
        count = round(self.share * n)
        # One shuffle for good; epochs take consecutive pieces of it, round and round.
        order = permutation(seed, -1 % 2**64, self.entries)
        return np.take(order, np.arange(epoch * count, (epoch + 1) * count), mode="wrap")


def choosing(
    entries: NDArray[np.int64],
    sources: NDArray[np.int64],
    copy: NDArray[np.int64],
    weights: Sequence[float],
    seed: int,
) -> Choose:
    """Which of `entries` come in an epoch: all of them, when every weight is a whole number.

    `sources`, `copy`: of each entry, its source and which of a sample's entries it is, from 0.
    """
    shares = np.asarray(weights, np.float64)[sources] - copy
    often = entries[shares >= 1]
    if len(often) == len(entries):
        return lambda _epoch: entries
    portions = [
        Portion(entries[here], float(shares[here][0]))
        for source in np.unique(sources[shares < 1])
        if len(here := np.flatnonzero((sources == source) & (shares < 1)))
    ]

    def chosen(epoch: int) -> NDArray[np.int64]:
        return np.sort(np.concatenate([often, *(one.of(seed, epoch) for one in portions)]))

    return chosen
