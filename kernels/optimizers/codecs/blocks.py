"""Integers of 2, 4 or 8 bits in small blocks, rounded stochastically: unbiased, no memory.

Each block of the flattened gradient (64 elements) is divided by a step that takes its largest
magnitude to the largest code (7; 1 with 2 bits, 127 with 8) and rounded up or down with the
probability that makes the expectation exact. Steps travel in 16 bits, the upper half of a float32,
rounded up so that no code overflows: rounding down would clip, and clipping is bias.
Rounding to nearest (`stochastic=False`) halves the error but is biased: give it feedback.

4 bits in blocks of 64: 0.53 bytes an element. With a rotation (hadamard.py) the tail of the last
group is padded, and travels.
"""

from dataclasses import dataclass
from math import prod
from typing import Literal

import torch
from torch import Tensor

from kernels.optimizers import draws
from kernels.optimizers.codecs.base import Shape, Tensors
from kernels.optimizers.codecs.hadamard import rotate, unrotate
from kernels.optimizers.packing import pack, unpack
from kernels.optimizers.quantised_state import in_blocks
from kernels.optimizers.state import StateTensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Blocks:
    """Blockwise integers, for gradients of any shape.

    Raises ValueError for a rotation that is not a multiple of the block.
    """

    bits: Literal[2, 4, 8] = 4
    block: int = 64  # elements that share a step
    stochastic: bool = True
    rotation: int = 0  # elements rotated together, a power of two; 0: none

    def __post_init__(self) -> None:
        if self.block < 1 or self.rotation % self.block:
            raise ValueError(
                f"rotation must be 0 or a multiple of block ({self.block}), got {self.rotation}"
            )

    def memory(self, shape: Shape) -> tuple[StateTensor, ...]:
        """Nothing."""
        del shape
        return ()

    def payload(self, shape: Shape) -> tuple[StateTensor, ...]:
        """Packed codes and a step per block."""
        count = self._count(shape)
        return (
            StateTensor("codes", "uint8", (-(-count * self.bits // 8),)),
            StateTensor("scale", "int16", (-(-count // self.block),)),
        )

    def encode(self, gradient: Tensor, memory: Tensors, key: int) -> tuple[Tensors, Tensors]:
        """Payload; `memory` is handed back."""
        values = gradient
        if self.rotation:
            values = rotate(in_blocks(gradient, self.rotation), key)
        count = values.numel()
        blocks = in_blocks(values, self.block)
        scale = upper_half(blocks.abs().amax(dim=1) / self._largest)
        step = from_upper_half(scale)[:, None]
        relative = blocks / torch.where(step > 0, step, 1.0)
        if self.stochastic:
            lower = relative.floor()
            chance = draws.uniform(draws.key(key, "rounding"), relative.numel(), relative.device)
            codes = lower + (chance.view(relative.shape) < relative - lower)
        else:
            codes = relative.round()
        packed = pack(codes.to(torch.int8).view(-1)[:count], self.bits)
        return {"codes": packed, "scale": scale}, memory

    def decode(self, payload: Tensors, memory: Tensors, shape: Shape, key: int) -> Tensor:
        """codes x step, rotated back."""
        del memory
        codes = unpack(payload["codes"], self.bits, self._count(shape))
        step = from_upper_half(payload["scale"])[:, None]
        values = (in_blocks(codes, self.block).to(torch.float32) * step).view(-1)
        if self.rotation:
            values = unrotate(values.view(-1, self.rotation), key).view(-1)
        return values[: prod(shape)].view(shape)

    @property
    def _largest(self) -> int:
        return (1 << (self.bits - 1)) - 1

    def _count(self, shape: Shape) -> int:
        """Codes that travel: whole groups when rotated."""
        count = prod(shape)
        return count + (-count % self.rotation if self.rotation else 0)


def upper_half(scale: Tensor) -> Tensor:
    """Upper 16 bits of non-negative float32, rounded up: int16 bit patterns (bfloat16)."""
    bits = scale.to(torch.float32).view(torch.int32)
    return ((bits + 0xFFFF) >> 16).to(torch.int16)


def from_upper_half(scale: Tensor) -> Tensor:
    """The float32 that `upper_half` stands for."""
    return (scale.to(torch.int32) << 16).view(torch.float32)
