"""Nearest value of a small grid, scaled by row and by column. For use with feedback.

Rows and columns of a gradient differ in size by orders of magnitude: a column is an input's
activation, a row an output's sensitivity. One step for all of them drowns the small ones in the
rounding of the large ones, and Newton-Schulz then makes that noise as large as everything else.
Here G = diag(r) X diag(c), with r and c root mean squares, and X is rounded to the grid; so noise
has the gradient's own profile. Row scales are the least-squares ones for the values chosen, so the
error is orthogonal to what was sent, row by row, and shorter (see grid.py).

Tensors of other shapes count as (all but the last, last). Scales travel in 16 bits: for d x d,
4 / d bytes an element beside the codes' 1/8, 1/5 or 1/4.
"""

from dataclasses import dataclass
from math import prod
from typing import Literal

import torch
from torch import Tensor

from kernels.optimizers.codecs.base import Shape, Tensors
from kernels.optimizers.codecs.blocks import from_upper_half, upper_half
from kernels.optimizers.codecs.grid import IN_A_BYTE, grid, packed, unpacked
from kernels.optimizers.state import StateTensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Scaled:
    """Gradients of any shape on a grid of `levels` values times a row's and a column's scale."""

    levels: Literal[2, 3, 4]

    def memory(self, shape: Shape) -> tuple[StateTensor, ...]:
        """Nothing."""
        del shape
        return ()

    def payload(self, shape: Shape) -> tuple[StateTensor, ...]:
        """Packed codes and both scales."""
        rows, columns = as_matrix(shape)
        return (
            StateTensor("codes", "uint8", (-(-rows * columns // IN_A_BYTE[self.levels]),)),
            StateTensor("rows", "int16", (rows,)),
            StateTensor("columns", "int16", (columns,)),
        )

    def encode(self, gradient: Tensor, memory: Tensors, key: int) -> tuple[Tensors, Tensors]:
        """Payload; `memory` is handed back."""
        del key
        g_MN = gradient.reshape(as_matrix(tuple(gradient.shape)))
        row_M1 = _or_one(g_MN.square().mean(dim=1, keepdim=True).sqrt())
        x_MN = g_MN / row_M1
        columns = upper_half(x_MN.square().mean(dim=0).sqrt())
        column_N = _or_one(from_upper_half(columns))
        values = grid(self.levels, g_MN.device)
        edges = (values[1:] + values[:-1]) / 2
        codes = torch.bucketize(x_MN / column_N, edges, right=True, out_int32=True)
        chosen_MN = values[codes] * column_N
        length = chosen_MN.square().sum(dim=1)
        scale = (g_MN * chosen_MN).sum(dim=1) / _or_one(length)
        payload = {
            "codes": packed(codes.view(-1), self.levels),
            "rows": upper_half(scale),
            "columns": columns,
        }
        return payload, memory

    def decode(self, payload: Tensors, memory: Tensors, shape: Shape, key: int) -> Tensor:
        """Grid values x row x column."""
        del memory, key
        codes = unpacked(payload["codes"], self.levels, prod(shape))
        values = grid(self.levels, codes.device)[codes.to(torch.int32)].view(as_matrix(shape))
        column_N = _or_one(from_upper_half(payload["columns"]))
        return (values * column_N * from_upper_half(payload["rows"])[:, None]).view(shape)


def as_matrix(shape: Shape) -> tuple[int, int]:
    """Rows and columns of a tensor of any shape."""
    return prod(shape[:-1]), shape[-1]


def _or_one(scale: Tensor) -> Tensor:
    return torch.where(scale > 0, scale, 1.0)
