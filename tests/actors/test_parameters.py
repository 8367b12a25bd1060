"""The torch-free list of parameters is the model's own."""

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
import torch

from actors.optimizer.layout import group_of
from actors.parameters import (
    Parameter,
    applied_count,
    ffn_dim,
    offsets,
    parameters,
    partition,
    unique_count,
)
from actors.topology import ModelSpec, decode, emulate
from kernels.model.config import ModelConfig
from kernels.model.layers import Mode
from kernels.model.model import LoopLM

ROOT = Path(__file__).parents[2]
TOPOLOGIES = sorted((ROOT / "deploy/topologies").glob("*.toml"))
TINY = ModelSpec(dim=32, layers=2, heads=2, loops=2, vocab_size=100, seq_len=16)


def tiny(**changes: object) -> ModelSpec:
    return msgspec.structs.replace(TINY, **changes)


@pytest.mark.parametrize("mode", ["master", "codes"])
@pytest.mark.parametrize(
    "spec",
    [
        tiny(),
        tiny(tie_embedding=False),
        tiny(ternary=False),
        tiny(ffn_dim=80, layers=1, loops=1),
        tiny(dim=96, heads=3, activation_checkpointing=True),
        tiny(streams=4),
        tiny(streams=3, stream_mixing="permutation", tie_embedding=False),
        tiny(predict_tokens=3),
        tiny(predict_tokens=2, prediction="sequential", tie_embedding=False, ternary=False),
        tiny(predict_tokens=3, prediction="sequential", streams=2),
    ],
)
def test_names_shapes_and_order_are_the_models_own(spec: ModelSpec, mode: Mode):
    model = LoopLM(ModelConfig.of(msgspec.structs.asdict(spec)), mode)
    expected = [(name, tuple(p.shape)) for name, p in model.named_parameters()]
    assert [(p.name, p.shape) for p in parameters(spec)] == expected


@pytest.mark.parametrize(
    "spec", [tiny(), tiny(ternary=False), tiny(predict_tokens=2, prediction="sequential")]
)
def test_ternary_means_a_ternary_layer(spec: ModelSpec):
    model = LoopLM(ModelConfig.of(msgspec.structs.asdict(spec)))
    assert [p.name for p in parameters(spec) if p.kind == "ternary"] == list(model.ternary_layers())


@pytest.mark.parametrize("path", TOPOLOGIES, ids=lambda path: path.stem)
def test_every_topology_lists_its_model(path: Path):
    topology = decode(path.read_text(), source=str(path))
    specs = [topology.model]
    if topology.emulation is not None:
        specs.append(emulate(topology).model)
    for spec in specs:
        config = ModelConfig.of(msgspec.structs.asdict(spec))
        assert ffn_dim(spec) == config.hidden
        with torch.device("meta"):
            model = LoopLM(config)
        expected = [(name, tuple(p.shape)) for name, p in model.named_parameters()]
        assert [(p.name, p.shape) for p in parameters(spec)] == expected


@pytest.mark.parametrize(
    ("name", "billions"), [("config_a", 1.31), ("config_b", 0.64), ("config_c", 0.94)]
)
def test_the_three_machines_models_have_the_sizes_they_are_known_by(name: str, billions: float):
    path = ROOT / f"deploy/topologies/{name}.toml"
    model = decode(path.read_text(), source=str(path)).model
    assert unique_count(model) / 1e9 == pytest.approx(billions, rel=0.01)


def test_nothing_pulls_to_zero_what_is_neutral_elsewhere():
    """Gains of norms, biases, and what residual streams begin with (mHC, section 3)."""
    still = [p.name for p in parameters(tiny(streams=2)) if not p.decays]
    ends = ("streams.b", "streams.alpha", "head.b", "head.alpha")
    assert len([name for name in still if name.endswith(ends)]) == 2 * (2 * TINY.layers + 1)
    others = [name for name in still if not name.endswith(ends)]
    assert others == [p.name for p in parameters(TINY) if not p.decays]
    assert len(others) == 6 * TINY.layers + 2
    assert all("norm" in name or name.endswith("bias") for name in others)
    assert {p.name for p in parameters(TINY) if p.decays} >= {
        "embedding.weight",
        "exit_gate.weight",
        "layers.0.attention.q.weight",
    }


def test_a_dense_weight_decay_leaves_gains_alone():
    path = ROOT / "deploy/topologies/local.toml"
    spec = decode(
        path.read_text(), source=str(path), overrides=("optimizer.dense.weight_decay=0.5",)
    ).optimizer
    held = {p.name: group_of(spec, p).weight_decay for p in parameters(TINY)}
    assert held["embedding.weight"] == 0.5
    assert held["norm.weight"] == held["exit_gate.bias"] == 0.0


def test_applied_counts_every_loop_but_not_the_lookup():
    assert applied_count(tiny()) == 2 * unique_count(tiny())
    untied = tiny(tie_embedding=False)
    assert applied_count(untied) == applied_count(tiny())
    predictor = unique_count(tiny(predict_tokens=2)) - unique_count(tiny())
    head = TINY.vocab_size * TINY.dim
    ahead = applied_count(tiny(predict_tokens=3)) - applied_count(tiny())
    assert ahead == 2 * (predictor + head)


@pytest.mark.parametrize("shards", [1, 2, 3, 5, 30])
def test_partition_keeps_the_order_and_loses_nothing(shards: int):
    params = parameters(TINY)
    parts = partition(params, shards)
    assert len(parts) == shards
    assert all(parts)
    assert tuple(p for part in parts for p in part) == params


def test_partition_is_as_balanced_as_runs_can_be():
    sizes = (7, 2, 3, 4, 1, 5)
    params = tuple(Parameter(str(i), (n,), "dense", "dense") for i, n in enumerate(sizes))
    loads = [sum(p.numel for p in part) for part in partition(params, 3)]
    assert max(loads) == 9  # 7 2 | 3 4 1 | 5 and its like


@pytest.mark.parametrize("shards", [0, 31, -1])
def test_partition_refuses_more_shards_than_parameters(shards: int):
    params = parameters(TINY)
    assert len(params) == 30
    with pytest.raises(ValueError, match=f"into {shards} shards: accepted are 1 to {len(params)}"):
        partition(params, shards)


def test_offsets_lie_back_to_back():
    params = parameters(TINY)
    where = offsets(params)
    assert where[0] == 0
    assert where[-1] == 4 * unique_count(TINY)
    assert where[1] == 4 * params[0].numel


def test_the_list_is_read_without_torch():
    code = "import sys, actors.parameters; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=ROOT).returncode == 0
