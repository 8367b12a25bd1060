"""What a trainer does next and whom it waits for. No sockets, no clock, no torch.

    joining      asking every shard for the codes of one version v
    feeding      at version v, waiting for the batch of step v + 1
    computing    forward and backward; updates that arrive meanwhile are kept back, because the
                 backward pass still needs the weights it started with
    exchanging   all gradients sent; updates are applied as they come, until all are at v + 1
    done         at the last version

Everything lost is asked for again by whoever lacks it. A trainer keeps facts and gradients of its
step until the step's last update is applied: by then every shard has had what it needs of them (a
shard moves a parameter only with everyone's gradient, shard 0 moves nothing without all facts).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

# A wait this long is worth a question; the next ones come ever more rarely.
QUERY_S = 0.25
QUERY_MAX_S = 2.0
# The loader answers a request when the batch exists, so asking again is for lost messages only.
BATCH_QUERY_S = 1.0
BATCH_QUERY_MAX_S = 8.0
# Batches asked for beyond the one in use. One hides the transfer, two a hiccup of the loader.
BATCHES_AHEAD = 2

Phase = Literal["joining", "feeding", "computing", "exchanging", "done"]


@dataclass(frozen=True, slots=True)
class AskBatch:
    """Send `BatchRequest(step, rank)` to the loader."""

    step: int


@dataclass(frozen=True, slots=True)
class SendFacts:
    """Send the facts of `step` to shard 0."""

    step: int


@dataclass(frozen=True, slots=True)
class SendGradient:
    """Send the gradient of `param`, made in `step`, to `shard`."""

    step: int
    param: str
    shard: int


@dataclass(frozen=True, slots=True)
class SendSketch:
    """Send the gradient of `param` times the operand of that round; in round 0 it is known."""

    step: int
    param: str
    shard: int
    round: int


@dataclass(frozen=True, slots=True)
class Query:
    """Ask `shard` for its updates to `version`; `lacking` have not come."""

    shard: int
    version: int
    lacking: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ApplyUpdate:
    """Apply what came for `param`, then call `applied` or `refused`."""

    version: int
    param: str


@dataclass(frozen=True, slots=True)
class AskCodes:
    """Send `CodesRequest(version)` to `shard`: an update did not lead where it should have."""

    shard: int
    version: int


@dataclass(frozen=True, slots=True)
class ForgetStep:
    """All parameters are at `version`: drop the batch, facts and gradients that led there."""

    version: int


Instruction = (
    AskBatch | SendFacts | SendGradient | SendSketch | Query | ApplyUpdate | AskCodes | ForgetStep
)


class Patience:
    """When to ask again: after `first` seconds of waiting, then at doubling intervals."""

    def __init__(self, first_s: float, most_s: float) -> None:
        self._first_s, self._most_s = first_s, most_s
        self._interval_s = first_s
        self._at: float | None = None

    def restart(self) -> None:
        """News came, or another wait begins."""
        self._interval_s, self._at = self._first_s, None

    def over(self, now: float) -> bool:
        """Whether it is time to ask; counts as asking when it is."""
        if self._at is None:
            self._at = now + self._interval_s
            return False
        if now < self._at:
            return False
        self._interval_s = min(2 * self._interval_s, self._most_s)
        self._at = now + self._interval_s
        return True


@dataclass(slots=True)
class TrainerRounds:
    """The rounds of one rank. `owners`: the shard of every parameter, in the parameters' order."""

    owners: Mapping[str, int]
    last_step: int
    phase: Phase = "joining"
    version: int = -1  # all parameters are at least here
    stale: int = 0  # messages about other steps than ours: duplicates, mostly
    _batches: set[int] = field(default_factory=set[int])
    _new_here: bool = True  # no step finished in this life yet
    _facts_known: bool = False
    # Parameters that get a new basis in this step: their gradients stay here, sketches of them
    # leave, until the basis is known.
    _refreshing: frozenset[str] = frozenset()
    _projected: set[str] = field(default_factory=set[str])
    _computed: set[str] = field(default_factory=set[str])
    _arrived: dict[str, None] = field(default_factory=dict[str, None])
    _lacking: set[str] = field(default_factory=set[str])
    _patience: Patience = field(default_factory=lambda: Patience(QUERY_S, QUERY_MAX_S))
    _batch_patience: Patience = field(
        default_factory=lambda: Patience(BATCH_QUERY_S, BATCH_QUERY_MAX_S)
    )

    @property
    def step(self) -> int:
        """The step that leads away from `version`."""
        return self.version + 1

    @property
    def shards(self) -> Sequence[int]:
        """All shards."""
        return sorted(set(self.owners.values()))

    @property
    def may_compute(self) -> bool:
        """Whether codes and batch of the step are both here."""
        return self.phase == "feeding" and self.step in self._batches

    def _open(self) -> dict[int, tuple[str, ...]]:
        """Parameters whose update to the step's version has not come, by shard."""
        out: dict[int, list[str]] = {}
        for name, shard in self.owners.items():
            if name in self._lacking and name not in self._arrived:
                out.setdefault(shard, []).append(name)
        return {shard: tuple(names) for shard, names in out.items()}

    def waiting_for(self) -> str:
        """Whom this trainer waits for, in words; "" when it computes."""
        match self.phase:
            case "joining":
                return "codes from the optimizer shards"
            case "feeding":
                return f"the batch of step {self.step} from loader"
            case "computing":
                return ""
            case "exchanging":
                late = ", ".join(f"optimizer_shard/{k}" for k in sorted(self._open()))
                return f"{len(self._lacking)} updates of step {self.step} from {late}"
            case "done":
                return "the end of the run"

    # --- what happens ----------------------------------------------------------------------------

    def joined(self, version: int) -> list[Instruction]:
        """All codes of `version` are in place."""
        self.version = version
        if version >= self.last_step:
            self.phase = "done"
            return []
        self.phase = "feeding"
        self._batch_patience.restart()
        return self._wanted_batches(range(self.step, self.step + 1 + BATCHES_AHEAD))

    def batch(self, step: int) -> bool:
        """The batch of `step` came; True when it is wanted and new."""
        if not self.step <= step <= self.step + BATCHES_AHEAD or step in self._batches:
            self.stale += 1
            return False
        self._batches.add(step)
        return True

    def begin(self, refreshing: frozenset[str] = frozenset()) -> None:
        """Forward and backward of the step begin; it finds new bases of `refreshing`."""
        assert self.may_compute
        self._refreshing = refreshing
        self._projected.clear()
        self.phase = "computing"
        self._facts_known = False
        self._computed.clear()
        self._lacking = set(self.owners)

    def facts(self) -> list[Instruction]:
        """The last forward pass of the step is over. To be called before its backward pass."""
        self._facts_known = True
        return [SendFacts(self.step)]

    def gradient(self, param: str) -> list[Instruction]:
        """The gradient of `param` is complete."""
        self._computed.add(param)
        return self._first_word(param)

    def asked(self, step: int, param: str, number: int) -> list[Instruction]:
        """The shard wants the sketch of that round."""
        if not self._holds(step, param):
            return []
        self._patience.restart()
        return [SendSketch(step, param, self.owners[param], number)]

    def based(self, step: int, param: str) -> list[Instruction]:
        """The basis of `param` is known."""
        if not self._holds(step, param):
            return []
        self._patience.restart()
        self._projected.add(param)
        return [SendGradient(step, param, self.owners[param])]

    def holds(self, step: int, param: str) -> bool:
        """Whether the gradient of `param` is here and waits for the basis of `step`."""
        return (
            step == self.step
            and self.phase in ("computing", "exchanging")
            and param in self._refreshing & self._computed
        )

    def finish(self) -> list[Instruction]:
        """The backward pass is over: what was kept back may be applied."""
        assert self.phase == "computing"
        assert self._computed == set(self.owners)
        self.phase = "exchanging"
        self._patience.restart()
        out: list[Instruction] = [ApplyUpdate(self.step, name) for name in self._arrived]
        if self._new_here:
            # A predecessor may have contributed all this: its answers went to it, not to us.
            out += [Query(shard, self.step, names) for shard, names in self._open().items()]
        self._new_here = False
        return out

    def update(self, version: int, param: str) -> list[Instruction]:
        """An update (or the whole parameter) at `version` came; keep its payload if `wants` it."""
        if not self.wants(version, param):
            self.stale += 1
            return []
        self._arrived[param] = None
        self._patience.restart()
        return [ApplyUpdate(version, param)] if self.phase == "exchanging" else []

    def wants(self, version: int, param: str) -> bool:
        """Whether this update is new and of the step."""
        return (
            self.phase in ("computing", "exchanging")
            and version == self.step
            and param in self._lacking
            and param not in self._arrived
        )

    def applied(self, param: str) -> list[Instruction]:
        """`param` is at the step's version, its digest checked."""
        self._arrived.pop(param, None)
        self._lacking.discard(param)
        if self._lacking:
            return []
        self._batches.discard(self.step)
        self.version += 1
        self.phase = "done" if self.version >= self.last_step else "feeding"
        self._batch_patience.restart()
        forget = ForgetStep(self.version)
        ahead = self.step + BATCHES_AHEAD
        return [forget, *self._wanted_batches(range(ahead, ahead + 1))]

    def refused(self, param: str) -> list[Instruction]:
        """The update of `param` was damaged, or our codes were not what it starts from."""
        self._arrived.pop(param, None)
        return [AskCodes(self.owners[param], self.step)]

    # --- repair ----------------------------------------------------------------------------------

    def needs(
        self, step: int, params: Sequence[str], facts: bool, sketches: Sequence[str] = ()
    ) -> list[Instruction]:
        """A shard lacks these of our contributions to `step`, and these first sketches."""
        if step != self.step or self.phase not in ("computing", "exchanging"):
            self.stale += 1
            return []
        out: list[Instruction] = [SendFacts(step)] if facts and self._facts_known else []
        waiting = self._refreshing - self._projected
        out += [
            SendGradient(step, name, self.owners[name])
            for name in params
            if name in self._computed - waiting
        ]
        out += [
            SendSketch(step, name, self.owners[name], 0)
            for name in sketches
            if name in self._computed & self._refreshing
        ]
        return out

    def shard_up(self, shard: int) -> list[Instruction]:
        """That shard lives anew and has forgotten what lay in its queue."""
        if self.phase not in ("computing", "exchanging"):
            return []
        return [Query(shard, self.step, self._open().get(shard, ()))]

    def loader_up(self) -> list[Instruction]:
        """The loader lives anew."""
        if self.phase in ("joining", "done"):
            return []
        return self._wanted_batches(range(self.step, self.step + 1 + BATCHES_AHEAD))

    def tick(self, now: float) -> list[Instruction]:
        """Time has passed without news."""
        if self.phase == "exchanging" and self._patience.over(now):
            return [Query(shard, self.step, names) for shard, names in self._open().items()]
        if self.phase == "feeding" and not self.may_compute and self._batch_patience.over(now):
            return self.loader_up()
        return []

    def _first_word(self, param: str) -> list[Instruction]:
        shard = self.owners[param]
        if param in self._refreshing:
            return [SendSketch(self.step, param, shard, 0)]
        return [SendGradient(self.step, param, shard)]

    def _holds(self, step: int, param: str) -> bool:
        found = self.holds(step, param)
        self.stale += not found
        return found

    def _wanted_batches(self, steps: range) -> list[Instruction]:
        return [
            AskBatch(step) for step in steps if step <= self.last_step and step not in self._batches
        ]

    def check(self) -> None:
        """Invariants. Raises `AssertionError`."""
        assert set(self._arrived) <= self._lacking
        assert self._projected <= self._refreshing & self._computed
        assert all(self.step <= step <= self.step + BATCHES_AHEAD for step in self._batches)
        if self.phase == "exchanging":
            assert self._lacking
            assert self._computed == set(self.owners)
