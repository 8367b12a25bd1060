"""Initial values of parameters, each from its own stream of random numbers.

A parameter's values depend on (seed, name) alone, so an optimizer shard can make those it owns
without building the model, in any order, and gets the bits any other process would get.
"""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from kernels.model import hyper_connections


def stream(seed: int, *names: str | int) -> torch.Generator:
    """A CPU generator that is a pure function of `seed` and `names`."""
    text = ":".join(str(part) for part in (seed, *names))
    number = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")
    return torch.Generator().manual_seed(number & (2**63 - 1))


def init_parameter(name: str, shape: Sequence[int], seed: int, std: float) -> Tensor:
    """Float32 values of parameter `name`: normal for matrices, ones for norms, zeros for biases.

    Hyper-connections begin as `hyper_connections.initial` says.
    """
    special = hyper_connections.initial(name, shape, stream(seed, name))
    if special is not None:
        return special
    if name.endswith(".bias"):
        return torch.zeros(tuple(shape))
    if len(shape) < 2:  # the gain of a norm
        return torch.ones(tuple(shape))
    return torch.randn(tuple(shape), generator=stream(seed, name)).mul_(std)
