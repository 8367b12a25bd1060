"""Gradients of weights handed over use by use, instead of being added up at full size.

A weight that is used several times in a step (in every loop, say) makes autograd hold the sum of
its gradients until the last has come: all looped weights at once, a whole set of gradients. Whoever
only wants something smaller that is linear in the gradient (a projection of it) sets a sink: every
use's dW goes there, in the order of the backward pass, and autograd sees none of it.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from kernels.model.layers import Linear

Sink = Callable[[Tensor], object]


class _Handed(torch.autograd.Function):
    """A weight as it is; its gradient goes to the sink, and no further."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, sink: Sink) -> Tensor:
        ctx.sink = sink
        return weight.view_as(weight)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, None]:
        ctx.sink(grads[0])
        return None, None


def leaf(layer: "Linear") -> Tensor:
    """What takes the place of `layer.weight` in the graph."""
    if layer.sink is None:
        return layer.weight
    handed: Tensor = _Handed.apply(layer.weight, layer.sink)
    return handed
