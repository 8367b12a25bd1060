"""How fast a consumer takes batches, and up to which turn it has. Pure."""

from collections import deque

# Batches that the rate is measured over: enough to even out, few enough to follow.
_MEASURED = 16


class Pace:
    """One epoch's consumption."""

    def __init__(self, batch_size: int) -> None:
        self.turns = 0  # over, as far as the consumer is concerned
        self._batch_size = batch_size
        self._composed: deque[int] = deque()  # turns over by the end of each batch not yet taken
        self._taken: deque[float] = deque(maxlen=_MEASURED + 1)

    def composed(self, turns: int) -> None:
        """A batch is ready; with it, so many turns are over."""
        self._composed.append(turns)

    def consumed(self, now: float) -> None:
        """The oldest ready batch was taken."""
        if self._composed:
            self.turns = self._composed.popleft()
        self._taken.append(now)

    @property
    def rate(self) -> float:
        """Turns per second; 0 before two batches were taken."""
        if len(self._taken) < 2:
            return 0.0
        between_s = max(self._taken[-1] - self._taken[0], 1e-6)
        return self._batch_size * (len(self._taken) - 1) / between_s
