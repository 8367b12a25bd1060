"""Sums over whole matrices whose bits do not depend on the number of threads.

torch splits a full reduction over its threads, so `x.sum()` may differ in the last bit between one
thread and two. A sum over the last dimension is done row by row, whatever the thread count. Scales
and norms are therefore taken in two stages: each row, then the few row sums.
"""

import torch
from torch import Tensor


def absolute_mean(x_MN: Tensor) -> Tensor:
    """mean |x|, a scalar tensor of x's type."""
    return x_MN.abs().sum(dim=-1).sum() / x_MN.numel()


def frobenius_norm(x_MN: Tensor) -> Tensor:
    """Root of the sum of squares, a scalar tensor of x's type (at least fp32)."""
    wide = x_MN if x_MN.dtype == torch.float64 else x_MN.float()
    rows = wide.square().sum(dim=-1)
    return (rows.sum() if rows.ndim else rows).sqrt()
