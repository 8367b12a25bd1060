"""Muon with its momentum in 8 bits (2509.23106), and NorMuon on demand (2510.05491).

Between steps momentum is int8 codes and a scale per block; within a step it is float32:

    M~ = decode(codes);  M = mu M~ + (1 - mu) G;  O = NS(Nesterov of M);  codes = encode(M)

Newton-Schulz sees M before it is encoded, so rounding enters only with the next step's history,
once per step. The linear map is enough, because nothing is divided by momentum; the dynamic map
halves the error at the same size. Matrices below 4096 elements keep float32.

NorMuon evens out the rows of O, the neurons, by a running mean of their squares, and gives the
result O's norm back:

    v = beta2 v + (1 - beta2) mean_columns(O^2);  O' = O / (sqrt(v) + 1e-10);  O' *= |O| / |O'|

State: 1 + 4 / block bytes an element, and 4 a row for NorMuon. Not covered: fused matrices, which
have to be orthogonalised one by one.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from kernels.optimizers.muon import SMALLEST_NORM, MuonHyper, orthogonalise, scale_factor
from kernels.optimizers.quantised_state import load, store
from kernels.optimizers.state import StateTensor, Storage, declare
from kernels.precision.sums import frobenius_norm

# NorMuon's guard against a row that never moved.
SMALLEST_ROOT = 1e-10


@dataclass(frozen=True, slots=True, kw_only=True)
class Muon8bitHyper:
    """Settings of one update: Muon's, and how its momentum is kept."""

    muon: MuonHyper
    kind: Literal["linear", "dynamic", "float32"] = "linear"
    block: int = 2048  # elements that share a scale
    neuron_beta2: float = 0.0  # NorMuon's; 0: plain Muon


def declared(shape: tuple[int, ...], hyper: Muon8bitHyper) -> tuple[StateTensor, ...]:
    """State of a matrix: momentum, and with NorMuon a mean square per row."""
    momentum = declare("momentum", shape, Storage(hyper.kind, hyper.block))
    if not hyper.neuron_beta2:
        return momentum
    return (*momentum, StateTensor("neurons", "float32", (shape[0], 1)))


def update(
    master: Tensor, state: Mapping[str, Tensor], grad: Tensor, hyper: Muon8bitHyper, step: int
) -> tuple[Tensor, dict[str, Tensor]]:
    """New master and new state of a matrix (M, N) after `grad` (M, N). `step` does not matter."""
    del step
    muon, storage = hyper.muon, Storage(hyper.kind, hyper.block)
    before = load(state, "momentum", storage, tuple(master.shape))
    momentum = torch.lerp(before, grad, 1.0 - muon.momentum)
    direction = torch.lerp(grad, momentum, muon.momentum) if muon.nesterov else momentum
    turned = orthogonalise(
        direction, coefficients=muon.coefficients, iterations=muon.iterations, dtype=muon.dtype
    ).to(master.dtype)
    after = store("momentum", momentum, storage)
    if hyper.neuron_beta2:
        turned, after["neurons"] = _evened(turned, state["neurons"], hyper.neuron_beta2)
    rows, columns = master.shape
    rate = muon.lr * scale_factor(rows, columns, muon.scaling)
    new = master * (1.0 - muon.lr * muon.weight_decay)
    return new.add_(turned, alpha=-rate), after


def _evened(turned_MN: Tensor, neurons_M1: Tensor, beta2: float) -> tuple[Tensor, Tensor]:
    """NorMuon: rows of equal size, the norm of the whole kept; and the new mean squares."""
    squares = turned_MN.square().mean(dim=1, keepdim=True)
    neurons = torch.lerp(neurons_M1, squares, 1.0 - beta2)
    even = turned_MN / (neurons.sqrt() + SMALLEST_ROOT)
    norm = frobenius_norm(even).clamp(min=SMALLEST_NORM)
    return even * (frobenius_norm(turned_MN) / norm), neurons
