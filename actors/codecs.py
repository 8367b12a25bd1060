"""The codecs of a topology, and the keys of what they draw: both ends of the uplink agree on them.

Decoding needs nothing but the payload: what a codec remembers is the sender's affair.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from actors.parameters import Parameter
from actors.published import Array
from actors.topology import OptimizerSpec
from actors.uplink import codec_of, payload_tensors
from kernels.optimizers import draws
from kernels.optimizers.codecs.base import Codec
from kernels.optimizers.codecs.named import named


def codec_for(optimizer: OptimizerSpec, parameter: Parameter) -> Codec:
    """The codec of `parameter`'s gradients."""
    return named(codec_of(optimizer, parameter), optimizer.codec_rank)


def key_of(seed: int, parameter: Parameter, step: int, rank: int) -> int:
    """What the rounding of one gradient follows from; it does not travel."""
    return draws.key(seed, "codec", parameter.name, step, rank)


def decode(
    optimizer: OptimizerSpec,
    parameter: Parameter,
    payload: Sequence[Array],
    key: int,
    device: str = "cpu",
) -> Tensor:
    """The gradient that `payload` stands for, as `optimizer`'s codec decodes it."""
    names = [spec.name for spec in payload_tensors(optimizer, parameter)]
    tensors = {name: to_torch(array, device) for name, array in zip(names, payload, strict=True)}
    return codec_for(optimizer, parameter).decode(tensors, {}, parameter.shape, key)


def to_torch(array: Array, device: str = "cpu") -> Tensor:
    """A private tensor: what lies in a segment may be read-only here, and changes."""
    return torch.from_numpy(np.array(array)).to(device)


def to_numpy(tensor: Tensor) -> Array:
    """As bytes that can be stored or sent."""
    array: Any = tensor.detach().cpu().contiguous().numpy()
    return array
