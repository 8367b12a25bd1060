import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.optimizers import projection
from kernels.optimizers.finite import NotFinite
from kernels.optimizers.muon import orthogonalise
from kernels.optimizers.projection import RefreshPlan, Round
from kernels.optimizers.refresh_schedule import basis_version, phase, refreshes

SHAPES = [(24, 40), (32, 32), (40, 24)]  # M < N, M = N, M > N


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def basis_of(shape: tuple[int, int], rank: int, key: int) -> torch.Tensor:
    """Orthonormal to float64's last bits."""
    return torch.linalg.qr(randn(min(shape), rank, seed=key))[0]


def with_spectrum(shape: tuple[int, int], power: float, seed: int = 0) -> torch.Tensor:
    u, _, vh = torch.linalg.svd(randn(*shape, seed=seed), full_matrices=False)
    return u * torch.arange(1, min(shape) + 1, dtype=torch.float64) ** -power @ vh


def play(gradients: list[torch.Tensor], weights: list[float], plan: RefreshPlan, key: int):
    """The exchange as the process graph plays it: partial products, summed in rank order."""
    asked = projection.first_round(tuple(gradients[0].shape), plan, key, torch.float64)
    sizes = []
    while isinstance(asked, Round):
        summed = torch.zeros(())
        for gradient, weight in zip(gradients, weights, strict=True):
            answer = projection.contribution(asked, gradient)
            sizes.append(answer.numel())
            summed = summed + weight * answer
        asked = projection.next_round(asked, summed, plan)
    return asked, max(sizes)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_shorter_side_is_projected(shape):
    """m < n: left singular vectors, core r x n. m >= n: right singular vectors, core m x r."""
    g = with_spectrum(shape, 1.0)
    u, _, vh = torch.linalg.svd(g)
    leading = u[:, :5] if shape[0] < shape[1] else vh[:5].mT
    core = leading.mT @ g if shape[0] < shape[1] else g @ leading
    assert projection.basis_shape(shape, 5) == tuple(leading.shape)
    assert projection.core_shape(shape, 5) == tuple(core.shape)
    assert torch.equal(projection.project(g, leading), core)
    best = u[:, :5] @ (u[:, :5].mT @ g)
    torch.testing.assert_close(projection.unproject(core, leading, shape), best)


@pytest.mark.parametrize("shape", SHAPES)
def test_with_a_gap_the_basis_is_that_of_the_svd(shape):
    """Singular vectors have free signs, so projectors are compared, and signs separately."""
    g = with_spectrum(shape, 0.0)
    u, _, vh = torch.linalg.svd(g, full_matrices=False)
    values = torch.cat((torch.linspace(3, 2, 6), torch.full((min(shape) - 6,), 1e-4))).double()
    g = u * values @ vh
    basis = projection.find_basis(g, RefreshPlan(6, power_iterations=2), key=1)
    leading = u[:, :6] if shape[0] < shape[1] else vh[:6].mT
    torch.testing.assert_close(basis @ basis.mT, leading @ leading.mT, rtol=0, atol=1e-10)
    aligned = (leading.mT @ basis).abs()
    torch.testing.assert_close(aligned, torch.eye(6).double(), rtol=0, atol=1e-8)
    assert (basis.gather(0, basis.abs().argmax(0, keepdim=True)) > 0).all()


def test_power_iterations_find_the_energy_of_a_flat_spectrum():
    g = with_spectrum((128, 192), 0.5)
    best = torch.linalg.svdvals(g)[:16].square().sum()
    captured = []
    for iterations in (0, 1, 2):
        basis = projection.find_basis(g, RefreshPlan(16, 8, iterations), key=3)
        captured.append(float(projection.project(g, basis).square().sum() / best))
    assert captured == sorted(captured)
    assert captured[0] < 0.9
    assert captured[1] > 0.93
    assert captured[2] > 0.97
    assert captured[2] <= 1.0


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("iterations", [0, 1, 2])
def test_many_trainers_find_the_basis_of_the_average_without_sending_a_gradient(shape, iterations):
    gradients = [randn(*shape, seed=s) for s in range(4)]
    weights = [0.125, 0.375, 0.25, 0.25]
    plan = RefreshPlan(4, 3, iterations)
    basis, largest = play(gradients, weights, plan, key=7)
    mean = (torch.tensor(weights)[:, None, None].double() * torch.stack(gradients)).sum(dim=0)
    alone = projection.find_basis(mean, plan, key=7)
    torch.testing.assert_close(basis, alone, rtol=0, atol=1e-12)
    assert largest <= 7 * max(shape) < shape[0] * shape[1] / 2


@pytest.mark.parametrize("shape", SHAPES)
def test_degenerate_gradients_still_give_an_orthonormal_basis(shape):
    plan = RefreshPlan(5, 4, 1)
    for g in (torch.zeros(shape), torch.ones(shape), torch.eye(*shape)):
        basis = projection.find_basis(g, plan, key=2)
        torch.testing.assert_close(basis.mT @ basis, torch.eye(5), rtol=0, atol=1e-5)


def test_a_gradient_that_is_not_finite_is_refused_instead_of_poisoning_the_basis():
    g = torch.ones(8, 16)
    g[3, 3] = torch.nan
    with pytest.raises(ValueError, match="not finite"):
        projection.find_basis(g, RefreshPlan(2), key=1)


@pytest.mark.parametrize("size", [3e38, math.inf, math.nan])
@pytest.mark.parametrize(("number", "product", "rows"), [(0, "across", 40), (3, "along", 90)])
def test_sums_that_are_huge_are_refused_in_every_round(number, product, rows, size):
    """Finite, but LAPACK's own sums overflow: it then says NaN, or that it does not converge."""
    operand = projection.orthonormal(randn(90 if number == 0 else 40, 12).float())
    summed = randn(rows, 12).float()
    summed *= size / summed.abs().max()
    with pytest.raises(NotFinite):
        projection.next_round(Round(number, product, operand), summed, RefreshPlan(4))


@pytest.mark.parametrize("shape", SHAPES)
def test_full_rank_loses_nothing(shape):
    """GaLore with rank = min(m, n) and a linear base is the base times alpha."""
    g = randn(*shape)
    for rank in (min(shape), 1000):
        basis = projection.find_basis(g, RefreshPlan(rank), key=5)
        assert basis.shape == (min(shape), min(shape))
        back = projection.unproject(projection.project(g, basis), basis, shape)
        torch.testing.assert_close(back, g, rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("coefficients", ["jordan", "polar_express"])
def test_newton_schulz_commutes_with_the_basis(shape, coefficients):
    """NS(P R) = P NS(R) and NS(R P^T) = NS(R) P^T."""
    basis = basis_of(shape, 6, key=4)
    core = projection.project(randn(*shape), basis)
    inside = orthogonalise(core, coefficients=coefficients, dtype=torch.float64)
    outside = orthogonalise(
        projection.unproject(core, basis, shape), coefficients=coefficients, dtype=torch.float64
    )
    turned = projection.unproject(inside, basis, shape)
    torch.testing.assert_close(turned, outside, rtol=0, atol=1e-6)


def test_signs_are_canonical_whatever_they_were():
    basis = projection.random_basis((12, 30), 5, key=1)
    flipped = basis * torch.tensor([1.0, -1.0, 1.0, -1.0, -1.0])
    assert torch.equal(projection.canonical(flipped), basis)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_rotated_first_moment_is_the_same_moment_seen_from_the_new_basis(shape):
    g = randn(*shape)
    old = basis_of(shape, 6, key=1)
    turn = torch.linalg.qr(randn(6, 6))[0]
    core = projection.project(g, old)
    turned = projection.rotated_first(core, old, old @ turn, shape)
    torch.testing.assert_close(turned, projection.project(g, old @ turn))
    other = basis_of(shape, 6, key=2)
    there = projection.rotated_first(core, old, other, shape)
    torch.testing.assert_close(
        there, projection.project(projection.unproject(core, old, shape), other)
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_a_rotated_second_moment_survives_permutations_and_signs_and_stays_positive(shape):
    old = basis_of(shape, 4, key=1)
    mean = 0.1 * projection.project(randn(*shape), old)
    square = mean.square() + projection.project(randn(*shape, seed=1), old).square()
    corrections = (0.271, 0.0975)
    order, sign = [2, 0, 3, 1], torch.tensor([1.0, -1.0, -1.0, 1.0]).double()
    new = old[:, order] * sign
    turned = projection.rotated_second(mean, square, old, new, shape, corrections)
    wide = shape[0] < shape[1]
    expected = square[order] if wide else square[:, order]
    torch.testing.assert_close(turned, expected)
    other = basis_of(shape, 4, key=9)
    loose = projection.rotated_second(mean, square, old, other, shape, corrections)
    assert (loose >= 0).all()
    assert torch.equal(
        loose, projection.rotated_second(mean, square, old, -other, shape, corrections)
    )


def test_shapes_that_cannot_be_projected_are_refused():
    for shape, rank in (((7,), 2), ((4, 4), 0), ((2, 3, 4), 1)):
        with pytest.raises(ValueError, match="a projection needs a matrix and a rank"):
            projection.basis_shape(shape, rank)


# --- When ---------------------------------------------------------------------------------------


def test_the_first_matrix_is_refreshed_at_the_start_and_after_each_period():
    steps = [step for step in range(1, 1000) if refreshes(step, 0, 7, 200)]
    assert steps == [1, 201, 401, 601, 801]  # t = step - 1


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 60), st.booleans())
def test_refreshes_are_staggered_evenly_and_versions_follow(count, period, at_start):
    for index in range(count):
        assert 0 <= phase(index, count, period) < period
        version = 0
        for step in range(1, 3 * period + 2):
            if refreshes(step, index, count, period, at_start=at_start):
                version = step
            assert basis_version(step, index, count, period, at_start=at_start) == version
    for step in range(period + 2, 2 * period + 2):
        due = sum(
            refreshes(step, index, count, period, at_start=at_start) for index in range(count)
        )
        assert due <= -(-count // period)


def test_impossible_schedules_are_refused():
    for step, index, count, period in ((0, 0, 1, 5), (1, 1, 1, 5), (1, 0, 1, 0)):
        with pytest.raises(ValueError, match="need period >= 1"):
            refreshes(step, index, count, period)
