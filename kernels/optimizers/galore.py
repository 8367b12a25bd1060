"""Muon or AdamW in GaLore's small space (2403.03507, 2504.20437; projection.py has the subspace).

The gradient arrives projected, as a core; moments have the core's shape; the normalised update is
projected back onto the master, which is never projected itself.

    muon    M <- mu M + (1 - mu) R;  U <- Nesterov of it;  O <- NS(U)
            W <- (1 - lr wd) W - lr alpha 0.2 sqrt(max(m, n)) sqrt(min(m, n) / rank) P O
    adamw   M, V <- moments of R
            W <- W - lr alpha sqrt(1 - beta2^t) / (1 - beta1^t) P M / (sqrt(V) + eps)
            W <- W - lr wd W                        as published: eps not corrected, decay after

As NS(P R) = P NS(R) for orthonormal P, Newton-Schulz in the small space is Muon on the projected
gradient. The root of min / rank makes up for the missing directions, so that updates keep AdamW's
size (`match_rms`). Plain low-rank Muon is biased; see gum.py.

State: the basis, its version, and the moments, each stored as its storage says. Trainers must
project with the basis as it is *stored* (`basis`), rounding included: P^T G and P must be one P.
A basis in int8 or int4 is orthonormal only nearly (singular values within 1 % or 15 % of 1), less
off than what Newton-Schulz leaves of the update.

A refresh is a step of its own: `adopt` puts the new basis in place and carries the moments over,
then trainers project and `update` follows. With "reset" AdamW's count of steps starts anew too.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from kernels.optimizers.muon import Coefficients, Scaling, orthogonalise, scale_factor
from kernels.optimizers.projection import (
    basis_shape,
    core_shape,
    rotated_first,
    rotated_second,
    unproject,
)
from kernels.optimizers.quantised_state import load, store
from kernels.optimizers.state import StateTensor, Storage, declare

Carry = Literal["keep", "rotate", "reset"]


@dataclass(frozen=True, slots=True, kw_only=True)
class GaLoreHyper:
    """Settings of one update. `lr` is the one of this step."""

    lr: float
    rank: int
    base: Literal["muon", "adamw"] = "muon"
    alpha: float = 1.0  # on the update, apart from decay; the paper's AdamW has 0.25
    weight_decay: float = 0.0
    carry: Carry = "keep"  # what becomes of moments when the basis changes; the paper keeps them
    eight_bit: bool = True  # moments as codes: linear for muon, dynamic for adamw
    block: int = 2048  # of the moments' codes
    basis: Literal["float32", "float16", "linear", "int4"] = "int4"
    basis_block: int = 128
    momentum: float = 0.95  # muon
    nesterov: bool = True
    coefficients: Coefficients = "jordan"
    iterations: int = 5
    scaling: Scaling = "adamw_rms"
    match_rms: bool = True  # for the missing directions; spectral scaling has no need of it
    dtype: torch.dtype = torch.float32  # of Newton-Schulz
    beta1: float = 0.9  # adamw
    beta2: float = 0.999
    eps: float = 1e-6


def declared(shape: tuple[int, ...], hyper: GaLoreHyper) -> tuple[StateTensor, ...]:
    """State of a matrix: version and basis, moments of the core's shape, AdamW's count."""
    core = core_shape(shape, hyper.rank)
    tensors = (
        StateTensor("version", "int64", (1,)),
        *declare("basis", basis_shape(shape, hyper.rank), _basis_storage(hyper)),
    )
    for name, storage in _moments(hyper).items():
        tensors += declare(name, core, storage)
    return tensors if hyper.base == "muon" else (*tensors, StateTensor("count", "int64", (1,)))


def basis(state: Mapping[str, Tensor], shape: tuple[int, ...], hyper: GaLoreHyper) -> Tensor:
    """The basis as stored, (min(M, N), rank): what gradients are projected with."""
    return load(state, "basis", _basis_storage(hyper), basis_shape(shape, hyper.rank))


def adopt(
    state: Mapping[str, Tensor],
    new: Tensor,
    shape: tuple[int, ...],
    hyper: GaLoreHyper,
    version: int,
) -> dict[str, Tensor]:
    """State with the basis `new` (min(M, N), rank) of `version`, moments carried over.

    Raises ValueError for a version below 1: 0 is none, or a random one.
    """
    if version < 1:
        raise ValueError(f"a basis has a version of at least 1, got {version}")
    stored = store("basis", new, _basis_storage(hyper))
    after = {**state, **stored, "version": torch.full_like(state["version"], version)}
    if hyper.carry == "keep":
        return after
    names = _moments(hyper)
    if hyper.carry == "reset":
        for name in state:
            if name == "count" or name.split(".")[0] in names:
                after[name] = torch.zeros_like(state[name])
        return after
    old, core = basis(state, shape, hyper), core_shape(shape, hyper.rank)
    stands = basis(after, shape, hyper)
    moments = {name: load(state, name, storage, core) for name, storage in names.items()}
    turned = _rotated(moments, old, stands, shape, hyper, int(state.get("count", 0)))
    for name, moment in turned.items():
        after |= store(name, moment, names[name])
    return after


def update(
    master: Tensor, state: Mapping[str, Tensor], core: Tensor, hyper: GaLoreHyper, step: int
) -> tuple[Tensor, dict[str, Tensor]]:
    """New master (M, N) and state after the averaged `core` of a gradient.

    `step` does not matter: AdamW counts for itself, because a reset begins anew.
    """
    del step
    shape = tuple(master.shape)
    small = core_shape(shape, hyper.rank)
    moments = {name: load(state, name, kept, small) for name, kept in _moments(hyper).items()}
    if hyper.base == "muon":
        moments, direction, rate = _muon(moments, core, shape, hyper)
        after = dict(state)
        master = master * (1.0 - hyper.lr * hyper.weight_decay)
    else:
        count = state["count"] + 1
        moments, direction, rate = _adamw(moments, core, hyper, int(count))
        after = {**state, "count": count}
    change = unproject(direction.to(master.dtype), basis(state, shape, hyper), shape)
    master = master - (hyper.lr * hyper.alpha * rate) * change
    if hyper.base == "adamw" and hyper.weight_decay:
        master = master - (hyper.lr * hyper.weight_decay) * master
    for name, moment in moments.items():
        after |= store(name, moment, _moments(hyper)[name])
    return master, after


def _muon(
    moments: dict[str, Tensor], core: Tensor, shape: tuple[int, ...], hyper: GaLoreHyper
) -> tuple[dict[str, Tensor], Tensor, float]:
    """New moments, direction in the small space, and what it is multiplied by besides lr alpha."""
    momentum = torch.lerp(moments["momentum"], core, 1.0 - hyper.momentum)
    mixed = torch.lerp(core, momentum, hyper.momentum) if hyper.nesterov else momentum
    turned = orthogonalise(
        mixed, coefficients=hyper.coefficients, iterations=hyper.iterations, dtype=hyper.dtype
    )
    short, rank = basis_shape(shape, hyper.rank)
    matched = hyper.match_rms and hyper.scaling == "adamw_rms"
    missing = math.sqrt(short / rank) if matched else 1.0
    rows, columns = shape
    return {"momentum": momentum}, turned, scale_factor(rows, columns, hyper.scaling) * missing


def _adamw(
    moments: dict[str, Tensor], core: Tensor, hyper: GaLoreHyper, count: int
) -> tuple[dict[str, Tensor], Tensor, float]:
    """As `_muon`."""
    mean = torch.lerp(moments["mean"], core, 1.0 - hyper.beta1)
    square = (moments["square"] * hyper.beta2).addcmul_(core, core, value=1.0 - hyper.beta2)
    rate = math.sqrt(1.0 - hyper.beta2**count) / (1.0 - hyper.beta1**count)
    return {"mean": mean, "square": square}, mean / (square.sqrt() + hyper.eps), rate


def _rotated(
    moments: Mapping[str, Tensor],
    old: Tensor,
    new: Tensor,
    shape: tuple[int, ...],
    hyper: GaLoreHyper,
    count: int,
) -> dict[str, Tensor]:
    if hyper.base == "muon":
        return {"momentum": rotated_first(moments["momentum"], old, new, shape)}
    mean, square = moments["mean"], moments["square"]
    if not count:
        return dict(moments)
    corrections = (1.0 - hyper.beta1**count, 1.0 - hyper.beta2**count)
    return {
        "mean": rotated_first(mean, old, new, shape),
        "square": rotated_second(mean, square, old, new, shape, corrections),
    }


def _moments(hyper: GaLoreHyper) -> dict[str, Storage]:
    """Name and storage of each moment."""
    plain = Storage("float32", hyper.block)
    if hyper.base == "muon":
        return {"momentum": Storage("linear", hyper.block) if hyper.eight_bit else plain}
    if not hyper.eight_bit:
        return {"mean": plain, "square": plain}
    return {"mean": Storage("dynamic", hyper.block), "square": Storage("unsigned", hyper.block)}


def _basis_storage(hyper: GaLoreHyper) -> Storage:
    return Storage(hyper.basis, hyper.basis_block)
