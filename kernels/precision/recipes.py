"""How the three products of a linear layer are computed in fewer bits. Section 5 of the notes.

    forward  Y = X W^T        input gradient  dX = dY W        weight gradient  dW = dY^T X

What is rounded are the operands, in the dimension that each product sums over, and never the
gradients that come out: the optimizer sees float32. Every recipe is an emulation in float32 of the
values a tensor core would multiply; `native` takes over where there is one.

W is ternary codes, which every format here holds without any error, or a full-precision matrix.
Where rounding is stochastic, draws are a function of a key (of run, step, layer and turn), not of
a generator's state: recomputing a layer, or replacing a trainer, repeats them.
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from kernels.optimizers import draws
from kernels.precision import dge, fp4, fp8
from kernels.precision.fp4 import Blocks
from kernels.precision.hadamard import nvidia_signs, rotated
from kernels.precision.rounding import bfloat16
from kernels.precision.ternary import Ternary, integer_product, quantise_activations

# Shapes: N tokens, I columns (inputs) and O rows (outputs) of a weight.

Precision = Literal["fp32", "fp8", "nvfp4", "mxfp4_backward", "fp4_dge"]
Weight = Ternary | Tensor


class Recipe:
    """The three products. This one rounds nothing: what the others are compared with."""

    draws = False  # whether the backward pass needs a key
    keeps_input = True  # whether `kept` is X itself, and `activations` no part of it

    def whole(self, x_NI: Tensor) -> Tensor | None:
        """What the rounding of a token depends on beyond the token itself; None: on nothing."""
        del x_NI

    def activations(self, x_NI: Tensor, ternary: bool, whole: Tensor | None = None) -> Any:
        """X as operand of the forward products of all weights it meets.

        X may be some tokens of many that are rounded as one: then `whole` is of them all.
        """
        del ternary, whole
        return x_NI

    def forward(self, a: Any, w: Weight) -> Tensor:
        """Y (N, O) from `activations`."""
        return a @ _floats(w).mT

    def kept(self, x_NI: Tensor, a: Any) -> Tensor:
        """What the backward pass has in place of X."""
        del a
        return x_NI

    def input_gradient(self, dy_NO: Tensor, w: Weight, key: int) -> Tensor:
        """dX (N, I)."""
        del key
        return dy_NO @ _floats(w)

    def tokens(self, x_NI: Tensor) -> Any:
        """What was kept of X, as operand of the weight gradients of all weights it met."""
        return x_NI

    def weight_gradient(self, dy_NO: Tensor, t: Any, w: Weight, key: int) -> Tensor:
        """dW (O, I) from `tokens`."""
        del w, key
        return dy_NO.mT @ t


class Fp8(Recipe):
    """E4M3 with a scale per row, all three products (arXiv 2502.11458, for attention)."""

    def activations(self, x_NI: Tensor, ternary: bool, whole: Tensor | None = None) -> fp8.Rows:
        """E4M3, a scale per token."""
        return fp8.rows(x_NI)

    def forward(self, a: fp8.Rows, w: Weight) -> Tensor:
        """Codes are exact in E4M3; other weights have a scale per output."""
        return fp8.product(a, fp8.exact(w) if isinstance(w, Ternary) else fp8.rows(w))

    def input_gradient(self, dy_NO: Tensor, w: Weight, key: int) -> Tensor:
        """Summed over outputs: scales per token and per input."""
        turned = fp8.turned(w) if isinstance(w, Ternary) else fp8.rows(w.mT)
        return fp8.product(fp8.rows(dy_NO), turned)

    def tokens(self, x_NI: Tensor) -> fp8.Rows:
        """A scale per input, over all tokens."""
        return fp8.rows(x_NI.mT)

    def weight_gradient(self, dy_NO: Tensor, t: fp8.Rows, w: Weight, key: int) -> Tensor:
        """Summed over tokens: scales per output and per input."""
        return fp8.product(fp8.rows(dy_NO.mT), t)


Quantise = Callable[..., Blocks]


class Nvfp4(Recipe):
    """NVIDIA's recipe (arXiv 2509.25149): see the table of section 5.2.

    X to nearest in blocks of 16 along what is summed over; W to nearest in blocks of 16 x 16, so
    that both directions use the same codes; dY stochastically. For the weight gradient both X and
    dY are first rotated within blocks of 16 tokens. Each copy is made from the full-precision
    tensor. `quantise` and `settle` (the rounding of what was rotated) can be replaced in tests.
    """

    draws = True

    def __init__(
        self, quantise: Quantise = fp4.nvfp4, settle: Callable[[Tensor], Tensor] = bfloat16
    ) -> None:
        self._quantise = quantise
        self._settle = settle

    def whole(self, x_NI: Tensor) -> Tensor:
        """The largest magnitude, which scales are relative to."""
        return x_NI.float().abs().amax()

    def activations(self, x_NI: Tensor, ternary: bool, whole: Tensor | None = None) -> Blocks:
        """To nearest, not rotated."""
        return self._quantise(x_NI) if whole is None else self._quantise(x_NI, largest=whole)

    def forward(self, a: Blocks, w: Weight) -> Tensor:
        """W in square blocks."""
        return fp4.product(a, self._weight(w))[:, : _rows(w)]

    def input_gradient(self, dy_NO: Tensor, w: Weight, key: int) -> Tensor:
        """dY stochastically, not rotated; the very codes of the forward product."""
        dy = self._stochastic(dy_NO, draws.key(key, "input gradient"))
        return fp4.product(dy, self._weight(w).turned())[:, : _columns(w)]

    def tokens(self, x_NI: Tensor) -> Blocks:
        """X^T, rotated, to nearest."""
        return self._quantise(self._rotated(x_NI.mT))

    def weight_gradient(self, dy_NO: Tensor, t: Blocks, w: Weight, key: int) -> Tensor:
        """dY^T, rotated, stochastically."""
        dy = self._stochastic(self._rotated(dy_NO.mT), draws.key(key, "weight gradient"))
        return fp4.product(dy, t)

    def _weight(self, w: Weight) -> Blocks:
        return fp4.exact(w) if isinstance(w, Ternary) else self._quantise(w, square=True)

    def _rotated(self, x: Tensor) -> Tensor:
        return self._settle(rotated(x, nvidia_signs(x)))

    def _stochastic(self, x_MK: Tensor, key: int) -> Blocks:
        uniform = _uniform(key, fp4.nvfp4_shape(*x_MK.shape), x_MK)
        return self._quantise(x_MK, uniform=uniform)


class Mxfp4Backward(Recipe):
    """The backward products alone in MXFP4 (arXiv 2502.20586); forward as without a recipe.

    Per product, both operands are rotated within blocks of 64 by the same fresh signs and rounded
    stochastically, each by draws of its own: the gradient's expectation is the exact one.
    """

    draws = True
    keeps_input = False
    BLOCK = 64

    def __init__(self, quantise: Quantise = fp4.mxfp4_unbiased) -> None:
        self._quantise = quantise

    def activations(
        self, x_NI: Tensor, ternary: bool, whole: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """The 8-bit ones of ternary layers, or X itself."""
        return quantise_activations(x_NI) if ternary else (x_NI, None)

    def forward(self, a: tuple[Tensor, Tensor | None], w: Weight) -> Tensor:
        """The same bits as without a recipe."""
        x, step_N1 = a
        if isinstance(w, Ternary) and step_N1 is not None:
            return integer_product(x, w.codes, step_N1.dtype) * (step_N1 * w.scale)
        return x @ _floats(w).mT

    def kept(self, x_NI: Tensor, a: tuple[Tensor, Tensor | None]) -> Tensor:
        """X as the forward product had it."""
        q, step_N1 = a
        return x_NI if step_N1 is None else q.to(step_N1.dtype).mul_(step_N1)

    def input_gradient(self, dy_NO: Tensor, w: Weight, key: int) -> Tensor:
        """Rotated over outputs."""
        return self._product(dy_NO, _floats(w).mT, draws.key(key, "input gradient"))

    def weight_gradient(self, dy_NO: Tensor, t: Tensor, w: Weight, key: int) -> Tensor:
        """Rotated over tokens."""
        return self._product(dy_NO.mT, t.mT, draws.key(key, "weight gradient"))

    def _product(self, a_MK: Tensor, b_NK: Tensor, key: int) -> Tensor:
        """a b^T, (M, N)."""
        signs = draws.signs(draws.key(key, "signs"), self.BLOCK, a_MK.device).to(a_MK.dtype)
        a, b = (
            self._quantise(turned, _uniform(draws.key(key, name), turned.shape, turned))
            for name, turned in (("a", rotated(a_MK, signs)), ("b", rotated(b_NK, signs)))
        )
        return fp4.product(a, b)


class Dge(Recipe):
    """E2M1 forward with outlier compensation, soft slopes backward; full-precision weights only."""

    keeps_input = False

    def whole(self, x_NI: Tensor) -> Tensor:
        """The quantiles beyond which it is clamped."""
        return dge.quantiles(x_NI)

    def activations(self, x_NI: Tensor, ternary: bool, whole: Tensor | None = None) -> Tensor:
        """Clamped and rounded, plus what the clamp cut off."""
        assert not ternary
        inner = x_NI.clamp(*(self.whole(x_NI) if whole is None else whole))
        # The sum of both products is the product of the sum: W is the same in both.
        return dge.rows(inner)[0].add_(x_NI - inner)

    def forward(self, a: Tensor, w: Weight) -> Tensor:
        """Both products at once."""
        return a @ dge.rows(_floats(w))[0].mT

    def kept(self, x_NI: Tensor, a: Tensor) -> Tensor:
        """What the forward product had."""
        return a

    def input_gradient(self, dy_NO: Tensor, w: Weight, key: int) -> Tensor:
        """With the rounded weights, straight through the rounding of X."""
        return dy_NO @ dge.rows(_floats(w))[0]

    def weight_gradient(self, dy_NO: Tensor, t: Tensor, w: Weight, key: int) -> Tensor:
        """Times the slope of the soft staircase at each weight."""
        return (dy_NO.mT @ t).mul_(dge.slope(dge.rows(_floats(w))[1]))


RECIPES: dict[Precision, Recipe | None] = {
    "fp32": None,  # as layers compute by themselves
    "fp8": Fp8(),
    "nvfp4": Nvfp4(),
    "mxfp4_backward": Mxfp4Backward(),
    "fp4_dge": Dge(),
}


def _floats(w: Weight) -> Tensor:
    return w.dequantised() if isinstance(w, Ternary) else w


def _rows(w: Weight) -> int:
    return (w.codes if isinstance(w, Ternary) else w).shape[0]


def _columns(w: Weight) -> int:
    return (w.codes if isinstance(w, Ternary) else w).shape[1]


def _uniform(key: int, shape: tuple[int, ...] | torch.Size, like: Tensor) -> Tensor:
    rows, columns = shape
    return draws.uniform(key, rows * columns, like.device).view(rows, columns)
