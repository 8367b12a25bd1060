"""Python values as bytes and back, for samples on their way between processes. Never a pickle.

A value is a tree of None, bool, int, float, str, bytes, list, tuple, dict, numpy arrays and scalars
and torch tensors. It becomes one body in msgpack; what is large in it (arrays, text) stands beside
the body as plain memory, so that it can lie in shared memory and is not copied on the way back.
Torch is imported where a tensor arrives, and nowhere else.
"""

import importlib
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import msgspec
import numpy as np
from numpy.typing import NDArray

# Larger ones are worth a place in shared memory.
INLINE_BYTES = 4096

Bytes = NDArray[np.uint8]  # one dimension, contiguous


class _Kind:
    """What msgpack does not know, as its extension types."""

    TUPLE = 1
    SCALAR = 2
    ARRAY = 3
    TENSOR = 4
    TEXT = 5
    RAW = 6
    FAR = 7  # one of the large parts


_ACCEPTED = (
    "None, bool, int, float, str, bytes, list, tuple, dict with keys of str or int, numpy arrays "
    "and torch tensors"
)


class Untransferable(TypeError):
    """A value that cannot leave its process: says which, and what can."""


def pack(value: object) -> tuple[bytes, list[Bytes]]:
    """Body and large parts of a value. Raises `Untransferable`.

    The parts may be the value's own memory: leave it unchanged until they have been copied.
    """
    large: list[Bytes] = []
    try:
        return msgspec.msgpack.encode(_plain(value, large)), large
    except (OverflowError, UnicodeEncodeError, RecursionError) as error:
        raise Untransferable(f"a value cannot leave its process: {error}") from error


def unpack(body: bytes | bytearray | memoryview, large: Sequence[Bytes]) -> Any:
    """The value again. Arrays use the memory of `large`, and may be written to if that may."""

    _reading.large = large
    try:
        return _reading.decode(body)
    finally:
        _reading.large = ()


class _Reading(threading.local):
    """Each thread's decoder, which takes as long to make as a small value to read."""

    def __init__(self) -> None:
        self.large: Sequence[Bytes] = ()  # of the value being read
        decoder: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(ext_hook=self._extended)
        self.decode = decoder.decode

    def _extended(self, code: int, data: memoryview) -> Any:
        inner: Any = self.decode(data)
        large = self.large
        match code:
            case _Kind.TUPLE:
                return tuple(cast("list[Any]", inner))
            case _Kind.SCALAR:
                return _as(inner[0], _memory(inner[1], large))[0]
            case _Kind.ARRAY:
                return _as(inner[0], _memory(inner[2], large)).reshape(inner[1])
            case _Kind.TENSOR:
                return _tensor(inner[0], inner[1], _memory(inner[2], large))
            case _Kind.TEXT:
                return str(large[int(inner)].data, "utf-8", "surrogatepass")
            case _Kind.RAW:
                return large[int(inner)].tobytes()
            case _:
                return large[int(inner)]


_reading = _Reading()


def _as(dtype: str, memory: Bytes) -> NDArray[Any]:
    return memory.view(np.dtype(dtype))


def _plain(value: Any, large: list[Bytes]) -> Any:
    """`value` in what msgpack knows."""
    handle = _BY_TYPE.get(value.__class__)
    if handle is not None:
        return handle(value, large)
    if isinstance(value, np.ndarray):
        return _array(cast("NDArray[Any]", value), large)
    if isinstance(value, np.generic):
        scalar = cast("np.generic[Any]", value)
        return _ext(_Kind.SCALAR, [_dtype(scalar.dtype), scalar.tobytes()])
    if isinstance(value, Mapping):
        return _dict(cast("Mapping[Any, Any]", value), large)
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        flat = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        kind = str(value.dtype).removeprefix("torch.")
        return _ext(_Kind.TENSOR, [kind, list(value.shape), _place(flat, large)])
    raise Untransferable(
        f"a value of type {type(value).__module__}.{type(value).__qualname__} cannot leave its "
        f"process; what can: {_ACCEPTED}. Return its parts as one of these"
    )


def _itself(value: Any, _large: list[Bytes]) -> Any:
    return value


def _text(value: str, large: list[Bytes]) -> Any:
    if len(value) <= INLINE_BYTES:
        return value
    return _far(_Kind.TEXT, value.encode("utf-8", "surrogatepass"), large)


def _raw(value: bytes, large: list[Bytes]) -> Any:
    return value if len(value) <= INLINE_BYTES else _far(_Kind.RAW, value, large)


def _list(value: list[Any], large: list[Bytes]) -> Any:
    return [_plain(item, large) for item in value]


def _tuple(value: tuple[Any, ...], large: list[Bytes]) -> Any:
    return _ext(_Kind.TUPLE, [_plain(item, large) for item in value])


def _dict(value: Mapping[Any, Any], large: list[Bytes]) -> Any:
    for key in value:
        if type(key) is not str and type(key) is not int:
            raise Untransferable(
                f"a dict with a key of type {type(key).__qualname__} cannot leave its process; "
                f"what can: {_ACCEPTED}"
            )
    return {key: _plain(item, large) for key, item in value.items()}


def _array(value: NDArray[Any], large: list[Bytes]) -> Any:
    flat = np.ascontiguousarray(value).reshape(-1)
    dtype = _dtype(value.dtype)
    return _ext(_Kind.ARRAY, [dtype, list(value.shape), _place(flat.view(np.uint8), large)])


def _dtype(dtype: np.dtype[Any]) -> str:
    if dtype.hasobject or dtype.names is not None:
        raise Untransferable(
            f"a numpy array of {dtype} cannot leave its process; arrays of numbers, bools, dates "
            "and fixed-width text can"
        )
    return dtype.str


def _place(flat: Bytes, large: list[Bytes]) -> Any:
    if flat.nbytes <= INLINE_BYTES:
        return flat.tobytes()
    large.append(flat)
    return msgspec.msgpack.Ext(_Kind.FAR, msgspec.msgpack.encode(len(large) - 1))


def _far(code: int, data: bytes, large: list[Bytes]) -> Any:
    large.append(np.frombuffer(data, np.uint8))
    return msgspec.msgpack.Ext(code, msgspec.msgpack.encode(len(large) - 1))


def _ext(code: int, parts: Any) -> Any:
    return msgspec.msgpack.Ext(code, msgspec.msgpack.encode(parts))


def _memory(where: Any, large: Sequence[Bytes]) -> Bytes:
    """Bytes that may be written to."""
    if isinstance(where, bytes):
        return np.frombuffer(bytearray(where), np.uint8)
    return where


def _tensor(dtype: str, shape: list[int], memory: Bytes) -> Any:
    torch = importlib.import_module("torch")  # whoever made it has it
    if not len(memory):
        return torch.empty(shape, dtype=getattr(torch, dtype))
    return torch.from_numpy(memory).view(getattr(torch, dtype)).reshape(shape)


_BY_TYPE: dict[type, Callable[[Any, list[Bytes]], Any]] = {
    type(None): _itself,
    bool: _itself,
    int: _itself,
    float: _itself,
    str: _text,
    bytes: _raw,
    list: _list,
    tuple: _tuple,
    dict: _dict,
}
