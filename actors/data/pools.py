"""Who works on what kind of sample: the queues of the lease table and the workers at them. Pure.

Slow workers see to the slow queue first, fast ones to that of new samples; whoever has nothing to
do helps.
"""

from collections import Counter

from actors.data.ordering import Key
from actors.data.works import Hungry, Queue, Work, Worker
from protocol.messages import Pool


class Pools:
    """The queues, and whoever wants something from them."""

    def __init__(self, urgency: int | None) -> None:
        """`urgency`: what is due so much earlier goes first whatever the pools; None: never."""
        self.fast = Queue()
        self.slow = Queue()
        self.suspects = Queue()
        self.members = Counter[Pool]()
        self._hungry: dict[Pool, Hungry] = {"fast": Hungry(), "slow": Hungry()}
        self._urgency = urgency

    def note(self, worker: Worker) -> None:
        """What `worker` wants or holds has changed."""
        self._hungry[worker.pool].note(worker)

    def queue_of(self, work: Work) -> Queue:
        """Where it waits, when it does."""
        if work.is_suspect:
            return self.suspects
        return self.slow if work.stage or work.is_slow else self.fast

    def first(self, workers: dict[str, Worker]) -> list[Worker]:
        """Of each pool, who is served next."""
        found = [hungry.first(workers, pool) for pool, hungry in self._hungry.items()]
        return [worker for worker in found if worker is not None]

    def pick(self, worker: Worker, workers: dict[str, Worker]) -> Key | None:
        """The next sample for this worker, who holds no more than any other of its pool.

        Slow workers hold next to nothing, so that a slow sample never waits behind a queue; new
        ones they take only when there is no other. Fast workers take slow samples only when they
        have nothing at all, and no slow worker has. Without slow workers fast ones do all.
        """
        if len(worker.held) <= 1:
            urgent = self._urgent()
            if urgent is not None:
                return urgent.pop()
        if worker.pool == "slow":
            if len(worker.held) > 1:
                return None
            return self.slow.pop() if self.slow else self.fast.pop()
        if self.slow and not self.members["slow"]:
            return self.slow.pop()
        if self.fast or worker.held or self._is_slow_one_idle(workers):
            return self.fast.pop()
        return self.slow.pop()

    def _urgent(self) -> Queue | None:
        """The queue whose first sample is due much earlier than the other's."""
        fast, slow = self.fast.first(), self.slow.first()
        if self._urgency is None or fast is None or slow is None:
            return None
        if abs(fast - slow) <= self._urgency:
            return None
        return self.fast if fast < slow else self.slow

    def _is_slow_one_idle(self, workers: dict[str, Worker]) -> bool:
        first = self._hungry["slow"].first(workers, "slow")
        return first is not None and first.is_idle
