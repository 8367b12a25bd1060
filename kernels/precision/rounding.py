"""Rounding to 4, 8 and 16-bit floating point, as values in float32. Section 5.0 of the notes.

E2M1, the 4-bit format, has the magnitudes 0, 0.5, 1, 1.5, 2, 3, 4 and 6. To nearest means ties to
the even code; stochastic means up with the probability of the fraction, so that the expectation is
the value itself, on [-6, 6]. Hardware draws fewer random bits, so only statistics compare there.
"""

import torch
from torch import Tensor

E2M1_MAX = 6.0
E4M3_MAX = 448.0
E8M0_MIN = 2.0**-127  # to 2^127, and a NaN
FLOAT32_MAX = torch.finfo(torch.float32).max

# Magnitudes of codes 0 .. 7; code + 8 is the negative. Ternary's -1, 0 and 1 are among them.
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def e2m1(x: Tensor, uniform: Tensor | None = None) -> Tensor:
    """Nearest E2M1 values, or with `uniform` draws from [0, 1) stochastic ones; 6 at most."""
    size = x.abs().clamp_(max=E2M1_MAX)
    # The distance between neighbours: 0.5 below 2, 1 below 4, else 2.
    step = torch.where(size < 2.0, 0.5, torch.where(size < 4.0, 1.0, 2.0))
    size.div_(step)
    size = size.round_() if uniform is None else size.add_(uniform).floor_()
    return size.mul_(step).clamp_(max=E2M1_MAX).copysign_(x)


def e2m1_codes(values: Tensor) -> Tensor:
    """Codes uint8 0 .. 15 of E2M1 values; a negative zero keeps its sign."""
    size = values.abs()
    code = torch.where(
        size < 2.0, size * 2.0, torch.where(size < 4.0, size + 2.0, size * 0.5 + 4.0)
    )
    return code.to(torch.uint8) + values.signbit().to(torch.uint8) * 8


def e2m1_values(codes: Tensor) -> Tensor:
    """Float32 values of codes 0 .. 15."""
    table = torch.tensor([*E2M1, *(-size for size in E2M1)], device=codes.device)
    return table[codes.int()]


def pack_nibbles(codes: Tensor) -> Tensor:
    """Codes (..., K), K even, two to a byte (..., K / 2): the first of a pair in the low half."""
    return codes[..., 0::2] | (codes[..., 1::2] << 4)


def unpack_nibbles(packed: Tensor) -> Tensor:
    """Inverse of `pack_nibbles`."""
    return torch.stack((packed & 15, packed >> 4), dim=-1).flatten(-2)


def e4m3(x: Tensor) -> Tensor:
    """Nearest E4M3 values; +-448 beyond. What is not a number stays none."""
    # Clamped first: torch versions disagree about what is out of range.
    return x.clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn).to(torch.float32)


def bfloat16(x: Tensor) -> Tensor:
    """Nearest bfloat16 values, in x's own type."""
    return x.to(torch.bfloat16).to(x.dtype)


class _Bfloat16Through(torch.autograd.Function):
    """bfloat16 going forward, the gradient as it is."""

    @staticmethod
    def forward(_ctx: object, x: Tensor) -> Tensor:
        return bfloat16(x)

    @staticmethod
    def backward(_ctx: object, *grads: Tensor) -> Tensor:
        return grads[0]


def bfloat16_through(x: Tensor) -> Tensor:
    """`bfloat16`, with a gradient as if nothing had been rounded."""
    out: Tensor = _Bfloat16Through.apply(x)
    return out


def power_of_two(x: Tensor) -> Tensor:
    """The largest power of two that is not above x > 0, for normal numbers; exact, unlike log2."""
    mantissa, exponent = torch.frexp(x)
    return torch.ldexp(torch.ones_like(mantissa), exponent - 1)
