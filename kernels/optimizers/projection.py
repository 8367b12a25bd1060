"""GaLore's subspace: which, how to get it without a full gradient, and what becomes of moments.

GaLore (2403.03507), GaLore 2 (2504.20437). One-sided: the shorter dimension of a gradient is
projected on R of its leading singular vectors, the basis P.

    M < N   P (M, R), core R_t = P^T G (R, N), update P N_t
    M >= N  P (N, R), core R_t = G P   (M, R), update N_t P^T

Trainers share one basis, so cores add up: sum_k w_k P^T G_k = P^T (sum_k w_k G_k), and trainers may
add up micro-batches in the small space.

The basis comes from the averaged gradient by a randomised range finder (Halko et al., 0909.4061)
played between owner and trainers in rounds. Every round asks each trainer for one product that is
linear in its gradient, so the rank-ordered sum is that of the average and no full gradient
travels. With X the gradient, shorter side first, (S, L):

    owner                             trainer k
    Omega: signs (L, C)         ->    X_k Omega   (S, C)     "across"
    Q = orth(sum)               ->    X_k^T Q     (L, C)     "along"   } for each power
    Z = orth(sum)               ->    X_k Z       (S, C)     "across"  } iteration
    Q = orth(sum)               ->    X_k^T Q     (L, C)     "along"
    P = first R columns of Q U, with U S V^T = (sum)^T

Trainers keep this one gradient until the last round.

Singular vectors have arbitrary signs; here the entry of largest magnitude is positive. Basis and
operands are pure functions of what was summed, so a lost owner repeats them.

Not covered: quantised storage of the basis and the optimizer in the small space (galore.py), when
a refresh is due (refresh_schedule.py).
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from kernels.optimizers import draws
from kernels.optimizers.finite import NotFinite, is_finite

Shape = tuple[int, ...]
Product = Literal["across", "along"]


# --- Shapes and products --------------------------------------------------------------------------


def is_wide(shape: Shape) -> bool:
    """Whether the basis stands on the left (M < N)."""
    return shape[0] < shape[1]


def basis_shape(shape: Shape, rank: int) -> tuple[int, int]:
    """(shorter side, rank); the rank is cut to the shorter side.

    Raises ValueError for a shape that is no matrix, or a rank below 1.
    """
    if len(shape) != 2 or rank < 1:
        raise ValueError(f"a projection needs a matrix and a rank >= 1, got {shape}, rank {rank}")
    return min(shape), min(rank, *shape)


def core_shape(shape: Shape, rank: int) -> tuple[int, int]:
    """(R, N) for a wide matrix, else (M, R)."""
    rank = basis_shape(shape, rank)[1]
    return (rank, shape[1]) if is_wide(shape) else (shape[0], rank)


def project(g_MN: Tensor, basis: Tensor) -> Tensor:
    """The core of a gradient: linear in it."""
    return basis.mT @ g_MN if is_wide(tuple(g_MN.shape)) else g_MN @ basis


def unproject(core: Tensor, basis: Tensor, shape: Shape) -> Tensor:
    """From the small space back to `shape`."""
    return basis @ core if is_wide(shape) else core @ basis.mT


# --- Refresh: the exchange between owner and trainers ---------------------------------------------


class RefreshPlan(NamedTuple):
    """How a basis is found."""

    rank: int
    oversample: int = 8  # columns beyond the rank while searching
    power_iterations: int = 1  # 0 misses a third of a flat spectrum's energy, 1 a few percent

    def columns(self, shape: Shape) -> int:
        """Width of the search space, never more than the shorter side."""
        short, rank = basis_shape(shape, self.rank)
        return min(short, rank + self.oversample)


class Round(NamedTuple):
    """What the owner asks of every trainer: one product of its gradient with `operand`."""

    number: int  # from 0
    product: Product
    operand: Tensor  # (L, C) for "across", (S, C) for "along"


def first_round(
    shape: Shape,
    plan: RefreshPlan,
    key: int,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Round:
    """Ask for a sketch. Its operand is random signs of `key`: trainers can make it themselves."""
    long, columns = max(shape), plan.columns(shape)
    omega = draws.signs(key, long * columns, device).view(long, columns)
    return Round(0, "across", omega.to(dtype))


def contribution(asked: Round, g_MN: Tensor) -> Tensor:
    """A trainer's answer, linear in its gradient: (S, C) for "across", (L, C) for "along"."""
    x_SL = g_MN if is_wide(tuple(g_MN.shape)) else g_MN.mT
    return x_SL @ asked.operand if asked.product == "across" else x_SL.mT @ asked.operand


def next_round(asked: Round, summed: Tensor, plan: RefreshPlan) -> Round | Tensor:
    """The next question, given the weighted sum of all answers; after the last, the basis.

    Raises `NotFinite` when the sum is not finite, or so large that what follows from it is not.
    """
    last = 2 * plan.power_iterations + 1
    if asked.number < last:
        product: Product = "along" if asked.product == "across" else "across"
        return Round(asked.number + 1, product, orthonormal(summed))
    return _leading(asked.operand, summed, plan.rank)


def find_basis(g_MN: Tensor, plan: RefreshPlan, key: int) -> Tensor:
    """The basis of one gradient: the exchange played by one process. (S, R)"""
    asked = first_round(tuple(g_MN.shape), plan, key, g_MN.dtype, g_MN.device)
    while True:
        answer = next_round(asked, contribution(asked, g_MN), plan)
        if isinstance(answer, Tensor):
            return answer
        asked = answer


def random_basis(shape: Shape, rank: int, key: int, device: torch.device | str = "cpu") -> Tensor:
    """A basis from nothing but `key`: what a matrix starts with when its first refresh is later."""
    short, rank = basis_shape(shape, rank)
    return canonical(orthonormal(draws.signs(key, short * rank, device).view(short, rank)))


def orthonormal(columns: Tensor) -> Tensor:
    """Orthonormal columns with the span of `columns` (rows >= columns); arbitrary where it lacks.

    Raises `NotFinite` when an entry is not finite, here or there: a basis of NaN would poison every
    later step.
    """
    _check(columns)
    return _checked(torch.linalg.qr(columns)[0].contiguous())


def canonical(basis: Tensor) -> Tensor:
    """Each column with the sign that makes its entry of largest magnitude positive; row by row in
    memory, as it will be after having been stored: the last bits of products depend on that.
    """
    largest = basis.gather(0, basis.abs().argmax(dim=0, keepdim=True))
    return (basis * torch.where(largest < 0, -1.0, 1.0).to(basis.dtype)).contiguous()


def _leading(q_SC: Tensor, summed_LC: Tensor, rank: int) -> Tensor:
    """First left singular vectors of X, from Q and X^T Q: an SVD of (C, C) instead of (C, L)."""
    _check(summed_LC)
    _, triangle = torch.linalg.qr(summed_LC)
    try:
        u = torch.linalg.svd(triangle.mT)[0]
    except torch.linalg.LinAlgError as error:  # pyright: ignore[reportPrivateImportUsage]
        raise NotFinite(f"cannot find singular vectors: {error}") from error
    rank = min(rank, q_SC.shape[0])
    return _checked(canonical(q_SC @ u[:, :rank]))


def _check(summed: Tensor) -> None:
    if not is_finite(summed):
        raise NotFinite(
            "cannot orthonormalise: the summed product holds values that are not finite"
        )


def _checked(found: Tensor) -> Tensor:
    """Products of what is finite, but huge, overflow."""
    if not is_finite(found):
        raise NotFinite("cannot orthonormalise: the summed product holds values that are too large")
    return found


# --- Moments, when the basis changes --------------------------------------------------------------


def rotated_first(first: Tensor, old: Tensor, new: Tensor, shape: Shape) -> Tensor:
    """A first moment seen from the new basis: P_new^T P_old M."""
    turn_RR = new.mT @ old
    return turn_RR @ first if is_wide(shape) else first @ turn_RR.mT


def rotated_second(
    first: Tensor,
    second: Tensor,
    old: Tensor,
    new: Tensor,
    shape: Shape,
    corrections: tuple[float, float],
) -> Tensor:
    """A second moment seen from the new basis, as LDAdam estimates it (2410.16103).

    `corrections` are 1 - beta1^t and 1 - beta2^t of the moments given. With bias-corrected moments
    m, v and C = P_new^T P_old: |C^2 (v - m^2) + (C m)^2|, squares by element. Variances turn as if
    coordinates were uncorrelated: an approximation, but one no sign convention changes.
    """
    turn_RR = new.mT @ old
    if not is_wide(shape):
        first, second = first.mT, second.mT
    mean, square = first / corrections[0], second / corrections[1]
    estimate = (turn_RR.square() @ (square - mean.square()) + (turn_RR @ mean).square()).abs()
    estimate = estimate * corrections[1]
    return estimate if is_wide(shape) else estimate.mT
