"""Works, workers and queues of the lease table. Pure; the rules stand in leases.py."""

import heapq
from collections import deque
from dataclasses import dataclass, field

from actors.data.ordering import Key
from protocol.messages import Pool


@dataclass(frozen=True, slots=True)
class Grant:
    """Tell `worker` that this sample is its own."""

    worker: str
    lease: int
    key: Key
    attempt: int
    stage: int  # first one still to be done
    state: bytes  # what the stages before it made


@dataclass(frozen=True, slots=True)
class Poisoned:
    """This sample has ended (or outlasted the patience of) too many workers: leave it out."""

    key: Key
    deaths: int
    reason: str
    kind: str = "ends its worker"  # or "never returns"


@dataclass(slots=True)
class Work:
    """A sample somebody wants."""

    key: Key
    order: int  # smaller ones first
    stage: int = 0
    state: bytes = b""
    attempt: int = 0
    lease: int = -1  # the current one; -1: queued
    holder: str = ""  # of the current lease
    past: list[int] = field(default_factory=list[int])  # leases that ended without a result
    is_slow: bool = False  # expected to be
    is_suspect: bool = False  # one of several that a dead worker had begun: goes to a worker alone


@dataclass(slots=True)
class Worker:
    """One life of one worker."""

    name: str
    incarnation: int
    pool: Pool
    shares_files: bool
    heard: float
    limit: int  # leases it may hold
    wants: int = 0  # leases it has room for beyond those it holds
    held: deque[int] = field(default_factory=deque[int])  # oldest first
    head_since: float = 0.0
    parked: dict[int, float] = field(default_factory=dict[int, float])  # begun and waiting, since
    newest: int = -1  # of all leases it ever got

    @property
    def is_idle(self) -> bool:
        """Nothing to work on, nothing to wait for."""
        return not self.held and not self.parked

    def drop(self, lease: int, now: float) -> None:
        """It no longer has `lease`; the time of the next one held starts now."""
        if self.parked.pop(lease, None) is None and lease in self.held:
            if self.held[0] == lease:
                self.head_since = now
            self.held.remove(lease)


class Queue:
    """Works by order. Entries whose work has moved on are skipped."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, Key]] = []
        self._keys: set[Key] = set()

    def push(self, work: Work) -> None:
        """Queue `work`, once."""
        if work.key not in self._keys:
            self._keys.add(work.key)
            heapq.heappush(self._heap, (work.order, work.key))

    def pop(self) -> Key | None:
        """The first in order."""
        while self._heap:
            _, key = heapq.heappop(self._heap)
            if key in self._keys:
                self._keys.remove(key)
                return key
        return None

    def first(self) -> int | None:
        """Order of the first; None when there is none."""
        while self._heap and self._heap[0][1] not in self._keys:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def discard(self, key: Key) -> None:
        """Whoever it was, it is no longer queued."""
        self._keys.discard(key)

    def __contains__(self, key: Key) -> bool:
        return key in self._keys

    def __len__(self) -> int:
        return len(self._keys)


class Hungry:
    """Workers of one pool that want more: first whoever holds fewest, of those whoever was served
    longest ago. Entries of the past are skipped, so noting a change costs O(log n)."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, str]] = []

    def note(self, worker: Worker) -> None:
        """Something about `worker` has changed."""
        if worker.wants > 0:
            heapq.heappush(self._heap, (len(worker.held), worker.newest, worker.name))

    def first(self, workers: dict[str, Worker], pool: Pool) -> Worker | None:
        """Who is served next; None when nobody wants anything."""
        while self._heap:
            held, newest, name = self._heap[0]
            worker = workers.get(name)
            if (
                worker is not None
                and worker.pool == pool
                and worker.wants > 0
                and (len(worker.held), worker.newest) == (held, newest)
            ):
                return worker
            heapq.heappop(self._heap)
        return None
