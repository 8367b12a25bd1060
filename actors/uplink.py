"""What a gradient travels as, and what its codec remembers: names, types and shapes. No torch.

The codecs are kernels/optimizers/codecs, by the same names; a test holds the two together. A
matrix goes through `optimizer.codec`, everything else through `optimizer.dense_codec`, except for
tensors so small that there is nothing to save.
"""

from collections.abc import Callable
from math import prod

from actors.parameters import Parameter
from actors.published import TensorSpec
from actors.slots import aligned
from actors.stored import SMALLEST_QUANTISED, stored
from actors.subspace import core_shape
from actors.topology import OptimizerSpec

Shape = tuple[int, ...]
Specs = tuple[TensorSpec, ...]

# Elements that share a step of an integer codec, or the scale of a grid.
_STEP_BLOCK = 64
_GRID_BLOCK = 256
# Codes in a byte, by the levels of a grid.
_IN_A_BYTE = {2: 8, 3: 5, 4: 4}


def codec_of(optimizer: OptimizerSpec, parameter: Parameter) -> str:
    """Name of the codec of `parameter`'s gradients."""
    if parameter.group == "matrices":
        return optimizer.codec
    return optimizer.dense_codec if parameter.numel >= SMALLEST_QUANTISED else "dense"


def update_codec_of(optimizer: OptimizerSpec, parameter: Parameter) -> str:
    """Name of the codec of `parameter`'s updates on their way down, where it is dense."""
    small = parameter.numel < SMALLEST_QUANTISED
    return "dense" if small or parameter.kind == "ternary" else optimizer.dense_updates


def travelling_shape(
    optimizer: OptimizerSpec, parameter: Parameter, *, whole: bool = False
) -> Shape:
    """Shape of what is encoded: the gradient, or what a projection leaves of it.

    `whole`: in the periods in which GUM sends what its basis misses.
    """
    group = optimizer.matrices
    if parameter.group != "matrices" or group.projection == "none" or whole:
        return parameter.shape
    return core_shape(group, parameter.shape)


def payload_tensors(
    optimizer: OptimizerSpec, parameter: Parameter, *, whole: bool = False
) -> Specs:
    """What travels for one gradient of `parameter`, in order; `whole` as in `travelling_shape`."""
    shape = travelling_shape(optimizer, parameter, whole=whole)
    return payload_of(codec_of(optimizer, parameter), shape, optimizer.codec_rank)


def memory_tensors(optimizer: OptimizerSpec, parameter: Parameter) -> Specs:
    """What the codec of `parameter` remembers on each rank from step to step; often nothing."""
    return memory_of(codec_of(optimizer, parameter), parameter.shape, optimizer.codec_rank)


def payload_bytes(optimizer: OptimizerSpec, parameter: Parameter) -> int:
    """What one gradient of `parameter` takes on the wire, on average."""
    usual = sum(spec.nbytes for spec in payload_tensors(optimizer, parameter))
    if not _may_be_whole(optimizer, parameter):
        return usual
    whole = sum(spec.nbytes for spec in payload_tensors(optimizer, parameter, whole=True))
    return round(usual + optimizer.matrices.remainder * (whole - usual))


def slot_bytes(optimizer: OptimizerSpec, parameter: Parameter) -> int:
    """Room that a trainer's segment needs for a gradient of `parameter` on its way up."""
    return sum(
        aligned(spec.nbytes)
        for spec in payload_tensors(optimizer, parameter, whole=_may_be_whole(optimizer, parameter))
    )


def _may_be_whole(optimizer: OptimizerSpec, parameter: Parameter) -> bool:
    return parameter.group == "matrices" and optimizer.matrices.projection == "gum"


def payload_of(codec: str, shape: Shape, rank: int = 0) -> Specs:
    """The payload of one tensor of `shape`. Raises KeyError for an unknown codec."""
    return _PAYLOADS[codec](shape, rank)


def memory_of(codec: str, shape: Shape, rank: int = 0) -> Specs:
    """The memory of one tensor of `shape`. Raises KeyError for an unknown codec."""
    warm: Specs = ()
    if codec in POWERS:
        warm = (TensorSpec("warm", "float32", (max(shape), min(rank, *shape))),)
    elif codec not in FEEDBACKS:
        return ()
    return *warm, *stored("error", shape, "dynamic")


def _dense(shape: Shape, _rank: int) -> Specs:
    return (TensorSpec("dense", "float32", shape),)


def _integers(bits: int) -> Callable[[Shape, int], Specs]:
    def payload(shape: Shape, _rank: int) -> Specs:
        return _coded(_whole(prod(shape), 1), 8 // bits, _STEP_BLOCK)

    return payload


def _rotated(bits: int) -> Callable[[Shape, int], Specs]:
    def payload(shape: Shape, _rank: int) -> Specs:
        return _coded(_whole(prod(shape), _STEP_BLOCK), 8 // bits, _STEP_BLOCK)

    return payload


def _grid(levels: int, rotation: int) -> Callable[[Shape, int], Specs]:
    def payload(shape: Shape, _rank: int) -> Specs:
        return _coded(_whole(prod(shape), rotation), _IN_A_BYTE[levels], _GRID_BLOCK)

    return payload


def _scaled(levels: int) -> Callable[[Shape, int], Specs]:
    def payload(shape: Shape, _rank: int) -> Specs:
        rows, columns = prod(shape[:-1]), shape[-1]
        codes = TensorSpec("codes", "uint8", (-(-rows * columns // _IN_A_BYTE[levels]),))
        scales = TensorSpec("rows", "int16", (rows,)), TensorSpec("columns", "int16", (columns,))
        return codes, *scales

    return payload


def _power(kind: str) -> Callable[[Shape, int], Specs]:
    def payload(shape: Shape, rank: int) -> Specs:
        columns = min(rank, *shape)
        left = stored("left", (min(shape), columns), kind)
        return left + stored("right", (max(shape), columns), kind)

    return payload


def _whole(count: int, group: int) -> int:
    """`count` rounded up to whole groups: those that are rotated together."""
    return -(-count // group) * group


def _coded(count: int, in_a_byte: int, block: int) -> Specs:
    codes = TensorSpec("codes", "uint8", (-(-count // in_a_byte),))
    return codes, TensorSpec("scale", "int16", (-(-count // block),))


_PAYLOADS: dict[str, Callable[[Shape, int], Specs]] = {
    "dense": _dense,
    "int8": _integers(8),
    "int4": _integers(4),
    "int4_rotated": _rotated(4),
    "int4_feedback": _integers(4),
    "two_bit": _grid(4, 256),
    "ternary": _grid(3, 1),
    "ternary_rotated": _grid(3, 256),
    "two_bit_scaled": _scaled(4),
    "ternary_scaled": _scaled(3),
    "sign": _grid(2, 1),
    "sign_rotated": _grid(2, 256),
    "power": _power("float32"),
    "power_int8": _power("linear"),
    "power_int4": _power("int4"),
}

CODECS = tuple(_PAYLOADS)
POWERS = frozenset(name for name in CODECS if name.startswith("power"))
# Coarse or biased: what was not sent is remembered and added to the next gradient.
FEEDBACKS = POWERS | {
    "int4_feedback",
    "two_bit",
    "ternary",
    "ternary_rotated",
    "two_bit_scaled",
    "ternary_scaled",
    "sign",
    "sign_rotated",
}
