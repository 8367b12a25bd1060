"""Who is waited for, when a parameter may move, when a step is over. No sockets, no torch.

A parameter at version v takes gradients of step v + 1, one from each rank, and moves when all are
there. The step is over for a shard when all its parameters have moved. Shard 0 commits the step for
everybody: once it has the facts of all ranks and the part of every other shard.

Two rules make every death repairable:

- Shard 0 moves nothing to step s before it holds (durably) the facts of all ranks about s, and
  before step s - 1 is committed. So a trainer that sees all updates of s knows that its facts have
  arrived, and whatever a shard or a trainer has forgotten concerns two versions at most, which are
  both still published.
- Repair is asked for by whoever waits (`query`), and answered from what is there. The parts that
  shards report to shard 0 are repeated while they wait, the newest two: shard 0 may lack either.

Where a parameter gets a new basis in a step, sketches come before gradients, in rounds of their own
(`Setting.rounds`): when all ranks' are there they are summed, and everybody is asked for the next
round, or told the basis. A shard that dies over it begins again at round 0, which trainers can
answer at any time; sums and bases come out the same.

A rank that never comes back is waited for, unless `attendance` excuses it.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from actors.optimizer.attendance import Everybody
from actors.optimizer.instructions import Apply as Apply
from actors.optimizer.instructions import Ask as Ask
from actors.optimizer.instructions import Checkpoint as Checkpoint
from actors.optimizer.instructions import Commit as Commit
from actors.optimizer.instructions import Instruction as Instruction
from actors.optimizer.instructions import KeepFacts as KeepFacts
from actors.optimizer.instructions import Need as Need
from actors.optimizer.instructions import Publish as Publish
from actors.optimizer.instructions import Report as Report
from actors.optimizer.instructions import Sum as Sum

# A part is repeated after this long without news, then ever more rarely: it is a small message.
REPEAT_S = 0.25
REPEAT_MAX_S = 2.0


@dataclass(slots=True)
class Refusals:
    """What was ignored and why, as counters: duplicates are normal, the others worth a look."""

    duplicate: int = 0
    early: int = 0  # for a step that cannot be open yet
    foreign: int = 0  # a rank, shard or parameter that is not of this run or shard


@dataclass(slots=True)
class Setting:
    """What never changes about a shard's rounds."""

    params: Sequence[str]
    shard: int
    shards: int
    ranks: int
    checkpoint_every: int
    last_step: int
    # Rounds of sketches that come before the gradient of (step, parameter).
    rounds: Callable[[int, str], int] = lambda _step, _param: 0


@dataclass(slots=True)
class ShardRounds:
    """The rounds of one shard; `versions`, `committed`, `facts_of` start as the state has them."""

    setting: Setting
    versions: dict[str, int]
    committed: int
    facts_of: dict[int, set[int]] = field(default_factory=dict[int, set[int]])
    refusals: Refusals = field(default_factory=Refusals)
    attendance: Everybody = field(default_factory=Everybody)
    # Who has contributed to a parameter's next version; kept until it has moved.
    _given: dict[str, set[int]] = field(default_factory=dict[str, set[int]])
    # Rounds of sketches that are summed; `_given` is about the round after them.
    _round: dict[str, int] = field(default_factory=dict[str, int])
    _moving: set[str] = field(default_factory=set[str])
    _parts: dict[int, set[int]] = field(default_factory=dict[int, set[int]])
    _repeat_s: float = REPEAT_S
    _repeat_at: float | None = None  # None: from the next tick on

    def __post_init__(self) -> None:
        self._given = {name: set() for name in self.setting.params}

    # --- what is known ---------------------------------------------------------------------------

    @property
    def leading(self) -> bool:
        """Shard 0 leads."""
        return self.setting.shard == 0

    @property
    def complete(self) -> int:
        """The newest version that all parameters of this shard have reached."""
        return min(self.versions.values())

    @property
    def settled(self) -> bool:
        """Whether all parameters are at one version."""
        return self.complete == max(self.versions.values())

    @property
    def finished(self) -> bool:
        """Whether the last step is committed here."""
        return self.committed >= self.setting.last_step

    def ranks_given(self, param: str) -> frozenset[int]:
        """Ranks whose gradient for the next version of `param` is here."""
        return frozenset(self._given[param])

    def takes_gradient(self, step: int, rank: int, param: str) -> bool:
        """Whether this gradient would be new and is for the step that is open. Counts refusals."""
        if param not in self.versions or not 0 <= rank < self.setting.ranks:
            self.refusals.foreign += 1
        elif step <= self.versions[param] or (
            step == self.versions[param] + 1 and rank in self._given[param]
        ):
            self.refusals.duplicate += 1
        elif (
            step > self.versions[param] + 1
            or step > self.setting.last_step
            or self._sketched(param) < self.setting.rounds(step, param)
        ):
            self.refusals.early += 1
        else:
            return True
        return False

    def takes_sketch(self, step: int, rank: int, param: str, number: int) -> bool:
        """Whether this sketch would be new and is for the round that is open. Counts refusals."""
        if param not in self.versions or not 0 <= rank < self.setting.ranks:
            self.refusals.foreign += 1
            return False
        version, done = self.versions[param], self._sketched(param)
        if (
            step > version + 1
            or step > self.setting.last_step
            or (step > version and number > done)
        ):
            self.refusals.early += 1
        elif step <= version or number < done or rank in self._given[param]:
            self.refusals.duplicate += 1
        else:
            return number < self.setting.rounds(step, param)
        return False

    def takes_facts(self, step: int, rank: int) -> bool:
        """Whether these facts would be new. Counts refusals."""
        if not self.leading or not 0 <= rank < self.setting.ranks:
            self.refusals.foreign += 1
        elif step <= self.committed or rank in self.facts_of.get(step, ()):
            self.refusals.duplicate += 1
        elif step > self.complete + 1 or step > self.setting.last_step:
            self.refusals.early += 1
        else:
            return True
        return False

    def waiting_for(self) -> str:
        """Whom this shard waits for, in words."""
        if self.finished:
            return "the end of the run"
        step = self.complete + 1
        if self.leading and self.committed < self.complete:
            missing = self._missing_parts(self.committed + 1)
            names = ", ".join(f"optimizer_shard/{shard}" for shard in missing)
            return f"{names} to finish step {self.committed + 1}"
        open_params = [name for name, v in self.versions.items() if v < step]
        excused = self.attendance.silent(step)
        late = [
            rank
            for rank in range(self.setting.ranks)
            if rank not in excused
            and (
                any(rank not in self._given[name] for name in open_params)
                or (self.leading and rank not in self.facts_of.get(step, ()))
            )
        ]
        lacking = sum(self.setting.ranks - len(self._given[name]) for name in open_params)
        names = ", ".join(f"trainer/{rank}" for rank in late)
        return f"{lacking} gradients of step {step} from {names}"

    # --- what happens ----------------------------------------------------------------------------

    def begin(self, now: float) -> list[Instruction]:
        """This life starts: go on where the state was left."""
        before = self.committed
        out = (
            self._commit() if self.leading else self._part_over() if self.complete > before else []
        )
        if not self.leading and not out and self.complete:
            out = self._report(now)
        if self.committed == before and self.settled and self._checkpoint_due(self.complete):
            # Perhaps the predecessor died while writing it; the writer knows whether it exists.
            out.append(Checkpoint(self.complete))
        return out

    def gradient(self, step: int, rank: int, param: str) -> list[Instruction]:
        """The gradient of (step, rank, param) is at hand."""
        if not self.takes_gradient(step, rank, param):
            return []
        self._given[param].add(rank)
        return self._ready((param,))

    def sketch(self, step: int, rank: int, param: str, number: int) -> list[Instruction]:
        """The sketch of (step, rank, param) in that round is at hand."""
        if not self.takes_sketch(step, rank, param, number):
            return []
        self._given[param].add(rank)
        complete = len(self._given[param]) == self.setting.ranks
        return [Sum(step, param, number)] if complete else []

    def summed(self, param: str) -> list[Instruction]:
        """A `Sum` has been carried out."""
        self._given[param].clear()
        self._round[param] = self._sketched(param) + 1
        return [Ask(self.versions[param] + 1, param, tuple(range(self.setting.ranks)))]

    def facts(self, step: int, rank: int) -> list[Instruction]:
        """The facts of (step, rank) are at hand."""
        if not self.takes_facts(step, rank):
            return []
        self.facts_of.setdefault(step, set()).add(rank)
        kept = [KeepFacts(step, rank)] if self.attendance.counts_facts(step, rank) else []
        return kept + self._ready(self.setting.params)

    def applied(self, param: str) -> list[Instruction]:
        """An `Apply` has been carried out: durable and published in the state."""
        self._moving.discard(param)
        self._given[param].clear()
        self._round.pop(param, None)
        self.versions[param] += 1
        version = self.versions[param]
        out: list[Instruction] = [Publish(version, param, tuple(range(self.setting.ranks)))]
        if self.complete < version:
            return out
        return out + (self._commit() if self.leading else self._part_over())

    def part(self, version: int, shard: int) -> list[Instruction]:
        """Shard `shard` reports that its part of `version` is durable."""
        if not self.leading or not 0 < shard < self.setting.shards:
            self.refusals.foreign += 1
            return []
        if version <= self.committed or shard in self._parts.get(version, ()):
            self.refusals.duplicate += 1
            return []
        self._parts.setdefault(version, set()).add(shard)
        return self._commit()

    def query(self, rank: int, version: int, lacking: Iterable[str]) -> list[Instruction]:
        """`rank` waits for updates to `version` and lacks some: repeat them, say what is needed."""
        if not 0 <= rank < self.setting.ranks:
            self.refusals.foreign += 1
            return []
        out: list[Instruction] = [
            Publish(version, name, (rank,))
            for name in lacking
            if name in self.versions and 0 <= self.versions[name] - version <= 1 <= version
        ]
        lacks = [
            name
            for name in self.setting.params
            if self.versions[name] == version - 1 and rank not in self._given[name]
        ]
        first = {name for name in lacks if not self._sketched(name)}
        wanted = {name for name in lacks if self.setting.rounds(version, name)}
        out += [Ask(version, name, (rank,)) for name in lacks if name in wanted - first]
        facts = (
            self.leading and version > self.committed and rank not in self.facts_of.get(version, ())
        )
        params = tuple(name for name in lacks if name not in wanted)
        sketches = tuple(name for name in lacks if name in wanted & first)
        out.append(Need(rank, version, params, facts, sketches))
        return out

    def version_for(self, asked: int) -> int:
        """Which version to hand out to somebody who asks for `asked` (-1: the newest)."""
        newest = max(self.versions.values())
        return asked if max(newest - 1, 0) <= asked <= self.complete else self.complete

    def leader_up(self, now: float) -> list[Instruction]:
        """Shard 0 lives anew: it has forgotten what it was told."""
        return [] if self.leading or not self.complete else self._report(now)

    def tick(self, now: float) -> list[Instruction]:
        """Time has passed without news."""
        excused = self.attendance.tick(now, self.complete + 1)
        out = self._ready(self.setting.params) if excused else []
        if self.leading or not self.complete:
            return out
        if self._repeat_at is None:
            self._repeat_at = now + self._repeat_s
        if now < self._repeat_at:
            return out
        self._repeat_s = min(2 * self._repeat_s, REPEAT_MAX_S)
        return out + self._report(now)

    # --- rules -----------------------------------------------------------------------------------

    def _ready(self, params: Iterable[str]) -> list[Instruction]:
        """Apply those parameters whose gradients are complete, as far as they may move."""
        out: list[Instruction] = []
        for name in params:
            step = self.versions[name] + 1
            if (
                name not in self._moving
                and self._all_there(self._given[name], self.attendance.excused(step, name))
                and self._may_move_to(step)
            ):
                self._moving.add(name)
                out.append(Apply(step, name))
        return out

    def _sketched(self, param: str) -> int:
        return self._round.get(param, 0)

    def _may_move_to(self, step: int) -> bool:
        if step > self.complete + 1:
            return False
        if not self.leading:
            return True
        facts = self.facts_of.get(step, set())
        return self.committed >= step - 1 and self._all_there(facts, self.attendance.silent(step))

    def _all_there(self, ranks: set[int], excused: frozenset[int]) -> bool:
        """Whether nobody is waited for. Somebody must have come."""
        return bool(ranks) and len(ranks | excused) == self.setting.ranks

    def _missing_parts(self, step: int) -> list[int]:
        parts = self._parts.get(step, set())
        return [shard for shard in range(1, self.setting.shards) if shard not in parts]

    def _commit(self) -> list[Instruction]:
        """Shard 0: commit the next step if it is over everywhere."""
        step = self.committed + 1
        if self.complete < step or self._missing_parts(step):
            return []
        self.committed = step
        self._parts.pop(step, None)
        self.facts_of.pop(step, None)
        out: list[Instruction] = [Commit(step)]
        if self._checkpoint_due(step):
            out.append(Checkpoint(step))
        return out + self._ready(self.setting.params)

    def _part_over(self) -> list[Instruction]:
        """Another shard: its part of a step is over."""
        self.committed = self.complete
        self._repeat_s, self._repeat_at = REPEAT_S, None
        out: list[Instruction] = [Commit(self.complete), Report(self.complete)]
        if self._checkpoint_due(self.complete):
            out.append(Checkpoint(self.complete))
        return out + self._ready(self.setting.params)

    def _report(self, now: float) -> list[Instruction]:
        self._repeat_at = now + self._repeat_s
        return [Report(v) for v in (self.complete - 1, self.complete) if v > 0]

    def _checkpoint_due(self, step: int) -> bool:
        return step > 0 and (
            step % self.setting.checkpoint_every == 0 or step == self.setting.last_step
        )

    def check(self) -> None:
        """Invariants. Raises `AssertionError`."""
        spread = max(self.versions.values()) - self.complete
        assert spread <= 1, f"versions {spread} apart"
        assert self.committed <= self.complete
        assert not self.leading or max(self.versions.values()) <= self.committed + 1
        for name, number in self._round.items():
            assert number <= self.setting.rounds(self.versions[name] + 1, name), name
        for name, ranks in self._given.items():
            assert all(0 <= rank < self.setting.ranks for rank in ranks), name


def facts_by_step(facts: Mapping[int, Iterable[int]]) -> dict[int, set[int]]:
    """Steps with at least one rank's facts, in the form `ShardRounds` starts from."""
    return {step: set(ranks) for step, ranks in facts.items() if ranks}
