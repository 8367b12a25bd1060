"""The loop of a LoopLM (Ouro, arXiv 2510.25741) and when to leave it.

One stack of layers is applied T times. The final norm closes every turn and its output enters the
next: h_t = norm(stack(h_{t-1})). No step embedding, no re-injection of the input, the same rotary
positions each turn.

After each turn a gate gives lambda_t = sigmoid(a_t), the probability of leaving there if one got
that far: p_t = lambda_t * prod_{j<t} (1 - lambda_j), and the last turn takes what is left.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from kernels.model.hyper_connections import StreamsHead, spread
from kernels.model.layers import Call, Memory
from kernels.optimizers import draws

# Shapes: T loops, N tokens in any arrangement (or B, S), C width.


# How a layer is called: at once, or in some way that spares memory or work in the backward pass.
Apply = Callable[[nn.Module, Tensor, Call], Tensor]


def directly(layer: nn.Module, x: Tensor, call: Call) -> Tensor:
    """Autograd keeps what it needs."""
    out: Tensor = layer(x, call)
    return out


def checkpointed(layer: nn.Module, x: Tensor, call: Call) -> Tensor:
    """Keeps only the layer's input and recomputes the rest in the backward pass: the same bits."""
    # What is random inside is keyed, so there is no generator state worth keeping.
    out: Tensor = checkpoint(layer, x, call, use_reentrant=False, preserve_rng_state=False)
    return out


class Trunk(NamedTuple):
    """What the loop made."""

    states: list[Tensor]  # h_1 .. h_T, each (B, S, C)
    last: Tensor  # what the final norm made h_T of, (B, S, C)


def run_loops(
    layers: Iterable[nn.Module],
    norm: nn.Module,
    h_BSC: Tensor,
    rotary: tuple[Tensor, Tensor],
    *,
    loops: int,
    apply: Apply = directly,
    memory: Callable[[int, int], Memory] | None = None,
    head: StreamsHead | None = None,
    noise: int | None = None,
) -> Trunk:
    """All turns of the loop over `layers`, each called by `apply`.

    `memory(loop, layer)` gives cached keys and values. With a `head` every turn of the loop runs on
    as many streams as the head joins at its end. `noise` is the key of all random draws.
    """
    stack = list(layers)
    states: list[Tensor] = []
    last_BSC = h_BSC
    for turn in range(loops):
        x = h_BSC if head is None else spread(h_BSC, head.streams)
        key = None if noise is None else draws.key(noise, turn)
        for index, layer in enumerate(stack):
            x = apply(layer, x, Call(*rotary, memory(turn, index) if memory else None, key))
        last_BSC = x if head is None else head(x)
        h_BSC = norm(last_BSC)
        states.append(h_BSC)
    return Trunk(states, last_BSC)


def exit_log_probabilities(gates_TN: Tensor) -> Tensor:
    """log p_t (T, N) from the gate's logits (T, N). The last row of logits is never used."""
    T = gates_TN.shape[0]
    stay = torch.zeros_like(gates_TN[0])  # log prod_{j<t} (1 - lambda_j)
    rows: list[Tensor] = []
    for turn in range(T - 1):
        rows.append(functional.logsigmoid(gates_TN[turn]) + stay)
        stay = stay + functional.logsigmoid(-gates_TN[turn])
    return torch.stack([*rows, stay])


def exit_entropy(log_p_TN: Tensor) -> Tensor:
    """H(p) = - sum_t p_t log p_t, (N,), in nats. From logarithms: no clamp, no 0 * log 0."""
    return -(log_p_TN.exp() * log_p_TN).sum(dim=0)


def exit_turn(log_p_TN: Tensor, quantile: float) -> Tensor:
    """Q-exit: for each token the first turn (from 0) where the summed p reaches `quantile`."""
    reached = log_p_TN.exp().cumsum(dim=0) >= quantile
    reached[-1] = True
    return reached.int().argmax(dim=0)
