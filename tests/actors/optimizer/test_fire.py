"""FIRE at stage boundaries: in the shard, published as flips, the same bits after any death."""

import random
from pathlib import Path

import pytest
import torch

from actors.fire import fires, is_touched
from actors.parameters import parameters
from kernels.optimizers.isometry import defect, is_projected, relative_defect
from tests.actors.exchange import Exchange, PostOffice, tiny
from tests.actors.optimizer.test_codecs_in_exchange import digests_of, plain

CUT = ("actors.trainers=2", "actors.optimizer_shards=2", "steps=6")
FIRE = (*CUT, "optimizer.fire_at=[2, 5]")


@pytest.mark.parametrize(
    "settings",
    [
        (),
        ("model.ternary=false", "optimizer.matrices.kind=adamw8bit"),
        ("optimizer.fire_exclude=['*.attention.*']", "optimizer.matrices.kind=muon8bit"),
        ("optimizer.codec=ternary", "model.ffn_dim=192"),
        ("optimizer.matrices.projection=galore", "optimizer.matrices.kind=adamw"),
        ("optimizer.matrices.projection=gum", "optimizer.matrices.refresh_every=2"),
    ],
    ids=lambda settings: settings[0] if settings else "plain",
)
def test_fire_equals_its_plain_loop(settings: tuple[str, ...]):
    chosen = (*FIRE, *settings)
    assert digests_of(Exchange(tiny(*chosen))) == plain(*chosen)


def test_matrices_are_isometries_then_and_moments_are_gone():
    topology = tiny(*FIRE, "model.ternary=false", "optimizer.fire_exclude=['*.ffn.down.*']")
    exchange, checked = Exchange(topology), 0
    for _ in exchange.turns():
        if exchange.shards[0].state.committed >= 5:
            break
    for shard in exchange.shards:
        for index, parameter in enumerate(shard.state.layout.parameters):
            kept = shard.state.kept(index)
            rows, columns = parameter.shape if len(parameter.shape) == 2 else (1, 1)
            weight = torch.from_numpy(kept["master"].copy()).reshape(rows, -1)
            if fires(topology.optimizer, parameter, 5) and shard.state.versions()[index] == 5:
                assert defect(weight / (rows / columns) ** 0.5) < 1e-6
                assert not kept["momentum"].any()
                checked += 1
            elif parameter.name.endswith("down.weight"):
                assert defect(weight / (rows / columns) ** 0.5) > 0.1
                assert kept["momentum"].any()
    assert checked


def test_ternary_layers_keep_their_scale_and_flip_codes():
    settings = ("model.dim=64", "steps=3")
    quiet = Exchange(tiny(*settings))
    fired = Exchange(tiny(*settings, "optimizer.fire_at=[3]"))
    for exchange in (quiet, fired):
        exchange.run()
    flips = [exchange.records()[-1]["flips"] for exchange in (quiet, fired)]
    assert flips[1] > 2 * flips[0]
    for index, parameter in enumerate(fired.shards[0].state.layout.parameters):
        if parameter.kind != "ternary":
            continue
        scales = [e.shards[0].state.published(index, 3)["scale"] for e in (quiet, fired)]
        assert float(scales[1]) == pytest.approx(float(scales[0]), rel=1e-5)
        masters = [
            torch.from_numpy(e.shards[0].state.kept(index)["master"]) for e in (quiet, fired)
        ]
        assert relative_defect(masters[1]) < 1e-6 < 0.05 < relative_defect(masters[0])


def test_a_light_process_knows_what_the_kernel_would_touch():
    topology = tiny("model.predict_tokens=2", "model.prediction=sequential", "model.streams=2")
    for parameter in parameters(topology.model):
        kernel = is_projected(parameter.name, parameter.shape)
        ours = is_touched(topology.optimizer, parameter)
        assert ours == (kernel and parameter.group == "matrices"), parameter.name


@pytest.mark.parametrize("seed", range(3))
def test_deaths_around_a_fire_change_nothing(seed: int):
    chosen = (*FIRE, "optimizer.codec=two_bit", "model.ffn_dim=192")
    draw = random.Random(seed)
    exchange = Exchange(tiny(*chosen), PostOffice())
    for _ in range(5000):
        exchange.clock.advance(0.02)
        for actor in (*exchange.trainers, *exchange.shards):
            actor.tick()
        for trainer in exchange.trainers:
            if trainer.may_compute:
                trainer.compute()
        exchange.deliver(draw.randint(1, 40))
        if draw.random() < 0.05:
            index = draw.randrange(2)
            exchange.shards[index] = exchange.new_shard(index)
            exchange.trainers[1 - index].close()
            exchange.trainers[1 - index] = exchange.new_trainer(1 - index)
        if all(shard.rounds.finished for shard in exchange.shards):
            break
    assert [record["weights_digest"] for record in exchange.records()] == plain(*chosen)


@pytest.mark.parametrize("every", [5, 4])
def test_a_checkpoint_beside_a_fire_is_resumed_to_the_same_bits(tmp_path: Path, every: int):
    """Made right after FIRE (every 5), or just before (every 4)."""
    chosen = (*FIRE, "optimizer.codec=ternary", f"checkpoint.every_steps={every}")
    undisturbed = plain(*chosen)
    first = Exchange(tiny(*chosen), directory=tmp_path)
    for _ in first.turns():
        if first.shards[0].rounds.committed == 5:
            break
    first.settle()
    second = Exchange(tiny(*chosen), directory=tmp_path)
    assert second.shards[0].rounds.committed == every
    assert digests_of(second)[-1] == undisturbed[-1]
