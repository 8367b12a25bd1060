"""Simulated time: one clock, and everything that is still to happen, in order.

Nothing here sleeps. Two things due at the same moment happen in the order in which they were
asked for, so a run is a function of its seed.
"""

import heapq
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from actors.simulation.life import Life

Act = Callable[..., object]
Due = tuple[float, int, "Life | None", Act, tuple[Any, ...]]


class Timeline:
    """A `protocol.clock.Clock` that jumps from one event to the next."""

    def __init__(self) -> None:
        self.events = 0  # that have happened
        self._now = 0.0
        self._due: list[Due] = []
        self._asked = 0

    def now(self) -> float:
        """Simulated seconds since the world began."""
        return self._now

    def at(self, when: float, life: "Life | None", act: Act, *args: Any) -> None:
        """`act` happens at `when`, in the process `life`: not if that has ended by then, and not
        while it is frozen. None: whatever happens to processes."""
        self._asked += 1
        heapq.heappush(self._due, (max(when, self._now), self._asked, life, act, args))

    def after(self, s: float, life: "Life | None", act: Act, *args: Any) -> None:
        """`act` happens `s` seconds from now."""
        self.at(self._now + s, life, act, *args)

    def step(self, until: float) -> tuple["Life | None", Act, tuple[Any, ...]] | None:
        """Move on to the next event and return it; None when there is none before `until`."""
        while self._due and self._due[0][0] <= until:
            when, _, life, act, args = heapq.heappop(self._due)
            self._now = when
            if life is None:
                self.events += 1
                return None, act, args
            if not life.alive:
                continue
            if life.frozen:
                life.backlog.append((act, args))
                continue
            self.events += 1
            return life, act, args
        return None
