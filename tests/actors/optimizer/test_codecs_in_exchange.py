"""Coarse gradients travel, errors are remembered, and nothing of it is lost with a process."""

import os
import random
from pathlib import Path

import pytest

from actors.uplink import CODECS
from tests.actors.exchange import Exchange, Letter, PostOffice, rows_of, tiny
from tests.benchmarks.plain_loop import PlainLoop

STEPS = 4
# The feed-forward layers are large enough for their errors to be kept in codes.
WIDE = ("model.ffn_dim=192", f"steps={STEPS}", "optimizer.codec_rank=0")
POWER = ("optimizer.codec_rank=5",)


def setting(codec: str, trainers: int = 2, shards: int = 2, *more: str) -> tuple[str, ...]:
    return (
        *WIDE,
        f"optimizer.codec={codec}",
        f"actors.trainers={trainers}",
        f"actors.optimizer_shards={shards}",
        *(POWER if codec.startswith("power") else ()),
        *more,
    )


def plain(*overrides: str) -> list[str]:
    topology = tiny(*overrides)
    loop = PlainLoop(topology)
    digests: list[str] = []
    for step in range(1, topology.steps + 1):
        loop.step(step, [rows_of(topology, step, r) for r in range(topology.actors.trainers)])
        digests.append(loop.weights_digest())
    return digests


def digests_of(exchange: Exchange) -> list[str]:
    exchange.run()
    return [record["weights_digest"] for record in exchange.records()]


@pytest.mark.parametrize("codec", CODECS)
def test_every_codec_equals_its_plain_loop(codec: str):
    chosen = setting(codec)
    assert digests_of(Exchange(tiny(*chosen))) == plain(*chosen)


@pytest.mark.parametrize(("trainers", "shards"), [(1, 1), (2, 1), (3, 2)])
def test_error_feedback_equals_a_plain_loop_however_it_is_cut(trainers: int, shards: int):
    chosen = setting(
        "ternary_rotated", trainers, shards, "optimizer.dense_codec=int8", "train.accumulation=2"
    )
    assert digests_of(Exchange(tiny(*chosen))) == plain(*chosen)


@pytest.mark.parametrize("seed", range(4))
def test_deaths_and_losses_change_nothing(seed: int):
    chosen = setting("two_bit")
    draw = random.Random(seed)

    def tamper(letter: Letter) -> list[Letter]:
        return [letter] * draw.choices([0, 1, 2], [0.1, 0.8, 0.1])[0]

    exchange = Exchange(tiny(*chosen), PostOffice(tamper=tamper))
    for _ in exchange.turns():
        index = draw.randrange(2)
        if draw.random() < 0.2:
            exchange.shards[index] = exchange.new_shard(index)
        if draw.random() < 0.3:
            exchange.trainers[index].close()
            exchange.trainers[index] = exchange.new_trainer(index)
        exchange.office.letters.rotate(draw.randrange(3))
    assert [record["weights_digest"] for record in exchange.records()] == plain(*chosen)


def test_shared_memory_makes_no_difference():
    chosen = setting("ternary")
    exchange = Exchange(tiny(*chosen), shared=f"codecs{os.getpid()}")
    try:
        for number in exchange.turns():
            if number == 2:
                exchange.shards[0] = exchange.new_shard(0)
                exchange.trainers[1].close()
                exchange.trainers[1] = exchange.new_trainer(1)
        assert exchange.shards[0].weights_digest() == plain(*chosen)[-1]
    finally:
        exchange.close()


@pytest.mark.parametrize("codec", ["sign", "power_int8"])
def test_a_checkpoint_holds_what_codecs_remember(tmp_path: Path, codec: str):
    chosen = setting(codec, 2, 2, "steps=6", "checkpoint.every_steps=4")
    undisturbed = digests_of(Exchange(tiny(*chosen)))
    first = Exchange(tiny(*chosen), directory=tmp_path)
    for _ in first.turns():
        if first.shards[0].rounds.committed == 5:
            break
    first.settle()
    second = Exchange(tiny(*setting(codec, 2, 1, "steps=6")), directory=tmp_path)
    assert second.shards[0].rounds.committed == 4
    assert digests_of(second)[-2:] == undisturbed[-2:]


@pytest.mark.parametrize("seed", range(3))
def test_a_stop_in_the_middle_of_a_step_keeps_every_version_of_memory(tmp_path: Path, seed: int):
    chosen = setting("ternary")
    draw = random.Random(seed)
    first = Exchange(tiny(*chosen), directory=tmp_path)
    first.clock.advance(0.1)
    for trainer in first.trainers:
        trainer.tick()
    for _ in range(draw.randint(10, 90)):
        first.deliver(draw.randint(1, 4))
        for trainer in first.trainers:
            trainer.tick()
            if trainer.may_compute:
                trainer.compute()
        first.clock.advance(0.05)
    first.stop()
    again = Exchange(tiny(*chosen), directory=tmp_path)
    assert again.run() == plain(*chosen)[-1]


def test_metrics_count_the_bytes_of_the_codec():
    sizes = {}
    for codec in ("dense", "int4", "ternary"):
        exchange = Exchange(tiny(*setting(codec, 2, 1, "model.dim=64")))
        exchange.run()
        (record, *_) = exchange.records()
        sizes[codec] = record["up_bytes"]
        assert exchange.records()[-1]["sent_bytes"] == pytest.approx(sizes[codec], rel=0.01)
    dense = 2 * 4 * (300 * 64)
    assert (sizes["int4"] - dense) / (sizes["dense"] - dense) < 0.2
    assert sizes["ternary"] < sizes["int4"] < sizes["dense"]
