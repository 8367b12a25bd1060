"""FIRE at stage boundaries: in the shard, published as flips, the same bits after any death."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from actors.fire import fires, is_touched, steps_of_moments
from actors.optimizer import updates
from actors.optimizer.layout import state_tensors
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
        ("optimizer.matrices.kind=adamw", "optimizer.fire_exclude=['*.attention.*']"),
        ("optimizer.matrices.kind=foam",),
        ("optimizer.fire_exclude=['*.attention.*']", "optimizer.matrices.kind=muon8bit"),
        ("optimizer.codec=ternary", "model.ffn_dim=192"),
        ("optimizer.fire_method=svd",),
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


def test_both_methods_arrive_at_the_same_isometry():
    masters: list[list[np.ndarray]] = []
    for settings in ((), ("optimizer.fire_method=svd",)):
        exchange = Exchange(
            tiny("steps=2", "model.ternary=false", "optimizer.fire_at=[2]", *settings)
        )
        exchange.run()
        state = exchange.shards[0].state
        masters.append(
            [
                state.kept(index)["master"].copy()
                for index, parameter in enumerate(state.layout.parameters)
                if is_touched(exchange.topology.optimizer, parameter)
            ]
        )
    for schulz, svd in zip(*masters, strict=True):
        assert (schulz != svd).any()
        np.testing.assert_allclose(schulz, svd, rtol=0, atol=2e-3)


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


@pytest.mark.parametrize("kind", ["adamw", "adamw8bit", "foam"])
def test_moments_that_fire_cleared_are_corrected_as_at_the_beginning(kind: str):
    """The step after FIRE moves as far as step 1 would: the rate alone has gone on."""
    flat = ("schedule.warmup=0", "schedule.stable=9", f"optimizer.matrices.kind={kind}")
    fired = tiny(*flat, "optimizer.fire_at=[2, 5]", "optimizer.fire_exclude=['*.o.*']")
    fresh = tiny(*flat)
    generator = torch.Generator().manual_seed(3)
    for parameter in parameters(fired.model):
        if parameter.name not in ("layers.0.attention.q.weight", "layers.0.attention.o.weight"):
            continue
        master, grad = (torch.randn(parameter.shape, generator=generator).numpy() for _ in "mg")
        declared = state_tensors(fired.optimizer, parameter)
        kept = {spec.name: np.zeros(spec.shape, spec.dtype) for spec in declared}
        kept["master"] = master
        after = updates.updated(fired, parameter, kept, grad, 6)["master"]
        same = 1 if is_touched(fired.optimizer, parameter) else 6
        assert (after == updates.updated(fresh, parameter, kept, grad, same)["master"]).all()
        assert (after != updates.updated(fresh, parameter, kept, grad, 7 - same)["master"]).any()
        touched = same == 1
        counts = [steps_of_moments(fired.optimizer, parameter, step) for step in range(1, 8)]
        assert counts == ([1, 2, 1, 2, 3, 1, 2] if touched else [1, 2, 3, 4, 5, 6, 7])


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
