"""Updates of matrices whose gradients travel projected, and of all others.

GaLore keeps its moments in the small space. GUM sends a core or, now and then, what the basis
misses, either divided by its probability; both become an estimate of the whole gradient here, and
momentum, which is of full size, begins anew with every basis.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from actors import subspace
from actors.bases import basis_of
from actors.optimizer import methods
from actors.optimizer.layout import block_of
from actors.optimizer_tables import OptimizerGroup
from kernels.optimizers import galore, gum

State = Mapping[str, Tensor]


def adopted(
    group: OptimizerGroup, state: State, basis: State, shape: tuple[int, ...], version: int
) -> dict[str, Tensor]:
    """The state with another basis, kept in `basis`; moments are carried over as `group` says."""
    if group.projection == "gum":
        anew = torch.full_like(state[subspace.VERSION], version)
        return {**cleared(state), **basis, subspace.VERSION: anew}
    new = basis_of(group, basis, shape)
    hyper = _galore_hyper(group, shape, group.lr, new.device)
    after = galore.adopt(state, new, shape, hyper, version)
    return {**after, **basis}


def cleared(state: State) -> dict[str, Tensor]:
    """The state with moments as they were before step 1."""
    return {
        name: tensor if subspace.is_of_basis(name) else torch.zeros_like(tensor)
        for name, tensor in state.items()
    }


def moved(
    master: Tensor, state: State, grad: Tensor, group: OptimizerGroup, lr: float, step: int
) -> tuple[Tensor, dict[str, Tensor]]:
    """New master and state. `grad` is what travelled, averaged; `step` counts since the moments
    began.
    """
    shape = tuple(master.shape)
    match group.projection:
        case "none":
            return methods.updated(master, state, grad, group, lr, step)
        case "galore":
            return galore.update(
                master, state, grad, _galore_hyper(group, shape, lr, master.device), step
            )
        case "gum":
            kept = {name: t for name, t in state.items() if subspace.is_of_basis(name)}
            base = {name: t for name, t in state.items() if name not in kept}
            if tuple(grad.shape) != shape:
                grad = gum.estimate(grad, basis_of(group, kept, shape), shape)
            master, base = methods.updated(master, base, grad, group, lr, step)
            return master, {**kept, **base}


def _galore_hyper(
    group: OptimizerGroup, shape: tuple[int, ...], lr: float, device: torch.device
) -> galore.GaLoreHyper:
    coded = group.kind.endswith("8bit")
    return galore.GaLoreHyper(
        lr=lr,
        rank=subspace.rank_of(group, shape),
        base="muon" if group.kind.startswith("muon") else "adamw",
        alpha=group.galore_scale,
        weight_decay=group.weight_decay,
        carry=group.moments,
        eight_bit=coded,
        block=block_of(group) if coded else 256,
        basis="linear" if group.basis == "int8" else group.basis,
        basis_block=subspace.BLOCK,
        momentum=group.momentum,
        coefficients=group.coefficients,
        iterations=group.iterations,
        scaling=group.scaling,
        beta1=group.beta1,
        beta2=group.beta2,
        eps=group.eps,
        dtype=torch.bfloat16 if device.type == "cuda" else torch.float32,
    )
