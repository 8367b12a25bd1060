"""GUM: mostly the projected gradient, sometimes the rest of it, unbiased in between (2510.17802).

Once per period of K steps each matrix draws: with probability 1 - q it sends the core in its
basis, otherwise everything the basis misses. Both are divided by their probability:

    core       P^T G / (1 - q)              stands for P P^T G / (1 - q)
    remainder  (G - P P^T G) / q            for itself

so the expectation over draws is G. It is unbiased in what momentum is fed, not after
Newton-Schulz. The paper's momentum lives in the small space while the draw is "core"; fed with
the estimate of the whole, full-size momentum gives the same update, because NS(P M) = P NS(M), as
long as momentum starts anew with each period, as theirs does (its shape changes).

While the basis is zero, "core" sends zeros and "remainder" G / q: still unbiased. When a period
begins stands in refresh_schedule.py, bases in projection.py.
"""

from torch import Tensor

from kernels.optimizers import draws
from kernels.optimizers.projection import Shape, project, unproject


def draws_remainder(seed: int, parameter: str, step: int, period: int, probability: float) -> bool:
    """Whether `parameter` sends its remainder at `step` (from 1): all ranks and the owner agree."""
    of = draws.key(seed, "gum", parameter, (step - 1) // period)
    return draws.fraction(of) < probability


def core(projected: Tensor, probability: float) -> Tensor:
    """What is sent of a gradient that has been projected; `probability` is that of a remainder."""
    return projected / (1.0 - probability)


def remainder(gradient: Tensor, basis: Tensor, probability: float) -> Tensor:
    """What is sent of a gradient instead: all that the basis misses."""
    inside = unproject(project(gradient, basis), basis, tuple(gradient.shape))
    return (gradient - inside) / probability


def estimate(core: Tensor, basis: Tensor, shape: Shape) -> Tensor:
    """The gradient that a core stands for, unbiased over draws. A remainder is one already."""
    return unproject(core, basis, shape)
