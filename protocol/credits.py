"""Credits keep a fast sender from drowning a slow receiver.

Not covered: fairness between senders (the poller's business) and messages lost with a dead
process (the supervisor's business).
"""


class Credits:
    """At most `limit` messages may be on their way, each known by its `seq`."""

    def __init__(self, limit: int) -> None:
        if limit < 1:
            raise ValueError(f"a limit of {limit} credits would never let anything through")
        self.limit = limit
        self._out: set[int] = set()

    def try_spend(self, seq: int) -> bool:
        """Take one credit for message `seq`; False when none is left or `seq` is out already."""
        if len(self._out) >= self.limit or seq in self._out:
            return False
        self._out.add(seq)
        return True

    def give_back(self, seq: int) -> bool:
        """Return the credit of `seq`. A second return of the same one changes nothing (False)."""
        if seq not in self._out:
            return False
        self._out.remove(seq)
        return True

    @property
    def outstanding(self) -> int:
        """How many credits are spent."""
        return len(self._out)

    @property
    def left(self) -> int:
        """How many more may be spent now."""
        return self.limit - len(self._out)
