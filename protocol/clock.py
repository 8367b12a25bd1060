"""Time is something you are handed: a `Clock` in processes, a `ManualClock` in tests.

Deciders take `now: float`; acting code takes a `Clock`. Deadlines are objects, so that nobody
subtracts in the wrong direction.
"""

import time
from dataclasses import dataclass
from typing import Protocol

from protocol.errors import DeadlinePassed


class Clock(Protocol):
    """Seconds that only ever grow; their zero has no meaning."""

    def now(self) -> float:
        """Monotonic seconds."""
        ...


class MonotonicClock:
    """The machine's own monotonic clock. The same for all processes of one host."""

    def now(self) -> float:
        """Seconds since some moment before this process started."""
        return time.monotonic()


class ManualClock:
    """A clock that moves when told to."""

    def __init__(self, start: float = 0.0) -> None:
        self._now = start

    def now(self) -> float:
        """Seconds, as advanced so far."""
        return self._now

    def advance(self, s: float) -> None:
        """Let `s` seconds pass. Time does not run backwards: `s` >= 0."""
        if s < 0:
            raise ValueError(f"time cannot go back by {-s} s")
        self._now += s


@dataclass(frozen=True, slots=True)
class Deadline:
    """A moment by which `what` should have happened."""

    clock: Clock
    at: float
    what: str

    @classmethod
    def after(cls, clock: Clock, s: float, what: str) -> "Deadline":
        """The deadline `s` seconds from now."""
        return cls(clock, clock.now() + s, what)

    def left(self) -> float:
        """Seconds that remain; never negative."""
        return max(0.0, self.at - self.clock.now())

    def passed(self) -> bool:
        """True from the moment itself on."""
        return self.clock.now() >= self.at

    def check(self) -> None:
        """Raise `DeadlinePassed`, naming what was late, once the moment has come."""
        if self.passed():
            late_s = self.clock.now() - self.at
            raise DeadlinePassed(f"{self.what}: deadline passed {late_s:.1f} s ago")
