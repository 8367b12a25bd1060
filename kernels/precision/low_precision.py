"""Linear maps whose products follow a recipe, for autograd: `ternary_project` in fewer bits."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kernels.precision.recipes import Recipe, Weight
from kernels.precision.ternary import Ternary

# Shapes: N tokens, I columns (inputs) and O rows (outputs) of a weight.


@dataclass(frozen=True, slots=True)
class _How:
    recipe: Recipe
    keys: tuple[int, ...]  # one per weight
    ternary: bool
    whole: Tensor | None  # see `Recipe.whole`; None: these are all tokens


class _Project(torch.autograd.Function):
    """Several weights times the same activations.

    Arguments: how, the results where they are known, x (N, I), the leaves that receive dW, then, if
    ternary, all codes and all scales; else the leaves are the weights.
    """

    @staticmethod
    def forward(
        ctx: Any, how: _How, known: tuple[Tensor, ...] | None, x_NI: Tensor, *parts: Tensor
    ) -> tuple[Tensor, ...]:
        needed = known is None or not how.recipe.keeps_input
        a = how.recipe.activations(x_NI, how.ternary, how.whole) if needed else None
        kept = parts[len(how.keys) :] if how.ternary else parts
        ctx.save_for_backward(how.recipe.kept(x_NI, a), *kept)
        ctx.how = how
        if known is not None:
            return known
        weights = _weights(parts, how)
        return tuple(how.recipe.forward(a, w).to(x_NI.dtype) for w in weights)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        how: _How = ctx.how
        recipe, count = how.recipe, len(how.keys)
        x_NI, *parts = ctx.saved_tensors
        weights = _weights(((None,) * count if how.ternary else ()) + tuple(parts), how)
        dx_NI: Tensor | None = None
        if ctx.needs_input_grad[2]:
            for dy_NO, w, key in zip(grads, weights, how.keys, strict=True):
                part = recipe.input_gradient(dy_NO, w, key).to(x_NI.dtype)
                dx_NI = part if dx_NI is None else dx_NI.add_(part)
        dw: list[Tensor | None] = [None] * count
        if any(ctx.needs_input_grad[3 : count + 3]):
            t = recipe.tokens(x_NI)
            for i, (dy_NO, w, key) in enumerate(zip(grads, weights, how.keys, strict=True)):
                dw[i] = recipe.weight_gradient(dy_NO, t, w, key).to(x_NI.dtype)
        return None, None, dx_NI, *dw, *([None] * (2 * count if how.ternary else 0))


def _weights(parts: Sequence[Any], how: _How) -> list[Weight]:
    count = len(how.keys)
    if not how.ternary:
        return list(parts)
    codes, scales = parts[count : 2 * count], parts[2 * count :]
    return [Ternary(T, g) for T, g in zip(codes, scales, strict=True)]


def low_precision_project(
    x: Tensor,
    leaves: Sequence[Tensor],
    ternary: Sequence[Ternary] | None,
    recipe: Recipe,
    keys: Sequence[int] | None,
    known: Sequence[Tensor] | None = None,
    whole: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """`x` (..., I) through each weight (O_i, I): a tuple of (..., O_i).

    The weights are `ternary`, with `leaves` to receive their gradients, or else the leaves. `keys`
    name the random draws of each. `known` are the results, where they were computed before: new
    tensors that nobody else holds. `whole`: see `Recipe.activations`. Raises `ValueError` where
    a recipe draws and has no keys.
    """
    if keys is None:
        if recipe.draws and torch.is_grad_enabled():
            raise ValueError(
                f"the recipe {type(recipe).__name__} rounds gradients at random: give `objective` "
                "a `noise` key made of the run's seed, step, rank and micro-batch"
            )
        keys = [0] * len(leaves)
    flat = None if known is None else tuple(y.view(-1, y.shape[-1]) for y in known)
    how = _How(recipe, tuple(keys), ternary is not None, whole)
    parts: list[Tensor] = list(leaves)
    if ternary is not None:
        parts += [*(w.codes for w in ternary), *(w.scale for w in ternary)]
    out: tuple[Tensor, ...] = _Project.apply(how, flat, x.reshape(-1, x.shape[-1]), *parts)
    return tuple(y.view(*x.shape[:-1], y.shape[-1]) for y in out)
