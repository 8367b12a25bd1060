"""Random numbers that are a function of their key, on every device.

A draw depends on a 64-bit key and an index, by SplitMix64 (Steele, Lea and Flood 2014) in integer
arithmetic only. So trainers of different make agree on a sketch without sending it, a replaced
trainer repeats the rounding of the one it replaces bit for bit, and no generator state needs
saving. torch's own generators promise none of this across devices.
"""

import hashlib

import torch
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15
_MIX = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)


def key(seed: int, *parts: str | int) -> int:
    """A key for one purpose, e.g. `key(seed, "rounding", parameter, step, rank)`: 0 <= key < 2^64.

    The run's seed and the parts are digested, so nearby seeds or steps give unrelated draws.
    """
    text = "\x1f".join(str(part) for part in (seed, *parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


def words(of: int, count: int, device: torch.device | str = "cpu") -> Tensor:
    """Draws 0 .. count-1 of key `of`: (count,) int64, every bit fair."""
    z = torch.arange(1, count + 1, dtype=torch.int64, device=device)
    z = z * _signed(_GOLDEN) + _signed(of)  # int64 wraps, as SplitMix64 wants
    z = (z ^ _shifted(z, 30)) * _signed(_MIX[0])
    z = (z ^ _shifted(z, 27)) * _signed(_MIX[1])
    return z ^ _shifted(z, 31)


def uniform(of: int, count: int, device: torch.device | str = "cpu") -> Tensor:
    """Multiples of 2^-24 in [0, 1), all equally likely: (count,) float32."""
    both = words(of, -(-count // 2), device)
    halves = torch.stack((both & 0xFFFFFF, _shifted(both, 40)))  # 24 bits from either end
    return halves.reshape(-1)[:count].to(torch.float32) * 2.0**-24


def signs(of: int, count: int, device: torch.device | str = "cpu") -> Tensor:
    """Fair +1 and -1: (count,) float32."""
    packed = words(of, -(-count // 64), device)
    places = torch.arange(64, dtype=torch.int64, device=device)
    bits = (packed[:, None] >> places) & 1
    return bits.reshape(-1)[:count].to(torch.float32) * 2.0 - 1.0


def fraction(of: int) -> float:
    """One draw from [0, 1) in Python's own arithmetic, for decisions rather than tensors."""
    z = (of + _GOLDEN) % 2**64
    z = (z ^ (z >> 30)) * _MIX[0] % 2**64
    z = (z ^ (z >> 27)) * _MIX[1] % 2**64
    return ((z ^ (z >> 31)) >> 11) * 2.0**-53


def _signed(word: int) -> int:
    return word - 2**64 if word >= 2**63 else word


def _shifted(z: Tensor, by: int) -> Tensor:
    """Logical shift to the right: torch's own copies the sign."""
    return (z >> by) & ((1 << (64 - by)) - 1)
