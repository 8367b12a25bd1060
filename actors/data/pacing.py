"""How fast a consumer takes batches, and up to which turn it has. Pure."""

from collections import deque

# Batches and seconds that the rate is measured over, the longer of the two: a stall and the rush
# that follows it are to even out.
_BATCHES, _SECONDS = 16, 4.0
# Before so much time has passed nobody can tell a rate from a rush.
_LEAST_S = 0.5


class Pace:
    """One epoch's consumption."""

    def __init__(self) -> None:
        self.turns = 0  # over, as far as the consumer is concerned
        self.rate = 0.0  # turns per second; 0 before two batches were taken
        self._composed: deque[int] = deque()  # turns over by the end of each batch not yet taken
        self._taken: deque[tuple[float, int]] = deque()  # when, and turns over by then

    def composed(self, turns: int) -> None:
        """A batch is ready; with it, so many turns are over."""
        self._composed.append(turns)

    def consumed(self, now: float) -> None:
        """The oldest ready batch was taken."""
        if self._composed:
            self.turns = self._composed.popleft()
        taken = self._taken
        taken.append((now, self.turns))
        while len(taken) > _BATCHES and now - taken[1][0] > _SECONDS:
            taken.popleft()
        if len(taken) > 1:
            (since, before), (_, turns) = taken[0], taken[-1]
            self.rate = (turns - before) / max(now - since, _LEAST_S)
