"""From an optimizer table of the topology to the kernel that does its arithmetic.

Every kind is one function of (master, state, gradient, settings, learning rate, step) that returns
new tensors; steps are those since the moments began. What each remembers stands in layout.py, under
the same names.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from actors.optimizer.layout import block_of
from actors.topology import OptimizerGroup
from kernels.optimizers import adamw, adamw8bit, foam, muon, muon8bit

New = tuple[Tensor, dict[str, Tensor]]
Method = Callable[[Tensor, Mapping[str, Tensor], Tensor, OptimizerGroup, float, int], New]


def _muon(
    master: Tensor,
    state: Mapping[str, Tensor],
    grad: Tensor,
    group: OptimizerGroup,
    lr: float,
    step: int,
) -> New:
    if group.neuron_beta2:
        hyper = muon8bit.Muon8bitHyper(
            muon=_muon_hyper(master, group, lr), kind="float32", neuron_beta2=group.neuron_beta2
        )
        return muon8bit.update(master, state, grad, hyper, step)
    return muon.update(master, state, grad, _muon_hyper(master, group, lr), step)


def _muon8bit(
    master: Tensor,
    state: Mapping[str, Tensor],
    grad: Tensor,
    group: OptimizerGroup,
    lr: float,
    step: int,
) -> New:
    hyper = muon8bit.Muon8bitHyper(
        muon=_muon_hyper(master, group, lr),
        kind=group.map,
        block=block_of(group),
        neuron_beta2=group.neuron_beta2,
    )
    return muon8bit.update(master, state, grad, hyper, step)


def _muon_hyper(master: Tensor, group: OptimizerGroup, lr: float) -> muon.MuonHyper:
    return muon.MuonHyper(
        lr=lr,
        momentum=group.momentum,
        weight_decay=group.weight_decay,
        coefficients=group.coefficients,
        iterations=group.iterations,
        scaling=group.scaling,
        dtype=torch.bfloat16 if master.is_cuda else torch.float32,
    )


def _adamw(
    master: Tensor,
    state: Mapping[str, Tensor],
    grad: Tensor,
    group: OptimizerGroup,
    lr: float,
    step: int,
) -> New:
    return adamw.update(master, state, grad, _adamw_hyper(group, lr), step)


def _adamw8bit(
    master: Tensor,
    state: Mapping[str, Tensor],
    grad: Tensor,
    group: OptimizerGroup,
    lr: float,
    step: int,
) -> New:
    hyper = adamw8bit.AdamW8bitHyper(adamw=_adamw_hyper(group, lr), block=block_of(group))
    return adamw8bit.update(master, state, grad, hyper, step)


def _adamw_hyper(group: OptimizerGroup, lr: float) -> adamw.AdamWHyper:
    return adamw.AdamWHyper(
        lr=lr,
        beta1=group.beta1,
        beta2=group.beta2,
        eps=group.eps,
        weight_decay=group.weight_decay,
    )


def _foam(
    master: Tensor,
    state: Mapping[str, Tensor],
    grad: Tensor,
    group: OptimizerGroup,
    lr: float,
    step: int,
) -> New:
    hyper = foam.FoamHyper(
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
    return foam.update(master, state, grad, hyper, step)


# By the names that `layout.KINDS` has.
METHODS: dict[str, Method] = {
    "muon": _muon,
    "muon8bit": _muon8bit,
    "adamw": _adamw,
    "adamw8bit": _adamw8bit,
    "foam": _foam,
}
