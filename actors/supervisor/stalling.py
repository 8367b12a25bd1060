"""A run that stands still though every part of it is well: each waits for another, or so they say.

Every single wait has its own deadline or its own repair; this is the net below them all. When no
step has been committed for `stall_s`, the run is stopped, with the waits of all actors for a reason
and their stacks in their logs. Pure: time is handed in.
"""

from collections.abc import Iterable

# Waits named in a reason; the rest are in the logs.
_NAMED = 8


class Stall:
    """Knows when the last step was committed."""

    def __init__(self, limit_s: float, now: float) -> None:
        self._limit_s, self._since = limit_s, now
        self._step = -1

    def heard(self, step: int, now: float) -> None:
        """The newest committed step, as shard 0 says it. Going back is news as well."""
        if step != self._step:
            self._step, self._since = step, now

    def begins(self, now: float) -> None:
        """Somebody is still getting ready: nothing can be expected yet."""
        self._since = now

    def paused(self, s: float) -> None:
        """For so long nobody could be heard."""
        self._since += s

    def over(self, now: float) -> bool:
        """Whether it has lasted too long."""
        return now - self._since > self._limit_s

    def reason(self, waits: Iterable[tuple[str, str]]) -> str:
        """In words: who waits for what."""
        said = [f"{name} waits for {what}" for name, what in waits if what]
        shown = "; ".join(said[:_NAMED]) or "nobody says that it waits"
        after = f"step {self._step}" if self._step >= 0 else "the start"
        return f"no step was committed for {self._limit_s:g} s after {after}: {shown}"
