"""What an optimizer remembers, declared before it exists. No torch in this file.

An optimizer here is two pure functions: one declares its state as tensors with a name, a dtype
and a shape, the other maps (master, state, gradient, hyper-parameters, step) to a new master and
a new state. Declarations let a shard lay its state out in a shared segment and let a planner
count bytes, both from shapes alone.

All-zero bytes are the valid state before the first step of everything declared here: a freshly
created segment needs no initialisation, and clearing an optimizer is zeroing its bytes.

Not covered: where state lives and how a torn write is repaired (the shard's business).
"""

from collections.abc import Iterable
from math import prod
from typing import Literal, NamedTuple

Kind = Literal["float32", "float16", "linear", "dynamic", "unsigned", "int4"]
"""How one tensor of the state is stored.

float32, float16  as they are
linear            int8 codes -127..127 and one scale per block
dynamic           uint8 codes into the signed dynamic map (2110.02861) and one scale per block
unsigned          uint8 codes into the unsigned dynamic map and one scale per block
int4              codes -7..7, two in a byte, and one scale per block
"""

# Below this many elements codes save too little to be worth their error (bitsandbytes, torchao).
SMALLEST_QUANTISED = 4096

_BYTES = {
    "float64": 8,
    "float32": 4,
    "float16": 2,
    "int64": 8,
    "int32": 4,
    "int16": 2,
    "int8": 1,
    "uint8": 1,
}


class StateTensor(NamedTuple):
    """One tensor of an optimizer's state, or of a codec's memory or payload."""

    name: str
    dtype: str  # numpy name
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of this tensor."""
        return _BYTES[self.dtype] * prod(self.shape)


class Storage(NamedTuple):
    """How a tensor is kept between two steps."""

    kind: Kind = "float32"
    block: int = 256  # elements that share a scale, along the flattened full tensor

    def of(self, shape: tuple[int, ...]) -> "Storage":
        """This storage, or plain float32 where the tensor is too small to be quantised."""
        small = prod(shape) < SMALLEST_QUANTISED
        return Storage("float32", self.block) if small and self.kind in CODED else self


CODED: tuple[Kind, ...] = ("linear", "dynamic", "unsigned", "int4")


def declare(name: str, shape: tuple[int, ...], storage: Storage) -> tuple[StateTensor, ...]:
    """The tensors that keep `name`, a tensor of `shape`: itself, or its codes and scales.

    Small tensors are declared plain (`Storage.of`). Raises ValueError for a block of less than one
    element.
    """
    if storage.block < 1:
        raise ValueError(f"state {name!r}: block must be at least 1, got {storage.block}")
    storage = storage.of(shape)
    match storage.kind:
        case "float32" | "float16":
            return (StateTensor(name, storage.kind, shape),)
        case "linear":
            codes = StateTensor(f"{name}.codes", "int8", shape)
        case "dynamic" | "unsigned":
            codes = StateTensor(f"{name}.codes", "uint8", shape)
        case "int4":
            codes = StateTensor(f"{name}.codes", "uint8", (-(-prod(shape) // 2),))
    return codes, StateTensor(f"{name}.scale", "float32", (-(-prod(shape) // storage.block),))


def nbytes(tensors: Iterable[StateTensor]) -> int:
    """Bytes of all of them, without alignment."""
    return sum(tensor.nbytes for tensor in tensors)
