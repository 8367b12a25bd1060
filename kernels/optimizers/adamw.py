"""AdamW (arXiv 1711.05101) for what is not a hidden matrix: embedding, head, norms, gate.

Bias-corrected moments, eps outside the corrected root, decay decoupled and before the step: the
arithmetic of torch.optim.AdamW. A pure function: new tensors come out, the same arguments give the
same bits.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.optimizers.state import StateTensor


@dataclass(frozen=True, slots=True, kw_only=True)
class AdamWHyper:
    """Settings of one update. `lr` is the one of this step."""

    lr: float
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.0


def declared(shape: tuple[int, ...]) -> tuple[StateTensor, ...]:
    """Both moments, in float32."""
    return StateTensor("mean", "float32", shape), StateTensor("square", "float32", shape)


def update(
    master: Tensor, state: Mapping[str, Tensor], grad: Tensor, hyper: AdamWHyper, step: int
) -> tuple[Tensor, dict[str, Tensor]]:
    """New master and new state after `grad`, for the `step`-th update (from 1)."""
    mean = torch.lerp(state["mean"], grad, 1.0 - hyper.beta1)
    square = (state["square"] * hyper.beta2).addcmul_(grad, grad, value=1.0 - hyper.beta2)
    correction1 = 1.0 - hyper.beta1**step
    correction2 = math.sqrt(1.0 - hyper.beta2**step)
    denominator = square.sqrt().div_(correction2).add_(hyper.eps)
    new = master * (1.0 - hyper.lr * hyper.weight_decay)
    new.addcdiv_(mean, denominator, value=-hyper.lr / correction1)
    return new, {"mean": mean, "square": square}
