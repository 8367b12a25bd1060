"""Sums over ranks: always in their order, so the bits do not depend on who was faster."""

from collections.abc import Iterable, Sequence

import numpy as np

from actors.published import Array


def weighted_sum(tokens: Sequence[int], arrays: Iterable[Array]) -> Array:
    """sum over ranks, in order, of (tokens / all tokens) array.

    In the arrays' own precision, multiplied and then added, without fusing. A single rank's array
    comes back as it is. Zeros when no rank has counted a token. What is not finite, or overflows,
    is for the caller to find.
    """
    total, mean = sum(tokens), None
    with np.errstate(invalid="ignore", over="ignore"):
        for count, array in zip(tokens, arrays, strict=True):
            weight = array.dtype.type(count / total if total else 0.0)
            if mean is None:
                mean = array * weight
            else:
                mean += array * weight
    assert mean is not None
    return mean
