"""The graph computes what a plain loop computes, bit for bit, however it is cut or disturbed."""

import os
import random

import pytest

from protocol import codec
from protocol import messages as m
from tests.actors.exchange import Exchange, Letter, PostOffice, rows_of, tiny
from tests.benchmarks.plain_loop import PlainLoop

STEPS = 4

# One of each kind of technique at once.
EVERYTHING = (
    "train.precision=nvfp4",
    "train.filter=loss",
    "model.streams=2",
    "model.predict_tokens=2",
    "optimizer.matrices.kind=muon8bit",
    "optimizer.dense.kind=foam",
)


def plain(trainers: int, *overrides: str) -> tuple[list[float], list[str]]:
    """Losses and weights digests of the plain loop, per step."""
    topology = tiny(f"steps={STEPS}", f"actors.trainers={trainers}", *overrides)
    loop = PlainLoop(topology)
    losses: list[float] = []
    digests: list[str] = []
    for step in range(1, STEPS + 1):
        ranks = [rows_of(topology, step, rank) for rank in range(trainers)]
        losses.append(loop.step(step, ranks)["loss"])
        digests.append(loop.weights_digest())
    return losses, digests


@pytest.mark.parametrize(("trainers", "shards"), [(1, 1), (2, 1), (2, 2), (3, 2)])
def test_trainers_and_shards_equal_a_plain_loop_bit_for_bit(trainers: int, shards: int):
    losses, digests = plain(trainers)
    exchange = Exchange(
        tiny(f"steps={STEPS}", f"actors.trainers={trainers}", f"actors.optimizer_shards={shards}")
    )
    exchange.run()
    records = exchange.records()
    assert [record["weights_digest"] for record in records] == digests
    assert [record["loss"] for record in records] == pytest.approx(losses, rel=1e-12)
    assert records[-1]["flips"] > 0


@pytest.mark.parametrize(
    "overrides",
    [
        ("train.accumulation=2",),
        ("model.ternary=false",),
        ("model.tie_embedding=false", "model.loops=1"),
        ("model.activation_checkpointing=true",),
        ("optimizer.matrices.kind=adamw", "optimizer.dense.clip=0.01"),
        ("optimizer.matrices.coefficients=polar_express", "optimizer.matrices.clip=0.01"),
        ("optimizer.matrices.kind=muon8bit", "optimizer.dense.kind=adamw8bit"),
        (
            "optimizer.matrices.map=dynamic",
            "optimizer.matrices.kind=muon8bit",
            "optimizer.matrices.block=100",
            "optimizer.matrices.neuron_beta2=0.9",
            "optimizer.dense.kind=foam",
            "optimizer.dense.weight_decay=0.1",
        ),
        ("optimizer.matrices.neuron_beta2=0.9", "optimizer.matrices.scaling=spectral"),
        (
            "optimizer.matrices.kind=foam",
            "optimizer.matrices.level=5",
            "optimizer.matrices.second=square_of_mean",
            "optimizer.matrices.residual=0.5",
            "optimizer.dense.block=64",
            "optimizer.dense.kind=adamw8bit",
        ),
        ("model.streams=2", "optimizer.dense.weight_decay=0.1"),
        ("model.predict_tokens=3", "model.prediction=sequential", "train.prediction_weight=1"),
        ("train.precision=nvfp4", "train.accumulation=2", "model.activation_checkpointing=true"),
        (
            "train.precision_attention=fp8",
            "train.precision_ffn=mxfp4_backward",
            "train.precision_embedding=bf16",
            "model.layers=2",
            "train.precision_high_layers=[1]",
        ),
        ("train.precision=fp4_dge", "model.ternary=false"),
        ("train.filter=loss", "train.filter_keep=0.5", "model.predict_tokens=2"),
        ("train.filter=loss", "model.activation_checkpointing=true", "model.streams=2"),
        ("train.filter=loss", "train.filter_backward=masked"),
        ("train.filter=loss", "train.filter_backward=loss_only", "train.precision=fp8"),
    ],
    ids=lambda overrides: overrides[0],
)
def test_every_setting_equals_its_plain_loop(overrides: tuple[str, ...]):
    _, digests = plain(2, *overrides)
    exchange = Exchange(
        tiny(f"steps={STEPS}", "actors.trainers=2", "actors.optimizer_shards=2", *overrides)
    )
    assert exchange.run() == digests[-1]


def test_shared_memory_makes_no_difference():
    """Large tensors travel as references: gradients one way, the embedding the other."""
    wide = ("model.vocab_size=1000",)
    _, digests = plain(2, *wide)
    topology = tiny(f"steps={STEPS}", "actors.trainers=2", "actors.optimizer_shards=2", *wide)
    exchange = Exchange(topology, shared=f"equality{os.getpid()}")
    try:
        for number in exchange.turns():
            if number == 2:
                exchange.shards[0] = exchange.new_shard(0)
                exchange.trainers[1].close()
                exchange.trainers[1] = exchange.new_trainer(1)
        assert exchange.shards[0].weights_digest() == digests[-1]
    finally:
        exchange.close()


def test_replicas_equal_the_shards_after_every_run():
    exchange = Exchange(tiny(f"steps={STEPS}", "actors.trainers=2", "actors.optimizer_shards=2"))
    digest = exchange.run()
    exchange.deliver()
    assert [trainer.replica.weights_digest() for trainer in exchange.trainers] == [digest] * 2


@pytest.mark.parametrize("seed", range(6))
def test_loss_repetition_and_deaths_change_nothing(seed: int):
    techniques = EVERYTHING if seed % 2 else ()
    _, digests = plain(2, *techniques)
    draw = random.Random(seed)

    def tamper(letter: Letter) -> list[Letter]:
        return [letter] * draw.choices([0, 1, 2], [0.15, 0.7, 0.15])[0]

    topology = tiny(f"steps={STEPS}", "actors.trainers=2", "actors.optimizer_shards=2", *techniques)
    exchange = Exchange(topology, PostOffice(tamper=tamper))
    for _ in exchange.turns():
        letters = exchange.office.letters
        if draw.random() < 0.2:
            index = draw.randrange(2)
            exchange.shards[index] = exchange.new_shard(index)
        if draw.random() < 0.1:
            index = draw.randrange(2)
            exchange.trainers[index].close()
            exchange.trainers[index] = exchange.new_trainer(index)
        letters.rotate(draw.randrange(3))
    assert [record["weights_digest"] for record in exchange.records()] == digests


def test_a_damaged_update_is_answered_with_the_whole_parameter():
    _, digests = plain(1)
    damaged: list[str] = []

    def tamper(letter: Letter) -> list[Letter]:
        message = codec.decode(letter.parts).message
        if isinstance(message, m.Update) and len(damaged) < 3:
            damaged.append(message.param)
            letter.parts[2] = bytes(byte ^ 1 for byte in letter.parts[2])
        return [letter]

    exchange = Exchange(tiny(f"steps={STEPS}"), PostOffice(tamper=tamper))
    assert exchange.run() == digests[-1]
    assert exchange.trainers[0].malformed == 3
