"""How much residual streams amplify over the depth of the stack: mHC's composite gain.

The product of all mixing matrices of a turn says what the first layer's streams have become at the
last, and, transposed, what gradients have become on their way down. Its largest absolute row sum
bounds the one, its largest absolute column sum the other. Doubly stochastic matrices give 1; free
ones gave 3000 in a 27 B model (arXiv 2512.24880, figure 3).
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kernels.model.hyper_connections import HyperConnection, Maps
from kernels.model.model import LoopLM

# Shapes: N tokens, n streams.


@dataclass(frozen=True, slots=True)
class StreamGain:
    """Gains of the composite mapping of a turn: the average over tokens, of the worst turn."""

    forward: float
    backward: float
    left: float  # average share of a stream that a mixing moves to others


class _Composite:
    """The product of the mixing matrices of each turn, as layers are called."""

    def __init__(self) -> None:
        self.turns: list[Tensor] = []
        self.left: list[float] = []

    def begin(self) -> None:
        self.turns.append(torch.empty(0))

    def add(self, _module: nn.Module, _inputs: Any, maps: Maps) -> None:
        n = maps.mix.shape[-1]
        step_Nnn = maps.mix.reshape(-1, n, n).mT  # from streams before to streams after
        past = self.turns[-1]
        self.turns[-1] = step_Nnn @ past if past.numel() else step_Nnn
        self.left.append(1.0 - float(step_Nnn.diagonal(dim1=1, dim2=2).mean()))


@torch.no_grad()
def stream_gain(model: LoopLM, tokens_BS: Tensor) -> StreamGain:
    """Gain over depth on these tokens. Raises `ValueError` for a model with a plain residual."""
    if model.streams_head is None:
        raise ValueError("a model with streams = 1 has no mixing whose gain could be measured")
    composite = _Composite()
    modules = [m for m in model.modules() if isinstance(m, HyperConnection)]
    hooks = [module.register_forward_hook(composite.add) for module in modules]
    first = modules[0].register_forward_pre_hook(lambda _module, _inputs: composite.begin())
    try:
        model.states(tokens_BS)
    finally:
        for hook in (first, *hooks):
            hook.remove()
    sizes = [product.abs() for product in composite.turns]
    return StreamGain(
        forward=max(float(p.sum(dim=2).amax(dim=1).mean()) for p in sizes),
        backward=max(float(p.sum(dim=1).amax(dim=1).mean()) for p in sizes),
        left=sum(composite.left) / len(composite.left),
    )
