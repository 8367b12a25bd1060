"""Dense parameters on their way down, in few bytes: a published copy that follows the master.

    payload_v = encode(master_v - shown_(v-1));  shown_v = shown_(v-1) + decode(payload_v)

What everybody computes with is `shown`, the same bits everywhere; what rounding has left out of one
step's payload is still missing in the next difference, so nothing is lost, only late. No state but
the two is needed. Decoded on the CPU by all, whatever they compute on: digests demand it.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from actors.codecs import to_numpy, to_torch
from actors.published import Array
from actors.uplink import payload_of
from kernels.optimizers import draws
from kernels.optimizers.codecs.base import Codec
from kernels.optimizers.codecs.blocks import Blocks
from kernels.optimizers.codecs.grid import Grid

# By the names that `optimizer.dense_updates` has; their payloads are those of the uplink's codecs.
CODECS: Mapping[str, Codec] = {
    "int8": Blocks(bits=8, stochastic=False),
    "int4": Blocks(stochastic=False),
    "two_bit": Grid(levels=4, rotation=256),
    "ternary": Grid(levels=3, rotation=256),
    "sign": Grid(levels=2, rotation=256),
}
_PAYLOADS = {
    "int8": "int8",
    "int4": "int4",
    "two_bit": "two_bit",
    "ternary": "ternary_rotated",
    "sign": "sign_rotated",
}


def encoded(name: str, codec: str, version: int, shown: Array, master: Array) -> list[Array]:
    """What leads from `shown`, of version - 1, towards `master`."""
    difference = torch.from_numpy(np.subtract(master, shown))
    payload, _ = CODECS[codec].encode(difference, {}, _key(name, version))
    return [to_numpy(payload[spec.name]) for spec in payload_of(_PAYLOADS[codec], master.shape)]


def moved(name: str, codec: str, version: int, shown: Array, payload: Sequence[Array]) -> Array:
    """`shown` of `version`, from that of the version before. Raises ValueError for a payload that
    is none, KeyError for an unknown codec.
    """
    specs = payload_of(_PAYLOADS[codec], shown.shape)
    for spec, array in zip(specs, payload, strict=True):
        if array.dtype != spec.dtype or array.shape != spec.shape:
            raise ValueError(f"{name}: {spec.name} is {array.dtype} {array.shape}")
    tensors = {spec.name: to_torch(a) for spec, a in zip(specs, payload, strict=True)}
    step = CODECS[codec].decode(tensors, {}, shown.shape, _key(name, version))
    return np.add(shown, to_numpy(step))


def _key(name: str, version: int) -> int:
    """Of the rotation: nothing secret, so nobody needs the run's seed."""
    return draws.key(0, "update", name, version)
