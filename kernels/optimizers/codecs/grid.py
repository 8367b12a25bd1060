"""Nearest value of a small fixed grid, scaled per block to fit best. For use with feedback.

The grids are Lloyd and Max's for a Gaussian: 2 values (the sign), 3 (ternary), 4 and 16. The scale
of a block is the least-squares one, <x, v> / <v, v> for the values v chosen (in 16 bits); so the
error is orthogonal to what was sent and shorter than x, which error feedback needs to converge
(Karimireddy et al., 1901.09847). With 2 values and one block this is their scaled sign,
(|x|_1 / n) sign(x). A rotation makes blocks Gaussian, as the grids assume.

Bytes an element, without scales: 1/8, 1/5, 1/4, 1/2.
"""

from dataclasses import dataclass
from math import prod
from typing import Literal

import torch
from torch import Tensor

from kernels.optimizers.codecs.base import Shape, Tensors
from kernels.optimizers.codecs.blocks import from_upper_half, upper_half
from kernels.optimizers.codecs.hadamard import rotate, unrotate
from kernels.optimizers.packing import pack, pack_trits, unpack, unpack_trits
from kernels.optimizers.quantised_state import in_blocks
from kernels.optimizers.state import StateTensor

# The positive half of each grid, in standard deviations (Max 1960, table I).
_POSITIVE = {
    2: (0.7979,),
    3: (1.2240,),
    4: (0.4528, 1.5104),
    16: (0.1284, 0.3881, 0.6568, 0.9424, 1.2562, 1.6180, 2.0690, 2.7326),
}
_BITS = {2: 1, 4: 2, 16: 4}
IN_A_BYTE = {2: 8, 3: 5, 4: 4, 16: 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """Gradients of any shape on a grid of `levels` values.

    Raises ValueError for a rotation that is not a multiple of the block.
    """

    levels: Literal[2, 3, 4, 16]
    block: int = 256  # elements that share a scale
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
        """Packed codes and a scale per block."""
        count = self._count(shape)
        return (
            StateTensor("codes", "uint8", (-(-count // IN_A_BYTE[self.levels]),)),
            StateTensor("scale", "int16", (-(-count // self.block),)),
        )

    def encode(self, gradient: Tensor, memory: Tensors, key: int) -> tuple[Tensors, Tensors]:
        """Payload; `memory` is handed back. `key` matters for a rotation only."""
        turned = gradient
        if self.rotation:
            turned = rotate(in_blocks(gradient, self.rotation), key)
        count = turned.numel()
        blocks = in_blocks(turned, self.block)
        # The padding of the last block must not vote on its scale.
        present = in_blocks(torch.ones_like(turned), self.block)
        rms = (blocks.square().sum(dim=1) / present.sum(dim=1)).sqrt()[:, None]
        values = grid(self.levels, blocks.device)
        edges = (values[1:] + values[:-1]) / 2
        relative = blocks / torch.where(rms > 0, rms, 1.0)
        codes = torch.bucketize(relative, edges, right=True, out_int32=True)
        chosen = values[codes] * present
        length = chosen.square().sum(dim=1)
        scale = (blocks * chosen).sum(dim=1) / torch.where(length > 0, length, 1.0)
        codes = packed(codes.view(-1)[:count], self.levels)
        return {"codes": codes, "scale": upper_half(scale)}, memory

    def decode(self, payload: Tensors, memory: Tensors, shape: Shape, key: int) -> Tensor:
        """Grid values x scale, rotated back."""
        del memory
        codes = unpacked(payload["codes"], self.levels, self._count(shape))
        chosen = grid(self.levels, codes.device)[in_blocks(codes, self.block).to(torch.int32)]
        values = (chosen * from_upper_half(payload["scale"])[:, None]).view(-1)
        if self.rotation:
            values = unrotate(values.view(-1, self.rotation), key).view(-1)
        return values[: prod(shape)].view(shape)

    def _count(self, shape: Shape) -> int:
        """Codes that travel: whole groups when rotated."""
        count = prod(shape)
        return count + (-count % self.rotation if self.rotation else 0)


def grid(levels: int, device: torch.device) -> Tensor:
    """The values, ascending, for a standard deviation of 1."""
    half = _POSITIVE[levels]
    middle = (0.0,) if levels % 2 else ()
    values = (*(-value for value in reversed(half)), *middle, *half)
    return torch.tensor(values, dtype=torch.float32, device=device)


def packed(codes: Tensor, levels: int) -> Tensor:
    """Indices of a grid (n,), `IN_A_BYTE` in a byte."""
    return pack_trits(codes) if levels == 3 else pack(codes, _BITS[levels])


def unpacked(codes: Tensor, levels: int, count: int) -> Tensor:
    """The first `count` indices: (count,) int8."""
    if levels == 3:
        return unpack_trits(codes, count)
    return unpack(codes, _BITS[levels], count) & (levels - 1)  # unpack is for signed codes
