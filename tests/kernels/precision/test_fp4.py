"""NVFP4 and MXFP4: the bits, the transposes, the errors they are known by."""

import numpy as np
import pytest
import torch
from torch import Tensor

from kernels.precision import fp8, native
from kernels.precision.dge import quantiles, slope
from kernels.precision.dge import rows as dge_rows
from kernels.precision.fp4 import Blocks, exact, mxfp4_unbiased, nvfp4, product
from kernels.precision.hadamard import nvidia_signs, rotated, sylvester
from kernels.precision.ternary import quantise
from tests.kernels.precision import slow_fp4


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def error(x: Tensor, blocks: Blocks) -> float:
    return ((blocks.dequantised() - x).norm() / x.norm()).item()


@pytest.mark.parametrize("square", [False, True])
@pytest.mark.parametrize("size", [1.0, 3e-7, 4e5])
def test_every_bit_is_that_of_the_slow_reference(square: bool, size: float):
    x = normal(16, 48, seed=3) * size * normal(16, 1, seed=4).exp()
    x[:, 16:32] = 0.0 if square else x[:, 16:32]
    x[5] = 0.0
    values, scales, factor = slow_fp4.nvfp4(x.numpy(), 16 if square else 1)
    got = nvfp4(x, square=square)
    np.testing.assert_array_equal(got.values.numpy(), values)
    np.testing.assert_array_equal(got.scales.numpy(), scales)
    assert got.factor.item() == factor


def test_zeros_stay_zeros():
    for square in (False, True):
        assert not nvfp4(torch.zeros(16, 32), square=square).dequantised().any()
    assert not mxfp4_unbiased(torch.zeros(3, 64), torch.rand(3, 64)).dequantised().any()


@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
def test_what_is_not_finite_comes_out_as_nan_instead_of_a_large_number(value: float):
    x = normal(32, 96)
    x[3, 40] = value
    draws = torch.rand(32, 96, generator=torch.Generator().manual_seed(1))
    for blocks in (nvfp4(x), nvfp4(x, square=True), nvfp4(x, uniform=draws)):
        assert blocks.dequantised().isnan().all()
        assert product(blocks, nvfp4(normal(16, 96))).isnan().all()
    blocks = mxfp4_unbiased(x, draws)
    wrong = blocks.dequantised().isnan()
    assert wrong[3, 32:64].all()
    assert wrong.sum() == 32
    assert product(blocks, mxfp4_unbiased(normal(16, 96), draws[:16]))[3].isnan().all()


def test_scales_are_such_as_eight_bits_of_exponent_hold():
    x = 2.0 ** torch.arange(-149.0, 128.0).repeat_interleave(32).view(-1, 32)
    x[0] = 0.0
    blocks = mxfp4_unbiased(x, torch.rand(x.shape, generator=torch.Generator().manual_seed(1)))
    kept = blocks.scales.to(torch.float8_e8m0fnu).float()
    assert torch.equal(kept, blocks.scales)
    assert blocks.scales.min() == 2.0**-127
    assert (blocks.dequantised() <= 2 * x.clamp(min=2.0**-127)).all()


def test_square_blocks_commute_with_transposition_and_others_do_not():
    w = normal(40, 50)
    square, turned = nvfp4(w, square=True), nvfp4(w.mT, square=True)
    assert torch.equal(square.dequantised().mT, turned.dequantised())
    assert torch.equal(square.turned().dequantised(), turned.dequantised())
    assert torch.equal(square.turned().scales, turned.scales)
    rows = nvfp4(w).dequantised()[:, :50]
    assert not torch.equal(rows.mT, nvfp4(w.mT).dequantised()[:, :40])


def test_relative_errors_of_gaussian_matrices_are_the_known_ones():
    x, draws = normal(512, 512), torch.rand(512, 512, generator=torch.Generator().manual_seed(1))
    assert error(x, nvfp4(x)) == pytest.approx(0.095, abs=0.002)
    assert error(x, nvfp4(x, square=True)) == pytest.approx(0.111, abs=0.002)
    assert error(x, nvfp4(x, uniform=draws)) == pytest.approx(0.137, abs=0.002)
    assert error(x, mxfp4_unbiased(x, draws)) == pytest.approx(0.168, abs=0.002)


def test_scaled_values_are_exact_in_bfloat16_so_products_round_their_sums_only():
    x = normal(64, 64) * normal(64, 1, seed=2).exp()
    for blocks in (nvfp4(x), mxfp4_unbiased(x, torch.rand(64, 64))):
        scaled = blocks.scaled()
        assert torch.equal(scaled.bfloat16().float(), scaled)
    a, b = nvfp4(x), nvfp4(normal(32, 64, seed=7))
    wanted = a.dequantised().double() @ b.dequantised().double().mT
    torch.testing.assert_close(product(a, b).double(), wanted, rtol=1e-5, atol=1e-5)


def test_three_quarters_never_clip_so_the_expectation_is_the_value():
    x = normal(2, 64, seed=5) * 3.0
    generator = torch.Generator().manual_seed(1)
    drawn = torch.stack(
        [
            mxfp4_unbiased(x, torch.rand(2, 64, generator=generator)).dequantised()
            for _ in range(4000)
        ]
    )
    spread = drawn.std(0).amax() / 4000**0.5
    assert (drawn.mean(0) - x).abs().max() < 5 * spread
    assert torch.equal(drawn[0], drawn[0].clamp(-8 * x.abs().max(), 8 * x.abs().max()))


@pytest.mark.parametrize("shape", [(32, 48), (20, 37)])
def test_ternary_weights_are_exact_in_every_format(shape: tuple[int, int]):
    weight = quantise(normal(*shape) * 0.037)
    rows, columns = shape
    blocks = exact(weight)
    assert torch.equal(blocks.dequantised()[:rows, :columns], weight.dequantised())
    assert torch.equal(blocks.turned().dequantised()[:columns, :rows], weight.dequantised().mT)
    assert torch.equal(fp8.exact(weight).dequantised(), weight.dequantised())
    assert torch.equal(fp8.turned(weight).dequantised(), weight.dequantised().mT)
    # And what the quantiser makes of the dequantised matrix: the same codes, times 6.
    again = nvfp4(weight.dequantised(), square=True)
    assert torch.equal(again.values[:rows, :columns], 6.0 * weight.codes)
    torch.testing.assert_close(
        again.dequantised()[:rows, :columns], weight.dequantised(), rtol=2e-7, atol=0
    )


def test_a_rotation_is_orthogonal_and_cancels_in_a_product():
    matrix = sylvester(16)
    assert torch.equal(matrix @ matrix.mT, 16 * torch.eye(16))
    a, b = normal(5, 40).double(), normal(7, 40, seed=1).double()  # filled up to 48
    for signs in (nvidia_signs(a), torch.ones(64).double()):
        torch.testing.assert_close(rotated(a, signs) @ rotated(b, signs).mT, a @ b.mT)
    lonely = torch.zeros(1, 16)
    lonely[0, 3] = 8.0
    assert torch.equal(rotated(lonely, nvidia_signs(lonely)).abs(), torch.full((1, 16), 2.0))


def test_slopes_are_those_of_the_authors_code():
    wanted = [0.2002, 0.4375, 0.6055, 0.2168, 1.8359, 0.2695, 0.3027, 0.2695, 0.2402, 0.5781]
    x = torch.linspace(-6, 6, 20).bfloat16().float()
    got = slope(x).bfloat16().float()
    torch.testing.assert_close(got[:10], torch.tensor(wanted), atol=6e-5, rtol=0)
    assert torch.equal(got, got.flip(0))
    edges = torch.tensor([0.0, 0.5, -1.5, 4.0, 6.0])
    torch.testing.assert_close(slope(edges), torch.full((5,), 0.2))
    assert slope(torch.tensor([0.25, 5.0, 6.01])).tolist() == [3.0, 3.0, 0.0]


def test_outliers_are_clamped_at_the_quantiles_of_all_elements():
    x = torch.arange(1000.0).view(10, 100) - 500.0
    inner = x.clamp(*quantiles(x))
    ordered = x.flatten().sort().values
    assert (inner.min(), inner.max()) == (ordered[10], ordered[990])
    share = (inner != x).double().mean().item()
    assert 0.01 < share < 0.03
    values, scaled = dge_rows(normal(4, 32))
    assert scaled.abs().amax(dim=1).tolist() == pytest.approx([6.0] * 4)
    assert (values != 0).any()


def test_the_largest_of_a_row_keeps_its_slope_whatever_the_rounding():
    x = normal(4000, 16)
    scaled = dge_rows(x)[1]
    largest = x.abs().argmax(dim=1, keepdim=True)
    assert scaled.abs().amax() <= 6.0
    assert (slope(scaled).gather(1, largest) > 0.19).all()


def test_eight_bits_have_an_error_of_a_few_percent():
    x = normal(64, 256)
    assert ((fp8.rows(x).dequantised() - x).norm() / x.norm()).item() < 0.03
    assert torch.equal(fp8.rows(x * 2.0**-60).dequantised(), fp8.rows(x).dequantised() * 2.0**-60)
    assert not fp8.rows(torch.zeros(2, 16)).dequantised().any()


def test_scales_lie_as_tensor_cores_read_them():
    rows, columns = 200, 6
    scales = torch.arange(rows * columns, dtype=torch.float32).view(rows, columns)
    flat = native.swizzled(scales)
    assert flat.numel() == 256 * 8
    for i, j in ((0, 0), (1, 0), (33, 1), (127, 3), (128, 4), (199, 5)):
        tile = (i // 128) * 2 + j // 4
        place = tile * 512 + (i % 32) * 16 + (i % 128 // 32) * 4 + j % 4
        assert flat[place] == scales[i, j]


def test_there_are_no_tensor_cores_on_a_processor():
    cpu = torch.device("cpu")
    assert not native.has_fp4(cpu)
    assert not native.has_fp8(cpu)
    assert native.takes(torch.zeros(16, 64), torch.zeros(32, 64))
    assert not native.takes(torch.zeros(10, 64), torch.zeros(32, 64))


@pytest.mark.gpu
def test_tensor_cores_multiply_the_same_values():
    if not torch.cuda.is_available() or not native.has_fp4(torch.device("cuda")):
        pytest.skip("needs a GPU with 4-bit tensor cores (compute capability 10.0)")
    a, b = normal(64, 128).cuda(), normal(32, 128, seed=1).cuda()
    draws = torch.rand(64, 128, device="cuda")
    for x, y in (
        (nvfp4(a), nvfp4(b)),
        (mxfp4_unbiased(a, draws), mxfp4_unbiased(b, draws[:32])),
        (exact(quantise(a)), nvfp4(b)),
    ):
        wanted = x.dequantised() @ y.dequantised().mT
        torch.testing.assert_close(product(x, y), wanted, rtol=1e-2, atol=1e-2)


@pytest.mark.gpu
def test_eight_bit_tensor_cores_multiply_the_same_values():
    if not torch.cuda.is_available() or not native.has_fp8(torch.device("cuda")):
        pytest.skip("needs a GPU with 8-bit tensor cores and row scales (compute capability 9.0)")
    a, b = fp8.rows(normal(64, 128).cuda()), fp8.rows(normal(32, 128, seed=1).cuda())
    wanted = a.dequantised() @ b.dequantised().mT
    torch.testing.assert_close(fp8.product(a, b), wanted, rtol=1e-2, atol=1e-2)
