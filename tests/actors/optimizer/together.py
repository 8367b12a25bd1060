"""Shards and trainers over a network that loses, repeats and reorders: the world of the test.

The deciders are the real ones; sockets, shared memory and arithmetic are replaced by tuples. Any
process may die at any moment, between any two instructions, and comes back knowing only what its
segment would have kept.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from actors.optimizer import rounds as shard_side
from actors.optimizer.rounds import Setting, ShardRounds
from actors.snapshots import SnapshotCollector
from actors.trainer import rounds as trainer_side
from actors.trainer.rounds import TrainerRounds

LAST_STEP = 5
EVERY = 2


def sketches(step: int, param: str) -> int:
    """Rounds of sketches: some parameters get a new basis in some steps, some never."""
    return {"a": 2 * (step % 2), "c": 4}.get(param, 0)


@dataclass
class Letter:
    """One message in flight."""

    to: str
    kind: str
    body: tuple[Any, ...]


@dataclass
class World:
    """All processes, and the letters between them."""

    owned: list[list[str]]
    ranks: int
    now: float = 0.0
    letters: list[Letter] = field(default_factory=list)
    shards: "list[ShardActor]" = field(default_factory=list)
    trainers: "list[TrainerActor]" = field(default_factory=list)

    def __post_init__(self) -> None:
        self.shards = [ShardActor(self, k, names) for k, names in enumerate(self.owned)]
        self.trainers = [TrainerActor(self, rank) for rank in range(self.ranks)]
        for shard in self.shards:
            shard.live()

    def post(self, to: str, kind: str, *body: Any) -> None:
        self.letters.append(Letter(to, kind, body))

    def deliver(self, letter: Letter, die_after: int | None = None) -> None:
        role, _, index = letter.to.partition("/")
        actor = (self.shards if role == "shard" else self.trainers)[int(index)]
        getattr(actor, f"on_{letter.kind}")(
            *letter.body, **({"die_after": die_after} if role == "shard" else {})
        )

    @property
    def over(self) -> bool:
        return all(shard.committed == LAST_STEP for shard in self.shards) and all(
            trainer.rounds.phase == "done" for trainer in self.trainers
        )


class ShardActor:
    """A shard: what is durable, and the decider that dies."""

    def __init__(self, world: World, index: int, names: list[str]) -> None:
        self.world, self.index, self.names = world, index, names
        self.versions = dict.fromkeys(names, 0)  # durable
        self.committed = 0  # durable
        self.facts: dict[int, set[int]] = {0: set(), 1: set()}  # durable, by parity
        self.facts_step = {0: 0, 1: 0}
        self.sums: dict[tuple[str, int], tuple[int, ...]] = {}  # (param, version): ranks summed

    def live(self) -> None:
        self.memory: dict[str, dict[int, int]] = {name: {} for name in self.names}
        setting = Setting(
            self.names,
            self.index,
            len(self.world.owned),
            self.world.ranks,
            EVERY,
            LAST_STEP,
            sketches,
        )
        self.sketched: dict[str, dict[int, int]] = {name: {} for name in self.names}
        self.found: dict[str, int] = {}  # rounds summed in the step under way
        known = {
            self.facts_step[p]: set(self.facts[p])
            for p in (0, 1)
            if self.facts_step[p] > self.committed
        }
        self.rounds = ShardRounds(setting, dict(self.versions), self.committed, known)
        self.perform(self.rounds.begin(self.world.now), None)

    def perform(self, todo: Sequence[shard_side.Instruction], die_after: int | None) -> None:
        queue, done = list(todo), 0
        while queue:
            if die_after is not None and done >= die_after:
                self.live()
                return
            instruction = queue.pop(0)
            done += 1
            queue += self.act(instruction)
        self.rounds.check()

    def act(self, instruction: shard_side.Instruction) -> list[shard_side.Instruction]:
        match instruction:
            case shard_side.Apply(step, param):
                return self.move(step, param)
            case shard_side.Sum(step, param, number):
                return self.sum(step, param, number)
            case shard_side.KeepFacts(step, rank):
                self.keep_facts(step, rank)
            case shard_side.Commit(step):
                self.commit(step)
            case shard_side.Checkpoint(step):
                assert set(self.versions.values()) == {step}, "a checkpoint between two steps"
                assert step % EVERY == 0 or step == LAST_STEP
            case _:
                self.say(instruction)
        return []

    def say(self, instruction: shard_side.Instruction) -> None:
        match instruction:
            case shard_side.Publish(version, param, to):
                assert self.versions[param] in (version, version + 1), "a version that is gone"
                for rank in to:
                    self.world.post(f"trainer/{rank}", "update", self.index, version, param)
            case shard_side.Need(rank, step, params, facts, first):
                self.world.post(f"trainer/{rank}", "needs", step, params, facts, first)
            case shard_side.Ask(step, param, to):
                for rank in to:
                    self.world.post(f"trainer/{rank}", "asked", step, param, self.found[param])
            case shard_side.Report(version):
                assert min(self.versions.values()) >= version
                self.world.post("shard/0", "part", version, self.index)
            case _:
                raise AssertionError(instruction)

    def sum(self, step: int, param: str, number: int) -> list[shard_side.Instruction]:
        given = self.sketched[param]
        assert given == dict.fromkeys(range(self.world.ranks), number), "sketches of other rounds"
        assert self.versions[param] == step - 1
        assert self.found.get(param, 0) == number
        self.found[param] = number + 1
        given.clear()
        return self.rounds.summed(param)

    def move(self, step: int, param: str) -> list[shard_side.Instruction]:
        given = self.memory[param]
        assert set(given) == set(range(self.world.ranks)), "a contribution is missing"
        assert set(given.values()) == {step}, "a contribution of another step"
        assert self.versions[param] == step - 1
        assert self.found.pop(param, 0) == sketches(step, param), "moved before the basis was known"
        if self.index == 0:
            assert self.committed >= step - 1
            self.check_facts(step)
        assert (param, step) not in self.sums, "contributions counted twice"
        self.sums[param, step] = tuple(sorted(given))
        self.versions[param] = step
        self.memory[param] = {}
        return self.rounds.applied(param)

    def keep_facts(self, step: int, rank: int) -> None:
        parity = step % 2
        if self.facts_step[parity] != step:
            assert self.facts_step[parity] <= self.committed, "facts still needed"
            self.facts_step[parity], self.facts[parity] = step, set()
        self.facts[parity].add(rank)

    def check_facts(self, step: int) -> None:
        assert self.facts_step[step % 2] == step
        assert len(self.facts[step % 2]) == self.world.ranks

    def commit(self, step: int) -> None:
        assert step == self.committed + 1, "a step skipped or committed twice"
        assert min(self.versions.values()) >= step
        if self.index == 0:
            self.check_facts(step)
            for shard in self.world.shards:
                assert min(shard.versions.values()) >= step
        self.committed = step

    def on_gradient(self, step: int, rank: int, param: str, die_after: int | None) -> None:
        if not self.rounds.takes_gradient(step, rank, param):
            return
        self.memory[param][rank] = step
        self.perform(self.rounds.gradient(step, rank, param), die_after)

    def on_sketch(
        self, step: int, rank: int, param: str, number: int, die_after: int | None
    ) -> None:
        if not self.rounds.takes_sketch(step, rank, param, number):
            return
        self.sketched[param][rank] = number
        self.perform(self.rounds.sketch(step, rank, param, number), die_after)

    def on_facts(self, step: int, rank: int, die_after: int | None) -> None:
        self.perform(self.rounds.facts(step, rank), die_after)

    def on_part(self, version: int, shard: int, die_after: int | None) -> None:
        self.perform(self.rounds.part(version, shard), die_after)

    def on_query(
        self, rank: int, version: int, lacking: tuple[str, ...], die_after: int | None
    ) -> None:
        self.perform(self.rounds.query(rank, version, lacking), die_after)

    def on_ask(self, rank: int, version: int, die_after: int | None) -> None:
        del die_after
        chosen = self.rounds.version_for(version)
        for name in self.names:
            assert self.versions[name] - chosen in (0, 1), "handed out a version that is gone"
            self.world.post(f"trainer/{rank}", "codes", self.index, chosen, name)


class TrainerActor:
    """A trainer. Nothing about it is durable."""

    def __init__(self, world: World, rank: int) -> None:
        self.world, self.rank = world, rank
        self.live()

    def live(self) -> None:
        owners = {name: k for k, names in enumerate(self.world.owned) for name in names}
        self.rounds = TrainerRounds(owners, LAST_STEP)
        self.collector: SnapshotCollector[int] | None = SnapshotCollector(self.world.owned)
        self.replica: dict[str, int] = {}
        self.to_do: list[str] = []
        self.turn()

    def turn(self) -> None:
        """What the computing thread does besides computing."""
        if self.collector is not None:
            for ask in self.collector.asks(self.world.now):
                self.world.post(f"shard/{ask.shard}", "ask", self.rank, ask.version)
        self.perform(self.rounds.tick(self.world.now))

    def perform(self, todo: Sequence[trainer_side.Instruction]) -> None:
        queue = list(todo)
        while queue:
            match queue.pop(0):
                case trainer_side.AskBatch(step):
                    self.rounds.batch(step)
                case trainer_side.SendFacts(step):
                    self.world.post("shard/0", "facts", step, self.rank)
                case trainer_side.SendGradient(step, param, shard):
                    assert set(self.replica.values()) <= {step - 1, step}
                    rounds = sketches(step, param)
                    assert not rounds or param in self.bases, "not projected"
                    self.world.post(f"shard/{shard}", "gradient", step, self.rank, param)
                case trainer_side.SendSketch(step, param, shard, number):
                    assert not number or self.operands[param] == number, "an operand is missing"
                    self.world.post(f"shard/{shard}", "sketch", step, self.rank, param, number)
                case trainer_side.Query(shard, version, lacking):
                    self.world.post(f"shard/{shard}", "query", self.rank, version, lacking)
                case trainer_side.ApplyUpdate(version, param):
                    assert self.replica[param] == version - 1, "an update applied twice"
                    self.replica[param] = version
                    queue += self.rounds.applied(param)
                case trainer_side.AskCodes(shard, version):
                    self.world.post(f"shard/{shard}", "ask", self.rank, version)
                case trainer_side.ForgetStep(version):
                    assert set(self.replica.values()) == {version}
        self.rounds.check()

    def compute(self, gradients: int) -> None:
        """Begin a step, or go on with it by so many gradients."""
        if self.rounds.may_compute:
            step = self.rounds.step
            self.rounds.begin(frozenset(n for n in self.rounds.owners if sketches(step, n)))
            self.operands: dict[str, int] = {}
            self.bases: set[str] = set()
            assert set(self.replica.values()) == {self.rounds.version}, "mixed versions"
            self.perform(self.rounds.facts())
            self.to_do = list(self.rounds.owners)
        if self.rounds.phase != "computing":
            return
        for _ in range(gradients):
            if self.to_do:
                assert set(self.replica.values()) == {self.rounds.version}, "weights moved"
                self.perform(self.rounds.gradient(self.to_do.pop()))
        if not self.to_do:
            self.perform(self.rounds.finish())

    def on_codes(self, shard: int, version: int, param: str) -> None:
        if self.collector is None:
            self.perform(self.rounds.update(version, param))
            return
        self.collector.add(shard, version, param, version)
        snapshot = self.collector.result()
        if snapshot is not None:
            self.collector, self.replica = None, snapshot.parameters
            self.perform(self.rounds.joined(snapshot.version))

    def on_update(self, shard: int, version: int, param: str) -> None:
        del shard
        self.perform(self.rounds.update(version, param))

    def on_asked(self, step: int, param: str, number: int) -> None:
        if number == sketches(step, param):
            if self.rounds.holds(step, param):
                self.bases.add(param)
            self.perform(self.rounds.based(step, param))
            return
        if self.rounds.holds(step, param):
            self.operands[param] = number
        self.perform(self.rounds.asked(step, param, number))

    def on_needs(
        self, step: int, params: tuple[str, ...], facts: bool, first: tuple[str, ...]
    ) -> None:
        self.perform(self.rounds.needs(step, params, facts, first))

    def on_shard_up(self, shard: int) -> None:
        if self.collector is not None:
            self.collector.shard_up(shard)
        self.perform(self.rounds.shard_up(shard))
