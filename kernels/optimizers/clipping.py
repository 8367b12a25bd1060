"""A bound on the size of one parameter's gradient.

Per parameter, not over the whole model: a shard sees only its own parameters, and must not wait
for the others' norms before it updates one.
"""

from torch import Tensor

from kernels.precision.sums import frobenius_norm


def clipped(grad: Tensor, bound: float) -> Tensor:
    """`grad`, shrunk to Frobenius norm `bound` where it exceeds it; a `bound` of 0 means none."""
    if bound <= 0.0:
        return grad
    return grad * (bound / frobenius_norm(grad).clamp(min=bound)).to(grad.dtype)
