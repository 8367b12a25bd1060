"""From samples to a batch, as torch's default does it, in numpy or in torch.

Arrays are stacked, numbers become an array, text and bytes stay lists, tuples, lists and dicts are
collated field by field. Samples that hold torch tensors give tensors. A `collate_fn` of the user's
takes the place of all this.
"""

import sys
from collections.abc import Sequence
from typing import Any, cast

import numpy as np


class Uncollatable(ValueError):
    """Samples that do not fit together: says how, and what to do."""


def collate(samples: Sequence[Any]) -> Any:
    """One batch of samples of one form. Raises `Uncollatable`."""
    first = samples[0]
    if isinstance(first, np.ndarray):
        return _stacked(samples)
    if isinstance(first, bool | int | float | np.generic):
        return np.array(samples)
    if isinstance(first, str | bytes) or first is None:
        return list(samples)
    if isinstance(first, dict):
        return _fields(samples)
    if isinstance(first, tuple | list):
        rows = cast("Sequence[Sequence[Any]]", samples)
        if any(len(row) != len(rows[0]) for row in rows):
            raise Uncollatable(
                f"samples of {sorted({len(row) for row in rows})} parts do not make a batch; give "
                "the loader a collate_fn that puts them together"
            )
        columns = [collate(column) for column in zip(*rows, strict=True)]
        return tuple(columns) if isinstance(first, tuple) else columns
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(first, torch.Tensor):
        return torch.stack(list(samples))
    return list(samples)


def _stacked(samples: Sequence[Any]) -> Any:
    shapes = {sample.shape for sample in samples}
    if len(shapes) > 1:
        raise Uncollatable(
            f"arrays of shapes {', '.join(map(str, sorted(shapes)))} do not make one array; give "
            "the loader a collate_fn that pads them"
        )
    return np.stack(samples)


def _fields(samples: Sequence[dict[Any, Any]]) -> dict[Any, Any]:
    keys = samples[0].keys()
    for sample in samples:
        if sample.keys() != keys:
            raise Uncollatable(
                f"samples with fields {sorted(map(str, keys))} and "
                f"{sorted(map(str, sample.keys()))} do not make a batch; give the loader a "
                "collate_fn that puts them together"
            )
    return {key: collate([sample[key] for sample in samples]) for key in keys}
