"""FP4 forward with a differentiable estimator and outlier compensation (arXiv 2501.17116).

Weights are scaled per output channel, activations per token, so that the largest magnitude becomes
6, and rounded to E2M1. Activations beyond their 1 % and 99 % quantiles are first clamped (OCC);
what was cut off is few and goes through a second, exact product. The gradient of a weight is
multiplied by the slope of a soft staircase at that weight (DGE), where plain straight-through has 1
everywhere: large in the middle between two values, 1/5 at a value, 0 beyond the last.

The paper does not say in what precision it multiplies backwards. Its authors' code (MS-AMP) reuses
the quantised weights and activations, and so does this.
"""

import torch
from torch import Tensor

from kernels.precision.rounding import E2M1, E2M1_MAX, e2m1
from kernels.precision.ternary import SMALLEST_SCALE

QUANTILE = 0.99
SHARPNESS = 5.0  # k
STEEPEST = 3.0


def rows(x_MK: Tensor) -> tuple[Tensor, Tensor]:
    """E2M1 values times scale, (M, K), and `x_MK` scaled to [-6, 6]: each row by its largest."""
    largest = x_MK.abs().amax(dim=-1, keepdim=True).clamp_(min=SMALLEST_SCALE)
    # A quotient that was rounded up would take the largest beyond 6, where the slope is 0.
    scaled = (x_MK * (E2M1_MAX / largest)).clamp_(-E2M1_MAX, E2M1_MAX)
    return e2m1(scaled).mul_(largest / E2M1_MAX), scaled


def quantiles(x_NI: Tensor) -> Tensor:
    """The 1 % and the 99 % one of all elements: (2,)."""
    flat, count = x_NI.flatten(), x_NI.numel()
    places = int((1.0 - QUANTILE) * count), min(int(QUANTILE * count), count - 1)
    if flat.is_cuda:  # where kthvalue is not deterministic
        ordered = flat.sort().values
        return torch.stack([ordered[place] for place in places])
    return torch.stack([flat.kthvalue(place + 1).values for place in places])


def slope(scaled: Tensor) -> Tensor:
    """f' of the soft staircase, at scaled weights: min(|2 (x - lo) / d - 1|^(1/k - 1) / k, 3)."""
    edges = torch.tensor(E2M1, dtype=scaled.dtype, device=scaled.device)
    size = scaled.abs()
    # The interval above; a value itself counts to the one it begins, 6 to the last.
    above = torch.bucketize(size, edges, right=True).clamp_(max=len(E2M1) - 1)
    low, high = edges[above - 1], edges[above]
    place = (2.0 * (size - low) / (high - low) - 1.0).abs()
    steep = place.pow(1.0 / SHARPNESS - 1.0).div_(SHARPNESS).clamp_(max=STEEPEST)
    return torch.where(size <= E2M1_MAX, steep, 0.0)
