"""A success rate with honest error bars, counted per version of the weights. Pure.

The interval is Wilson's score interval (Wilson 1927; Brown, Cai, DasGupta 2001, section 3.1.1): it
stays inside [0, 1] and means something at 0 of n and n of n, where the textbook interval has no
width at all.

Not covered: completions of one prompt share their prompt, so they are not independent and the true
uncertainty is somewhat larger.
"""

from dataclasses import dataclass
from math import sqrt

# Two-sided 95 % quantile of the normal distribution.
Z_95 = 1.959963984540054


@dataclass(frozen=True, slots=True)
class Rate:
    """`good` of `total`, with the 95 % interval around it."""

    good: int
    total: int
    low: float
    high: float

    @property
    def value(self) -> float:
        """Share of good ones; 0 when there are none at all."""
        return self.good / self.total if self.total else 0.0


def wilson(good: int, total: int, z: float = Z_95) -> Rate:
    """The rate `good / total`. Of nothing, nothing is known: the interval is [0, 1].

    Raises `ValueError` unless 0 <= good <= total.
    """
    if not 0 <= good <= total:
        raise ValueError(f"wilson: {good} good of {total} is impossible")
    if total == 0:
        return Rate(0, 0, 0.0, 1.0)
    share = good / total
    spread = z * sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    centre, scale = share + z * z / (2 * total), 1 + z * z / total
    low = 0.0 if good == 0 else (centre - spread) / scale
    high = 1.0 if good == total else (centre + spread) / scale
    return Rate(good, total, low, high)


class Rates:
    """Counts per version. Keeps the `limit` highest versions, so that memory stays bounded."""

    def __init__(self, limit: int = 64) -> None:
        self.limit = limit
        self._counts: dict[int, tuple[int, int]] = {}

    def add(self, version: int, good: int, total: int) -> Rate:
        """Count `good` of `total` for `version`; the version's rate so far."""
        had_good, had_total = self._counts.get(version, (0, 0))
        rate = wilson(had_good + good, had_total + total)
        self._counts[version] = (rate.good, rate.total)
        if len(self._counts) > self.limit:
            del self._counts[min(self._counts)]
        return rate

    def newest(self) -> tuple[int, Rate] | None:
        """The highest version counted and its rate; None before the first count."""
        if not self._counts:
            return None
        version = max(self._counts)
        return version, wilson(*self._counts[version])
