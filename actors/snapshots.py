"""Getting one version of all parameters from several shards that move on meanwhile. Pure.

Every shard is asked for its newest complete version. Shards are at most one apart, and each keeps
the two newest versions, so whoever answered with a newer one is asked again for the oldest that
came. If that is gone by then (training is fast, or the asker slow), all start over.
"""

from collections.abc import Sequence
from typing import Generic, NamedTuple, TypeVar

T = TypeVar("T")

NEWEST = -1
# Ask again after this long without a useful answer, then ever more rarely.
REPEAT_S = 0.25
REPEAT_MAX_S = 2.0


class Ask(NamedTuple):
    """Send `CodesRequest(version)` to shard `shard`."""

    shard: int
    version: int


class Snapshot(NamedTuple, Generic[T]):
    """All parameters at one version."""

    version: int
    parameters: dict[str, T]


class SnapshotCollector(Generic[T]):
    """Collects what shards send for one snapshot.

    Call `asks` now and then and send what it says; `add` every parameter that arrives whole (its
    digest checked); `result` is the snapshot once there is one.
    """

    def __init__(self, owned: Sequence[Sequence[str]]) -> None:
        """`owned`: names of the parameters of each shard."""
        self._owned = [frozenset(names) for names in owned]
        self._got: list[dict[str, T]] = [{} for _ in owned]
        self._version = [NEWEST] * len(owned)  # of what has been got
        self._wanted = [NEWEST] * len(owned)
        self._asked: list[float | None] = [None] * len(owned)
        self._repeat_s = [REPEAT_S] * len(owned)
        # How many times in a row all had answered, more than one version apart. While somebody
        # trains that happens to a slow asker; a trainer's own shards cannot move without it.
        self.far_apart = 0

    @property
    def missing(self) -> list[int]:
        """Shards whose parameters are not all here."""
        return [k for k, names in enumerate(self._owned) if len(self._got[k]) < len(names)]

    def asks(self, now: float) -> list[Ask]:
        """What to ask for now: first requests, and those that went unanswered for a while."""
        out: list[Ask] = []
        for shard in self.missing:
            asked = self._asked[shard]
            if asked is not None and now < asked + self._repeat_s[shard]:
                continue
            if asked is not None:
                self._repeat_s[shard] = min(2 * self._repeat_s[shard], REPEAT_MAX_S)
            self._asked[shard] = now
            out.append(Ask(shard, self._wanted[shard]))
        return out

    def shard_up(self, shard: int) -> None:
        """That shard lives anew and has forgotten the question."""
        if 0 <= shard < len(self._owned):
            self._ask_again(shard, self._wanted[shard])

    def add(self, shard: int, version: int, name: str, value: T) -> None:
        """A parameter came. Foreign ones are ignored."""
        if not 0 <= shard < len(self._owned) or name not in self._owned[shard] or version < 0:
            return
        if version != self._version[shard]:
            self._got[shard].clear()
            self._version[shard] = version
        self._got[shard][name] = value
        if not self.missing:
            self._align()

    def result(self) -> Snapshot[T] | None:
        """The snapshot, or None while something is missing."""
        if self.missing or len(set(self._version)) > 1:
            return None
        merged = {name: value for got in self._got for name, value in got.items()}
        return Snapshot(self._version[0], merged)

    def _align(self) -> None:
        """All shards have answered: ask again those that are not at the oldest version."""
        oldest = min(self._version)
        self.far_apart = self.far_apart + 1 if max(self._version) > oldest + 1 else 0
        for shard, version in enumerate(self._version):
            if version == oldest:
                continue
            if self._wanted[shard] == oldest:
                # It was asked for just that and no longer has it: the others must catch up.
                self._start_over()
                return
            self._ask_again(shard, oldest)

    def _start_over(self) -> None:
        for shard in range(len(self._owned)):
            self._ask_again(shard, NEWEST)

    def _ask_again(self, shard: int, version: int) -> None:
        self._wanted[shard] = version
        self._version[shard] = NEWEST
        self._got[shard].clear()
        self._asked[shard] = None
        self._repeat_s[shard] = REPEAT_S
