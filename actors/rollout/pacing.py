"""How much of a core the rollouts may take. Pure: time is handed in.

After every piece of work that took `w` seconds, the next may begin no sooner than `w / share`
after that piece began: over any stretch of time the work is at most `share` of it, plus one piece.
Time spent idle for other reasons earns nothing, so waiting for prompts is never followed by a
burst.
"""


class DutyCycle:
    """Bounds work to `share` of the time. Raises `ValueError` unless 0 < share <= 1."""

    def __init__(self, share: float, now: float) -> None:
        if not 0.0 < share <= 1.0:
            raise ValueError(f"rollout.share must be above 0 and at most 1, got {share}")
        self._share = share
        self._began = now
        self._free_at = now
        self.worked_s = 0.0

    def worked(self, began: float, work_s: float) -> None:
        """A piece of work began at `began` and took `work_s` seconds of the processor."""
        self.worked_s += work_s
        self._free_at = max(self._free_at, began) + work_s / self._share

    def rest_s(self, now: float) -> float:
        """How long to rest before the next piece."""
        return max(0.0, self._free_at - now)

    def measured(self, now: float) -> float:
        """The share really taken so far."""
        return self.worked_s / max(now - self._began, 1e-9)
