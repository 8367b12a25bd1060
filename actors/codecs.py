"""The codecs of a topology, and the keys of what they draw: both ends of the uplink agree on them.

Decoding needs nothing but the payload: what a codec remembers is the sender's affair.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from actors.parameters import Parameter
from actors.published import Array
from actors.topology import OptimizerSpec
from actors.uplink import codec_of, payload_tensors, travelling_shape
from kernels.optimizers import draws
from kernels.optimizers.codecs.base import Codec
from kernels.optimizers.codecs.named import named


def codec_for(optimizer: OptimizerSpec, parameter: Parameter) -> Codec:
    """The codec of `parameter`'s gradients."""
    return named(codec_of(optimizer, parameter), optimizer.codec_rank)


def key_of(seed: int, parameter: Parameter, step: int, rank: int) -> int:
    """What the rounding of one gradient follows from; it does not travel."""
    return draws.key(seed, "codec", parameter.name, step, rank)


class Encoded(Protocol):
    """A gradient as projection and codec left it."""

    @property
    def payload(self) -> Sequence[Array]:
        """Its tensors, in the order of `uplink.payload_tensors`."""
        ...

    @property
    def whole(self) -> bool:
        """See `uplink.travelling_shape`."""
        ...


def decode(
    optimizer: OptimizerSpec, parameter: Parameter, encoded: Encoded, key: int, device: str = "cpu"
) -> Tensor:
    """What was given to the codec, as far as it can be known."""
    specs = payload_tensors(optimizer, parameter, whole=encoded.whole)
    tensors = {
        spec.name: to_torch(array, device)
        for spec, array in zip(specs, encoded.payload, strict=True)
    }
    shape = travelling_shape(optimizer, parameter, whole=encoded.whole)
    return codec_for(optimizer, parameter).decode(tensors, {}, shape, key)


def to_torch(array: Array, device: str = "cpu") -> Tensor:
    """A private tensor: what lies in a segment may be read-only here, and changes.

    In memory of torch's own, which is aligned as numpy's is not: the last bits of a matrix product
    depend on that.
    """
    tensor = torch.empty(array.shape, dtype=getattr(torch, array.dtype.name))
    tensor.numpy()[...] = array
    return tensor.to(device)


def to_numpy(tensor: Tensor) -> Array:
    """As bytes that can be stored or sent."""
    array: Any = tensor.detach().cpu().contiguous().numpy()
    return array
