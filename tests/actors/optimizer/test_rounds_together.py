"""Shards and trainers decide rounds together, over a network that loses, repeats and reorders."""

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.actors.optimizer.together import LAST_STEP, Letter, World


class Exchange(RuleBasedStateMachine):
    """Chaos first, then everything is delivered, and the run must end."""

    world: World

    @initialize(
        owned=st.sampled_from([[["a"]], [["a", "b"]], [["a"], ["b"]], [["a", "b"], ["c"], ["d"]]]),
        ranks=st.integers(1, 3),
    )
    def start(self, owned: list[list[str]], ranks: int) -> None:
        self.world = World(owned, ranks)

    def pick(self, at: int) -> Letter | None:
        letters = self.world.letters
        return letters.pop(at % len(letters)) if letters else None

    @rule(at=st.integers(0, 1000))
    def deliver_any(self, at: int) -> None:
        letter = self.pick(at)
        if letter:
            self.world.deliver(letter)

    @rule(count=st.integers(1, 30))
    def deliver_in_order(self, count: int) -> None:
        for _ in range(count):
            self.deliver_any(0)

    @rule(at=st.integers(0, 1000))
    def repeat(self, at: int) -> None:
        letters = self.world.letters
        if letters:
            letters.append(letters[at % len(letters)])

    @rule(at=st.integers(0, 1000))
    def lose(self, at: int) -> None:
        self.pick(at)

    @rule(at=st.integers(0, 1000), after=st.integers(0, 6))
    def deliver_and_die(self, at: int, after: int) -> None:
        letter = self.pick(at)
        if letter:
            self.world.deliver(letter, after)

    @rule(which=st.integers(0, 5))
    def shard_dies(self, which: int) -> None:
        shard = self.world.shards[which % len(self.world.shards)]
        name = f"shard/{shard.index}"
        self.world.letters = [letter for letter in self.world.letters if letter.to != name]
        shard.live()

    @rule(which=st.integers(0, 5), told=st.booleans())
    def shard_is_announced(self, which: int, told: bool) -> None:
        shard = which % len(self.world.shards)
        for trainer in self.world.trainers if told else []:
            trainer.on_shard_up(shard)
        for other in self.world.shards:
            if shard == 0:
                other.perform(other.rounds.leader_up(self.world.now), None)

    @rule(which=st.integers(0, 5), keep=st.booleans())
    def trainer_dies(self, which: int, keep: bool) -> None:
        trainer = self.world.trainers[which % len(self.world.trainers)]
        name = f"trainer/{trainer.rank}"
        if not keep:
            self.world.letters = [letter for letter in self.world.letters if letter.to != name]
        trainer.live()

    @rule(turns=st.integers(1, 3))
    def all_goes_well(self, turns: int) -> None:
        """So that trouble also meets later steps."""
        for _ in range(turns):
            for trainer in self.world.trainers:
                trainer.turn()
                trainer.compute(10)
            self.deliver_in_order(20)

    @rule(which=st.integers(0, 5), gradients=st.integers(0, 4))
    def compute(self, which: int, gradients: int) -> None:
        self.world.trainers[which % len(self.world.trainers)].compute(gradients)

    @rule(seconds=st.floats(0.01, 3.0))
    def time_passes(self, seconds: float) -> None:
        self.world.now += seconds
        for trainer in self.world.trainers:
            trainer.turn()
        for shard in self.world.shards:
            shard.perform(shard.rounds.tick(self.world.now), None)

    @invariant()
    def versions_are_never_far_apart(self) -> None:
        if not hasattr(self, "world"):
            return
        versions = [v for shard in self.world.shards for v in shard.versions.values()]
        assert max(versions) - min(versions) <= 1
        assert self.world.shards[0].committed >= max(versions) - 2

    def teardown(self) -> None:
        """With a network that works, everything ends, and soon."""
        if not hasattr(self, "world"):
            return
        for _ in range(200):
            if self.world.over:
                break
            self.time_passes(2.1)
            for trainer in self.world.trainers:
                trainer.compute(10)
            while self.world.letters:
                self.deliver_any(0)
        assert self.world.over, self.stuck()
        for shard in self.world.shards:
            for name in shard.names:
                for step in range(1, LAST_STEP + 1):
                    assert shard.sums[name, step] == tuple(range(self.world.ranks))

    def stuck(self) -> str:
        return "; ".join(
            [f"shard/{s.index}: {s.rounds.waiting_for()}" for s in self.world.shards]
            + [f"trainer/{t.rank}: {t.rounds.waiting_for()}" for t in self.world.trainers]
        )


Exchange.TestCase.settings = settings(
    max_examples=250,
    stateful_step_count=60,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
test_every_schedule_ends_with_each_contribution_counted_once = Exchange.TestCase
