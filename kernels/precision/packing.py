"""Ternary codes at 2 bits each, as they are stored and sent.

The matrix is flattened row by row; four consecutive codes share a byte, the first in its low bits;
each is stored as code + 1, and the last byte is filled up with 1 (the code 0). The value 3 means
nothing and is refused.
"""

from collections.abc import Sequence
from math import prod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

CODES_PER_BYTE = 4


def packed_bytes(numel: int) -> int:
    """Bytes that `numel` codes take."""
    return -(-numel // CODES_PER_BYTE)


def pack_array(codes: NDArray[np.int8]) -> NDArray[np.uint8]:
    """Codes in {-1, 0, 1} of any shape, to bytes (1-D)."""
    filled = np.ones(packed_bytes(codes.size) * CODES_PER_BYTE, dtype=np.uint8)
    np.add(codes.reshape(-1), 1, out=filled[: codes.size].view(np.int8))
    # One multiplication moves the four values of a 32-bit word next to each other in its top byte:
    # 24, 18, 12 and 6 places up for the 1st, 2nd, 3rd and 4th. Lower bits never carry into it.
    words = filled.view("<u4") * np.uint32((1 << 24) | (1 << 18) | (1 << 12) | (1 << 6))
    return (words >> np.uint32(24)).astype(np.uint8)


def _table() -> NDArray[np.uint32]:
    """For each byte its four codes, as the four int8 of a little-endian word."""
    values = np.arange(256, dtype=np.uint8)[:, None] >> np.array([0, 2, 4, 6], dtype=np.uint8) & 3
    return np.ascontiguousarray(values.astype(np.int8) - 1).view("<u4").reshape(256)


_TABLE = _table()


def unpack_array(packed: NDArray[np.uint8], shape: Sequence[int]) -> NDArray[np.int8]:
    """Bytes from `pack_array` to codes of `shape`. Raises `ValueError` on any other bytes."""
    numel = prod(shape)
    if packed.shape != (packed_bytes(numel),):
        raise ValueError(
            f"packed codes have shape {packed.shape}: {numel} codes of shape {tuple(shape)} "
            f"take exactly {packed_bytes(numel)} bytes in one dimension"
        )
    if (packed & (packed >> np.uint8(1)) & np.uint8(0x55)).any():
        raise ValueError("packed codes hold the value 3: these bytes are not ternary codes")
    codes = _TABLE[packed].view(np.int8)
    if codes[numel:].any():
        raise ValueError("packed codes are filled up with something else than the code 0")
    return codes[:numel].reshape(shape)


def pack(codes: Tensor) -> Tensor:
    """Codes int8 of any shape to a 1-D uint8 tensor on the same device."""
    return torch.from_numpy(pack_array(codes.detach().cpu().numpy())).to(codes.device)


def unpack(packed: Tensor, shape: Sequence[int]) -> Tensor:
    """Inverse of `pack`: int8 codes of `shape` on the same device. Raises `ValueError`."""
    return torch.from_numpy(unpack_array(packed.cpu().numpy(), shape)).to(packed.device)
