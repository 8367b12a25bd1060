"""Ternary weights and 8-bit activations: BitNet b1.58 (arXiv 2402.17764), section 2.

A weight matrix W is used as g T, with codes T in {-1, 0, +1} and one scale g = mean |W|. A token's
activations x are used as s q, with q int8 and one step s = max |x| / 127 per token. Gradients pass
both roundings unchanged (straight-through, no clipping mask):

    y = (q T^T) s g        dX = dY (g T)        dW = dY^T (s q)

None of the three needs W itself. So `ternary_project` takes, as the leaf that receives dW, either
the master weights or a carrier: a parameter of the right shape that occupies one element.

The product q T^T is a sum of integers. As long as 127 * columns < 2^24 it is exact in float32 too,
so every way of computing it gives the same bits.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kernels.precision.sums import absolute_mean

# Shapes: N tokens, I columns (inputs) and O rows (outputs) of a weight.

# Below this a scale is taken as this: a matrix or token of zeros must not divide by zero.
SMALLEST_SCALE = 1e-5
# Integer sums up to this are exact in float32.
EXACT_SUM = 1 << 24


class Ternary(NamedTuple):
    """A weight matrix as it is used: `codes` int8 (O, I) in {-1, 0, 1}, `scale` 0-dim float."""

    codes: Tensor
    scale: Tensor

    def dequantised(self) -> Tensor:
        """g T as floats, (O, I). Transient: nobody should keep it."""
        return self.codes.to(self.scale.dtype).mul_(self.scale)


def quantise(w_OI: Tensor) -> Ternary:
    """Absmean quantisation of master weights (section 2a): round half to even of w / mean |w|."""
    scale = absolute_mean(w_OI).clamp_(min=SMALLEST_SCALE)
    codes = (w_OI / scale).round_().clamp_(-1, 1).to(torch.int8)
    return Ternary(codes, scale)


def quantise_activations(x_NI: Tensor) -> tuple[Tensor, Tensor]:
    """Absmax quantisation per token: int8 (N, I) in [-127, 127] and the step (N, 1).

    A NaN or infinity in a token makes its step NaN or infinite, so it is not lost in the codes.
    """
    largest_N1 = x_NI.abs().amax(dim=-1, keepdim=True).clamp_(min=SMALLEST_SCALE)
    # No clamp to [-128, 127]: by construction |x| * 127 / max rounds to 127 at most.
    q_NI = (x_NI * (127.0 / largest_N1)).round_().to(torch.int8)
    return q_NI, largest_N1.div_(127.0)


def integer_product(q_NI: Tensor, codes_OI: Tensor, dtype: torch.dtype) -> Tensor:
    """q T^T exactly: int32 from the int8 matrix units, or a float `dtype` where there are none."""
    (N, I), O = q_NI.shape, codes_OI.shape[0]  # noqa: E741 - the maths' letters
    # cuBLASLt wants more than 16 rows and multiples of 8. Same bits either way.
    if not q_NI.is_cuda or (N > 16 and I % 8 == 0 and O % 8 == 0):
        return torch._int_mm(q_NI, codes_OI.mT)  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
    assert I * 127 < EXACT_SUM
    return q_NI.to(dtype) @ codes_OI.to(dtype).mT


class _TernaryProject(torch.autograd.Function):
    """Several ternary matrices times the same activations, which are quantised once.

    Arguments: the products where known, x (N, I), then the leaves that receive dW, then all
    codes, then all scales.
    Saved for backward: int8 activations, their steps, the codes; no floats of either.
    """

    @staticmethod
    def forward(
        ctx: Any, known: tuple[Tensor, ...] | None, x_NI: Tensor, *parts: Tensor
    ) -> tuple[Tensor, ...]:
        count = len(parts) // 3
        codes, scales = parts[count : 2 * count], parts[2 * count :]
        q_NI, step_N1 = quantise_activations(x_NI)
        ctx.save_for_backward(q_NI, step_N1, *codes, *scales)
        if known is not None:
            return known
        return tuple(
            integer_product(q_NI, T, x_NI.dtype) * (step_N1 * g)
            for T, g in zip(codes, scales, strict=True)
        )

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q_NI, step_N1, *rest = ctx.saved_tensors
        count = len(grads)
        codes, scales = rest[:count], rest[count:]
        dx_NI: Tensor | None = None
        if ctx.needs_input_grad[1]:
            for dy_NO, T, g in zip(grads, codes, scales, strict=True):
                w_OI = Ternary(T, g).dequantised()
                dx_NI = dy_NO @ w_OI if dx_NI is None else dx_NI.addmm_(dy_NO, w_OI)
        dw: list[Tensor | None] = [None] * count
        if any(ctx.needs_input_grad[2 : count + 2]):
            x_NI = q_NI.to(step_N1.dtype).mul_(step_N1)
            for i, dy_NO in enumerate(grads):
                if ctx.needs_input_grad[2 + i]:
                    dw[i] = dy_NO.mT @ x_NI
        return None, dx_NI, *dw, *([None] * (2 * count))


def ternary_project(
    x: Tensor,
    leaves: Sequence[Tensor],
    weights: Sequence[Ternary],
    known: Sequence[Tensor] | None = None,
) -> tuple[Tensor, ...]:
    """`x` (..., I) through each of `weights` (O_i, I): a tuple of (..., O_i).

    `leaves[i]`, of the shape of `weights[i]`, receives dW_i; its values are never read. `known` are
    the results, where they were computed before: new tensors that nobody else holds.
    """
    flat_NI = x.reshape(-1, x.shape[-1])
    codes, scales = [w.codes for w in weights], [w.scale for w in weights]
    flat = None if known is None else tuple(y.view(-1, y.shape[-1]) for y in known)
    out: tuple[Tensor, ...] = _TernaryProject.apply(flat, flat_NI, *leaves, *codes, *scales)
    return tuple(y.view(*x.shape[:-1], y.shape[-1]) for y in out)


def carrier(
    rows: int, columns: int, device: torch.device | str | None = None
) -> torch.nn.Parameter:
    """A leaf of shape (rows, columns) that occupies one element: somewhere for dW to arrive."""
    return torch.nn.Parameter(torch.zeros((), device=device).expand(rows, columns))
