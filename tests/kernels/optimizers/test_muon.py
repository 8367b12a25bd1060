"""Muon against the singular value decomposition and against torch.optim.Muon."""

import pytest
import torch
from torch import Tensor

from kernels.optimizers.muon import (
    MuonHyper,
    declared,
    orthogonalise,
    polynomials,
    scale_factor,
    update,
)
from kernels.optimizers.quantised_state import zeros

# Where singular values end that begin above 3e-3 (1e-3) of the norm.
BOUNDS = {"jordan": (0.68, 1.21), "polar_express": (0.859, 1.141)}


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("coefficients", ["jordan", "polar_express"])
@pytest.mark.parametrize("shape", [(48, 128), (128, 48), (32, 32)])
def test_newton_schulz_has_the_svds_vectors_and_values_within_bounds(coefficients, shape):
    u, _, vh = torch.linalg.svd(normal(*shape), full_matrices=False)
    values = torch.linspace(1.0, 0.02, min(shape), dtype=torch.float64)
    g = u @ torch.diag(values) @ vh
    out = orthogonalise(g, coefficients=coefficients, dtype=torch.float64)
    core = u.T @ out @ vh.T
    torch.testing.assert_close(core, torch.diag(core.diagonal()))
    low, high = BOUNDS[coefficients]
    assert low <= core.diagonal().min()
    assert core.diagonal().max() <= high


@pytest.mark.parametrize("coefficients", ["jordan", "polar_express"])
def test_singular_values_follow_the_polynomials(coefficients):
    u, _, vh = torch.linalg.svd(normal(8, 20), full_matrices=False)
    values = torch.linspace(0.9, 0.1, 8, dtype=torch.float64)
    expected = values / values.norm() / (1.02 if coefficients == "polar_express" else 1.0)
    for a, b, c in polynomials(coefficients, 5):
        expected = a * expected + b * expected**3 + c * expected**5
    g = u @ torch.diag(values) @ vh
    out = orthogonalise(g, coefficients=coefficients, dtype=torch.float64)
    torch.testing.assert_close(out, u @ torch.diag(expected) @ vh)


def test_size_and_orientation_of_the_gradient_do_not_matter():
    g = normal(24, 40)
    out = orthogonalise(g, dtype=torch.float64)
    torch.testing.assert_close(orthogonalise(g * 1e3, dtype=torch.float64), out)
    torch.testing.assert_close(orthogonalise(g.T, dtype=torch.float64), out.T)


def test_orthonormal_factors_pass_through():
    basis = torch.linalg.qr(normal(64, 12)).Q
    r = normal(12, 40, seed=1)
    torch.testing.assert_close(
        orthogonalise(basis @ r, dtype=torch.float64), basis @ orthogonalise(r, dtype=torch.float64)
    )


def test_a_zero_gradient_moves_nothing_but_by_decay():
    w = normal(8, 8, dtype=torch.float32)
    hyper = MuonHyper(lr=0.1, weight_decay=0.5)
    new, state = update(w, zeros(declared(tuple(w.shape))), torch.zeros(8, 8), hyper, 1)
    assert torch.equal(new, w * 0.95)
    assert not state["momentum"].any()


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("shape", [(32, 64), (64, 32)])
def test_equals_torchs_muon_in_its_precision(nesterov: bool, shape: tuple[int, int]):
    w = normal(*shape, dtype=torch.float32)
    theirs = torch.nn.Parameter(w.clone())
    optimizer = torch.optim.Muon(
        [theirs],
        lr=0.02,
        weight_decay=0.1,
        momentum=0.95,
        nesterov=nesterov,
        adjust_lr_fn="match_rms_adamw",
    )
    # torch runs Newton-Schulz in bf16; the rest of it is fp32, as ours.
    hyper = MuonHyper(lr=0.02, weight_decay=0.1, nesterov=nesterov, dtype=torch.bfloat16)
    state = zeros(declared(tuple(w.shape)))
    for step in range(1, 6):
        grad = normal(*shape, seed=step, dtype=torch.float32)
        theirs.grad = grad.clone()
        optimizer.step()
        w, state = update(w, state, grad, hyper, step)
        torch.testing.assert_close(w, theirs.detach(), rtol=0, atol=2e-3 * 0.02 * 0.2 * 8)
        assert torch.equal(state["momentum"], optimizer.state[theirs]["momentum_buffer"])


def test_single_precision_is_close_to_double():
    g = normal(64, 96)
    single = orthogonalise(g.float())
    torch.testing.assert_close(
        single.double(), orthogonalise(g, dtype=torch.float64), atol=1e-4, rtol=0
    )


def test_is_pure_and_bitwise_repeatable():
    w, grad = normal(32, 48, dtype=torch.float32), normal(32, 48, seed=1, dtype=torch.float32)
    state = {"momentum": normal(32, 48, seed=2, dtype=torch.float32)}
    before = [t.clone() for t in (w, grad, state["momentum"])]
    hyper = MuonHyper(lr=0.02, weight_decay=0.01, coefficients="polar_express")
    first, second = update(w, state, grad, hyper, 3), update(w, state, grad, hyper, 3)
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1]["momentum"], second[1]["momentum"])
    assert all(map(torch.equal, before, (w, grad, state["momentum"])))


def test_updates_are_about_as_large_as_adamws():
    w = torch.zeros(128, 384)
    hyper = MuonHyper(lr=1.0)
    new, _ = update(
        w, zeros(declared(tuple(w.shape))), normal(128, 384, dtype=torch.float32), hyper, 1
    )
    assert 0.15 < new.square().mean().sqrt().item() < 0.25
    assert scale_factor(128, 384) == pytest.approx(0.2 * 384**0.5)
