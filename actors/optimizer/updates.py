"""The arithmetic of one parameter's update: gradients of all ranks to new master, state and codes.

Every function returns new memory; where it goes is the state's business. Sums are taken in rank
order, so the bits do not depend on who was faster.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch

from actors.codecs import decode, key_of, to_numpy
from actors.optimizer.layout import group_of
from actors.optimizer.methods import METHODS
from actors.optimizer.state import State
from actors.parameters import Parameter
from actors.published import Array, digest
from actors.topology import OptimizerGroup, Topology
from actors.uplink import codec_of
from kernels.model.initialise import init_parameter
from kernels.optimizers.clipping import clipped
from kernels.optimizers.schedules import learning_rate
from kernels.precision.packing import pack_array
from kernels.precision.ternary import quantise


class Contribution(NamedTuple):
    """One rank's gradient: a mean over `tokens` targets, as its codec left it."""

    tokens: int
    payload: tuple[Array, ...]


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


def mean_gradient(
    topology: Topology,
    parameter: Parameter,
    step: int,
    contributions: Sequence[Contribution],
    device: str = "cpu",
) -> Array:
    """Mean over all ranks' tokens: sum over ranks, in order, of (tokens / all tokens) gradient.

    In the gradient's own precision, multiplied and then added, without fusing. A single rank's
    gradient comes back as it is. Zeros when no rank has counted a token.
    """
    total = sum(c.tokens for c in contributions)
    mean: Array | None = None
    for rank, contribution in enumerate(contributions):
        gradient = _decoded(topology, parameter, step, rank, contribution, device)
        weight = gradient.dtype.type(contribution.tokens / total if total else 0.0)
        if mean is None:
            mean = gradient * weight
        else:
            mean += gradient * weight
    assert mean is not None
    return mean


def _decoded(
    topology: Topology,
    parameter: Parameter,
    step: int,
    rank: int,
    contribution: Contribution,
    device: str,
) -> Array:
    if codec_of(topology.optimizer, parameter) == "dense":
        return contribution.payload[0]
    key = key_of(topology.seed, parameter, step, rank)
    return to_numpy(decode(topology.optimizer, parameter, contribution.payload, key, device))


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
