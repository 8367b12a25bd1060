"""Random Hadamard transform of blocks, along the dimension a matrix product sums over.

Both operands are multiplied by the same orthogonal matrix, which cancels in the product, but
spreads outliers over their block before rounding.
"""

import torch
from torch import Tensor
from torch.nn import functional

# NVIDIA's fixed signs for blocks of 16 (Transformer Engine).
SIGNS_16 = (1, 1, 1, -1, 1, -1, -1, -1, -1, -1, -1, 1, -1, 1, -1, -1)


def sylvester(size: int) -> Tensor:
    """Hadamard matrix of +-1, (size, size), for a power of two."""
    matrix = torch.ones(1, 1)
    while len(matrix) < size:
        matrix = torch.cat((torch.cat((matrix, matrix), 1), torch.cat((matrix, -matrix), 1)))
    return matrix


def rotated(x_MK: Tensor, signs: Tensor) -> Tensor:
    """Each block of len(signs) columns times diag(signs) H / sqrt(size); zeros fill the last."""
    size = len(signs)
    x_MK = padded(x_MK, size)
    matrix = signs[:, None] * sylvester(size).to(signs) * size**-0.5
    return (x_MK.reshape(-1, size) @ matrix).view(x_MK.shape)


def padded(x_MK: Tensor, multiple: int) -> Tensor:
    """Columns filled up with zeros to a multiple."""
    missing = -x_MK.shape[-1] % multiple
    return functional.pad(x_MK, (0, missing)) if missing else x_MK


def nvidia_signs(like: Tensor) -> Tensor:
    """`SIGNS_16` as a tensor like `like`."""
    return torch.tensor(SIGNS_16, dtype=like.dtype, device=like.device)
