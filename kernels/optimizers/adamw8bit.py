"""AdamW with both moments in 8 bits (2110.02861).

The mean is kept by the signed dynamic map, the mean square by the unsigned one, which resolves
seven decades: with a linear map most squares would become zero and the update, divided by their
root, would explode. The weights are updated from the float32 moments, before they are encoded.
Tensors below 4096 elements keep float32, among them all norms and the exit gate.

State: 2 + 8 / block bytes an element. Embeddings are touched rarely and do better in float32 or
folded (foam.py); bitsandbytes advises the same.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from kernels.optimizers import adamw
from kernels.optimizers.adamw import AdamWHyper
from kernels.optimizers.quantised_state import load, store
from kernels.optimizers.state import Kind, StateTensor, Storage, declare

_MAPS: dict[str, Kind] = {"mean": "dynamic", "square": "unsigned"}


@dataclass(frozen=True, slots=True, kw_only=True)
class AdamW8bitHyper:
    """Settings of one update: AdamW's, and the block of its codes."""

    adamw: AdamWHyper
    block: int = 256  # elements that share a scale


def declared(shape: tuple[int, ...], hyper: AdamW8bitHyper) -> tuple[StateTensor, ...]:
    """State of a parameter of any shape: both moments."""
    return tuple(
        tensor
        for name, kind in _MAPS.items()
        for tensor in declare(name, shape, Storage(kind, hyper.block))
    )


def update(
    master: Tensor, state: Mapping[str, Tensor], grad: Tensor, hyper: AdamW8bitHyper, step: int
) -> tuple[Tensor, dict[str, Tensor]]:
    """New master and new state after `grad`, for the `step`-th update (from 1)."""
    shape = tuple(master.shape)
    kept = {name: Storage(kind, hyper.block) for name, kind in _MAPS.items()}
    before = {name: load(state, name, storage, shape) for name, storage in kept.items()}
    new, moments = adamw.update(master, before, grad, hyper.adamw, step)
    after: dict[str, Tensor] = {}
    for name, moment in moments.items():
        after |= store(name, moment, kept[name])
    return new, after
