"""One slot per parameter in a trainer's shared segment: where its gradients lie for the shards.

A slot is written whole before its `Gradient` message is sent, and again only when the step has
moved on, which takes every shard's answer to that message. A replaced trainer writes the same bits
over a slot that a shard may be reading: harmless, as long as the predecessor is truly dead.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actors.parameters import Parameter, parameters
from actors.topology import ModelSpec
from protocol.messages import TensorRef
from protocol.segments import Segment
from protocol.tensors import ref_in

ALIGNMENT = 64


@dataclass(frozen=True, slots=True)
class SlotTable:
    """Byte offset of every parameter's fp32 slot, in the parameters' order."""

    offsets: dict[str, int]
    shapes: dict[str, tuple[int, ...]]
    total_bytes: int


def slot_table(params: Iterable[Parameter]) -> SlotTable:
    """Slots for `params`, each on a cache line of its own."""
    at = 0
    offsets: dict[str, int] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for parameter in params:
        offsets[parameter.name] = at
        shapes[parameter.name] = parameter.shape
        at += -(-4 * parameter.numel // ALIGNMENT) * ALIGNMENT
    return SlotTable(offsets, shapes, at)


def segment_bytes(model: ModelSpec) -> int:
    """Size of the segment "gradients" of one trainer."""
    return slot_table(parameters(model)).total_bytes


class GradientSlots:
    """The slots of one trainer, mapped."""

    def __init__(self, segment: Segment, params: Iterable[Parameter]) -> None:
        """Raises `SegmentError` when the segment is too small."""
        self._segment = segment
        self._table = slot_table(params)
        self._refs = {
            name: ref_in(segment, "float32", self._table.shapes[name], offset)
            for name, offset in self._table.offsets.items()
        }

    def array(self, name: str) -> NDArray[Any]:
        """The writable slot of a parameter, fp32 of its shape."""
        ref = self._refs[name]
        return self._segment.array(np.float32, ref.shape, ref.offset)

    def ref(self, name: str) -> TensorRef:
        """What to put into the `Gradient` message."""
        return self._refs[name]
