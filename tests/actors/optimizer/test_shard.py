"""A shard and a trainer among peers that talk nonsense, and what a shard says about a step."""

import math

import numpy as np
import pytest

from actors.optimizer.checkpointing import RunFailed
from actors.optimizer.metrics import Clocked, step_record
from actors.optimizer.state import Counts, Facts, State, StateError
from actors.trainer.trainer import ShardsDisagree
from protocol import codec
from protocol import messages as m
from tests.actors.exchange import Exchange, PlainMemory, tiny

MATRIX = "layers.0.attention.q.weight"


def gradient(**change: object) -> m.Gradient:
    ref = m.TensorRef(dtype="float32", shape=(32, 32), frame=0)
    values: dict[str, object] = {
        "step": 1,
        "rank": 0,
        "param": MATRIX,
        "codec": "dense",
        "basis": 0,
        "tokens": 3,
        "tensors": (ref,),
        **change,
    }
    return m.Gradient(**values)  # pyright: ignore[reportArgumentType]


FRAME = [np.zeros((32, 32), np.float32).data.cast("B")]


@pytest.mark.parametrize(
    ("sender", "message"),
    [
        ("trainer/1", gradient()),
        ("trainer/0", gradient(rank=7)),
        ("trainer/0", gradient(param="nobody")),
        ("trainer/0", gradient(codec="zip")),
        ("trainer/0", gradient(tokens=-1)),
        ("trainer/0", gradient(tensors=())),
        ("trainer/0", gradient(step=9)),
        ("trainer/0", gradient(tensors=(m.TensorRef(dtype="float32", shape=(4, 256), frame=0),))),
        ("trainer/0", gradient(tensors=(m.TensorRef(dtype="float32", shape=(9,), frame=3),))),
        ("trainer/0", gradient(tensors=(m.TensorRef(dtype="f", shape=(), segment="x"),))),
        ("trainer/0", m.StepQuery(version=1, rank=1, lacking=("nobody",))),
        ("trainer/0", m.StepQuery(version=-5, rank=0, lacking=("nobody", MATRIX))),
        ("rollout/0", m.CodesRequest(version=10**12)),
        ("recorder", m.MetricsRequest(after=-(10**12))),
        (
            "optimizer_shard/1",
            m.ShardCommitted(version=1, shard=1, digests=(), flips=0, up_bytes=0, down_bytes=0),
        ),
        ("optimizer_shard/1", m.CheckpointPart(version=1, shard=1, files={})),
        ("supervisor", m.Welcome(peers={})),
    ],
)
def test_nonsense_is_dropped_and_the_run_goes_on(sender: str, message: m.Message):
    exchange = Exchange(tiny("steps=2"))
    shard = exchange.shards[0]
    shard.hear(sender, message, FRAME)
    assert not shard.rounds.ranks_given(MATRIX)
    exchange.office.letters.clear()
    exchange.run()
    shard.rounds.check()


def test_digests_that_are_none_are_refused():
    exchange = Exchange(tiny("steps=2", "actors.optimizer_shards=2"))
    count = len(exchange.shards[1].state.layout.places)
    for digests in (("zz",) * count, ("00",) * count, ("00" * 32,) * (count + 1)):
        part = m.ShardCommitted(
            version=1, shard=1, digests=digests, flips=0, up_bytes=0, down_bytes=0
        )
        exchange.shards[0].hear("optimizer_shard/1", part)
    assert exchange.shards[0].malformed == 3
    exchange.run()


def batch(**change: object) -> m.Batch:
    ref = m.TensorRef(dtype="int32", shape=(2, 17), frame=0)
    values: dict[str, object] = {
        "step": 1,
        "rank": 0,
        "epoch": 0,
        "tokens": ref,
        "documents": ref,
        "text_bytes": 5,
        **change,
    }
    return m.Batch(**values)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("message", "fill"),
    [
        (batch(rank=1), 0),
        (batch(tokens=m.TensorRef(dtype="int32", shape=(17, 2), frame=0)), 0),
        (batch(tokens=m.TensorRef(dtype="float32", shape=(2, 17), frame=0)), 0),
        (batch(documents=m.TensorRef(dtype="int32", shape=(2, 17), frame=1)), 0),
        (batch(), 300),
        (batch(), -1),
        (m.Codes(version=0, param="x", index=0, count=1, codec="dense", digest="", tensors=()), 0),
        (m.Update(version=1, param="x", codec="dense", digest="", tensors=()), 0),
        (m.StepNeeds(step=1, params=("x",), facts=True), 0),
    ],
)
def test_a_trainer_drops_nonsense_too(message: m.Message, fill: int):
    exchange = Exchange(tiny("steps=2"))
    exchange.turn()
    frame = np.full((2, 17), fill, np.int32).data.cast("B")
    exchange.trainers[0].hear("loader", message, [frame])
    exchange.trainers[0].hear("optimizer_shard/0", message, [frame])
    exchange.run()
    assert exchange.trainers[0].rounds.version == 2


def test_a_loss_that_is_not_finite_ends_the_run_with_the_reason():
    exchange = Exchange(tiny("steps=2"))
    facts = m.StepFacts(
        step=1,
        rank=0,
        tokens=1,
        text_bytes=1,
        loss_sum=math.nan,
        objective_sum=0.0,
        step_s=0.0,
        data_wait_s=0.0,
        up_bytes=0,
    )
    with pytest.raises(RunFailed, match="step 1 is not finite"):
        exchange.shards[0].hear("trainer/0", facts)


def test_shards_of_different_runs_end_the_run_with_the_reason():
    exchange = Exchange(tiny("steps=9", "actors.optimizer_shards=2"))
    while exchange.shards[0].rounds.committed < 4:
        exchange.turn()
    exchange.memories[1] = PlainMemory(exchange.memories[1].nbytes)
    exchange.shards[1] = exchange.new_shard(1)
    exchange.office.letters.clear()
    exchange.trainers[0] = exchange.new_trainer(0)

    def turns() -> None:
        for _ in range(60):
            exchange.turn(1.0)

    with pytest.raises(ShardsDisagree, match="different checkpoints"):
        turns()


def test_a_segment_of_another_run_is_refused_with_the_reason():
    exchange = Exchange(tiny("steps=2"))
    for override in ("model.dim=64", "seed=3"):
        other = Exchange(tiny(override))
        layout = other.shards[0].state.layout
        big = PlainMemory(layout.total_bytes + exchange.memories[0].nbytes)
        source = exchange.memories[0]
        big.bytes[: source.nbytes] = source.array("uint8", (source.nbytes,))
        with pytest.raises(StateError, match="another model"):
            State(layout, big).ready  # noqa: B018 - asking is the test
    with pytest.raises(StateError, match="bytes, this topology needs"):
        State(exchange.shards[0].state.layout, PlainMemory(64))


def test_the_record_of_a_step_says_what_was_learned_and_what_it_cost():
    facts = {
        0: Facts(3, 12, 6.0, 5.0, 0.5, 0.1, 100),
        1: Facts(1, 4, 2.0, 2.0, 0.5, 0.3, 100),
    }
    clocked = Clocked(step_s=0.25, optimizer_s=0.125, lr=0.5, dense_lr=0.25)
    record = step_record(7, facts, Counts(9, 20, 30), clocked, "ab")
    assert record["loss"] == 2.0
    assert record["bits_per_byte"] == pytest.approx(8.0 / math.log(2) / 16)
    assert record["objective"] == 1.75
    assert record["data_wait_s"] == 0.3
    assert (record["flips"], record["up_bytes"], record["down_bytes"]) == (9, 20, 30)
    assert {"step", "loss", "bits_per_byte", "tokens", "lr", "step_s", "data_wait_s"} <= set(record)
    assert {"up_bytes", "down_bytes", "flips", "weights_digest"} <= set(record)


def test_bytes_are_counted_in_their_codecs():
    exchange = Exchange(tiny("steps=1", "actors.trainers=2"))
    exchange.run()
    (record,) = exchange.records()
    numbers = sum(place.parameter.numel for place in exchange.shards[0].state.layout.places)
    assert record["up_bytes"] == 2 * 4 * numbers
    assert 0 < record["down_bytes"] < record["up_bytes"]
    assert record["tokens"] > 0


def test_the_ring_keeps_the_newest_records():
    exchange = Exchange(tiny("steps=1"))
    state = exchange.shards[0].state
    for step in range(1, 400):
        state.commit(step, {"step": step})
    assert [record["step"] for record in state.records(0)] == list(range(144, 400))
    assert [record["step"] for record in state.records(390)] == list(range(391, 400))
    with pytest.raises(StateError, match="has 5"):
        state.put_record(400, {"step": 400, "junk": "x" * 5000})


def test_a_shard_that_died_over_an_old_version_hands_out_the_one_that_is_whole():
    exchange = Exchange(tiny("steps=4"))
    for _ in exchange.turns():
        if exchange.shards[0].rounds.committed == 3:
            break
    state = exchange.shards[0].state
    state.publish(0, 4, state.published(0, 3), bytes(32))  # over version 2, then it died
    exchange.shards[0] = shard = exchange.new_shard(0)
    exchange.office.letters.clear()
    name = shard.state.layout.parameters[0].name
    shard.hear("rollout/0", m.CodesRequest(version=2))
    shard.hear("trainer/0", m.StepQuery(version=2, rank=0, lacking=(name,)))
    said = [codec.decode(letter.parts).message for letter in exchange.office.letters]
    assert {message.version for message in said if isinstance(message, m.Codes)} == {3}
    assert not [message for message in said if isinstance(message, m.Update)]
    exchange.office.letters.clear()
    exchange.run()
