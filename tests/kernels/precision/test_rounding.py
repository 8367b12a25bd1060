"""Rounding to few bits: every tie, every code, and the expectation of the stochastic kind."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kernels.precision.rounding import (
    bfloat16_through,
    e2m1,
    e2m1_codes,
    e2m1_values,
    e4m3,
    pack_nibbles,
    power_of_two,
    unpack_nibbles,
)
from tests.kernels.precision.slow_fp4 import E4M3, GRID, nearest


def test_ties_go_to_the_even_code():
    ties = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0])
    even = torch.tensor([0.0, 1.0, 1.0, 2.0, 2.0, 4.0, 4.0])
    assert torch.equal(e2m1(ties), even)
    assert torch.equal(e2m1(-ties), -even)


@given(st.floats(-20, 20, width=32))
def test_the_nearest_value_is_the_nearest_of_all(x: float):
    assert e2m1(torch.tensor([x])).item() == nearest(max(-6.0, min(6.0, x)), GRID)


@given(st.floats(-600, 600, width=32))
def test_e4m3_is_the_nearest_of_its_values_and_saturates(x: float):
    assert e4m3(torch.tensor([x])).item() == nearest(max(-448.0, min(448.0, x)), E4M3)


def test_codes_are_those_of_the_format_and_pack_low_nibble_first():
    codes = torch.arange(16, dtype=torch.uint8)
    values = e2m1_values(codes)
    assert values[:8].tolist() == list(GRID)
    assert values[8].signbit()
    assert torch.equal(e2m1_codes(values), codes)
    packed = pack_nibbles(torch.tensor([[1, 2, 15, 0]], dtype=torch.uint8))
    assert packed.tolist() == [[0x21, 0x0F]]
    assert torch.equal(unpack_nibbles(pack_nibbles(codes)), codes)


def test_ternary_codes_are_values_of_the_format():
    ternary = torch.tensor([-1.0, 0.0, 1.0])
    assert torch.equal(e2m1(ternary), ternary)
    assert torch.equal(e4m3(ternary), ternary)


def test_stochastic_rounding_is_right_on_average_and_never_further_than_a_neighbour():
    generator = torch.Generator().manual_seed(0)
    x = torch.linspace(-6, 6, 97)
    drawn = e2m1(x.expand(20000, -1), torch.rand(20000, 97, generator=generator))
    torch.testing.assert_close(drawn.mean(0), x, atol=0.03, rtol=0)
    low = e2m1(x, torch.zeros(97))
    assert ((drawn - x).abs() < 2.0).all()
    on_grid = low == x
    assert (drawn[:, on_grid] == x[on_grid]).all()
    assert (e2m1(torch.tensor([7.0, -9.0]), torch.tensor([0.999, 0.0])).abs() == 6).all()


@pytest.mark.parametrize("x", [1.0, 1.5, 2.0, 3.9999998, 4.0, 2.0**-126, 1e30])
def test_powers_of_two_are_exact(x: float):
    p = power_of_two(torch.tensor([x])).item()
    assert p <= x < 2 * p
    assert torch.frexp(torch.tensor(p)).mantissa == 0.5


def test_sixteen_bits_forward_and_an_untouched_gradient():
    x = torch.tensor([1.00390625, -3.14159], requires_grad=True)
    y = bfloat16_through(x)
    assert y.tolist() == [1.0, -3.140625]
    (y * torch.tensor([1.2345678, 2.0])).sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, torch.tensor([1.2345678, 2.0]))


def test_what_is_not_a_number_stays_visible():
    bad = torch.tensor([float("nan")])
    assert e2m1(bad).isnan().all()
    assert e4m3(bad).isnan().all()
