"""Who works on which sample. Pure: no sockets, no clock; time is handed in.

A sample is leased to one worker at a time. A worker holds a few leases (its credit) and works on
them in the order they were granted, so only the oldest one's clock runs, and only the oldest one
is blamed when the worker dies. Two queues: new samples, and slow ones: those expected to be slow,
and those that fast workers handed over at a stage boundary, resumed from the stage reached. Slow
workers see to the second queue first, fast ones to the first; whoever has nothing to do helps.

A sample may be parked: its worker waits for something on its behalf and works on others. If that
worker dies, any of those it had begun may be to blame: none is, yet, but each of them is tried
again alone, and then nobody else can have been at fault.

Results are judged by what they are about: the first one for a sample counts, later ones are
dropped and counted. A sample is therefore finished exactly once, whatever died, expired or was
said twice.
"""

from collections import Counter

from actors.data.ordering import Key
from actors.data.pools import Pools
from actors.data.works import Grant, Poisoned, Work, Worker
from protocol.messages import Pool

__all__ = ["Grant", "LeaseTable", "Poisoned", "Work", "Worker"]


class LeaseTable:
    """All works, workers and leases of one loader's life."""

    def __init__(
        self,
        *,
        lease_s: float,
        limit: int,
        max_deaths: int,
        first_lease: int = 0,
        urgency: int | None = None,
    ) -> None:
        """`limit`: leases a worker may hold. `first_lease`: later ones count up from it.
        `urgency`: what is due so much earlier goes first whatever the pools; None: never.
        """
        self._lease_s = lease_s
        self._limit = limit
        self._max_deaths = max_deaths
        self._next_lease = first_lease
        self._works: dict[Key, Work] = {}
        self._leases: dict[int, Key] = {}  # current ones, and past ones of unfinished works
        self._deaths: Counter[int] = Counter()  # by sample: in a later epoch it is no healthier
        self.workers: dict[str, Worker] = {}
        self._pools = Pools(urgency)
        self.fast, self.slow = self._pools.fast, self._pools.slow
        self._reserved = ""  # a worker for them, one at a time: it gets nothing else
        self._leased = 0
        self.late = 0  # results nobody waited for any more

    # --- what is wanted ---------------------------------------------------------------------------

    def add(self, key: Key, order: int, *, slow: bool = False) -> None:
        """Somebody wants this sample; asking for it again may move it forward.

        `slow`: it is expected to be, so slow workers are the ones to begin it.
        """
        work = self._works.get(key)
        if work is None:
            work = self._works[key] = Work(key, order, is_slow=slow)
            self._pools.queue_of(work).push(work)
        elif order < work.order:
            work.order = order
            queue = self._pools.queue_of(work)
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
        self._pools.queue_of(work).discard(key)
        for lease in (work.lease, *work.past):
            self._leases.pop(lease, None)
        if work.lease >= 0:
            self._leased -= 1
            if work.holder in self.workers:
                self.workers[work.holder].drop(work.lease, now)

    def subject(self, lease: int) -> Key | None:
        """The unfinished sample that a lease is about, the present one or one before."""
        return self._leases.get(lease)

    def unfinished(self) -> int:
        """Samples wanted and not finished."""
        return len(self._works)

    @property
    def leased(self) -> int:
        """Leases out."""
        return self._leased

    @property
    def parked(self) -> int:
        """Samples that wait, of those leased."""
        return sum(len(worker.parked) for worker in self.workers.values())

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
        worker = Worker(name, incarnation, pool, shares_files, heard=now, limit=self._limit)
        self.workers[name] = worker
        self._pools.members[pool] += 1
        return poisoned

    def request(self, name: str, credit: int, now: float) -> bool:
        """`name` has room for `credit` more. False when it is not known: it has to join first."""
        worker = self.workers.get(name)
        if worker is None:
            return False
        worker.heard = now
        self._feed(worker, credit)
        return True

    def allow(self, name: str, limit: int) -> None:
        """`name` may hold so many, and wants them: for workers that do not ask for themselves."""
        worker = self.workers[name]
        worker.limit = limit
        self._feed(worker, limit)

    def assign(self, name: str, pool: Pool) -> None:
        """From now on `name` is one of that pool. What it has it keeps."""
        worker = self.workers[name]
        self._pools.members[worker.pool] -= 1
        self._pools.members[pool] += 1
        worker.pool = pool
        self._pools.note(worker)

    def _feed(self, worker: Worker, credit: int) -> None:
        """`worker` wants `credit` more, as far as it may hold them."""
        if worker.name == self._reserved:
            credit = 0
        worker.wants = max(0, min(credit, worker.limit - len(worker.held)))
        self._pools.note(worker)

    def leave(self, name: str, *, blame: str, now: float) -> list[Poisoned]:
        """`name` is gone; what it held is free at once. The sample it worked on is blamed with
        the words in `blame`; with none, nobody is."""
        worker = self.workers.pop(name, None)
        if worker is None:
            return []
        self._pools.members[worker.pool] -= 1
        self._reserved = "" if name == self._reserved else self._reserved
        begun = {*list(worker.held)[:1], *worker.parked} if blame else set[int]()
        poisoned: list[Poisoned] = []
        for lease in (*worker.held, *worker.parked):
            if lease in begun and len(begun) > 1:
                self._suspect(lease, now)
            else:
                poisoned += self._free(lease, f"{name} {blame}" if lease in begun else "", now)
        return poisoned

    def _suspect(self, lease: int, now: float) -> None:
        key = self._leases.get(lease)
        if key is not None:
            self._works[key].is_suspect = True
            self._free(lease, "", now)

    def silent(self, silence_s: float, now: float) -> list[str]:
        """Workers of other hosts unheard for longer than that. The supervisor watches our own."""
        return [
            worker.name
            for worker in self.workers.values()
            if not worker.shares_files and now - worker.heard > silence_s
        ]

    # --- what workers say -------------------------------------------------------------------------

    def at_work(self, name: str, lease: int, since: float) -> None:
        """`name` is known to work on this lease of its own, out of turn maybe: what it had before
        is done, and word of that on the way."""
        worker = self.workers.get(name)
        if worker is not None and lease in worker.held:
            worker.held.remove(lease)
            worker.held.appendleft(lease)
            worker.head_since = since

    def park(self, name: str, lease: int, now: float) -> None:
        """`name` waits on behalf of this sample, and has room for another."""
        worker = self.workers.get(name)
        if worker is None or lease not in worker.held:
            return
        worker.drop(lease, now)
        worker.parked[lease] = now
        self._feed(worker, worker.wants + 1)

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
        self._leased -= 1
        work.lease, work.stage, work.state = -1, stage, state
        self._pools.queue_of(work).push(work)
        return True

    def _settle(self, name: str, lease: int, now: float) -> Key | None:
        """The unfinished sample `lease` is about, after noting that its holder has a free place."""
        worker = self.workers.get(name)
        if worker is not None:
            worker.heard = now
            was_parked = lease in worker.parked  # its place was given away when it was parked
            worker.drop(lease, now)
            if name == self._reserved and worker.is_idle and not self._pools.suspects:
                self._reserved = ""
                self._feed(worker, worker.limit)
            else:
                self._feed(worker, worker.wants + (not was_parked))
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
            late = [lease for lease, since in worker.parked.items() if now - since > self._lease_s]
            if worker.held and now - worker.head_since > self._lease_s:
                late.append(worker.held[0])
            if not late:
                continue
            rest = [lease for lease in (*worker.held, *worker.parked) if lease not in late]
            worker.held.clear()
            worker.parked.clear()
            worker.wants = 0
            self._reserved = "" if worker.name == self._reserved else self._reserved
            why = f"{worker.name} was not done after {self._lease_s:g} s"
            for lease in late:
                poisoned += self._free(lease, why, now, "never returns")
            for lease in rest:
                self._free(lease, "", now)
        return poisoned

    def next_due(self) -> float | None:
        """When the next lease expires, unless something happens before."""
        starts = [worker.head_since for worker in self.workers.values() if worker.held]
        starts += [since for worker in self.workers.values() for since in worker.parked.values()]
        return min(starts) + self._lease_s if starts else None

    def grants(self, now: float) -> list[Grant]:
        """Leases to give out now, the most urgent sample first: to whoever holds fewest, and among
        those to whoever was served longest ago."""
        made = self._try_suspect(now)
        while self.fast or self.slow:
            first = self._pools.first(self.workers)
            for worker in sorted(first, key=lambda worker: (len(worker.held), worker.newest)):
                key = self._pools.pick(worker, self.workers)
                if key is not None:
                    made.append(self._grant(worker, self._works[key], now))
                    break
            else:
                break
        return made

    def _try_suspect(self, now: float) -> list[Grant]:
        """A worker with nothing else, for a sample that may have ended another."""
        if not self._pools.suspects:
            return []
        if not self._reserved:
            first = min(
                self._pools.first(self.workers), key=lambda worker: len(worker.held), default=None
            )
            if first is None:
                return []
            self._reserved = first.name
            first.wants = 0
        worker = self.workers[self._reserved]
        key = self._pools.suspects.pop() if worker.is_idle else None
        return [] if key is None else [self._grant(worker, self._works[key], now)]

    def _grant(self, worker: Worker, work: Work, now: float) -> Grant:
        lease = self._next_lease
        self._next_lease += 1
        self._leases[lease] = work.key
        self._leased += 1
        work.lease, work.holder = lease, worker.name
        work.attempt += 1
        if not worker.held:
            worker.head_since = now
        worker.held.append(lease)
        worker.newest = lease
        self._feed(worker, worker.wants - 1)
        return Grant(worker.name, lease, work.key, work.attempt, work.stage, work.state)

    # --- the books --------------------------------------------------------------------------------

    def _free(
        self, lease: int, blame: str, now: float, kind: str = "ends its worker"
    ) -> list[Poisoned]:
        """`lease` ended without a result (its holder has let go of it already)."""
        key = self._leases.get(lease)
        if key is None:
            return []  # given up on a moment ago, in another epoch
        work = self._works[key]
        work.lease = -1
        work.past.append(lease)
        self._leased -= 1
        self._pools.queue_of(work).push(work)
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
        reason = f"{deaths} workers; the last: {blame}"
        return [Poisoned(key, deaths, reason, kind) for key in wanted]

    def check(self) -> None:
        """What holds after every event."""
        out = [lease for w in self.workers.values() for lease in (*w.held, *w.parked)]
        assert len(out) == len(set(out)) == self._leased, "a lease with two holders, or uncounted"
        for worker in self.workers.values():
            assert 0 <= worker.wants <= max(0, worker.limit - len(worker.held)), (
                f"{worker.name}'s credit"
            )
        queues = (self.fast, self.slow, self._pools.suspects)
        for key, work in self._works.items():
            places = (work.lease in out, *(key in queue for queue in queues))
            assert sum(places) == 1, f"{key} is in {sum(places)} places at once"
            assert work.lease in out or key in self._pools.queue_of(work), (
                f"{key} in the wrong queue"
            )
        current = {work.lease for work in self._works.values() if work.lease >= 0}
        assert current == set(out), "a holder nobody waits for"
        known = {lease for work in self._works.values() for lease in (work.lease, *work.past)}
        assert set(self._leases) == known - {-1}, "a lease without a work"
        members = Counter(worker.pool for worker in self.workers.values())
        assert +self._pools.members == members, "pools miscounted"
