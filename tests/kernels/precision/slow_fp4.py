"""4-bit formats written down value by value, in numpy's float32: what the fast ones are held to.

NVFP4 in the order of operations of NVIDIA Transformer Engine's own reference.
"""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
GRID = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
F = np.float32
E4M3 = sorted(
    {m * 2.0**-9 for m in range(8)}
    | {(8 + m) * 2.0 ** (e - 10) for e in range(1, 16) for m in range(8)}
)[:-1]  # 480 is the code of NaN


def nearest(x: float, grid: tuple[float, ...] | list[float]) -> float:
    """The nearest entry; of two equally near, the one at an even place."""
    size = abs(x)
    best = min(range(len(grid)), key=lambda i: (abs(grid[i] - size), i % 2))
    return float(np.copysign(grid[best], x))


def nvfp4(x: Floats, rows_of_a_block: int = 1) -> tuple[Floats, Floats, np.float32]:
    """Values, scales per block repeated over its rows, and the factor 1 / S."""
    M, K = x.shape
    largest = F(np.abs(x).max())
    encode = F(1.0) if largest == 0 else min(F(F(2688.0) / largest), np.finfo(F).max)
    values, scales = np.zeros_like(x), np.zeros((M, K // 16), dtype=F)
    for top in range(0, M, rows_of_a_block):
        for left in range(0, K, 16):
            part = (slice(top, top + rows_of_a_block), slice(left, left + 16))
            block = F(np.abs(x[part]).max())
            wanted = min(F(block * F(encode * F(1.0 / 6.0))), F(448.0))
            scale = F(nearest(float(wanted), E4M3))
            decoded = F(scale * F(F(1.0) / encode))
            enlarge = np.finfo(F).max if decoded == 0 else F(F(1.0) / decoded)
            for place in np.ndindex(x[part].shape):
                scaled = float(np.clip(F(x[part][place] * enlarge), -6.0, 6.0))
                values[part][place] = nearest(scaled, GRID)
            scales[top : top + rows_of_a_block, left // 16] = scale
    return values, scales, F(F(1.0) / encode)
