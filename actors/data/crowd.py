"""How many worker processes it takes to keep the cores busy when samples wait as well. Pure.

A worker whose sample waits, for a network say, occupies no core. With `n` workers that use `u`
cores together while all their lines are occupied, each uses u / n of a core, so

    n' = n * cores / u

of them would use all. More are begun only while all three hold: somebody waits for batches, lines
are occupied nearly always, and cores are left over; then at most twice as many, and again after
the next look. They are ended when less than half of their lines are occupied, down to a number
that would have four fifths occupied: between a half and nine tenths nothing changes, so numbers
cannot swing. The work itself may double or halve without any change.
"""

import math

_OCCUPIED, _LEFT_OVER, _TARGET = 0.9, 0.85, 0.95
_DESERTED, _FULLER = 0.5, 0.8


class Crowd:
    """The number of workers."""

    def __init__(self, least: int, most: int, cores: float) -> None:
        """`least`: what was asked for; `most`: what memory allows."""
        self.number = least
        self._least, self._most, self._cores = least, max(least, most), cores

    def decide(self, *, occupied: float, used: float, starving: bool) -> int:
        """After a look at one period: how many workers there are to be.

        `occupied`: of the workers' lines, the mean number that had a sample on them. `used`: cores
        they used. `starving`: the consumer had to wait.
        """
        share = occupied / self.number
        if starving and share > _OCCUPIED and used < _LEFT_OVER * self._cores:
            wanted = self.number * _TARGET * self._cores / max(used, 0.01)
            self.number = min(math.ceil(wanted), 2 * self.number, self._most)
        elif share < _DESERTED and self.number > self._least:
            self.number = max(math.ceil(occupied / _FULLER), self._least)
        return self.number
