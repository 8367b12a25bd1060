"""How often something may be restarted: intensity and period, as in OTP, and a doubling wait.

A crash that goes away is answered at once, and so is one after a life that did its work for a
while. One that comes straight back is answered ever more slowly, and more than `intensity` of them
within `period_s`, fast or slow, mean that restarting does not help.
"""

from collections import deque
from collections.abc import Iterable

# Whoever has lived for this long has begun well. All actors are at work within a second.
SOUND_S = 2.0


class Rationing:
    """Counts the deaths of one actor."""

    def __init__(
        self,
        *,
        intensity: int,
        period_s: float,
        backoff_s: float,
        backoff_max_s: float,
        deaths: Iterable[float] = (),
    ) -> None:
        self._intensity = intensity
        self._period_s = period_s
        self._backoff_s = backoff_s
        self._backoff_max_s = backoff_max_s
        # One more than allowed is all that is ever needed to decide.
        self._deaths = deque(sorted(deaths), maxlen=intensity + 1)

    def died(self, now: float) -> float | None:
        """Note a death. Seconds to wait before the restart; None: no further restart."""
        self._deaths.append(now)
        return None if self.recent(now) > self._intensity else self._wait_s()

    def due(self) -> float:
        """When the wait after the latest death is over: for whoever takes over from whoever died
        while somebody waited. 0 when nobody has died."""
        if not self._deaths:
            return 0.0
        self.recent(self._deaths[-1])
        return self._deaths[-1] + self._wait_s()

    def _wait_s(self) -> float:
        """After the latest death: doubles with every short life in a row."""
        wait_s, short, before = 0.0, 0, None
        for at in self._deaths:
            lived_s = SOUND_S if before is None else at - before - wait_s
            short = short + 1 if lived_s < SOUND_S else 0
            # The exponent is bounded because 2.0 ** 1024 overflows.
            longer_s = self._backoff_s * 2.0 ** min(short - 1, 60)
            wait_s = min(self._backoff_max_s, longer_s) if short else 0.0
            before = at
        return wait_s

    def recent(self, now: float) -> int:
        """Deaths within the period that ends now."""
        while self._deaths and self._deaths[0] <= now - self._period_s:
            self._deaths.popleft()
        return len(self._deaths)

    @property
    def deaths(self) -> tuple[float, ...]:
        """When the deaths that may still count happened."""
        return tuple(self._deaths)
