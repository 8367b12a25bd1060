"""Who has not been heard for too long.

Silence alone proves nothing about the dead: a stopped process comes back. That is why every
message carries an incarnation.
"""


class Liveness:
    """Remembers when each name was last heard."""

    def __init__(self, silence_s: float) -> None:
        if silence_s <= 0:
            raise ValueError(f"silence_s must be positive, got {silence_s}")
        self.silence_s = silence_s
        self._heard: dict[str, float] = {}

    def hear(self, name: str, now: float) -> None:
        """`name` gave a sign of life."""
        self._heard[name] = max(now, self._heard.get(name, now))

    def forget(self, name: str) -> None:
        """`name` has left; it can no longer be silent."""
        self._heard.pop(name, None)

    def age(self, name: str, now: float) -> float | None:
        """Seconds since `name` was heard; None for a name that never was."""
        heard = self._heard.get(name)
        return None if heard is None else max(0.0, now - heard)

    def silent(self, now: float) -> list[str]:
        """Names unheard for more than `silence_s`, the longest first."""
        late = [
            (heard, name) for name, heard in self._heard.items() if now - heard > self.silence_s
        ]
        return [name for _, name in sorted(late)]

    def next_due(self) -> float | None:
        """When the next name turns silent, if nobody speaks until then; None when empty."""
        return min(self._heard.values()) + self.silence_s if self._heard else None
