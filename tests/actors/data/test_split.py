"""The split between fast and slow workers, on a simulated crew."""

import heapq
import itertools
import random
from collections import deque
from collections.abc import Callable

import pytest

from actors.data.split import DRAIN_S, Split

PERIOD_S = 0.25
# Handed-over samples beyond which nothing new is begun: the look-ahead of a loader.
AHEAD = 64


class Crew:
    """Workers that never wait for samples: fast ones begin them, slow ones go on with them."""

    def __init__(self, workers: int, slow_share: Callable[[float], float], seed: int = 0) -> None:
        self.workers, self.slow_share = workers, slow_share
        self.chance = random.Random(seed)
        self.split, self.now = Split(), 0.0
        self.slow_now = 0
        self.backlog: deque[float] = deque()  # rests, in seconds
        self.history: list[tuple[float, int, float]] = []  # time, slow workers, backlog in seconds
        self.begun = self.busy_s = 0.0

    def _next(self, slow: bool) -> float:
        """One worker takes something; how long it is busy."""
        if self.backlog and (slow or len(self.backlog) > AHEAD):
            rest_s = self.backlog.popleft()
            self.split.rested(rest_s)
            return rest_s
        handed = self.chance.random() < self.slow_share(self.now)
        first_s = 0.005 if handed else self.chance.uniform(0.001, 0.005)
        self.split.began(first_s, handed_over=handed)
        self.begun += 1
        if handed:
            self.backlog.append(self.chance.uniform(0.1, 0.5))
        return first_s

    def run(self, seconds: float) -> None:
        due = [(0.0, worker) for worker in range(self.workers)]
        decision_at = 0.0
        while self.now < seconds:
            self.now, worker = heapq.heappop(due)
            while decision_at <= self.now:
                parts = 0 < self.slow_share(self.now) < 1
                self.slow_now = self.split.decide(self.workers, len(self.backlog), parts=parts)
                self.history.append((decision_at, self.slow_now, sum(self.backlog)))
                decision_at += PERIOD_S
            busy_s = self._next(slow=worker < self.slow_now)
            self.busy_s += busy_s
            heapq.heappush(due, (self.now + busy_s, worker))

    def changes(self, since: float) -> int:
        slow = [slow for at, slow, _ in self.history if at >= since]
        return sum(a != b for a, b in itertools.pairwise(slow))


def wanted(workers: int, share: float) -> float:
    rest, new = share * 0.3, 0.003 * (1 - share) + 0.005 * share
    return workers * rest / (rest + new)


@pytest.mark.parametrize("workers", [4, 16, 112])
@pytest.mark.parametrize("share", [0.002, 0.01, 0.05, 0.2, 0.5])
def test_the_split_settles_where_the_work_is(workers: int, share: float):
    crew = Crew(workers, lambda _now: share)
    crew.run(60)
    late = [slow for at, slow, _ in crew.history if at > 30]
    expected = min(max(wanted(workers, share), 1), workers - 1)
    # The law adds what drains the backlog, which chance keeps above zero.
    assert abs(sum(late) / len(late) - expected) < 1 + 0.12 * workers


@pytest.mark.parametrize("workers", [4, 16])
@pytest.mark.parametrize("share", [0.002, 0.01, 0.05, 0.5])
def test_it_does_not_oscillate(workers: int, share: float):
    crew = Crew(workers, lambda _now: share)
    crew.run(90)
    late = [slow for at, slow, _ in crew.history if at > 30]
    mean = sum(late) / len(late)
    deviation = (sum((slow - mean) ** 2 for slow in late) / len(late)) ** 0.5
    assert deviation < 1.0
    # A limit cycle would go up and down by turns; what chance does has no period.
    moves = [b - a for a, b in itertools.pairwise(late) if a != b]
    assert max(map(abs, moves), default=0) <= 3
    assert len(moves) < 0.5 * len(late)


@pytest.mark.parametrize("share", [0.002, 0.01, 0.05])
def test_the_backlog_is_what_the_law_says(share: float):
    crew = Crew(16, lambda _now: share)
    crew.run(60)
    backlogs = [seconds for at, _, seconds in crew.history if at > 20]
    assert sum(backlogs) / len(backlogs) < DRAIN_S * 2


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_samples_of_one_kind_need_no_slow_workers(share: float):
    crew = Crew(8, lambda _now: share)
    crew.run(20)
    assert {slow for _, slow, _ in crew.history} == {0}


def test_it_follows_a_change_of_the_mixture():
    crew = Crew(16, lambda now: 0.002 if now < 30 else 0.2)
    crew.run(60)
    before = [slow for at, slow, _ in crew.history if 20 < at < 30]
    after = [slow for at, slow, _ in crew.history if at > 35]
    assert sum(before) / len(before) < 5
    assert min(after) > 9


def test_one_of_each_kind_is_kept():
    split = Split()
    assert split.decide(2, 0, parts=True) == 1
    for _ in range(100):
        split.began(0.001, handed_over=True)
        split.rested(1.0)
    assert split.decide(8, 500, parts=True) == 7
    assert split.decide(1, 500, parts=True) == 0
    assert split.decide(8, 500, parts=False) == 0
