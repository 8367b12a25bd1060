"""Whose contributions a step waits for. Pure: time is handed in.

    elastic = false    everybody's, for as long as it takes
    elastic = true     everybody's but those that have been gone for a while: a step goes on with
                       what there is, at the smaller token count

A rank is gone when the supervisor has missed it for longer than a replacement takes. It is back
from the step after next of the weights that its successor asks for: the one in between may be over
before it has computed it, and from then on everybody waits for it again, so that it can never fall
further behind. Each shard finds that out for itself. A gradient that came before its rank was gone
counts, and so does one that comes before its parameter has moved.

Which rank was missing where goes into the metrics record of the step. A run that is told to take
its attendance from such a record (`attendance_of`) waits for everybody, so that nobody falls behind
what is still published, and leaves out what the record says was missing: it computes the same bits.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


class Everybody:
    """Nobody is ever excused."""

    def excused(self, step: int, param: str) -> frozenset[int]:
        """Ranks whose gradient of (step, param) is not waited for."""
        del step, param
        return frozenset()

    def silent(self, step: int) -> frozenset[int]:
        """Ranks whose facts about `step` are not waited for."""
        del step
        return frozenset()

    def counts(self, step: int, rank: int, param: str) -> bool:
        """Whether that gradient is summed once it has come."""
        del step, rank, param
        return True

    def counts_facts(self, step: int, rank: int) -> bool:
        """Whether those facts are kept once they have come."""
        del step, rank
        return True

    def peers(self, living: Iterable[str], now: float) -> None:
        """The supervisor names everybody who lives."""

    def down(self, name: str, now: float) -> None:
        """A life of that name has ended."""

    def up(self, name: str) -> None:
        """It lives."""

    def asks(self, name: str, version: int) -> None:
        """It has been given the weights of `version`."""

    def tick(self, now: float, step: int) -> bool:
        """Time has passed, and `step` is open. Whether somebody is excused who was not before."""
        del now, step
        return False


@dataclass(slots=True)
class _Rank:
    """What is known of one rank."""

    seen: bool = False  # some life of it has lived while we did
    down_since: float | None = None  # None: it lives
    gone: bool = False
    back_from: int | None = None  # the step at which it is waited for again, once it has asked


class Elastic(Everybody):
    """Knows who is gone."""

    def __init__(self, ranks: int, *, after_s: float, start_s: float, now: float) -> None:
        """`after_s`: missed for so long, a rank is gone; `start_s`: one that was never seen."""
        self._after_s, self._start_s = after_s, start_s
        self._ranks = [_Rank(down_since=now) for _ in range(ranks)]

    def excused(self, step: int, param: str) -> frozenset[int]:
        """See `Everybody`."""
        del param
        return self.silent(step)

    def silent(self, step: int) -> frozenset[int]:
        """See `Everybody`."""
        return frozenset(
            number
            for number, rank in enumerate(self._ranks)
            if rank.gone and (rank.back_from is None or step < rank.back_from)
        )

    def peers(self, living: Iterable[str], now: float) -> None:
        """See `Everybody`."""
        names = set(living)
        for number in range(len(self._ranks)):
            name = f"trainer/{number}"
            if name in names:
                self.up(name)
            else:
                self.down(name, now)

    def down(self, name: str, now: float) -> None:
        """See `Everybody`."""
        rank = self._rank(name)
        if rank is not None:
            rank.back_from = None
            rank.down_since = now if rank.down_since is None else rank.down_since

    def up(self, name: str) -> None:
        """See `Everybody`. Once it has been gone it still has to ask for weights."""
        rank = self._rank(name)
        if rank is not None:
            rank.seen, rank.down_since = True, None

    def asks(self, name: str, version: int) -> None:
        """See `Everybody`."""
        rank = self._rank(name)
        if rank is not None and rank.gone:
            rank.back_from = version + 2

    def _rank(self, name: str) -> _Rank | None:
        role, _, number = name.partition("/")
        if role != "trainer" or not number.isdecimal() or int(number) >= len(self._ranks):
            return None
        return self._ranks[int(number)]

    def tick(self, now: float, step: int) -> bool:
        """See `Everybody`."""
        news = False
        for rank in self._ranks:
            if rank.gone and rank.back_from is not None and step >= rank.back_from:
                rank.gone, rank.back_from = False, None
            if rank.gone or rank.down_since is None:
                continue
            patience_s = self._after_s if rank.seen else self._start_s
            if now - rank.down_since > patience_s:
                rank.gone = news = True
        return news


@dataclass(slots=True)
class Recorded(Everybody):
    """Leaves out what a record says was missing. Steps it does not know were attended by all."""

    absent: Mapping[int, Mapping[str, frozenset[int]]]  # step -> parameter -> ranks
    quiet: Mapping[int, frozenset[int]] = field(default_factory=dict[int, frozenset[int]])

    def counts(self, step: int, rank: int, param: str) -> bool:
        """See `Everybody`."""
        return rank not in self.absent.get(step, {}).get(param, frozenset())

    def counts_facts(self, step: int, rank: int) -> bool:
        """See `Everybody`."""
        return rank not in self.quiet.get(step, frozenset())


# --- Records --------------------------------------------------------------------------------------


def mask_of(ranks: Iterable[int]) -> int:
    """Ranks as bits of a word."""
    return sum(1 << rank for rank in ranks)


def described(masks: Sequence[int], silent: Iterable[int]) -> dict[str, Any]:
    """What a metrics record says of who was missing: nothing if nobody was.

    `masks`: of all parameters in their order. "absent" maps a rank to runs of parameters, first
    and last; "silent" lists ranks whose facts did not come.
    """
    found: dict[str, list[list[int]]] = {}
    for index, mask in enumerate(masks):
        for rank in range(mask.bit_length()):
            if mask >> rank & 1:
                runs = found.setdefault(str(rank), [])
                if runs and runs[-1][1] == index - 1:
                    runs[-1][1] = index
                else:
                    runs.append([index, index])
    quiet = sorted(silent)
    return ({"absent": found} if found else {}) | ({"silent": quiet} if quiet else {})


def recorded(records: Iterable[Mapping[str, Any]], names: Sequence[str]) -> Recorded:
    """The attendance that metrics records describe; `names`: all parameters in their order.

    Raises `ValueError` for a record that cannot be.
    """
    absent: dict[int, dict[str, frozenset[int]]] = {}
    quiet: dict[int, frozenset[int]] = {}
    for record in records:
        step, missing = int(record["step"]), dict[str, set[int]]()
        for rank, runs in record.get("absent", {}).items():
            for first, last in runs:
                if not 0 <= first <= last < len(names):
                    raise ValueError(f"step {step} knows a parameter {last} of {len(names)}")
                for name in names[first : last + 1]:
                    missing.setdefault(name, set()).add(int(rank))
        if missing:
            absent[step] = {name: frozenset(ranks) for name, ranks in missing.items()}
        if record.get("silent"):
            quiet[step] = frozenset(int(rank) for rank in record["silent"])
    return Recorded(absent, quiet)
