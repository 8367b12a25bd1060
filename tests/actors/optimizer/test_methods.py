"""What the layout sets aside for each kind of optimizer, held against what the kernel declares."""

from math import prod
from typing import get_args

import msgspec
import pytest
import torch

from actors import bases, stored, subspace
from actors.optimizer import layout, projected, updates
from actors.optimizer.layout import group_of, state_layout, state_tensors
from actors.parameters import Parameter, parameters
from actors.published import TensorSpec
from actors.topology import OptimizerGroup
from kernels.optimizers import adamw, adamw8bit, foam, muon, muon8bit, state
from kernels.optimizers.adamw import AdamWHyper
from tests.actors.exchange import tiny

SHAPES = ((64, 64), (63, 65), (100, 70), (1, 4096), (4096,), (4095,), (3,), (300, 33))


def specs(declared: tuple[state.StateTensor, ...]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(*tensor) for tensor in declared)


def kept(shape: tuple[int, ...], **settings: object) -> tuple[TensorSpec, ...]:
    group = msgspec.convert({"lr": 1.0, **settings}, OptimizerGroup)
    return layout.KINDS[group.kind](group, Parameter("x.weight", shape, "dense", "matrices"))


@pytest.mark.parametrize("shape", SHAPES)
def test_the_layout_declares_what_the_kernels_declare(shape: tuple[int, ...]):
    assert stored.SMALLEST_QUANTISED == state.SMALLEST_QUANTISED
    assert kept(shape, kind="muon") == specs(muon.declared(shape))
    assert kept(shape, kind="adamw") == specs(adamw.declared(shape))
    for kind in ("linear", "dynamic"):
        for block in (0, 100):
            for beta2 in (0.0, 0.9):
                hyper = muon8bit.Muon8bitHyper(
                    muon=muon.MuonHyper(lr=1.0), kind=kind, block=block or 2048, neuron_beta2=beta2
                )
                given = kept(shape, kind="muon8bit", map=kind, block=block, neuron_beta2=beta2)
                assert given == specs(muon8bit.declared(shape, hyper))
    for block in (0, 64):
        hyper = adamw8bit.AdamW8bitHyper(adamw=AdamWHyper(lr=1.0), block=block or 256)
        given = kept(shape, kind="adamw8bit", block=block)
        assert given == specs(adamw8bit.declared(shape, hyper))
    for level in (0, 2, 7):
        declared = foam.declared(shape, foam.FoamHyper(lr=1.0, level=level))
        assert kept(shape, kind="foam", level=level) == specs(declared)


@pytest.mark.parametrize(
    ("settings", "bytes_per_element"),
    [
        (("optimizer.matrices.kind=muon",), 4.0),
        (("optimizer.matrices.kind=muon8bit",), 1.002),
        (("optimizer.matrices.kind=muon8bit", "optimizer.matrices.neuron_beta2=0.95"), 1.02),
        (("optimizer.matrices.kind=adamw8bit",), 2.032),
        (("optimizer.matrices.kind=foam", "optimizer.matrices.level=3"), 1.0),
        # GaLore at a rank of a quarter, its basis included.
        (("optimizer.matrices.kind=muon8bit", "optimizer.matrices.projection=galore"), 0.45),
        (
            (
                "optimizer.matrices.kind=muon8bit",
                "optimizer.matrices.projection=galore",
                "optimizer.matrices.basis=int4",
            ),
            0.35,
        ),
        (
            (
                "optimizer.matrices.kind=adamw8bit",
                "optimizer.matrices.projection=galore",
                "optimizer.matrices.rank=32",
            ),
            0.36,
        ),
        (("optimizer.matrices.kind=muon8bit", "optimizer.matrices.projection=gum"), 1.16),
    ],
)
def test_matrices_cost_what_was_promised(settings: tuple[str, ...], bytes_per_element: float):
    topology = tiny("model.dim=256", "model.heads=4", *settings)
    matrices = [p for p in parameters(topology.model) if p.group == "matrices"]
    held = sum(spec.nbytes for p in matrices for spec in state_tensors(topology.optimizer, p))
    assert held / sum(p.numel for p in matrices) <= bytes_per_element
    assert state_layout(topology, 0).total_bytes > held


def test_eight_bit_muon_without_blocks_to_round_is_muon():
    """Matrices that are too small for codes follow the plain kind bit for bit."""
    plain, coded = tiny(), tiny("optimizer.matrices.kind=muon8bit")
    parameter = next(p for p in parameters(plain.model) if p.name.endswith("attention.q.weight"))
    generator = torch.Generator().manual_seed(3)
    shape = parameter.shape
    given = {
        name: torch.randn(shape, generator=generator).numpy() for name in ("master", "momentum")
    }
    gradient = torch.randn(shape, generator=generator).numpy()
    both = [updates.updated(t, parameter, given, gradient, 1) for t in (plain, coded)]
    assert all((both[0][name] == both[1][name]).all() for name in ("master", "momentum"))


def test_scalings_differ_by_their_ratio_alone():
    bare = ("optimizer.matrices.weight_decay=0",)
    default, spectral = tiny(*bare), tiny(*bare, "optimizer.matrices.scaling=spectral")
    for end in ("ffn.gate.weight", "ffn.down.weight", "attention.q.weight"):
        parameter = next(p for p in parameters(default.model) if p.name.endswith(end))
        rows, columns = parameter.shape
        zeros = torch.zeros(rows, columns).numpy()
        gradient = torch.randn(rows, columns, generator=torch.Generator().manual_seed(3)).numpy()
        moved = [
            updates.updated(t, parameter, {"master": zeros, "momentum": zeros}, gradient, 3)
            for t in (default, spectral)
        ]
        ratio = max(1.0, rows / columns) ** 0.5 / (0.2 * max(rows, columns) ** 0.5)
        expected = moved[0]["master"] * ratio
        assert moved[1]["master"] == pytest.approx(expected, rel=1e-5, abs=1e-12)


@pytest.mark.parametrize("kind", ["adamw", "muon", "muon8bit"])
def test_galore_s_scale_multiplies_its_whole_update(kind: str):
    bare = (
        f"optimizer.matrices.kind={kind}",
        "optimizer.matrices.projection=galore",
        "optimizer.matrices.weight_decay=0",
    )
    default, quarter = tiny(*bare), tiny(*bare, "optimizer.matrices.galore_scale=0.25")
    parameter = next(p for p in parameters(default.model) if p.name.endswith("ffn.gate.weight"))
    group = group_of(default.optimizer, parameter)
    basis_shape = subspace.basis_shape(group, parameter.shape)
    generator = torch.Generator().manual_seed(5)
    basis = torch.linalg.qr(torch.randn(basis_shape, generator=generator)).Q
    state = {
        spec.name: torch.zeros(spec.shape, dtype=getattr(torch, spec.dtype))
        for spec in state_tensors(default.optimizer, parameter)
    } | bases.kept_basis(group, basis)
    master = torch.zeros(parameter.shape)
    core = torch.randn(subspace.core_shape(group, parameter.shape), generator=generator)
    whole, fourth = (
        projected.moved(master, state, core, group_of(t.optimizer, parameter), 0.01, 1)[0]
        for t in (default, quarter)
    )
    assert whole.abs().max() > 0
    torch.testing.assert_close(fourth, whole / 4, rtol=1e-6, atol=0.0)


def test_every_kind_has_a_layout():
    kinds = set(get_args(OptimizerGroup.__annotations__["kind"]))
    assert set(layout.KINDS) == kinds
    norm = Parameter("norm.weight", (32,), "dense", "dense")
    assert prod(norm.shape) < stored.SMALLEST_QUANTISED
    group = group_of(tiny("optimizer.dense.kind=adamw8bit").optimizer, norm)
    assert {spec.dtype for spec in layout.KINDS[group.kind](group, norm)} == {"float32"}
