"""The order samples come in: a permutation per epoch, and who may pass whom.

`strict`: batch k is a pure function of (seed, epoch, k). Samples are drawn in permutation order
and leave the buffer in that order, however long one of them takes; looking ahead hides the wait.
`ready`: samples leave as they are finished; the ledger records what was made of them, and that
record is the order.
"""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

Order = Literal["strict", "ready"]
T = TypeVar("T")
Key = tuple[int, int]  # (epoch, sample): a fact's identity


def permutation(seed: int, epoch: int, samples: NDArray[np.int64]) -> NDArray[np.int64]:
    """`samples` shuffled; a pure function of its arguments.

    Sorts by raw Philox output: numpy promises that stream for ever, while the algorithm behind
    Generator.permutation may change with any release. Equal keys (chance below 1e-6 for ten
    million samples) keep their order.
    """
    keys = np.random.Philox(key=np.array([seed % 2**64, epoch], np.uint64)).random_raw(len(samples))
    return samples[np.argsort(keys, kind="stable")]


@dataclass(frozen=True, slots=True)
class Draw:
    """One sample's turn."""

    turn: int  # counts draws since this loader started
    epoch: int
    sample: int

    @property
    def key(self) -> Key:
        """Which fact this draw is about."""
        return self.epoch, self.sample


class Draws:
    """Endless draws, epoch after epoch, without those already settled."""

    def __init__(
        self,
        seed: int,
        samples: NDArray[np.int64] | Callable[[int], NDArray[np.int64]],
        *,
        epoch: int = 0,
        settled: dict[int, set[int]] | None = None,
        left_out: set[int] | None = None,
    ) -> None:
        """`samples`: those of every epoch, or what tells those of one. `settled`: per epoch, those
        whose turn is over. `left_out`: samples never drawn again; the set is looked at anew for
        every draw, so the caller may add to it."""
        self._seed = seed
        self._samples = samples
        self._settled = settled or {}
        self.left_out = left_out if left_out is not None else set[int]()
        self.epoch = epoch
        self._turn = 0
        self._order = self._shuffled()

    def next(self) -> Draw | None:
        """The next turn; None when every sample is left out."""
        for _ in range(2 + len(self._settled)):
            for sample in self._order:
                draw = Draw(self._turn, self.epoch, sample)
                self._turn += 1
                return draw
            self._settled.pop(self.epoch, None)
            self.epoch += 1
            self._order = self._shuffled()
        return None

    def _shuffled(self) -> Iterator[int]:
        settled = self._settled.get(self.epoch, set[int]())
        here = self._samples(self.epoch) if callable(self._samples) else self._samples
        order = permutation(self._seed, self.epoch, here)
        return (
            int(sample)
            for sample in order
            if int(sample) not in settled and int(sample) not in self.left_out
        )


class Buffer(Generic[T]):
    """Finished samples waiting for their turn."""

    def __init__(self, order: Order) -> None:
        self._order: Order = order
        self._next = 0
        self._waiting: dict[int, T | None] = {}
        self._over = 0
        self._out: deque[T] = deque()

    def put(self, turn: int, item: T | None) -> None:
        """`turn` is over; None: nothing came of it. A second end of the same turn is ignored."""
        self._over += 1
        if self._order == "ready":
            if item is not None:
                self._out.append(item)
            return
        if turn < self._next:
            return
        self._waiting.setdefault(turn, item)
        while self._next in self._waiting:
            found = self._waiting.pop(self._next)
            self._next += 1
            if found is not None:
                self._out.append(found)

    def pop(self) -> T | None:
        """The next item whose turn has come."""
        return self._out.popleft() if self._out else None

    @property
    def passed(self) -> int:
        """Turns that nobody waits for any more."""
        return self._next if self._order == "strict" else self._over

    def waiting(self) -> list[T]:
        """Items whose turn has not come."""
        return [item for item in self._waiting.values() if item is not None]

    def __len__(self) -> int:
        """Items held, in turn or not."""
        return len(self._out) + sum(item is not None for item in self._waiting.values())
