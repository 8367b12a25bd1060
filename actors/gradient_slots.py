"""One slot per parameter in a trainer's shared segment: where its gradients lie for the shards.

What lies there is what the parameter's codec has made of the gradient, one tensor after the other.
A slot is written whole before its `Gradient` message is sent, and again only when the step has
moved on, which takes every shard's answer to that message. A replaced trainer writes the same bits
over a slot that a shard may be reading: harmless, as long as the predecessor is truly dead.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actors.parameters import Parameter, parameters
from actors.slots import aligned
from actors.topology import ModelSpec, OptimizerSpec
from actors.uplink import slot_bytes
from protocol.messages import TensorRef
from protocol.segments import Segment
from protocol.tensors import ref_in


@dataclass(frozen=True, slots=True)
class SlotTable:
    """Byte offset of every parameter's slot, in the parameters' order."""

    offsets: dict[str, int]
    shapes: dict[str, tuple[int, ...]]
    total_bytes: int


def slot_table(params: Iterable[Parameter], optimizer: OptimizerSpec | None = None) -> SlotTable:
    """Slots for `params`, each on cache lines of its own. Without `optimizer`, of fp32 gradients as
    they are.
    """
    at = 0
    offsets: dict[str, int] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for parameter in params:
        offsets[parameter.name] = at
        shapes[parameter.name] = parameter.shape
        at += slot_bytes(optimizer, parameter) if optimizer else aligned(4 * parameter.numel)
    return SlotTable(offsets, shapes, at)


def segment_bytes(model: ModelSpec, optimizer: OptimizerSpec | None = None) -> int:
    """Size of the segment "gradients" of one trainer."""
    return slot_table(parameters(model), optimizer).total_bytes


class GradientSlots:
    """The slots of one trainer, mapped."""

    def __init__(
        self,
        segment: Segment,
        params: Iterable[Parameter],
        optimizer: OptimizerSpec | None = None,
    ) -> None:
        """Raises `SegmentError` when the segment is too small."""
        self._segment = segment
        self._table = slot_table(params, optimizer)
        segment.array(np.uint8, (self._table.total_bytes,), 0)
        self._refs: dict[str, tuple[TensorRef, ...]] = {}

    def array(self, name: str) -> NDArray[Any]:
        """The writable slot of a parameter whose gradient travels as it is: fp32 of its shape."""
        (ref,) = self._refs[name] = (self._dense(name),)
        return self._segment.array(np.float32, ref.shape, ref.offset)

    def put(self, name: str, tensors: Sequence[NDArray[Any]]) -> None:
        """Lay what travels of a parameter into its slot."""
        at, refs = self._table.offsets[name], list[TensorRef]()
        for tensor in tensors:
            ref = ref_in(self._segment, tensor.dtype.name, tensor.shape, at)
            self._segment.array(tensor.dtype.name, tensor.shape, at)[...] = tensor
            refs.append(ref)
            at += aligned(tensor.nbytes)
        self._refs[name] = tuple(refs)

    def refs(self, name: str) -> tuple[TensorRef, ...]:
        """What to put into the `Gradient` message."""
        return self._refs.get(name) or (self._dense(name),)

    def _dense(self, name: str) -> TensorRef:
        offset, shape = self._table.offsets[name], self._table.shapes[name]
        return ref_in(self._segment, "float32", shape, offset)
