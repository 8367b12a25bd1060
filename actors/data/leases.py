"""Who works on which sample. Pure: no sockets, no clock; time is handed in.

A sample is leased to one worker at a time. A worker holds a few leases (its credit) and works on
them in the order they were granted, so only the oldest one's clock runs, and only the oldest one
is blamed when the worker dies. Two queues: new samples, and samples that fast workers handed over
at a stage boundary, which slow workers resume from the stage reached.

Results are judged by what they are about: the first one for a sample counts, later ones are
dropped and counted. A sample is therefore finished exactly once, whatever died, expired or was
said twice.
"""

import heapq
from collections import Counter, deque
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


@dataclass(slots=True)
class Work:
    """A sample somebody wants."""

    key: Key
    order: int  # smaller ones first
    stage: int = 0
    state: bytes = b""
    attempt: int = 0
    lease: int = -1  # the current one; -1: queued
    past: list[int] = field(default_factory=list[int])  # leases that ended without a result


@dataclass(slots=True)
class Worker:
    """One life of one worker."""

    name: str
    incarnation: int
    pool: Pool
    shares_files: bool
    heard: float
    wants: int = 0  # leases it has room for beyond those it holds
    held: deque[int] = field(default_factory=deque[int])  # oldest first
    head_since: float = 0.0
    newest: int = -1  # of all leases it ever got


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

    def discard(self, key: Key) -> None:
        """Whoever it was, it is no longer queued."""
        self._keys.discard(key)

    def __contains__(self, key: Key) -> bool:
        return key in self._keys

    def __len__(self) -> int:
        return len(self._keys)


def _drop_held(worker: Worker, lease: int, now: float) -> None:
    """`worker` no longer holds `lease`; the next one's time starts now."""
    if lease in worker.held:
        if worker.held[0] == lease:
            worker.head_since = now
        worker.held.remove(lease)


class LeaseTable:
    """All works, workers and leases of one loader's life."""

    def __init__(
        self, *, lease_s: float, limit: int, max_deaths: int, first_lease: int = 0
    ) -> None:
        """`limit`: leases a worker may hold. `first_lease`: later ones count up from it."""
        self._lease_s = lease_s
        self._limit = limit
        self._max_deaths = max_deaths
        self._next_lease = first_lease
        self._works: dict[Key, Work] = {}
        self._leases: dict[int, Key] = {}  # current ones, and past ones of unfinished works
        self._deaths: Counter[int] = Counter()  # by sample: in a later epoch it is no healthier
        self.workers: dict[str, Worker] = {}
        self.fast = Queue()
        self.slow = Queue()
        self.late = 0  # results nobody waited for any more

    # --- what is wanted ---------------------------------------------------------------------------

    def add(self, key: Key, order: int) -> None:
        """Somebody wants this sample; asking for it again may move it forward."""
        work = self._works.get(key)
        if work is None:
            work = self._works[key] = Work(key, order)
            self.fast.push(work)
        elif order < work.order:
            work.order = order
            for queue in (self.fast, self.slow):
                if key in queue:
                    queue.discard(key)
                    queue.push(work)

    def forget_all(self, now: float) -> None:
        """Nobody wants anything any more."""
        for key in list(self._works):
            self.forget(key, now)

    def forget(self, key: Key, now: float) -> None:
        """Nobody wants it any more; a result that still comes is late."""
        work = self._works.pop(key, None)
        if work is None:
            return
        self.fast.discard(key)
        self.slow.discard(key)
        for lease in (work.lease, *work.past):
            self._leases.pop(lease, None)
        if work.lease >= 0:
            self._take_from_holder(work.lease, now)

    def unfinished(self) -> int:
        """Samples wanted and not finished."""
        return len(self._works)

    @property
    def leased(self) -> int:
        """Leases out."""
        return sum(len(worker.held) for worker in self.workers.values())

    @property
    def remote_workers(self) -> int:
        """Workers of other hosts."""
        return sum(not worker.shares_files for worker in self.workers.values())

    # --- workers ----------------------------------------------------------------------------------

    def join(
        self, name: str, incarnation: int, pool: Pool, *, shares_files: bool, now: float
    ) -> list[Poisoned]:
        """A worker says it wants to work. One that said so before starts anew: what it held is
        free. Blames nobody when it is the same life, which lost nothing but its queue."""
        old = self.workers.get(name)
        poisoned: list[Poisoned] = []
        if old is not None:
            if old.incarnation > incarnation:
                return []
            blame = "" if old.incarnation == incarnation else "was replaced"
            poisoned = self.leave(name, blame=blame, now=now)
        self.workers[name] = Worker(name, incarnation, pool, shares_files, heard=now)
        return poisoned

    def request(self, name: str, credit: int, now: float) -> bool:
        """`name` has room for `credit` more. False when it is not known: it has to join first."""
        worker = self.workers.get(name)
        if worker is None:
            return False
        worker.heard = now
        worker.wants = max(0, min(credit, self._limit - len(worker.held)))
        return True

    def leave(self, name: str, *, blame: str, now: float) -> list[Poisoned]:
        """`name` is gone; what it held is free at once. The sample it worked on is blamed with
        the words in `blame`; with none, nobody is."""
        worker = self.workers.pop(name, None)
        if worker is None:
            return []
        poisoned: list[Poisoned] = []
        head = worker.held[0] if worker.held else -1
        for lease in worker.held:
            why = f"{name} {blame}" if blame and lease == head else ""
            poisoned += self._free(lease, why, now)
        return poisoned

    def silent(self, silence_s: float, now: float) -> list[str]:
        """Workers of other hosts unheard for longer than that. The supervisor watches our own."""
        return [
            worker.name
            for worker in self.workers.values()
            if not worker.shares_files and now - worker.heard > silence_s
        ]

    # --- what workers say -------------------------------------------------------------------------

    def finished(self, name: str, lease: int, now: float) -> Key | None:
        """A result under `lease`: the sample it settles, or None when that has been settled."""
        key = self._settle(name, lease, now)
        if key is not None:
            self.forget(key, now)
        return key

    def handed_over(self, name: str, lease: int, stage: int, state: bytes, now: float) -> bool:
        """A fast worker has reached `stage` and lets go. False when that comes too late."""
        key = self._settle(name, lease, now)
        if key is None:
            return False
        work = self._works[key]
        if work.lease != lease:
            self.late += 1  # expired meanwhile and started again: who has it now goes on
            return False
        if stage <= work.stage:
            self._free(lease, "", now)
            return False
        del self._leases[lease]
        work.lease, work.stage, work.state = -1, stage, state
        self.slow.push(work)
        return True

    def _settle(self, name: str, lease: int, now: float) -> Key | None:
        """The unfinished sample `lease` is about, after noting that its holder has a free place."""
        worker = self.workers.get(name)
        if worker is not None:
            worker.heard = now
            _drop_held(worker, lease, now)
            worker.wants = min(worker.wants + 1, self._limit - len(worker.held))
        key = self._leases.get(lease)
        if key is None:
            self.late += 1
        return key

    # --- time and grants --------------------------------------------------------------------------

    def expire(self, now: float) -> list[Poisoned]:
        """Take back what workers have sat on for too long. They are not asked again until they
        speak: whoever hangs on one sample would hang on to the next ones."""
        poisoned: list[Poisoned] = []
        for worker in self.workers.values():
            if not worker.held or now - worker.head_since <= self._lease_s:
                continue
            head, *rest = worker.held
            worker.held.clear()
            worker.wants = 0
            why = f"{worker.name} was not done after {self._lease_s:g} s"
            poisoned += self._free(head, why, now)
            for lease in rest:
                self._free(lease, "", now)
        return poisoned

    def next_due(self) -> float | None:
        """When the next lease expires, unless something happens before."""
        starts = [worker.head_since for worker in self.workers.values() if worker.held]
        return min(starts) + self._lease_s if starts else None

    def grants(self, now: float) -> list[Grant]:
        """Leases to give out now, the most urgent sample first: to whoever holds fewest, and among
        those to whoever was served longest ago."""
        made: list[Grant] = []
        while self.fast or self.slow:
            served = False
            hungry = [worker for worker in self.workers.values() if worker.wants > 0]
            for worker in sorted(hungry, key=lambda worker: (len(worker.held), worker.newest)):
                key = self._pick(worker)
                if key is not None:
                    made.append(self._grant(worker, self._works[key], now))
                    served = True
            if not served:
                break
        return made

    def _pick(self, worker: Worker) -> Key | None:
        """The next sample for this worker. Slow workers take new samples only while idle, so that
        a hand-over never waits behind a queue of them; without slow workers fast ones do all."""
        if worker.pool == "slow":
            if self.slow:
                return self.slow.pop()
            return None if worker.held else self.fast.pop()
        if self.slow and not any(other.pool == "slow" for other in self.workers.values()):
            return self.slow.pop()
        return self.fast.pop()

    def _grant(self, worker: Worker, work: Work, now: float) -> Grant:
        lease = self._next_lease
        self._next_lease += 1
        self._leases[lease] = work.key
        work.lease = lease
        work.attempt += 1
        if not worker.held:
            worker.head_since = now
        worker.held.append(lease)
        worker.newest = lease
        worker.wants -= 1
        return Grant(worker.name, lease, work.key, work.attempt, work.stage, work.state)

    # --- the books --------------------------------------------------------------------------------

    def _free(self, lease: int, blame: str, now: float) -> list[Poisoned]:
        """`lease` ended without a result (its holder has let go of it already)."""
        key = self._leases.get(lease)
        if key is None:
            return []  # given up on a moment ago, in another epoch
        work = self._works[key]
        work.lease = -1
        work.past.append(lease)
        (self.slow if work.stage else self.fast).push(work)
        if not blame:
            return []
        sample = key[1]
        self._deaths[sample] += 1
        if self._deaths[sample] < self._max_deaths:
            return []
        deaths = self._deaths[sample]
        wanted = [key for key in self._works if key[1] == sample]
        for key in wanted:
            self.forget(key, now)
        return [Poisoned(key, deaths, f"{deaths} workers; the last: {blame}") for key in wanted]

    def _take_from_holder(self, lease: int, now: float) -> None:
        """Nobody waits for this lease any more; its holder may still work on it."""
        for worker in self.workers.values():
            _drop_held(worker, lease, now)

    def check(self) -> None:
        """What holds after every event."""
        held = [lease for worker in self.workers.values() for lease in worker.held]
        assert len(held) == len(set(held)), "a lease with two holders"
        for worker in self.workers.values():
            assert 0 <= worker.wants <= self._limit - len(worker.held), f"{worker.name}'s credit"
        for key, work in self._works.items():
            places = (work.lease in held, key in self.fast, key in self.slow)
            assert sum(places) == 1, f"{key} is in {sum(places)} places at once"
            assert work.stage == 0 or key not in self.fast, f"{key} would be started anew"
        current = {work.lease for work in self._works.values() if work.lease >= 0}
        assert current == set(held), "a holder nobody waits for"
        known = {lease for work in self._works.values() for lease in (work.lease, *work.past)}
        assert set(self._leases) == known - {-1}, "a lease without a work"
