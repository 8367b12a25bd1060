"""FOAM: Adam's moments folded, the rest of the gradient used and forgotten (2512.07112).

Along the last dimension every 2^level neighbours share one entry of each moment, their mean. What
folding loses of the current gradient, R = G - unfold(fold(G)), is put back into this update only:

    m = beta1 m + (1 - beta1) fold(G)
    v = beta2 v + (1 - beta2) S
    U = (unfold(m) + rho R) / (sqrt(unfold(v) + rho^2 R^2) + eps)
    W -= lr alpha sqrt(1 - beta2^t) / (1 - beta1^t) U
    W -= lr weight_decay W

R is never stored: that would be error feedback, as large as what folding saves. S is one of two
published forms. "mean_of_squares", fold(G^2), is the authors' code and the default;
"square_of_mean", fold(G)^2, is the formula. As fold(G^2) = fold(G)^2 + fold(R^2), the code counts
the spread within a fold twice, once averaged and once at its own place.

State: 8 / 2^level bytes an element. The last dimension is padded with zeros to whole folds; the
padding counts in the last fold's mean, as in the authors' code. Level 0 is AdamW with Hugging
Face's place for eps, times alpha. Every row of the last dimension is on its own, so a caller short
of memory may update slabs of rows one at a time, to the same bits.

Vectors are not folded and know no alpha: for them it is plain AdamW, as in the authors' code.

Not for the wire: R needs the full averaged gradient.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from kernels.optimizers.state import StateTensor


@dataclass(frozen=True, slots=True, kw_only=True)
class FoamHyper:
    """Settings of one update, the authors' defaults. `lr` is the one of this step."""

    lr: float
    level: int = 2  # 2^level neighbours share a moment
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8  # not bias-corrected
    alpha: float = 0.25  # on the whole update of a matrix, apart from weight decay
    rho: float = 1.0  # share of the residual that is put back
    second: Literal["mean_of_squares", "square_of_mean"] = "mean_of_squares"
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.level <= 16:
            raise ValueError(f"FOAM's level must be between 0 and 16, got {self.level}")


def declared(shape: tuple[int, ...], hyper: FoamHyper) -> tuple[StateTensor, StateTensor]:
    """Both folded moments. Vectors are not folded: their entries are not neighbours of a kind."""
    folded = shape
    if len(shape) >= 2:
        folded = (*shape[:-1], -(-shape[-1] // 2**hyper.level))
    return StateTensor("mean", "float32", folded), StateTensor("square", "float32", folded)


def update(
    master: Tensor, state: Mapping[str, Tensor], grad: Tensor, hyper: FoamHyper, step: int
) -> tuple[Tensor, dict[str, Tensor]]:
    """New master and state after `step` (from 1). Nothing is changed in place."""
    width = 2**hyper.level if master.ndim >= 2 else 1
    size = grad.shape[-1]
    folded = fold(grad, width)
    residual = grad - unfold(folded, width, size)
    fresh = fold(grad.square(), width) if hyper.second == "mean_of_squares" else folded.square()
    mean = hyper.beta1 * state["mean"] + (1 - hyper.beta1) * folded
    square = hyper.beta2 * state["square"] + (1 - hyper.beta2) * fresh
    numerator = unfold(mean, width, size) + hyper.rho * residual
    spread = unfold(square, width, size) + hyper.rho**2 * residual.square()
    correction = (1 - hyper.beta2**step) ** 0.5 / (1 - hyper.beta1**step)
    rate = hyper.lr * correction * (hyper.alpha if master.ndim >= 2 else 1.0)
    new = master - rate * (numerator / (spread.sqrt() + hyper.eps))
    if hyper.weight_decay:
        new = new - hyper.lr * hyper.weight_decay * new
    return new, {"mean": mean, "square": square}


def fold(x: Tensor, width: int) -> Tensor:
    """Means of `width` neighbours along the last dimension, padded with zeros to whole folds."""
    padded = torch.nn.functional.pad(x, (0, -x.shape[-1] % width))
    return padded.unflatten(-1, (-1, width)).mean(dim=-1)


def unfold(folded: Tensor, width: int, size: int) -> Tensor:
    """Each entry `width` times, cut to `size`: fold(unfold(f)) = f where nothing was padded."""
    return folded.repeat_interleave(width, dim=-1)[..., :size]
