"""How long a sample may keep a fast worker, learned from how long samples take. Pure.

MinatoLoader's rule: the 75th percentile of the times seen lately, or the 90th when too many
samples beyond the 75th are misjudged, which is to say would have been done soon anyway. Two cases
its paper leaves open. Where about half the samples are slow both percentiles lie among them: lower
ones are tried. And a percentile beyond which samples do not take much longer parts nothing: with
no better one nobody is handed over, since that would only move the same work to another worker.
"""

from collections import deque
from collections.abc import Sequence

import numpy as np

# A cut-off that nothing reaches.
NEVER_S = 1e9

# Times remembered. Enough for the 90th percentile to rest on some fifty samples, few enough that
# a change in the data is noticed within two windows.
WINDOW = 512
# Fewer times than this say nothing about a 90th percentile.
WARM_UP = 24
# Tried in this order: the first that parts the samples counts.
_QUANTILES = (0.75, 0.90, 0.50, 0.45)
# What a sample beyond the cut-off takes on average, in cut-offs, for the two kinds to be two. An
# exponential distribution, which has but one kind, stays below 2.7 at every quantile above.
_APART = 3.0
# A sample beyond the cut-off that takes no longer than twice the cut-off was misjudged: handing it
# over saved the fast worker less than the sample had cost it already. With more of them beyond the
# first quantile than this the next one is asked.
_MISJUDGED_WITHIN = 2.0
_MOST_MISJUDGED = 0.5
# A hand-over costs about 0.1 ms, on both sides together: below this it costs more than it moves.
SHORTEST_S = 0.001


def estimate(times: Sequence[float]) -> float:
    """The cut-off in seconds that these times of whole samples suggest; `NEVER_S` when none."""
    if len(times) < WARM_UP:
        return NEVER_S
    known = np.sort(np.asarray(times, np.float64))
    for quantile in _QUANTILES:
        cutoff = float(known[int(quantile * (len(known) - 1))])
        beyond = known[known > cutoff]
        if cutoff < SHORTEST_S or not len(beyond) or beyond.mean() < _APART * cutoff:
            continue
        misjudged = float((beyond <= _MISJUDGED_WITHIN * cutoff).mean())
        if quantile == _QUANTILES[0] and misjudged > _MOST_MISJUDGED:
            continue
        return cutoff
    return NEVER_S


class Cutoff:
    """The cut-off of the moment."""

    def __init__(self, initial_s: float = NEVER_S) -> None:
        """`initial_s` holds until `WARM_UP` samples are known."""
        self.seconds = initial_s
        self._times: deque[float] = deque(maxlen=WINDOW)
        self._news = 0

    @property
    def knows(self) -> bool:
        """Have enough samples been seen to tell?"""
        return len(self._times) >= WARM_UP

    def note(self, seconds: float) -> bool:
        """A sample took so long, over all its stages and workers. True when that changed the
        estimate, which is made anew with every eighth of what is remembered."""
        self._times.append(seconds)
        self._news += 1
        if len(self._times) < WARM_UP or self._news < len(self._times) / 8:
            return False
        self._news = 0
        before, self.seconds = self.seconds, estimate(self._times)
        return self.seconds != before
