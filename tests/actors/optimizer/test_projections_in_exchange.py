"""GaLore and GUM over several processes: the bits of one, whoever dies, and no gradient travels."""

import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from actors import codecs, subspace
from actors.bases import BasisSchedule, kept_basis, numpied
from actors.optimizer import updates
from actors.optimizer.updates import Contribution
from actors.parameters import parameters
from kernels.optimizers.projection import find_basis, project
from protocol import codec
from protocol import messages as m
from tests.actors.exchange import Exchange, Letter, PostOffice, tiny
from tests.actors.optimizer.test_codecs_in_exchange import digests_of, plain

GALORE = (
    "steps=7",
    "optimizer.matrices.projection=galore",
    "optimizer.matrices.rank=8",
    "optimizer.matrices.refresh_every=3",
)
GUM = (
    "steps=7",
    "optimizer.matrices.projection=gum",
    "optimizer.matrices.rank=8",
    "optimizer.matrices.refresh_every=3",
    "optimizer.matrices.remainder=0.4",
)
# What is large enough to be kept in codes at all, and more than one micro-batch.
CODED = ("model.ffn_dim=192", "optimizer.matrices.rank=24", "train.accumulation=2")


def cut(trainers: int, shards: int, *settings: str) -> tuple[str, ...]:
    return (*settings, f"actors.trainers={trainers}", f"actors.optimizer_shards={shards}")


@pytest.mark.parametrize(("trainers", "shards"), [(1, 1), (2, 1), (3, 2)])
@pytest.mark.parametrize(
    "settings",
    [
        (*GALORE, "optimizer.matrices.kind=muon8bit", "optimizer.matrices.moments=rotate"),
        (*GUM, "optimizer.matrices.kind=muon8bit", "optimizer.matrices.neuron_beta2=0.9"),
    ],
    ids=["galore", "gum"],
)
def test_trainers_and_shards_equal_one_process_bit_for_bit(
    trainers: int, shards: int, settings: tuple[str, ...]
):
    chosen = cut(trainers, shards, *settings, *CODED)
    assert digests_of(Exchange(tiny(*chosen))) == plain(*chosen)


@pytest.mark.parametrize(
    "settings",
    [
        (
            *GALORE,
            "optimizer.matrices.kind=adamw",
            "optimizer.matrices.moments=reset",
            "optimizer.matrices.galore_scale=0.25",
        ),
        (*GALORE, "optimizer.matrices.kind=adamw8bit", "optimizer.matrices.moments=rotate", *CODED),
        (*GALORE, "optimizer.matrices.first_basis=random", "optimizer.matrices.basis=float16"),
        (*GALORE, "optimizer.matrices.first_basis=random", "optimizer.matrices.moments=rotate"),
        (*GALORE, "optimizer.matrices.basis=int4", *CODED, "optimizer.codec=int4_rotated"),
        (*GALORE, "optimizer.matrices.power_iterations=0", "optimizer.matrices.clip=0.01"),
        (*GALORE, "optimizer.matrices.refresh_every=1", "optimizer.matrices.scaling=spectral"),
        (*GALORE, "optimizer.matrices.rank=0", "model.ternary=false", "model.loops=1"),
        (*GALORE, "optimizer.matrices.rank=900", "model.activation_checkpointing=true"),
        (*GUM, "optimizer.matrices.first_basis=random", "optimizer.codec=int4"),
        (*GUM, "optimizer.matrices.basis=float32", "model.predict_tokens=2", "model.streams=2"),
    ],
    ids=lambda settings: " ".join(s.split(".")[-1] for s in settings[2:]),
)
def test_every_setting_equals_one_process(settings: tuple[str, ...]):
    chosen = cut(2, 2, *settings)
    assert digests_of(Exchange(tiny(*chosen))) == plain(*chosen)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("settings", [GALORE, GUM], ids=["galore", "gum"])
def test_deaths_losses_and_repetitions_change_nothing(seed: int, settings: tuple[str, ...]):
    """With letters under way, so that sketches, requests and bases are lost with their readers."""
    chosen = cut(2, 2, *settings)
    draw = random.Random(seed)

    def tamper(letter: Letter) -> list[Letter]:
        return [letter] * draw.choices([0, 1, 2], [0.05, 0.9, 0.05])[0]

    exchange = Exchange(tiny(*chosen), PostOffice(tamper=tamper))
    deaths = 0
    for _ in range(20_000):
        exchange.clock.advance(0.02)
        for actor in (*exchange.trainers, *exchange.shards):
            actor.tick()
        for trainer in exchange.trainers:
            if trainer.may_compute:
                trainer.compute()
        exchange.deliver(draw.randint(1, 40))
        exchange.office.letters.rotate(draw.randrange(3))
        if draw.random() < 0.02:
            deaths += 1
            index = draw.randrange(2)
            if draw.random() < 0.5:
                exchange.shards[index] = exchange.new_shard(index)
            else:
                exchange.trainers[index].close()
                exchange.trainers[index] = exchange.new_trainer(index)
        if all(shard.rounds.finished for shard in exchange.shards):
            break
    assert deaths > 2
    assert [record["weights_digest"] for record in exchange.records()] == plain(*chosen)


def test_shared_memory_makes_no_difference():
    chosen = cut(2, 2, *GUM, *CODED)
    exchange = Exchange(tiny(*chosen), shared=f"projected{os.getpid()}")
    try:
        for number in exchange.turns():
            if number in (2, 5):
                exchange.shards[1] = exchange.new_shard(1)
                exchange.trainers[0].close()
                exchange.trainers[0] = exchange.new_trainer(0)
        assert exchange.shards[0].weights_digest() == plain(*chosen)[-1]
    finally:
        exchange.close()


@pytest.mark.parametrize("settings", [GALORE, GUM], ids=["galore", "gum"])
def test_a_checkpoint_holds_bases_and_projected_moments(tmp_path: Path, settings: tuple[str, ...]):
    chosen = cut(2, 2, *settings, "checkpoint.every_steps=5", "optimizer.matrices.kind=muon8bit")
    undisturbed = plain(*chosen)
    first = Exchange(tiny(*chosen), directory=tmp_path)
    for _ in first.turns():
        if first.shards[0].rounds.committed == 6:
            break
    first.settle()
    second = Exchange(tiny(*chosen, "actors.optimizer_shards=1"), directory=tmp_path)
    assert second.shards[0].rounds.committed == 5
    assert digests_of(second)[-2:] == undisturbed[-2:]


def test_no_whole_gradient_of_a_matrix_ever_travels():
    """With GaLore: neither as a gradient, nor as one of the sketches."""
    largest: dict[str, int] = {}

    def watch(letter: Letter) -> list[Letter]:
        message = codec.decode(letter.parts).message
        if isinstance(message, m.Gradient | m.Sketch):
            size = sum(len(part) for part in letter.parts[2:])
            largest[message.param] = max(size, largest.get(message.param, 0))
        return [letter]

    settings = ("model.dim=64", "model.ffn_dim=128", *GALORE, "optimizer.matrices.rank=4")
    topology = tiny(*settings)
    Exchange(topology, PostOffice(tamper=watch)).run()
    matrices = [p for p in parameters(topology.model) if p.group == "matrices"]
    for p in matrices:
        # Rank 4, and 8 columns more while a basis is sought.
        assert largest[p.name] <= 4 * max(p.shape) * 12 < 4 * p.numel


def test_a_trainer_gathers_cores_instead_of_gradients():
    chosen = cut(1, 1, *GALORE, "model.loops=3", "train.accumulation=2")
    exchange = Exchange(tiny(*chosen))
    trainer, seen = exchange.trainers[0], list[tuple[int, ...]]()
    plain_add = trainer._hooks._add

    def add(name: str, gradient: torch.Tensor) -> None:
        plain_add(name, gradient)
        seen.append(tuple(trainer._hooks._sums[name].shape))

    trainer._hooks._add = add
    exchange.run()
    assert seen
    shapes = {p.name: p.shape for p in parameters(exchange.topology.model)}
    assert all(shape not in shapes.values() for shape in seen)


def test_bytes_of_refreshes_are_counted():
    settings = ("model.dim=64", "optimizer.matrices.projection=galore", "optimizer.matrices.rank=4")
    exchange = Exchange(tiny(*settings, "optimizer.matrices.refresh_every=200", "steps=3"))
    records = (exchange.run(), exchange.records())[1]
    sketches, without = records[0]["up_bytes"], records[1]["up_bytes"]
    matrices = [p for p in parameters(exchange.topology.model) if p.group == "matrices"]
    rounds = 4 * 2 * sum(12 * (p.shape[0] + p.shape[1]) for p in matrices)
    cores = 4 * 4 * sum(max(p.shape) for p in matrices)
    dense = 4 * sum(p.numel for p in parameters(exchange.topology.model) if p.group == "dense")
    assert without == dense + cores
    assert sketches == without + rounds
    assert records[1]["sent_bytes"] >= sketches  # said in the next step


def test_a_gradient_on_another_basis_is_refused():
    exchange = Exchange(tiny(*GALORE))
    exchange.turn()
    exchange.turn()
    shard = exchange.shards[0]
    refused = shard.malformed
    name = "layers.0.attention.q.weight"
    version = shard.rounds.versions[name]
    gradient = m.Gradient(
        step=version + 1, rank=0, param=name, codec="dense", basis=77, tokens=4, tensors=()
    )
    shard.rounds._round[name] = 99
    shard.hear("trainer/0", gradient)
    assert shard.malformed == refused + 1


# --- In double precision --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["muon", "adamw"])
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_shared_bases_equal_a_single_process_in_double_precision(kind: str, ranks: int):
    """Projected by each rank and averaged, or averaged and projected: 1e-12, over refreshes."""
    topology = tiny(*GALORE, f"optimizer.matrices.kind={kind}", "optimizer.matrices.basis=float32")
    group = topology.optimizer.matrices
    parameter = next(p for p in parameters(topology.model) if p.name.endswith("ffn.gate.weight"))
    schedule = BasisSchedule(topology)
    generator = torch.Generator().manual_seed(ranks)
    kept = {
        spec.name: np.zeros(spec.shape, spec.dtype if spec.dtype == "int64" else "float64")
        for spec in updates_specs(topology, parameter)
    }
    ours, alone = dict(kept), dict(kept)
    for step in range(1, 8):
        each = [
            torch.randn(parameter.shape, dtype=torch.float64, generator=generator)
            for _ in range(ranks)
        ]
        tokens = [3 * rank + 5 for rank in range(ranks)]
        mean = sum(g * (t / sum(tokens)) for g, t in zip(each, tokens, strict=True))
        assert isinstance(mean, torch.Tensor)
        basis = None
        if schedule.refreshes(step, parameter.name):
            plan = schedule.plan(parameter.name)
            basis = numpied(kept_basis(group, find_basis(mean, plan, step)))
        p = torch.from_numpy((basis or ours)[subspace.BASIS])
        cores = [
            Contribution(t, (codecs.to_numpy(project(g, p)),))
            for g, t in zip(each, tokens, strict=True)
        ]
        averaged = updates.mean_gradient(topology, parameter, step, dict(enumerate(cores)))
        ours = updates.updated(topology, parameter, ours, averaged, step, basis=basis)
        whole = codecs.to_numpy(project(mean, p))
        alone = updates.updated(topology, parameter, alone, whole, step, basis=basis)
    assert ours["master"].dtype == np.float64
    assert abs(ours["master"]).max() > 0.01
    assert np.abs(ours["master"] - alone["master"]).max() < 1e-12


def updates_specs(topology, parameter):
    from actors.optimizer.layout import kept_tensors

    return kept_tensors(topology.optimizer, parameter)
