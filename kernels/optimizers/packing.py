"""Small integers, several in a byte: what coarse codes look like stored and sent."""

import torch
from torch import Tensor


def pack(codes: Tensor, bits: int) -> Tensor:
    """`codes` (n,) of `bits` 2, 4 or 8, two's complement, the first in the lowest bits: uint8.

    The last byte is filled up with zero codes.
    """
    each = 8 // bits
    low = codes.to(torch.uint8) & ((1 << bits) - 1)
    rest = -low.numel() % each
    low = (torch.nn.functional.pad(low, (0, rest)) if rest else low).view(-1, each)
    packed = low[:, 0]
    for place in range(1, each):
        packed = packed | (low[:, place] << (bits * place))
    return packed


def unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    """The first `count` codes of `packed`: (count,) int8."""
    if bits == 8:
        return packed.view(torch.int8)[:count]
    places = torch.arange(0, 8, bits, dtype=torch.uint8, device=packed.device)
    half = 1 << (bits - 1)
    raw = ((packed[:, None] >> places) & ((1 << bits) - 1)).view(-1)[:count].to(torch.int8)
    return (raw ^ half) - half  # sign extension


def pack_trits(codes: Tensor) -> Tensor:
    """`codes` (n,) in {0, 1, 2}, five in a byte, the first the lowest digit of base 3: uint8."""
    rest = -codes.numel() % 5
    digits = torch.nn.functional.pad(codes.to(torch.uint8), (0, rest)).view(-1, 5)
    packed = digits[:, 4]
    for place in range(3, -1, -1):
        packed = packed * 3 + digits[:, place]
    return packed


def unpack_trits(packed: Tensor, count: int) -> Tensor:
    """The first `count` codes of `packed`: (count,) int8."""
    powers = torch.tensor([1, 3, 9, 27, 81], dtype=torch.uint8, device=packed.device)
    return ((packed[:, None] // powers) % 3).view(-1)[:count].to(torch.int8)
