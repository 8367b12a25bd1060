"""What a shard decides, case by case; test_rounds_together.py has the long stories."""

from collections.abc import Iterator

import pytest

from actors.optimizer.rounds import (
    Apply,
    Checkpoint,
    Commit,
    KeepFacts,
    Need,
    Publish,
    Report,
    Setting,
    ShardRounds,
)


def setting(shard: int = 0, shards: int = 1, ranks: int = 2, every: int = 10) -> Setting:
    return Setting(("a", "b"), shard, shards, ranks, every, last_step=3)


def rounds_of(
    shard: int = 0, shards: int = 1, ranks: int = 2, every: int = 10, version: int = 0
) -> ShardRounds:
    versions = {"a": version, "b": version}
    return ShardRounds(setting(shard, shards, ranks, every), versions, version)


@pytest.fixture
def rounds() -> Iterator[ShardRounds]:
    state = rounds_of()
    yield state
    state.check()


def told(rounds: ShardRounds, step: int) -> None:
    for rank in range(rounds.setting.ranks):
        assert rounds.facts(step, rank)[0] == KeepFacts(step, rank)


def move(rounds: ShardRounds, step: int, param: str) -> list[object]:
    out: list[object] = []
    for rank in range(rounds.setting.ranks):
        out += rounds.gradient(step, rank, param)
    assert out == [Apply(step, param)]
    return [*rounds.applied(param)]


def test_a_parameter_moves_when_every_rank_has_contributed(rounds: ShardRounds):
    told(rounds, 1)
    assert rounds.gradient(1, 1, "a") == []
    assert rounds.gradient(1, 0, "a") == [Apply(1, "a")]
    assert rounds.applied("a") == [Publish(1, "a", (0, 1))]
    assert rounds.versions == {"a": 1, "b": 0}


def test_a_step_commits_when_every_parameter_has_moved(rounds: ShardRounds):
    told(rounds, 1)
    move(rounds, 1, "a")
    assert move(rounds, 1, "b") == [Publish(1, "b", (0, 1)), Commit(1)]
    assert rounds.committed == 1


def test_the_same_gradient_twice_counts_once(rounds: ShardRounds):
    told(rounds, 1)
    rounds.gradient(1, 0, "a")
    assert rounds.gradient(1, 0, "a") == []
    assert rounds.refusals.duplicate == 1
    move(rounds, 1, "b")
    assert rounds.gradient(1, 0, "b") == []
    assert rounds.refusals.duplicate == 2


def test_nothing_moves_before_all_facts_are_kept(rounds: ShardRounds):
    for rank in (0, 1):
        assert rounds.gradient(1, rank, "a") == []
    assert rounds.facts(1, 0) == [KeepFacts(1, 0)]
    assert rounds.facts(1, 1) == [KeepFacts(1, 1), Apply(1, "a")]
    assert rounds.facts(1, 1) == []


def test_shard_0_moves_nothing_to_the_next_step_before_the_last_is_committed():
    rounds = rounds_of(shards=2)
    told(rounds, 1)
    move(rounds, 1, "a")
    move(rounds, 1, "b")
    assert rounds.committed == 0
    told(rounds, 2)
    for rank in (0, 1):
        assert rounds.gradient(2, rank, "a") == []
    assert "optimizer_shard/1" in rounds.waiting_for()
    assert rounds.part(1, 1) == [Commit(1), Apply(2, "a")]
    assert rounds.part(1, 1) == []
    rounds.check()


def test_other_shards_report_their_part_and_need_no_facts():
    rounds = rounds_of(shard=1, shards=2)
    move(rounds, 1, "a")
    assert move(rounds, 1, "b") == [Publish(1, "b", (0, 1)), Commit(1), Report(1)]
    assert rounds.facts(1, 0) == []
    assert rounds.refusals.foreign == 1


def test_a_part_is_repeated_while_nothing_happens_and_ever_more_rarely():
    rounds = rounds_of(shard=1, shards=2, version=2)
    assert rounds.tick(0.0) == []
    assert rounds.tick(0.3) == [Report(1), Report(2)]
    assert rounds.tick(0.6) == []
    assert rounds.tick(0.9) == [Report(1), Report(2)]
    assert rounds.leader_up(0.91) == [Report(1), Report(2)]


def test_foreign_and_early_messages_are_counted_and_dropped(rounds: ShardRounds):
    assert rounds.gradient(1, 2, "a") == []
    assert rounds.gradient(1, 0, "c") == []
    assert rounds.query(5, 1, ("a",)) == []
    assert rounds.part(1, 1) == []
    assert rounds.refusals.foreign == 4
    assert rounds.gradient(2, 0, "a") == []
    assert rounds.facts(2, 0) == []
    assert rounds.gradient(4, 0, "a") == []
    assert rounds.refusals.early == 3


def test_whoever_waits_gets_what_there_is_and_hears_what_is_needed(rounds: ShardRounds):
    told(rounds, 1)
    move(rounds, 1, "a")
    rounds.gradient(1, 0, "b")
    assert rounds.query(0, 1, ("a", "b")) == [Publish(1, "a", (0,)), Need(0, 1, (), facts=False)]
    assert rounds.query(1, 1, ("a", "b")) == [
        Publish(1, "a", (1,)),
        Need(1, 1, ("b",), facts=False),
    ]


def test_facts_are_asked_for_until_they_are_kept(rounds: ShardRounds):
    assert rounds.query(1, 1, ()) == [Need(1, 1, ("a", "b"), facts=True)]


def test_versions_are_handed_out_as_long_as_they_are_published(rounds: ShardRounds):
    assert rounds.version_for(-1) == 0
    told(rounds, 1)
    move(rounds, 1, "a")
    assert rounds.version_for(-1) == 0
    assert rounds.version_for(0) == 0
    move(rounds, 1, "b")
    assert [rounds.version_for(v) for v in (-1, 0, 1, 2, 99)] == [1, 0, 1, 1, 1]
    told(rounds, 2)
    move(rounds, 2, "a")
    assert rounds.version_for(0) == 1


def test_checkpoints_are_due_at_their_steps_and_at_the_last():
    rounds = rounds_of(every=2, ranks=1)
    due: list[object] = []
    for step in (1, 2, 3):
        told(rounds, step)
        due += [i for p in "ab" for i in move(rounds, step, p) if isinstance(i, Checkpoint)]
    assert due == [Checkpoint(2), Checkpoint(3)]
    assert rounds.finished
    assert rounds.waiting_for() == "the end of the run"


def test_a_new_life_commits_what_the_last_one_had_finished():
    versions = {"a": 1, "b": 1}
    rounds = ShardRounds(setting(every=1), versions, 0, {1: {0, 1}})
    assert rounds.begin(0.0) == [Commit(1), Checkpoint(1)]
    other = ShardRounds(setting(shard=1, shards=2, every=1), dict(versions), 0)
    assert other.begin(0.0) == [Commit(1), Report(1), Checkpoint(1)]


def test_a_new_life_writes_a_checkpoint_that_may_be_missing():
    assert rounds_of(every=2, version=2).begin(0.0) == [Checkpoint(2)]
    assert rounds_of(every=3, version=2).begin(0.0) == []
    assert rounds_of(version=0).begin(0.0) == []
    ahead = ShardRounds(setting(every=2), {"a": 3, "b": 2}, 2)
    assert ahead.begin(0.0) == []


def test_who_is_waited_for_is_named(rounds: ShardRounds):
    told(rounds, 1)
    rounds.gradient(1, 0, "a")
    rounds.gradient(1, 0, "b")
    assert rounds.waiting_for() == "2 gradients of step 1 from trainer/1"
