"""Dense parameters come down in few bytes, the same bits to all, and follow their masters."""

import random

import numpy as np
import pytest

from actors import downlink, topology
from actors.parameters import parameters, unique_count
from actors.plan_memory import wire
from protocol import codec
from protocol import messages as m
from tests.actors.exchange import Exchange, Letter, PostOffice, tiny
from tests.actors.optimizer.test_codecs_in_exchange import digests_of, plain

CUT = ("actors.trainers=2", "actors.optimizer_shards=2", "steps=5")


@pytest.mark.parametrize("name", downlink.CODECS)
def test_every_codec_equals_its_plain_loop(name: str):
    chosen = (*CUT, f"optimizer.dense_updates={name}")
    assert digests_of(Exchange(tiny(*chosen))) == plain(*chosen)


@pytest.mark.parametrize(
    "settings",
    [
        ("model.ternary=false", "model.ffn_dim=256", "optimizer.fire_at=[3]"),
        ("model.tie_embedding=false", "optimizer.dense_codec=ternary"),
        ("optimizer.dense.kind=foam", "optimizer.codec=two_bit", "optimizer.dense_codec=two_bit"),
    ],
    ids=lambda settings: settings[0],
)
def test_it_goes_with_the_rest(settings: tuple[str, ...]):
    chosen = (*CUT, "optimizer.dense_updates=int4", *settings)
    assert digests_of(Exchange(tiny(*chosen))) == plain(*chosen)


@pytest.mark.parametrize("seed", range(4))
def test_deaths_and_losses_change_nothing(seed: int):
    """A shard that has forgotten how a step was encoded sends the whole parameter instead."""
    chosen = (*CUT, "optimizer.dense_updates=two_bit")
    draw, kinds = random.Random(seed), set[str]()

    def tamper(letter: Letter) -> list[Letter]:
        message = codec.decode(letter.parts).message
        if isinstance(message, m.Update) and message.param == "embedding.weight":
            kinds.add(message.codec)
        return [letter] * draw.choices([0, 1, 2], [0.1, 0.8, 0.1])[0]

    exchange = Exchange(tiny(*chosen), PostOffice(tamper=tamper))
    for _ in exchange.turns():
        index = draw.randrange(2)
        if draw.random() < 0.3:
            exchange.shards[index] = exchange.new_shard(index)
        if draw.random() < 0.2:
            exchange.trainers[index].close()
            exchange.trainers[index] = exchange.new_trainer(index)
        exchange.office.letters.rotate(draw.randrange(3))
    assert [record["weights_digest"] for record in exchange.records()] == plain(*chosen)
    assert "two_bit" in kinds


def test_a_damaged_step_is_answered_with_the_whole():
    chosen = (*CUT, "actors.trainers=1", "optimizer.dense_updates=int4")
    damaged: list[str] = []

    def tamper(letter: Letter) -> list[Letter]:
        message = codec.decode(letter.parts).message
        if isinstance(message, m.Update) and message.codec == "int4" and len(damaged) < 2:
            damaged.append(message.param)
            letter.parts[2] = bytes(byte ^ 1 for byte in letter.parts[2])
        return [letter]

    exchange = Exchange(tiny(*chosen), PostOffice(tamper=tamper))
    assert exchange.run() == plain(*chosen)[-1]
    assert exchange.trainers[0].malformed == len(damaged) == 2


@pytest.mark.parametrize(
    ("name", "most"), [("int8", 0.01), ("int4", 0.15), ("ternary", 0.7), ("sign", 1.8)]
)
def test_the_copy_follows_however_coarse_the_steps(name: str, most: float):
    """A master that wanders for thirty steps and then rests: what was left out comes later."""
    rng = np.random.default_rng(3)
    master = rng.normal(size=(64, 96)).astype(np.float32)
    shown, behind = master.copy(), list[float]()
    for version in range(1, 61):
        if version <= 30:
            master = master + 0.01 * rng.normal(size=master.shape).astype(np.float32)
        payload = downlink.encoded("w", name, version, shown, master)
        shown = downlink.moved("w", name, version, shown, payload)
        behind.append(float(np.abs(master - shown).mean()) / 0.008)
    # In units of one step's mean movement.
    assert behind[29] < most
    assert behind[59] < 0.01 * behind[29]


def test_what_comes_down_is_what_is_planned():
    coded = tiny("model.dim=64", "model.vocab_size=2000", "steps=4", "optimizer.dense_updates=int4")
    exchange = Exchange(coded)
    exchange.run()
    record, planned = exchange.records()[-1], wire(coded).down_bytes_per_step
    dense = [p for p in parameters(coded.model) if p.kind == "dense"]
    steps = sum(0.531 * p.numel if p.numel >= 4096 else 4 * p.numel for p in dense)
    flips = record["down_bytes"] - steps
    assert 0 < flips < 0.2 * record["down_bytes"]
    assert planned == pytest.approx(record["down_bytes"], rel=0.2)


def test_a_large_models_downlink_is_thirty_times_smaller_than_bf16_weights():
    coded = topology.load("config_b", ("optimizer.dense_updates=two_bit",))
    weights = 2 * unique_count(coded.model) * coded.actors.trainers
    assert weights > 30 * wire(coded).down_bytes_per_step
