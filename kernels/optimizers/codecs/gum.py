"""GUM: mostly the projected gradient, sometimes the rest of it, unbiased in between (2510.17802).

Once per period of K steps each matrix draws: with probability 1 - q it sends the core in its
basis, otherwise everything the basis misses. Both are divided by their probability:

    core       P^T G / (1 - q)              decodes to P P^T G / (1 - q)
    remainder  (G - P P^T G) / q            as it is

so the expectation over draws is G. It is unbiased in what momentum is fed, not after
Newton-Schulz. The paper's momentum lives in the small space while the draw is "core"; fed with
the decoded core, full-size momentum gives the same update, because NS(P M) = P NS(M), as long as
momentum starts anew with each period, as theirs does (its shape changes).

The basis is memory, replaced from outside when a period begins (projection.py). While it is zero,
before the first refresh, "core" sends zeros and "remainder" G / q: still unbiased.
"""

from dataclasses import dataclass

from torch import Tensor

from kernels.optimizers import draws
from kernels.optimizers.codecs.base import Shape, Tensors
from kernels.optimizers.projection import basis_shape, core_shape, project, unproject
from kernels.optimizers.state import StateTensor


def draws_remainder(seed: int, parameter: str, step: int, period: int, probability: float) -> bool:
    """Whether `parameter` sends its remainder at `step` (from 1): all ranks and the owner agree."""
    of = draws.key(seed, "gum", parameter, (step - 1) // period)
    return draws.fraction(of) < probability


def begins_period(step: int, period: int) -> bool:
    """Whether `step` (from 1) is the first of a period: new basis, new draw, momentum from zero."""
    return (step - 1) % period == 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Gum:
    """GUM's gradient for one period, its draw made (`draws_remainder`).

    Raises ValueError for a probability outside (0, 1).
    """

    rank: int
    probability: float  # q, of the remainder
    remainder: bool

    def __post_init__(self) -> None:
        if not 0.0 < self.probability < 1.0:
            raise ValueError(f"probability must lie between 0 and 1, got {self.probability}")

    def memory(self, shape: Shape) -> tuple[StateTensor, ...]:
        """The basis."""
        return (StateTensor("basis", "float32", basis_shape(shape, self.rank)),)

    def payload(self, shape: Shape) -> tuple[StateTensor, ...]:
        """The core, or a full gradient."""
        if self.remainder:
            return (StateTensor("remainder", "float32", shape),)
        return (StateTensor("core", "float32", core_shape(shape, self.rank)),)

    def encode(self, gradient: Tensor, memory: Tensors, key: int) -> tuple[Tensors, Tensors]:
        """Payload; `memory` is handed back. Linear in the gradient."""
        del key
        basis = memory["basis"]
        core = project(gradient, basis)
        if not self.remainder:
            return {"core": core / (1.0 - self.probability)}, memory
        missed = gradient - unproject(core, basis, tuple(gradient.shape))
        return {"remainder": missed / self.probability}, memory

    def decode(self, payload: Tensors, memory: Tensors, shape: Shape, key: int) -> Tensor:
        """An estimate of the gradient, unbiased over draws."""
        del key
        if self.remainder:
            return payload["remainder"]
        return unproject(payload["core"], memory["basis"], shape)
