"""Randomised Hadamard rotation: spreads an outlier over its whole group before rounding.

Rotated entries are close to Gaussian whatever they were before, so a block's largest magnitude,
and with it the rounding error, shrinks. The rotation is orthonormal: unbiased stays unbiased.
"""

import torch
from torch import Tensor

from kernels.optimizers import draws


def hadamard(x: Tensor) -> Tensor:
    """Walsh-Hadamard transform of the last dimension, a power of two; its own inverse.

    Raises ValueError for any other size.
    """
    size = x.shape[-1]
    if size < 1 or size & (size - 1):
        raise ValueError(f"a Hadamard rotation needs a power of two, got {size}")
    y, half = x.reshape(-1, size), 1
    while half < size:
        pairs = y.view(-1, size // (2 * half), 2, half)
        a, b = pairs[:, :, 0], pairs[:, :, 1]
        y = torch.stack((a + b, a - b), dim=2).view(-1, size)
        half *= 2
    return (y * size**-0.5).view(x.shape)


def rotate(groups: Tensor, key: int) -> Tensor:
    """Random signs, then Hadamard, within each row of `groups` (rows, size)."""
    return hadamard(groups * _signs(groups, key))


def unrotate(groups: Tensor, key: int) -> Tensor:
    """The inverse of `rotate` with the same key."""
    return hadamard(groups) * _signs(groups, key)


def _signs(groups: Tensor, key: int) -> Tensor:
    of = draws.key(key, "rotation")
    return draws.signs(of, groups.numel(), groups.device).view(groups.shape)
