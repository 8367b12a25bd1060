"""One visit: an attached trainer from the moment it has the rank until it is gone. Pure.

A stand-in has one visit in its life. What ends the visit ends that life, so everything that is
known of lives (who is refused, who is gone, who starts anew) is known of visits.
"""

from dataclasses import dataclass
from typing import Literal

from protocol.messages import Beat


@dataclass(frozen=True, slots=True)
class Over:
    """The visit has ended. `lost`: not as the guest wanted."""

    why: str
    lost: bool


class Visit:
    """Knows who has the rank, and whether it still does its work."""

    def __init__(self, silence_s: float, hang_s: float) -> None:
        self.guest = ""  # its name, once it is there
        self.host = ""
        self.incarnation = -1
        self.over: Over | None = None
        self._silence_s, self._hang_s = silence_s, hang_s
        self._heard_at = self._moved_at = 0.0
        self._progress = -1

    def asks(
        self, name: str, incarnation: int, host: str, now: float
    ) -> Literal["new", "again", "no"]:
        """Somebody with the right key wants the rank.

        "again": it has it, and has not heard that. A later life of whoever has it ends the visit:
        it is the next stand-in's guest.
        """
        if not self.guest:
            self.guest, self.host, self.incarnation = name, host, incarnation
            self._heard_at = self._moved_at = now
            return "new"
        if self.is_guest(name, incarnation):
            return "again"
        if name == self.guest and incarnation > self.incarnation:
            self.over = Over("it came anew", lost=True)
        return "no"

    def is_guest(self, name: str, incarnation: int) -> bool:
        """Whether that one has the rank."""
        return bool(self.guest) and (name, incarnation) == (self.guest, self.incarnation)

    def beats(self, beat: Beat, now: float) -> None:
        """The guest says what it does."""
        self._heard_at = now
        if beat.progress != self._progress or beat.waiting_for:
            self._progress, self._moved_at = beat.progress, now

    def speaks(self, now: float) -> None:
        """The guest has said anything at all."""
        self._heard_at = now

    def leaves(self) -> None:
        """The guest says goodbye."""
        self.over = self.over or Over("it said goodbye", lost=False)

    def tick(self, now: float) -> None:
        """Time has passed."""
        if not self.guest or self.over is not None:
            return
        if now - self._heard_at > self._silence_s:
            self.over = Over(f"silent for {now - self._heard_at:.1f} s", lost=True)
        elif now - self._moved_at > self._hang_s:
            stuck_s = now - self._moved_at
            self.over = Over(f"beats, but made no progress for {stuck_s:.0f} s", lost=True)
