"""Places of tensors in a block of memory, worked out before the memory exists. No torch.

The optimizer's state, codecs' memory and gradients lie in shared segments whose layouts are pure
functions of the topology, so that whoever maps a segment knows where everything is.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple, Protocol

from actors.published import Array, TensorSpec

# A cache line: no tensor shares one with another, and vector loads are aligned.
ALIGNMENT = 64


class Slot(NamedTuple):
    """A tensor's place."""

    offset: int  # bytes
    dtype: str
    shape: tuple[int, ...]


class Memory(Protocol):
    """What holds tensors: a `protocol.segments.Segment`, or plain memory in tests."""

    nbytes: int

    def array(self, dtype: str, shape: tuple[int, ...], offset: int = 0) -> Array:
        """A writable view."""
        ...


class Cursor:
    """Hands out aligned places, one after the other; `at` is the first byte still free."""

    def __init__(self, at: int = 0) -> None:
        self.at = at

    def take(self, dtype: str, shape: tuple[int, ...]) -> Slot:
        """The next place."""
        slot = Slot(self.at, dtype, shape)
        self.at = aligned(self.at + TensorSpec("", dtype, shape).nbytes)
        return slot

    def take_all(self, specs: Iterable[TensorSpec]) -> dict[str, Slot]:
        """Places for several tensors, by name."""
        return {spec.name: self.take(spec.dtype, spec.shape) for spec in specs}


def aligned(nbytes: int) -> int:
    """`nbytes` rounded up to whole cache lines."""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


def view(memory: Memory, slot: Slot) -> Array:
    """The tensor at `slot`."""
    return memory.array(slot.dtype, slot.shape, slot.offset)


def views(memory: Memory, slots: Mapping[str, Slot]) -> dict[str, Array]:
    """The tensors at `slots`, by name."""
    return {name: view(memory, slot) for name, slot in slots.items()}
