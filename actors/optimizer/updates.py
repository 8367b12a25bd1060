"""The arithmetic of one parameter's update: gradients of all ranks to new master, state and codes.

Every function returns new memory; where it goes is the state's business. Sums are taken in rank
order, so the bits do not depend on who was faster.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from actors.optimizer.layout import group_of
from actors.optimizer.methods import METHODS
from actors.optimizer.state import State
from actors.parameters import Parameter
from actors.published import Array, digest
from actors.topology import OptimizerGroup, Topology
from kernels.model.initialise import init_parameter
from kernels.optimizers.clipping import clipped
from kernels.optimizers.schedules import learning_rate
from kernels.precision.packing import pack_array
from kernels.precision.ternary import quantise


class Contribution(NamedTuple):
    """One rank's gradient: a mean over `tokens` targets."""

    tokens: int
    gradient: Array


class Update(Protocol):
    """The shape of `updated`: simulations put sums that can be checked in its place."""

    def __call__(
        self,
        topology: Topology,
        parameter: Parameter,
        kept: Mapping[str, Array],
        gradient: Array,
        step: int,
        device: str = "cpu",
    ) -> dict[str, Array]:
        """See `updated`."""
        ...


def mean_gradient(contributions: Sequence[Contribution]) -> Array:
    """Mean over all ranks' tokens: sum over ranks, in order, of (tokens / all tokens) gradient.

    In fp32, multiplied and then added, without fusing. A single rank's gradient comes back as it
    is. Zeros when no rank has counted a token.
    """
    total = sum(c.tokens for c in contributions)
    weights = [np.float32(c.tokens / total if total else 0.0) for c in contributions]
    mean = contributions[0].gradient * weights[0]
    for contribution, weight in zip(contributions[1:], weights[1:], strict=True):
        mean += contribution.gradient * weight
    return mean


def rate_at(topology: Topology, group: OptimizerGroup, step: int) -> float:
    """Learning rate of `group` at `step`."""
    spec = topology.schedule
    return learning_rate(
        step,
        lr=group.lr,
        min_lr=group.min_lr,
        warmup=spec.warmup,
        stable=spec.stable,
        decay=spec.decay,
    )


def updated(
    topology: Topology,
    parameter: Parameter,
    kept: Mapping[str, Array],
    gradient: Array,
    step: int,
    device: str = "cpu",
) -> dict[str, Array]:
    """New master and state of `parameter` after step `step`, by name, as the layout has them."""
    group = group_of(topology.optimizer, parameter)
    tensors = {name: torch.from_numpy(array).to(device) for name, array in kept.items()}
    master = tensors.pop("master")
    grad = clipped(torch.from_numpy(gradient).to(device), group.clip)
    lr = rate_at(topology, group, step)
    new_master, new_state = METHODS[group.kind](master, tensors, grad, group, lr, step)
    return {name: t.cpu().numpy() for name, t in {"master": new_master, **new_state}.items()}


def published(parameter: Parameter, master: Array) -> dict[str, Array]:
    """What the others see of a parameter with these master weights."""
    if parameter.kind == "dense":
        return {"dense": master}
    ternary = quantise(torch.from_numpy(master))
    scale: Any = ternary.scale.numpy()
    return {"packed": pack_array(ternary.codes.numpy()), "scale": scale}


def fill_fresh(state: State, topology: Topology) -> None:
    """Version 0 of every parameter of this shard, from the seed and its name alone."""
    for index, place in enumerate(state.layout.places):
        parameter = place.parameter
        master = init_parameter(
            parameter.name, parameter.shape, topology.seed, topology.model.init_std
        ).numpy()
        shown = published(parameter, master)
        state.fill(index, 0, {"master": master})
        state.publish(index, 0, shown, digest(parameter, shown))
    state.set_ready(0)
