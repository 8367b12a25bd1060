"""The arithmetic of one parameter's update: gradients of all ranks to new master, state and codes.

Every function returns new memory; where it goes is the state's business. Sums are taken in rank
order, so the bits do not depend on who was faster.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

import numpy as np
import torch

from actors.bases import BasisSchedule, torched
from actors.codecs import decode, key_of, to_numpy, to_torch
from actors.fire import fires, steps_of_moments
from actors.optimizer.layout import group_of
from actors.optimizer.projected import adopted, cleared, moved
from actors.optimizer.publishing import published
from actors.optimizer.state import State
from actors.optimizer.weighing import weighted_sum
from actors.parameters import Parameter
from actors.published import Array, digest
from actors.subspace import is_of_basis
from actors.topology import OptimizerGroup, Topology
from actors.uplink import codec_of
from kernels.model.initialise import init_parameter
from kernels.optimizers.clipping import clipped
from kernels.optimizers.finite import NotFinite, is_finite
from kernels.optimizers.isometry import isometric, isometric_ternary
from kernels.optimizers.schedules import learning_rate


class Contribution(NamedTuple):
    """One rank's gradient: a mean over `tokens` targets, as projection and codec left it."""

    tokens: int
    payload: tuple[Array, ...]
    whole: bool = False  # what GUM's basis misses, rather than what it holds


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
        """See `updated`, which also takes a basis."""
        ...


def mean_gradient(
    topology: Topology,
    parameter: Parameter,
    step: int,
    contributions: Mapping[int, Contribution],
    device: str = "cpu",
) -> Array:
    """Mean over all ranks' tokens, of gradients or of what a projection left of them.

    `contributions` are by rank, in their order. Raises `NotFinite`, with the ranks to blame.
    """

    def decoded(rank: int) -> Array:
        return _decoded(topology, parameter, step, rank, contributions[rank], device)

    mean = weighted_sum([c.tokens for c in contributions.values()], map(decoded, contributions))
    if not is_finite(torch.from_numpy(mean)):
        wrong = [rank for rank in contributions if not np.isfinite(decoded(rank)).all()]
        who = ", ".join(f"trainer/{rank}" for rank in wrong) or "only the sum over ranks overflows"
        raise NotFinite(f"the gradient of {parameter.name} is not finite at step {step} ({who})")
    return mean


def _decoded(
    topology: Topology,
    parameter: Parameter,
    step: int,
    rank: int,
    contribution: Contribution,
    device: str,
) -> Array:
    optimizer, key = topology.optimizer, key_of(topology.seed, parameter, step, rank)
    if codec_of(optimizer, parameter) == "dense":
        return contribution.payload[0]
    return to_numpy(decode(optimizer, parameter, contribution, key, device))


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
    basis: Mapping[str, Array] | None = None,
) -> dict[str, Array]:
    """New master and state of `parameter` after step `step`, by name, as the layout has them.

    `basis` has been found in this step, and `gradient` been projected on it. Raises `NotFinite`
    when the new master is not, as it may be after a finite gradient that is huge.
    """
    group = group_of(topology.optimizer, parameter)
    tensors = {name: torch.from_numpy(array).to(device) for name, array in kept.items()}
    master, grad = tensors.pop("master"), torch.from_numpy(gradient).to(device)
    if group.projection != "none":
        # These are multiplied as they are: see `to_torch`.
        bases = {name: array for name, array in kept.items() if is_of_basis(name)}
        tensors |= torched(bases, device)
        grad = to_torch(gradient, device)
    grad = clipped(grad, group.clip)
    lr = rate_at(topology, group, step)
    if basis is not None:
        tensors = adopted(group, tensors, torched(basis, device), parameter.shape, step)
    count = steps_of_moments(topology.optimizer, parameter, step)
    new_master, new_state = moved(master, tensors, grad, group, lr, count)
    if not is_finite(new_master):
        raise NotFinite(f"{parameter.name} is not finite after the update of step {step}")
    if fires(topology.optimizer, parameter, step):
        new_master = _isometry(topology, parameter, new_master)
        new_state = cleared(new_state)
    return {name: to_numpy(t) for name, t in {"master": new_master, **new_state}.items()}


def _isometry(topology: Topology, parameter: Parameter, master: torch.Tensor) -> torch.Tensor:
    make = isometric_ternary if parameter.kind == "ternary" else isometric
    return make(master, topology.optimizer.fire_method)


def fill_fresh(
    state: State, topology: Topology, filled: Callable[[], object] = lambda: None
) -> None:
    """Version 0 of every parameter of this shard, from the seed and its name alone.

    `filled` is called after each of them.
    """
    schedule = BasisSchedule(topology)
    for index, place in enumerate(state.layout.places):
        parameter = place.parameter
        master = init_parameter(
            parameter.name, parameter.shape, topology.seed, topology.model.init_std
        ).numpy()
        shown = published(parameter, master)
        state.fill(index, 0, {"master": master, **schedule.random_basis(parameter)})
        state.publish(index, 0, shown, digest(parameter, shown))
        filled()
    state.set_ready(0)
