"""Ternary layers against BitNet b1.58 written down with detach, in float64."""

import pytest
import torch
from torch import Tensor

from kernels.precision.sums import absolute_mean, frobenius_norm
from kernels.precision.ternary import (
    Ternary,
    carrier,
    integer_product,
    quantise,
    quantise_activations,
    ternary_project,
)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def straight_through(x: Tensor, w: Tensor) -> Tensor:
    """section 2a of the notes, word for word"""
    g = w.abs().mean().clamp(min=1e-5)
    w_used = w + ((w / g).round().clamp(-1, 1) * g - w).detach()
    s = 127 / x.abs().amax(-1, keepdim=True).clamp(min=1e-5)
    x_used = x + ((x * s).round().clamp(-128, 127) / s - x).detach()
    return x_used @ w_used.T


def test_a_gaussian_matrix_has_about_31_percent_zeros():
    codes, scale = quantise(normal(512, 512))
    assert (codes == 0).double().mean().item() == pytest.approx(0.310, abs=0.005)
    assert set(codes.unique().tolist()) == {-1, 0, 1}
    assert scale.item() == pytest.approx(0.798, abs=0.005)


def test_forward_and_gradients_equal_the_straight_through_definition():
    x, w1, w2 = normal(3, 7, 24), normal(16, 24, seed=1), normal(40, 24, seed=2)
    for t in (x, w1, w2):
        t.requires_grad_()
    dy1, dy2 = normal(3, 7, 16, seed=3), normal(3, 7, 40, seed=4)
    expected = straight_through(x, w1), straight_through(x, w2)
    wanted = torch.autograd.grad(expected, (x, w1, w2), (dy1, dy2))
    with torch.no_grad():
        weights = [quantise(w1), quantise(w2)]
    got = ternary_project(x, [w1, w2], weights)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b)
    for a, b in zip(torch.autograd.grad(got, (x, w1, w2), (dy1, dy2)), wanted, strict=True):
        torch.testing.assert_close(a, b)


def test_gradients_are_not_masked_where_rounding_clips():
    w = torch.full((4, 8), 0.01, dtype=torch.float64)
    w[0, 0] = 100.0  # far outside of [-g, g]
    w.requires_grad_()
    x = normal(5, 8)
    with torch.no_grad():
        weight = quantise(w)
    ternary_project(x, [w], [weight])[0].sum().backward()
    assert w.grad is not None
    assert w.grad[0, 0] != 0
    torch.testing.assert_close(w.grad[0], w.grad[1])


def test_a_carrier_receives_the_gradient_of_master_weights_and_weighs_one_element():
    x, master = normal(6, 32, dtype=torch.float32), normal(16, 32, seed=1, dtype=torch.float32)
    weight = quantise(master)
    leaf = carrier(16, 32)
    assert leaf.untyped_storage().nbytes() == 4
    master.requires_grad_()
    for target in (leaf, master):
        (ternary_project(x, [target], [weight])[0] ** 2).sum().backward()
    assert leaf.grad is not None
    assert master.grad is not None
    assert torch.equal(leaf.grad, master.grad)
    assert leaf.untyped_storage().nbytes() == 4


def test_quantising_what_is_already_ternary_shrinks_it():
    original = quantise(normal(64, 64))
    fake = original.dequantised()
    again = quantise(fake)
    assert torch.equal(again.codes, original.codes)
    share = (original.codes != 0).double().mean()
    torch.testing.assert_close(again.scale, original.scale * share)  # the trap


def test_zeros_stay_zeros():
    codes, scale = quantise(torch.zeros(4, 4))
    assert not codes.any()
    assert scale > 0
    q, step = quantise_activations(torch.zeros(2, 4))
    assert not q.any()
    assert torch.isfinite(step).all()


def test_weights_round_half_to_even():
    """Half the mean magnitude is no code at all; one and a half is one."""
    ternary = quantise(torch.tensor([[0.5, -0.5], [1.5, -1.5]]))
    assert ternary.scale == 1.0
    assert ternary.codes.tolist() == [[0, 0], [1, -1]]


def test_activations_use_the_whole_range_and_round_half_to_even():
    q, step = quantise_activations(torch.tensor([[127.0, -127.0, 0.5, 1.5, -2.5]]))
    assert q.tolist() == [[127, -127, 0, 2, -2]]
    assert step.tolist() == [[1.0]]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_a_number_stays_visible(bad: float):
    x = torch.ones(2, 8)
    x[1, 3] = bad
    weight = Ternary(torch.ones(4, 8, dtype=torch.int8), torch.tensor(1.0))
    y = ternary_project(x, [carrier(4, 8)], [weight])[0]
    assert torch.isfinite(y[0]).all()
    assert not torch.isfinite(y[1]).any()


@pytest.mark.parametrize(("n", "i", "o"), [(1, 8, 8), (5, 33, 7), (64, 384, 128), (300, 96, 64)])
def test_integer_products_are_exact_in_floats_too(n: int, i: int, o: int):
    generator = torch.Generator().manual_seed(n)
    q = torch.randint(-127, 128, (n, i), generator=generator).to(torch.int8)
    codes = torch.randint(-1, 2, (o, i), generator=generator).to(torch.int8)
    exact = q.long() @ codes.long().T
    assert torch.equal(integer_product(q, codes, torch.float32).long(), exact)
    assert torch.equal((q.float() @ codes.float().T).long(), exact)


def test_scales_do_not_depend_on_the_number_of_threads():
    w = normal(700, 300, dtype=torch.float32)
    before = torch.get_num_threads()
    results: list[tuple[float, float]] = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append((absolute_mean(w).item(), frobenius_norm(w).item()))
    finally:
        torch.set_num_threads(before)
    assert len(set(results)) == 1
    assert results[0] == pytest.approx((w.abs().mean().item(), w.norm().item()))
