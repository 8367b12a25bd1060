"""Workers of other hosts: what is told of them. Pure.

They have no supervisor and no recorder to speak to, so the loader says for them who has come, who
has gone, and what they have done.
"""

from dataclasses import dataclass

from actors.data.leases import LeaseTable
from protocol.messages import Guest, Guests

EVERY_S = 1.0


@dataclass(slots=True)
class _Known:
    host: str
    delivered: int = 0


class GuestBook:
    """Who works here from elsewhere."""

    def __init__(self, table: LeaseTable) -> None:
        self._table = table
        self._known: dict[str, _Known] = {}
        self._said_at = float("-inf")
        self._changed = True  # what an earlier loader said is not true any more

    def joined(self, name: str, host: str) -> None:
        """A worker of another host has a plan now."""
        self._known[name] = _Known(host)
        self._changed = True

    def knows(self, name: str) -> bool:
        """It has joined and not left."""
        return name in self._known

    def host_of(self, name: str) -> str:
        """Where a worker that `knows` runs."""
        return self._known[name].host

    def delivered(self, name: str) -> None:
        """A worker has finished a sample. Those of this host are not counted."""
        if name in self._known:
            self._known[name].delivered += 1

    def left(self, name: str) -> int:
        """It is gone; how many samples it had finished."""
        self._changed = True
        return self._known.pop(name).delivered

    def due(self, now: float) -> Guests | None:
        """What the supervisor is to hear now."""
        if not self._changed and (not self._known or now - self._said_at < EVERY_S):
            return None
        self._changed, self._said_at = False, now
        workers = self._table.workers
        return Guests(
            guests=tuple(
                Guest(
                    name=name,
                    host=known.host,
                    pool=worker.pool,
                    incarnation=worker.incarnation,
                    leased=len(worker.held),
                    delivered=known.delivered,
                    silent_s=round(max(0.0, now - worker.heard), 3),
                )
                for name, known in sorted(self._known.items())
                if (worker := workers.get(name)) is not None
            )
        )
