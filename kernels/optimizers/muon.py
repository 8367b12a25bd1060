"""Muon: momentum, orthogonalised by Newton-Schulz, for hidden matrices (Jordan 2024; 2502.16982).

    M <- mu M + (1 - mu) G             exponential average, fp32
    U <- (1 - mu) G + mu M             Nesterov
    O <- NS(U)                         all singular values near 1
    W <- (1 - lr wd) W - lr s(m, n) O

"adamw_rms" has s = 0.2 sqrt(max(m, n)): updates the size of AdamW's (Moonlight), so both groups
share one learning rate scale. "spectral" has s = sqrt(max(1, m / n)) (Jordan): the rate bounds what
a layer's output may change by, and rates near 0.02 are meant. Decay uses the learning rate as it
is, without that factor.

Everything is a pure function: new tensors come out, the arguments stay as they are, and the same
arguments give the same bits.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from kernels.optimizers.state import StateTensor
from kernels.precision.sums import frobenius_norm

Coefficients = Literal["jordan", "polar_express"]
Scaling = Literal["adamw_rms", "spectral"]

# One odd polynomial a x + b x^3 + c x^5 for every iteration. It does not converge, it lifts small
# singular values fast: those above 3e-3 of the norm end in [0.68, 1.21].
JORDAN = (3.4445, -4.7750, 2.0315)
# Polar Express (arXiv 2505.16932): a polynomial per iteration; five lift all above 1e-3 of the
# norm into [0.859, 1.141]. Made for singular values up to 1 / 1.02.
POLAR_EXPRESS = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)
POLAR_EXPRESS_SAFETY = 1.02
# Gradients of smaller norm are not blown up to full size.
SMALLEST_NORM = 1e-7


@dataclass(frozen=True, slots=True, kw_only=True)
class MuonHyper:
    """Settings of one update. `lr` is the one of this step."""

    lr: float
    momentum: float = 0.95
    nesterov: bool = True
    weight_decay: float = 0.0
    coefficients: Coefficients = "jordan"
    iterations: int = 5
    scaling: Scaling = "adamw_rms"
    # What Newton-Schulz computes in. fp32 on a CPU; bf16 on a GPU is twice as fast and good enough.
    dtype: torch.dtype = torch.float32


def declared(shape: tuple[int, ...]) -> tuple[StateTensor, ...]:
    """Momentum, in float32."""
    return (StateTensor("momentum", "float32", shape),)


def polynomials(
    coefficients: Coefficients, iterations: int
) -> tuple[tuple[float, float, float], ...]:
    """(a, b, c) of each iteration; Polar Express repeats its last beyond the fifth."""
    if coefficients == "jordan":
        return (JORDAN,) * iterations
    last = (POLAR_EXPRESS[-1],) * max(0, iterations - len(POLAR_EXPRESS))
    return POLAR_EXPRESS[:iterations] + last


def orthogonalise(
    g_MN: Tensor,
    *,
    coefficients: Coefficients = "jordan",
    iterations: int = 5,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Near the orthogonal factor of `g_MN`: same singular vectors, singular values near 1.

    Works in `dtype` and returns it. A zero matrix stays zero.
    """
    x = (
        g_MN.mT if g_MN.shape[0] > g_MN.shape[1] else g_MN
    )  # so that the Gram matrix is the small one
    safety = POLAR_EXPRESS_SAFETY if coefficients == "polar_express" else 1.0
    x = x.to(dtype)
    x = x / (frobenius_norm(x) * safety).clamp(min=SMALLEST_NORM).to(dtype)
    for a, b, c in polynomials(coefficients, iterations):
        gram = x @ x.mT
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if g_MN.shape[0] > g_MN.shape[1] else x


def scale_factor(rows: int, columns: int, scaling: Scaling = "adamw_rms") -> float:
    """What the orthogonal factor is multiplied by: for the size of an AdamW update, or so that the
    learning rate is the update's norm between root mean squares of inputs and outputs.
    """
    if scaling == "spectral":
        return math.sqrt(max(1.0, rows / columns))
    return 0.2 * math.sqrt(max(rows, columns))


def update(
    master: Tensor, state: Mapping[str, Tensor], grad: Tensor, hyper: MuonHyper, step: int
) -> tuple[Tensor, dict[str, Tensor]]:
    """New master and new state of a matrix (M, N) after `grad` (M, N). `step` does not matter."""
    del step
    momentum = torch.lerp(state["momentum"], grad, 1.0 - hyper.momentum)
    direction = torch.lerp(grad, momentum, hyper.momentum) if hyper.nesterov else momentum
    turned = orthogonalise(
        direction,
        coefficients=hyper.coefficients,
        iterations=hyper.iterations,
        dtype=hyper.dtype,
    )
    rows, columns = master.shape
    rate = hyper.lr * scale_factor(rows, columns, hyper.scaling)
    new = master * (1.0 - hyper.lr * hyper.weight_decay)
    return new.add_(turned.to(master.dtype), alpha=-rate), {"momentum": momentum}
