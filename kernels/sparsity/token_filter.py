"""Which tokens of each row are learnt from, and how to move between all of them and those.

Collider (arXiv 2502.00340) trains on the tokens that score highest and drops the others from the
whole backward pass: see `kernels/model/filtered.py`. Scores are the loss itself, or what it exceeds
the loss of a reference model by (Rho-1, arXiv 2404.07965). Every row keeps the same number of
tokens, so that shapes never change. The papers choose within a whole batch instead.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

# Shapes: B rows, S positions, k kept ones.

Score = Literal["none", "loss", "excess"]
Backward = Literal["gathered", "masked", "loss_only"]

# Kept positions whose attention is computed at once.
CHUNK = 128


@dataclass(frozen=True, slots=True)
class Kept:
    """The positions that are learnt from, ascending in each row."""

    index: Tensor  # int64 (B, k)
    flat: Tensor  # (B k,), into rows laid end to end
    flat_rest: Tensor  # (B (S - k),): of those that are not
    # For each CHUNK of kept positions, how many that are not kept come before its last, at most.
    before: tuple[int, ...]
    positions: int  # S
    notes: dict[str, Any] = field(default_factory=dict[str, Any])  # what layers share

    def take(self, x_BSX: Tensor) -> Tensor:
        """The kept positions of anything (B, S, ..): (B, k, ..). Differentiable."""
        out: Tensor = _Take.apply(x_BSX, self.flat)
        return out.view(len(self.index), -1, *x_BSX.shape[2:])

    def take_rest(self, x_BSX: Tensor) -> Tensor:
        """The positions that are not kept: (B, S - k, ..)."""
        rest = x_BSX.flatten(0, 1).index_select(0, self.flat_rest)
        return rest.view(len(self.index), -1, *x_BSX.shape[2:])

    def mask(self) -> Tensor:
        """Bool (B, S): whether a position is kept."""
        shape = len(self.index), self.positions
        out = torch.zeros(shape, dtype=torch.bool, device=self.index.device)
        return out.scatter_(1, self.index, value=True)


def kept_count(share: float, positions: int) -> int:
    """How many positions of a row are kept: the nearest to that share, at least one."""
    return max(1, min(positions, round(share * positions)))


def select(score_BS: Tensor, count: int) -> Kept:
    """The `count` highest scores of each row; of equal ones the first."""
    B, S = score_BS.shape
    order = score_BS.argsort(dim=1, descending=True, stable=True)
    index = order[:, :count].sort(dim=1).values
    rest = order[:, count:].sort(dim=1).values
    starts_B1 = torch.arange(B, device=index.device)[:, None] * S
    lasts = [min(start + CHUNK, count) - 1 for start in range(0, count, CHUNK)]
    before = (index[:, lasts] - index.new_tensor(lasts)).amax(dim=0)
    return Kept(
        index=index,
        flat=(index + starts_B1).flatten(),
        flat_rest=(rest + starts_B1).flatten(),
        before=tuple(before.tolist()),
        positions=S,
    )


class _Take(torch.autograd.Function):
    """Rows of (B, S, ..) by their place in (B S, ..); no two alike, so backward only copies."""

    @staticmethod
    def forward(ctx: Any, x_BSX: Tensor, flat: Tensor) -> Tensor:
        ctx.save_for_backward(flat)
        ctx.shape = x_BSX.shape
        return x_BSX.flatten(0, 1).index_select(0, flat)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (flat,) = ctx.saved_tensors
        B, S, *rest = ctx.shape
        dx = grads[0].new_zeros(B * S, *rest).index_copy_(0, flat, grads[0])
        return dx.view(ctx.shape), None
