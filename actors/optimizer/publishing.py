"""What others are told of an update: flips of ternary codes, steps of dense parameters, or all."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch

from actors import downlink
from actors.parameters import Parameter
from actors.published import Array
from actors.topology import OptimizerSpec
from actors.uplink import update_codec_of
from kernels.precision.packing import pack_array
from kernels.precision.ternary import quantise
from protocol import flips


class News(NamedTuple):
    """A parameter after an update, and what leads to it from the version before."""

    shown: dict[str, Array]  # the published tensors
    codec: str  # of `Update`
    payload: tuple[Array, ...]  # empty: the published tensors themselves are sent
    flips: int = 0

    @property
    def nbytes(self) -> int:
        """What is sent to everyone."""
        return sum(array.nbytes for array in self.payload or self.shown.values())


def published(parameter: Parameter, master: Array) -> dict[str, Array]:
    """What others see of a parameter whose master has not moved yet."""
    if parameter.kind == "dense":
        return {"dense": master}
    ternary = quantise(torch.from_numpy(master))
    scale: Any = ternary.scale.numpy()
    return {"packed": pack_array(ternary.codes.numpy()), "scale": scale}


def news(
    optimizer: OptimizerSpec,
    parameter: Parameter,
    version: int,
    before: Mapping[str, Array],
    master: Array,
) -> News:
    """What to publish as `version`, when `before` was the version before."""
    codec = update_codec_of(optimizer, parameter)
    if parameter.kind == "ternary":
        shown = published(parameter, master)
        found = flips.encode(before["packed"], shown["packed"], parameter.numel)
        return News(shown, "flips", flip_payload(found, shown["scale"]), found.flips)
    if codec == "dense":
        return News({"dense": master}, "dense", ())
    name, old = parameter.name, before["dense"]
    payload = downlink.encoded(name, codec, version, old, master)
    new = downlink.moved(name, codec, version, old, payload)
    return News({"dense": new}, codec, tuple(payload))


def flip_payload(found: flips.Encoded, scale: Array) -> tuple[Array, ...]:
    """The tensors of an `Update` of flips."""
    return np.frombuffer(found.data, np.uint8), scale.copy()
