"""Blocks of 4-bit floating point: NVFP4 and MXFP4, bit for bit, as values in float32.

A quantised matrix (M, K) is kept as `values * scale * factor`: E2M1 values, one scale for each
block of columns, one factor for all. `values * scale` has at most six significant bits, so a
product of two such matrices in float32 (or TF32, or bfloat16) rounds its sums only, as tensor cores
do. Columns are the dimension a product sums over.

NVFP4 (section 5.1): blocks of 16, E4M3 scales, a float32 factor; in Transformer Engine's order of
operations, in which each is rounded once. MXFP4: blocks of 32, scales that are powers of two.

E2M1 has no infinity and no NaN. What is not finite shows in the scale, as NaN: in MXFP4 that of its
block, in NVFP4, whose factor follows from the largest of all, every one.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from kernels.precision import native
from kernels.precision.hadamard import padded
from kernels.precision.rounding import (
    E2M1_MAX,
    E4M3_MAX,
    E8M0_MIN,
    FLOAT32_MAX,
    e2m1,
    e4m3,
    power_of_two,
)
from kernels.precision.ternary import Ternary

# Shapes: M rows, K columns (a multiple of the block's), b blocks of columns.

NVFP4_BLOCK = 16
MXFP4_BLOCK = 32


class Blocks(NamedTuple):
    """A quantised matrix: `values` (M, K) E2M1, `scales` (M, b), `factor` 0-dim."""

    values: Tensor
    scales: Tensor
    factor: Tensor

    def scaled(self) -> Tensor:
        """Values times scales, exact in float32: (M, K)."""
        M, b = self.scales.shape
        return (self.values.view(M, b, -1) * self.scales[..., None]).view(self.values.shape)

    def dequantised(self) -> Tensor:
        """What it stands for, (M, K)."""
        return self.scaled() * self.factor

    def turned(self) -> "Blocks":
        """The transpose, of a matrix whose scales are those of square blocks."""
        size = self.values.shape[1] // self.scales.shape[1]
        scales = self.scales[::size].mT.repeat_interleave(size, dim=0)
        return Blocks(self.values.mT.contiguous(), scales, self.factor)


def product(a_MK: Blocks, b_NK: Blocks) -> Tensor:
    """a b^T, (M, N)."""
    factor = a_MK.factor * b_NK.factor
    if native.has_fp4(factor.device) and native.takes(a_MK.values, b_NK.values):
        return native.fp4_product(a_MK[:2], b_NK[:2], factor)
    return (a_MK.scaled() @ b_NK.scaled().mT).mul_(factor)


def nvfp4(
    x_MK: Tensor,
    *,
    square: bool = False,
    uniform: Tensor | None = None,
    largest: Tensor | None = None,
) -> Blocks:
    """NVFP4 of a float32 matrix, its columns filled up to a multiple of 16.

    `square` shares a scale among 16 rows as well (rows are filled up too), which makes it commute
    with transposition. `uniform` (M, K, filled up) makes the rounding of values stochastic. These
    may be rows of a larger matrix that is to be rounded as one: then `largest` is its magnitude.
    """
    x_MK = _filled(x_MK.float(), square)
    M, b = x_MK.shape[0], x_MK.shape[1] // NVFP4_BLOCK
    blocks_MbB = x_MK.view(M, b, NVFP4_BLOCK)
    largest_Mb = blocks_MbB.abs().amax(dim=-1)
    encode = _encode_factor(largest_Mb.amax() if largest is None else largest)
    if square:
        shared = largest_Mb.view(-1, NVFP4_BLOCK, b).amax(dim=1)
        largest_Mb = shared.repeat_interleave(NVFP4_BLOCK, dim=0)
    # x * (1 / 6), not x / 6: the last bit decides which E4M3 value is nearest.
    scales_Mb = e4m3((largest_Mb * (encode * (1.0 / E2M1_MAX))).clamp_(max=E4M3_MAX))
    factor = encode.reciprocal()
    # A block of zeros has the scale zero, and 0 * FLOAT32_MAX is 0.
    enlarge_Mb = (scales_Mb * factor).reciprocal_().clamp_(max=FLOAT32_MAX)
    scaled = (blocks_MbB * enlarge_Mb[..., None]).view(x_MK.shape)
    return Blocks(e2m1(scaled, uniform), scales_Mb, factor)


def _encode_factor(largest: Tensor) -> Tensor:
    """What makes the largest magnitude 6 * 448, 1 where there is nothing, NaN where it is not
    finite.
    """
    # A tensor over a tensor: a number over a tensor would multiply by the reciprocal.
    encode = (largest.new_tensor(E2M1_MAX * E4M3_MAX) / largest).clamp(max=FLOAT32_MAX)
    encode = torch.where((largest == 0.0) | (encode == 0.0), torch.ones_like(encode), encode)
    return torch.where(largest.isfinite(), encode, torch.nan)


def _filled(x_MK: Tensor, square: bool) -> Tensor:
    x_MK = padded(x_MK, NVFP4_BLOCK)
    return padded(x_MK.mT, NVFP4_BLOCK).mT.contiguous() if square else x_MK.contiguous()


def nvfp4_shape(rows: int, columns: int) -> tuple[int, int]:
    """Shape of what `nvfp4` makes of a matrix, and of its `uniform`, unless it is square."""
    return rows, columns + -columns % NVFP4_BLOCK


def exact(weight: Ternary) -> Blocks:
    """Ternary codes as NVFP4, without any error: -1, 0 and 1 are E2M1 values and 1 an E4M3 one."""
    values = padded(weight.codes.to(weight.scale.dtype), NVFP4_BLOCK)
    values = padded(values.mT, NVFP4_BLOCK).mT.contiguous()
    scales = values.new_ones(values.shape[0], values.shape[1] // NVFP4_BLOCK)
    return Blocks(values, scales, weight.scale)


def mxfp4_unbiased(x_MK: Tensor, uniform: Tensor) -> Blocks:
    """MXFP4 of 3/4 x, rounded stochastically, times 4/3 (arXiv 2502.20586): unbiased.

    With scales that are the power of two below the block's largest magnitude over 4, magnitudes
    reach 8, and what lies above 6 would be clipped; three quarters of it stay below 6. The columns
    are filled up to a multiple of 32; `uniform` is of that shape.
    """
    x_MK = padded(x_MK.float(), MXFP4_BLOCK)
    blocks = x_MK.view(x_MK.shape[0], -1, MXFP4_BLOCK)
    largest_Mb = blocks.abs().amax(dim=-1)
    # A block of zeros may have any scale.
    scales_Mb = power_of_two(largest_Mb.clamp(min=4.0 * E8M0_MIN)) / 4.0
    scales_Mb = torch.where(largest_Mb.isfinite(), scales_Mb, torch.nan)
    scaled = (blocks / scales_Mb[..., None]).mul_(0.75).view(x_MK.shape)
    return Blocks(e2m1(scaled, uniform), scales_Mb, scales_Mb.new_tensor(4.0 / 3.0))
