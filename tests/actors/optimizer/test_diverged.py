"""A gradient that is not finite: the run fails with the reason, and nothing of it is kept."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from actors import checkpoints
from actors.diverged import Diverged
from actors.optimizer import updates
from actors.optimizer.checkpointing import RunFailed
from actors.optimizer.updates import Contribution
from actors.parameters import parameters
from actors.trainer.trainer import Trainer
from actors.trainer.uplink import Uplink
from actors.uplink import CODECS
from kernels.optimizers.finite import is_finite
from tests.actors.exchange import Exchange, tiny

STEP = 3
MATRIX = "layers.0.attention.q.weight"
SETTINGS = (
    "actors.trainers=2",
    "actors.optimizer_shards=2",
    "steps=6",
    "model.ffn_dim=192",
    "model.dim=64",
    "optimizer.codec_rank=0",
)


def spoil(trainer: Trainer, step: int, name: str, value: float) -> None:
    """One number of that gradient becomes `value`, before anything is made of it."""
    whole = trainer._gradient_done

    def done(of: str, gradient: torch.Tensor) -> None:
        if of == name and trainer.rounds.step == step:
            gradient.view(-1)[5] = value
        whole(of, gradient)

    trainer._hooks._on_gradient = done


def spoilt(value: float, *settings: str, directory: Path | None = None) -> Exchange:
    """Trainer 1's gradient of a matrix holds `value` in step 3."""
    exchange = Exchange(tiny(*SETTINGS, *settings), directory=directory)
    spoil(exchange.trainers[1], STEP, MATRIX, value)
    return exchange


def masters(exchange: Exchange) -> dict[str, np.ndarray]:
    return {
        parameter.name: shard.state.kept(index)["master"]
        for shard in exchange.shards
        for index, parameter in enumerate(shard.state.layout.parameters)
    }


@pytest.mark.parametrize("value", [math.inf, math.nan])
@pytest.mark.parametrize(
    "settings",
    [
        (),
        (f"optimizer.fire_at=[{STEP}]",),
        ("optimizer.matrices.kind=adamw8bit", "optimizer.codec=int8"),
        ("optimizer.codec=power", "optimizer.codec_rank=4"),
        ("optimizer.matrices.projection=galore", "optimizer.matrices.refresh_every=2"),
        ("optimizer.matrices.projection=gum", "optimizer.matrices.refresh_every=50"),
    ],
    ids=lambda settings: settings[-1] if settings else "plain",
)
def test_a_gradient_that_is_not_finite_ends_the_run_before_anything_is_kept(
    tmp_path: Path, settings: tuple[str, ...], value: float
):
    exchange = spoilt(value, f"checkpoint.every_steps={STEP}", *settings, directory=tmp_path)
    with pytest.raises((RunFailed, Diverged), match="lower the learning rates") as failed:
        exchange.run()
    assert f"{MATRIX} " in str(failed.value)
    assert f"step {STEP}" in str(failed.value)
    assert exchange.shards[0].rounds.committed == STEP - 1
    assert all(np.isfinite(master).all() for master in masters(exchange).values())
    exchange.office.letters.clear()
    exchange.settle()
    assert checkpoints.newest(tmp_path, pytest.fail) is None


def test_the_trainer_to_blame_is_named():
    with pytest.raises(RunFailed, match=rf"{MATRIX} is not finite at step 3 \(trainer/1\): lower"):
        spoilt(math.inf).run()


def test_numbers_that_are_finite_one_by_one_may_not_be_so_together():
    topology = tiny("actors.trainers=3")
    parameter = next(p for p in parameters(topology.model) if p.name == MATRIX)
    huge = np.full(parameter.shape, 3e38, np.float32)
    given = {rank: Contribution(5, (huge,)) for rank in range(3)}
    mean = updates.mean_gradient(topology, parameter, 1, given)
    assert np.isfinite(mean).all()  # though the sum of its elements is not
    given[2] = Contribution(5, (np.full(parameter.shape, np.nan, np.float32),))
    with pytest.raises(ValueError, match=r"not finite at step 1 \(trainer/2\)"):
        updates.mean_gradient(topology, parameter, 1, given)


def test_a_master_that_a_finite_gradient_blows_up_is_refused():
    topology = tiny("optimizer.matrices.kind=adamw", "optimizer.matrices.lr=1e37")
    parameter = next(p for p in parameters(topology.model) if p.name == MATRIX)
    zeros = np.zeros(parameter.shape, np.float32)
    kept = {"master": zeros + 3e38, "mean": zeros, "square": zeros}
    with pytest.raises(ValueError, match=f"{MATRIX} is not finite after the update of step 2"):
        updates.updated(topology, parameter, kept, zeros - 1, 2)


def test_a_rank_that_is_absent_changes_nobody_elses_key():
    """What is random in a codec follows from the rank, not from its place among those present."""
    topology = tiny("actors.trainers=3", "elastic=true", "optimizer.codec=int4_rotated")
    parameter = next(p for p in parameters(topology.model) if p.name == MATRIX)
    gradient = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    payload = tuple(Uplink(topology, 2, None, "cpu").encode(1, parameter, gradient))
    mean = updates.mean_gradient(topology, parameter, 1, {2: Contribution(7, payload)})
    assert float((torch.from_numpy(mean) - gradient).norm() / gradient.norm()) < 0.2


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("codec", CODECS)
def test_no_codec_hides_what_is_not_finite(codec: str, value: float):
    rank = ("optimizer.codec_rank=4",) if codec.startswith("power") else ()
    topology = tiny(*SETTINGS[:-1], f"optimizer.codec={codec}", *rank)
    parameter = next(p for p in parameters(topology.model) if p.name == MATRIX)
    gradient = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    gradient[3, 4] = value
    memory = Exchange(topology).remembered
    uplink = Uplink(topology, 0, memory[0] if memory else None, "cpu")

    def through(uplink: Uplink, gradient: torch.Tensor) -> None:
        payload = tuple(uplink.encode(1, parameter, gradient))
        updates.mean_gradient(topology, parameter, 1, {0: Contribution(7, payload)})

    with pytest.raises((ValueError, Diverged), match="step 1"):
        through(uplink, gradient)


def test_a_sum_tells_whether_all_is_finite_unless_it_overflows():
    x = torch.ones(7, 9)
    assert is_finite(x)
    assert is_finite(x * 3e38)
    assert is_finite(torch.tensor([3e38, 3e38, -3e38]))
    for value in (math.inf, -math.inf, math.nan):
        x[3, 3] = value
        assert not is_finite(x)
    x[4, 4] = math.inf
    x[3, 3] = -math.inf
    assert not is_finite(x)
