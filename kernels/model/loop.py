"""The loop of a LoopLM (Ouro, arXiv 2510.25741) and when to leave it.

One stack of layers is applied T times. The final norm closes every turn and its output enters the
next: h_t = norm(stack(h_{t-1})). No step embedding, no re-injection of the input, the same rotary
positions each turn.

After each turn a gate gives lambda_t = sigmoid(a_t), the probability of leaving there if one got
that far: p_t = lambda_t * prod_{j<t} (1 - lambda_j), and the last turn takes what is left.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from kernels.model.hyper_connections import StreamsHead, spread
from kernels.model.layers import Call, Memory

# Shapes: T loops, N tokens in any arrangement (or B, S), C width.


def run_loops(
    layers: Iterable[nn.Module],
    norm: nn.Module,
    h_BSC: Tensor,
    rotary: tuple[Tensor, Tensor],
    *,
    loops: int,
    checkpointing: bool,
    memory: Callable[[int, int], Memory] | None = None,
    head: StreamsHead | None = None,
) -> list[Tensor]:
    """The states h_1 .. h_T, each (B, S, C).

    `checkpointing` keeps only the input of each layer call and recomputes the rest in the backward
    pass; the gradients are the same bits. `memory(loop, layer)` gives cached keys and values.
    With a `head` every turn of the loop runs on as many streams as the head joins at its end.
    """
    stack = list(layers)
    states: list[Tensor] = []
    for turn in range(loops):
        x = h_BSC if head is None else spread(h_BSC, head.streams)
        for index, layer in enumerate(stack):
            call = Call(*rotary, memory(turn, index) if memory else None)
            if checkpointing and torch.is_grad_enabled():
                # No randomness inside, so there is no generator state worth keeping.
                x = checkpoint(layer, x, call, use_reentrant=False, preserve_rng_state=False)
            else:
                x = layer(x, call)
        h_BSC = norm(x if head is None else head(x))
        states.append(h_BSC)
    return states


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
