"""How often something may be restarted: intensity and period, as in OTP, and a doubling wait.

A crash that goes away is answered at once. One that comes back is answered ever more slowly, and
more than `intensity` of them within `period_s` mean that restarting does not help.
"""

from collections import deque
from collections.abc import Iterable


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
        recent = self.recent(now)
        return None if recent > self._intensity else self._wait_s(recent)

    def due(self) -> float:
        """When the wait after the latest death is over: for whoever takes over from whoever died
        while somebody waited. 0 when nobody has died."""
        if not self._deaths:
            return 0.0
        last = self._deaths[-1]
        recent = sum(at > last - self._period_s for at in self._deaths)
        return last + self._wait_s(recent)

    def _wait_s(self, recent: int) -> float:
        if recent <= 1:
            return 0.0
        # The exponent is bounded because 2.0 ** 1024 overflows.
        return min(self._backoff_max_s, self._backoff_s * 2.0 ** min(recent - 2, 60))

    def recent(self, now: float) -> int:
        """Deaths within the period that ends now."""
        while self._deaths and self._deaths[0] <= now - self._period_s:
            self._deaths.popleft()
        return len(self._deaths)

    @property
    def deaths(self) -> tuple[float, ...]:
        """When the deaths that may still count happened."""
        return tuple(self._deaths)
