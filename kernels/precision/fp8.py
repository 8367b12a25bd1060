"""8-bit floating point (E4M3) operands with a scale per row: for linear layers kept above 4 bits.

Rows are tokens or channels, columns what the product sums over, as arXiv 2502.11458 has it for the
attention's projections. Values in float32; products of two E4M3 values are exact there.
"""

from typing import NamedTuple

from torch import Tensor

from kernels.precision import native
from kernels.precision.rounding import E4M3_MAX, e4m3
from kernels.precision.ternary import Ternary

# Rows of zeros must not divide by zero; gradients of long batches are small, but not so small.
_SMALLEST = 1e-30


class Rows(NamedTuple):
    """`values` (M, K) E4M3 and `scales` (M, 1) float32: the matrix is their product."""

    values: Tensor
    scales: Tensor

    def dequantised(self) -> Tensor:
        """What it stands for, (M, K)."""
        return self.values * self.scales


def rows(x_MK: Tensor) -> Rows:
    """Each row scaled so that its largest magnitude is the format's, then rounded to nearest."""
    x_MK = x_MK.float()
    largest = x_MK.abs().amax(dim=-1, keepdim=True).clamp_(min=_SMALLEST)
    return Rows(e4m3(x_MK * (E4M3_MAX / largest)), largest.div_(E4M3_MAX))


def exact(weight: Ternary) -> Rows:
    """Ternary codes as E4M3, without any error; the matrix's scale is that of every row."""
    values = weight.codes.to(weight.scale.dtype)
    return Rows(values, weight.scale.expand(len(values), 1))


def turned(weight: Ternary) -> Rows:
    """The transpose, equally exact."""
    values = weight.codes.mT.to(weight.scale.dtype).contiguous()
    return Rows(values, weight.scale.expand(len(values), 1))


def product(a_MK: Rows, b_NK: Rows) -> Tensor:
    """a b^T, (M, N)."""
    if native.has_fp8(a_MK.values.device) and native.takes(a_MK.values, b_NK.values):
        return native.fp8_product(a_MK, b_NK)
    return (a_MK.values @ b_NK.values.mT).mul_(a_MK.scales).mul_(b_NK.scales.mT)
