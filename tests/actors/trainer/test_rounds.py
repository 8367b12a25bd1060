"""What a trainer decides, case by case; the long stories are told with the shards' rounds."""

from collections.abc import Iterator

import pytest

from actors.trainer.rounds import (
    ApplyUpdate,
    AskBatch,
    AskCodes,
    ForgetStep,
    Query,
    SendFacts,
    SendGradient,
    TrainerRounds,
)

OWNERS = {"a": 0, "b": 1}


@pytest.fixture
def rounds() -> Iterator[TrainerRounds]:
    state = TrainerRounds(OWNERS, last_step=5)
    yield state
    state.check()


def computing(rounds: TrainerRounds, version: int = 0) -> None:
    rounds.joined(version)
    assert rounds.batch(version + 1)
    rounds.begin()


def exchanging(rounds: TrainerRounds, version: int = 0) -> None:
    computing(rounds, version)
    rounds.facts()
    for param in "ba":
        rounds.gradient(param)
    rounds.finish()


def test_batches_are_asked_for_two_steps_ahead(rounds: TrainerRounds):
    assert rounds.joined(1) == [AskBatch(2), AskBatch(3), AskBatch(4)]
    assert rounds.waiting_for() == "the batch of step 2 from loader"
    assert not rounds.may_compute
    assert rounds.batch(3)
    assert not rounds.may_compute
    assert rounds.batch(2)
    assert rounds.may_compute
    assert not rounds.batch(2)
    assert not rounds.batch(9)


def test_no_batches_are_asked_for_beyond_the_last_step(rounds: TrainerRounds):
    assert rounds.joined(3) == [AskBatch(4), AskBatch(5)]


def test_a_finished_run_needs_nothing(rounds: TrainerRounds):
    assert rounds.joined(5) == []
    assert rounds.waiting_for() == "the end of the run"
    assert rounds.tick(100.0) == []


def test_gradients_and_facts_go_to_their_shards(rounds: TrainerRounds):
    computing(rounds)
    assert rounds.facts() == [SendFacts(1)]
    assert rounds.gradient("b") == [SendGradient(1, "b", 1)]
    assert rounds.gradient("a") == [SendGradient(1, "a", 0)]


def test_updates_wait_for_the_end_of_the_backward_pass(rounds: TrainerRounds):
    computing(rounds)
    rounds.facts()
    rounds.gradient("b")
    assert rounds.update(1, "b") == []
    rounds.gradient("a")
    todo = rounds.finish()
    assert todo[0] == ApplyUpdate(1, "b")
    assert rounds.applied("b") == []
    assert rounds.update(1, "a") == [ApplyUpdate(1, "a")]
    assert rounds.applied("a") == [ForgetStep(1), AskBatch(4)]
    assert rounds.phase == "feeding"


def test_a_new_trainer_asks_at_once_what_its_predecessor_was_answered(rounds: TrainerRounds):
    computing(rounds)
    rounds.facts()
    rounds.gradient("a")
    rounds.gradient("b")
    assert rounds.finish() == [Query(0, 1, ("a",)), Query(1, 1, ("b",))]


def test_an_update_counts_once_and_only_for_its_step(rounds: TrainerRounds):
    exchanging(rounds)
    assert rounds.update(1, "a") == [ApplyUpdate(1, "a")]
    assert rounds.update(1, "a") == []
    assert rounds.update(2, "b") == []
    assert rounds.update(0, "b") == []
    assert rounds.update(1, "nobody") == []
    rounds.applied("a")
    assert rounds.update(1, "a") == []
    assert rounds.stale == 5


def test_a_long_wait_is_a_question_and_the_next_comes_later(rounds: TrainerRounds):
    exchanging(rounds)
    assert rounds.tick(10.0) == []
    assert rounds.tick(10.3) == [Query(0, 1, ("a",)), Query(1, 1, ("b",))]
    assert rounds.tick(10.5) == []
    rounds.update(1, "a")
    rounds.applied("a")
    assert rounds.tick(10.9) == []
    assert rounds.tick(11.2) == [Query(1, 1, ("b",))]
    assert rounds.waiting_for() == "1 updates of step 1 from optimizer_shard/1"


def test_a_shard_that_lives_anew_is_asked_at_once(rounds: TrainerRounds):
    assert rounds.shard_up(0) == []
    exchanging(rounds)
    rounds.update(1, "a")
    assert rounds.shard_up(0) == [Query(0, 1, ())]
    assert rounds.shard_up(1) == [Query(1, 1, ("b",))]


def test_what_a_shard_needs_is_sent_again_if_it_is_known(rounds: TrainerRounds):
    computing(rounds)
    assert rounds.needs(1, ("a", "b"), facts=True) == []
    rounds.facts()
    rounds.gradient("b")
    assert rounds.needs(1, ("a", "b"), facts=True) == [SendFacts(1), SendGradient(1, "b", 1)]
    assert rounds.needs(2, ("b",), facts=True) == []
    assert rounds.stale == 1


def test_a_damaged_update_is_replaced_by_the_whole_parameter(rounds: TrainerRounds):
    exchanging(rounds)
    rounds.update(1, "a")
    assert rounds.refused("a") == [AskCodes(0, 1)]
    assert rounds.update(1, "a") == [ApplyUpdate(1, "a")]


def test_the_loader_is_asked_again(rounds: TrainerRounds):
    assert rounds.loader_up() == []
    rounds.joined(0)
    rounds.batch(2)
    assert rounds.loader_up() == [AskBatch(1), AskBatch(3)]
    assert rounds.tick(0.0) == []
    assert rounds.tick(1.1) == [AskBatch(1), AskBatch(3)]
    assert rounds.tick(2.0) == []
