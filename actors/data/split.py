"""How many workers are slow ones: they go on with samples that were handed over. Pure.

The law. Let a new sample cost a fast worker `f` seconds on average, up to its end or its hand-over,
let a share `p` of them be handed over, and the rest of such a sample cost `s` seconds more. With
all of `n` workers busy, slow work then arrives at a rate of

    w = n * p s / (f + p s)         core-seconds per second,

and a backlog of `b` core-seconds changes by db/dt = w - m, where m workers are slow. With

    m = w + b / DRAIN_S             follows  db/dt = -b / DRAIN_S:

the backlog decays at one rate whatever the mixture, and never overshoots. All of f, p and s are
means over samples, not shares of time spent, so they do not depend on m: nothing is fed back but
the backlog. m is a whole number, so it only moves when the law is more than `_RELUCTANCE` away from
it; what is left over stays within `_RELUCTANCE * DRAIN_S` core-seconds of backlog, and whoever is
idle helps the other pool (leases.py), so no core waits for the next decision.
"""

from collections import deque

DRAIN_S = 2.0
# Above a half, or the number would jump to and fro where the law lies between two.
_RELUCTANCE = 0.65
# Samples that means are taken over: of new ones as many as it takes to see some slow ones.
_NEW, _RESTS = 4096, 128


class Split:
    """Learns what new samples and handed-over ones cost; says how many workers are to be slow."""

    def __init__(self) -> None:
        self.slow = 0
        self._new, self._handed, self._rests = _Mean(_NEW), _Mean(_NEW), _Mean(_RESTS)

    def began(self, seconds: float, *, handed_over: bool) -> None:
        """What a new sample cost its first worker."""
        self._new.add(seconds)
        self._handed.add(float(handed_over))

    def rested(self, seconds: float) -> None:
        """What the rest of a handed-over sample cost."""
        self._rests.add(seconds)

    @property
    def knows(self) -> bool:
        """Has anything been handed over, and finished?"""
        return self._rests.value > 0

    def rate(self) -> float:
        """Share of all work that is done after hand-overs: `w / n` of the law."""
        rest_s = self._handed.value * self._rests.value
        return rest_s / (self._new.value + rest_s) if rest_s else 0.0

    def decide(self, workers: int, backlog: int, *, parts: bool) -> int:
        """How many of `workers` are to be slow, with `backlog` handed-over samples waiting.

        `parts`: there is a cut-off. One worker is kept for each kind then: without a slow one
        nothing could be handed over, without a fast one every sample would wait for slow ones.
        """
        if not parts or workers < 2:
            self.slow = 0
            return 0
        wanted = workers * self.rate() + backlog * self._rests.value / DRAIN_S
        if abs(wanted - self.slow) > _RELUCTANCE:
            self.slow = round(wanted)
        self.slow = min(max(self.slow, 1), workers - 1)
        return self.slow


class _Mean:
    """Of the last so many numbers."""

    def __init__(self, window: int) -> None:
        self._last: deque[float] = deque(maxlen=window)
        self._sum = 0.0

    def add(self, number: float) -> None:
        if len(self._last) == self._last.maxlen:
            self._sum -= self._last[0]
        self._last.append(number)
        self._sum += number

    @property
    def value(self) -> float:
        return max(self._sum, 0.0) / len(self._last) if self._last else 0.0
