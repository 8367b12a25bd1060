"""From an optimizer table of the topology to the kernel that does its arithmetic.

What each kind remembers stands in layout.py, under the same names.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from actors.optimizer.layout import block_of
from actors.topology import OptimizerGroup
from kernels.optimizers import adamw, adamw8bit, foam, muon, muon8bit


def updated(
    master: Tensor,
    state: Mapping[str, Tensor],
    grad: Tensor,
    group: OptimizerGroup,
    lr: float,
    step: int,
) -> tuple[Tensor, dict[str, Tensor]]:
    """New master weights and state; nothing is changed in place. `step` counts from 1, since the
    moments began.
    """
    match group.kind:
        case "muon" if not group.neuron_beta2:
            return muon.update(master, state, grad, _muon(master, group, lr), step)
        case "muon" | "muon8bit":
            return muon8bit.update(master, state, grad, _muon8bit(master, group, lr), step)
        case "adamw":
            return adamw.update(master, state, grad, _adamw(group, lr), step)
        case "adamw8bit":
            hyper = adamw8bit.AdamW8bitHyper(adamw=_adamw(group, lr), block=block_of(group))
            return adamw8bit.update(master, state, grad, hyper, step)
        case "foam":
            return foam.update(master, state, grad, _foam(group, lr), step)


def _muon(master: Tensor, group: OptimizerGroup, lr: float) -> muon.MuonHyper:
    return muon.MuonHyper(
        lr=lr,
        momentum=group.momentum,
        weight_decay=group.weight_decay,
        coefficients=group.coefficients,
        iterations=group.iterations,
        scaling=group.scaling,
        dtype=torch.bfloat16 if master.is_cuda else torch.float32,
    )


def _muon8bit(master: Tensor, group: OptimizerGroup, lr: float) -> muon8bit.Muon8bitHyper:
    """NorMuon with plain momentum is the same rule with float32 in place of codes."""
    plain = _muon(master, group, lr)
    if group.kind == "muon":
        return muon8bit.Muon8bitHyper(muon=plain, kind="float32", neuron_beta2=group.neuron_beta2)
    return muon8bit.Muon8bitHyper(
        muon=plain, kind=group.map, block=block_of(group), neuron_beta2=group.neuron_beta2
    )


def _adamw(group: OptimizerGroup, lr: float) -> adamw.AdamWHyper:
    return adamw.AdamWHyper(
        lr=lr,
        beta1=group.beta1,
        beta2=group.beta2,
        eps=group.eps,
        weight_decay=group.weight_decay,
    )


def _foam(group: OptimizerGroup, lr: float) -> foam.FoamHyper:
    return foam.FoamHyper(
        lr=lr,
        level=group.level,
        beta1=group.beta1,
        beta2=group.beta2,
        eps=group.eps,
        alpha=group.alpha,
        rho=group.residual,
        second=group.second,
        weight_decay=group.weight_decay,
    )
