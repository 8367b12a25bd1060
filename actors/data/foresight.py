"""Which samples will be slow, and how much earlier they have to be begun. Pure.

In strict order a batch waits for its slowest sample, unless that one was begun early enough. A
sample of turn t, expected to take c seconds, has to be begun when turn t - c * rate is consumed,
`rate` being turns consumed per second. Most are begun later than that anyway, a look-ahead of w
turns before their own; only those with c * rate > w are drawn out of their turn. So looking far
ahead costs memory for the slow samples only.

What a sample will take is what it took when it was last seen; of one not seen yet, what others of
its kind (a language, say) and about its size took. Where nothing is known that tells one sample
from another there is no foresight, and the whole window has to cover what comes as a surprise.
"""

import heapq
import math
from array import array
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

# Samples that weigh as much as what is known of larger groups.
_PRIOR = 1.0
# Means forget beyond this many, so that they follow the machine.
_MEMORY = 64.0
# Begun this much earlier than expected durations say: they are guesses, and there may be a queue.
_PRUDENCE = 2.0
# By which the longest of late is forgotten with every sample: by half in seven hundred.
_FADING = 0.999
# Samples remembered one by one: 8 MB. A larger data set is seldom seen twice.
_REMEMBERED = 2_000_000
# Turns looked ahead at most; drawing one costs microseconds and about 100 bytes.
FARTHEST = 4096

Features = tuple[str, float]  # kind, size in any unit
D = TypeVar("D")


@dataclass(slots=True)
class _Known:
    mean: float = 0.0
    count: float = 0.0

    def add(self, seconds: float) -> None:
        self.count = min(self.count + 1, _MEMORY)
        self.mean += (seconds - self.mean) / self.count

    def towards(self, prior: float) -> float:
        """The mean, drawn to `prior` as long as little is known."""
        return (self.count * self.mean + _PRIOR * prior) / (self.count + _PRIOR)


class Costs:
    """Seconds that samples took."""

    def __init__(self, samples: int) -> None:
        """`samples`: how many there are. Each is remembered in four bytes, unless there are so
        many that this would cost more than it is worth."""
        remembered = samples if samples <= _REMEMBERED else 0
        self._seen = array("f", bytes(4 * remembered))  # 0: not yet
        self._kinds: dict[str, _Known] = {}
        self._sizes: dict[tuple[str, int], _Known] = {}
        self.longest = 0.0  # of late
        self.surprise = 0.0  # of late: the most by which one took longer than it was begun early

    def note(self, sample: int, seconds: float, features: Features | None = None) -> None:
        """`sample` took so long, over all its stages."""
        excess = seconds - _PRUDENCE * self.expect(sample, features)
        self.surprise = max(excess, _FADING * self.surprise)
        self.longest = max(seconds, _FADING * self.longest)
        self.remember(sample, seconds, features)

    def remember(self, sample: int, seconds: float, features: Features | None = None) -> None:
        """`note`, where nobody asks for the longest or for surprises."""
        if sample < len(self._seen):
            self._seen[sample] = max(seconds, 1e-6)
        if features is not None:
            kind, size = features
            self._kinds.setdefault(kind, _Known()).add(seconds)
            self._sizes.setdefault((kind, _octave(size)), _Known()).add(seconds)

    def expect(self, sample: int, features: Features | None = None) -> float:
        """How long it will take; 0 when nothing is known that would tell."""
        seen = self._seen[sample] if sample < len(self._seen) else 0.0
        if seen or features is None:
            return seen
        kind, size = features
        if kind not in self._kinds:
            return 0.0
        expected = self._kinds[kind].mean
        known = self._sizes.get((kind, _octave(size)))
        return expected if known is None else known.towards(expected)


def _octave(size: float) -> int:
    """Which half of which power of two."""
    return round(2 * math.log2(max(size, 0.0) + 1))


class Horizon(Generic[D]):
    """Draws in their turn, and those expected to be slow before it."""

    def __init__(self, draw: Callable[[], D | None], expect: Callable[[D], float]) -> None:
        """`draw` gives the draws in turn, None when there are no more for now."""
        self._draw = draw
        self._expect = expect
        self._ahead: deque[tuple[int, D]] = deque()  # seen, their turn not yet come
        self._late: list[tuple[float, int, D]] = []  # of those, by when they have to begin: a heap
        self._begun: set[int] = set()  # of those, the ones that have
        self._drawn = 0  # turns seen
        self.turn = 0  # turns that have come

    def next(self) -> D | None:
        """The draw whose turn comes, of those not begun before; None when there are no more."""
        while True:
            if not self._ahead and not self._look():
                return None
            turn, draw = self._ahead.popleft()
            self.turn = turn + 1
            if turn not in self._begun:
                return draw
            self._begun.remove(turn)

    def early(self, consumed: int, rate: float, longest_s: float) -> list[D]:
        """Draws to begin now though their turn has not come.

        `consumed`: turns that are over. `rate`: turns consumed per second. `longest_s`: nothing
        takes longer, as far as is known.
        """
        farthest = consumed + min(_PRUDENCE * rate * longest_s, FARTHEST)
        while self._drawn < farthest:
            if not self._look():
                break
            turn, draw = self._ahead[-1]
            ahead = _PRUDENCE * rate * self._expect(draw)
            heapq.heappush(self._late, (turn - ahead, turn, draw))
        out: list[D] = []
        while self._late and self._late[0][0] <= consumed:
            _, turn, draw = heapq.heappop(self._late)
            if turn >= self.turn:
                self._begun.add(turn)
                out.append(draw)
        return out

    def first(self) -> D | None:
        """The draw whose turn comes next, if it has been seen."""
        return self._ahead[0][1] if self._ahead else None

    def _look(self) -> bool:
        """See one draw more."""
        draw = self._draw()
        if draw is None:
            return False
        self._ahead.append((self._drawn, draw))
        self._drawn += 1
        return True

    def __len__(self) -> int:
        """Draws seen and not begun."""
        return len(self._ahead) - len(self._begun)


def window(rate: float, slowest_s: float, *, least: int, most: int) -> int:
    """Turns to look ahead so that a sample of `slowest_s` seconds makes nobody wait.

    The samples that are late for it all lie within what is consumed meanwhile.
    """
    return int(min(max(_PRUDENCE * rate * slowest_s, least), most, FARTHEST))
