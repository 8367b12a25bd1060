"""Products of 4 and 8-bit operands on tensor cores that have them, through `scaled_mm`.

4 bits need Blackwell (compute capability 10.0), E4M3 rows Hopper (9.0). Everywhere else, and for
shapes the units do not take, callers multiply the same values in float32. Results differ in the
rounding of sums, and here come back in bfloat16, as NVIDIA's recipe has it.
"""

from functools import cache

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.functional import ScalingType, SwizzleType

from kernels.precision.rounding import e2m1_codes, pack_nibbles

# Shapes: a is (M, K) and b (N, K); scales are (rows, K / block).

# Scales lie in tiles of 128 rows and 4 columns, 32 rows side by side (cuBLAS, block scaling).
_TILE_ROWS, _TILE_COLUMNS, _GROUP = 128, 4, 32
_NVFP4_BLOCK = 16


def has_fp4(device: torch.device) -> bool:
    """Whether `device` multiplies blocks of E2M1 by itself."""
    return device.type == "cuda" and _fp4_works(device)


def has_fp8(device: torch.device) -> bool:
    """Whether `device` multiplies rows of E4M3 by itself."""
    return device.type == "cuda" and _fp8_works(device)


# Which libraries multiply what on which chip is not known from its capability alone, so one product
# is tried; only in the process that computes, and once.
@cache
def _fp4_works(device: torch.device) -> bool:
    if torch.cuda.get_device_capability(device) < (10, 0):
        return False
    values = torch.ones(16, 64, device=device)
    halves = torch.full((16, 4), 0.5, device=device)
    try:
        out = fp4_product((values, halves), (values, halves), values.new_tensor(2.0))
    except RuntimeError:  # what torch raises where a library or a chip has no such product
        return False
    return bool((out == 32.0).all())


@cache
def _fp8_works(device: torch.device) -> bool:
    if torch.cuda.get_device_capability(device) < (9, 0):
        return False
    values = torch.ones(16, 64, device=device)
    halves = torch.full((16, 1), 0.5, device=device)
    try:
        out = fp8_product((values, halves), (values, halves))
    except RuntimeError:  # what torch raises where a library or a chip has no such product
        return False
    return bool((out == 16.0).all())


def takes(a_MK: Tensor, b_NK: Tensor) -> bool:
    """Whether the units take operands of these shapes: 16 bytes at a time in every direction."""
    (M, K), N = a_MK.shape, b_NK.shape[0]
    return M % 16 == 0 and N % 16 == 0 and K % 32 == 0


def swizzled(scales_Rb: Tensor) -> Tensor:
    """Scales in the order tensor cores read them, flat, tiles filled up with zeros."""
    R, b = scales_Rb.shape
    filled = functional.pad(scales_Rb, (0, -b % _TILE_COLUMNS, 0, -R % _TILE_ROWS))
    tiles = filled.view(-1, _TILE_ROWS // _GROUP, _GROUP, filled.shape[1] // 4, _TILE_COLUMNS)
    return tiles.permute(0, 3, 2, 1, 4).reshape(-1)


def fp4_product(a_MK: tuple[Tensor, Tensor], b_NK: tuple[Tensor, Tensor], factor: Tensor) -> Tensor:
    """factor * a b^T, (M, N), of (E2M1 values, scales) pairs; 16 columns to a scale, or 32.

    Scales of 16 are E4M3 values (NVFP4), those of 32 powers of two (MXFP4).
    """
    nvfp4 = a_MK[0].shape[1] // a_MK[1].shape[1] == _NVFP4_BLOCK
    kind = torch.float8_e4m3fn if nvfp4 else torch.float8_e8m0fnu
    recipe = ScalingType.BlockWise1x16 if nvfp4 else ScalingType.BlockWise1x32
    a, b = (_packed(values) for values, _ in (a_MK, b_NK))
    scale_a, scale_b = (swizzled(scales).to(kind) for _, scales in (a_MK, b_NK))
    out = functional.scaled_mm(
        a,
        b.t(),
        scale_a=scale_a,
        scale_recipe_a=recipe,
        scale_b=scale_b,
        scale_recipe_b=recipe,
        swizzle_a=SwizzleType.SWIZZLE_32_4_4,
        swizzle_b=SwizzleType.SWIZZLE_32_4_4,
        output_dtype=torch.bfloat16,
    )
    return out.float().mul_(factor)


def _packed(values: Tensor) -> Tensor:
    return pack_nibbles(e2m1_codes(values)).contiguous().view(torch.float4_e2m1fn_x2)


def fp8_product(a_MK: tuple[Tensor, Tensor], b_NK: tuple[Tensor, Tensor]) -> Tensor:
    """a b^T, (M, N), of (E4M3 values, row scales (rows, 1)) pairs."""
    out = functional.scaled_mm(
        a_MK[0].to(torch.float8_e4m3fn),
        b_NK[0].to(torch.float8_e4m3fn).t(),
        scale_a=a_MK[1].contiguous(),
        scale_recipe_a=ScalingType.RowWise,
        scale_b=b_NK[1].contiguous().t(),
        scale_recipe_b=ScalingType.RowWise,
        output_dtype=torch.bfloat16,
    )
    return out.float()
