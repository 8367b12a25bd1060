"""Tensors in messages: as frames, or in shared segments. The reader cannot tell the difference.

The writer makes a `TensorRef` with `Frames.add` or `ref_in`; the reader calls `read` and gets a
read-only array without a copy. Every bound is checked against the memory that is really there.
"""

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from protocol import segments
from protocol.errors import Malformed, SegmentError
from protocol.messages import TensorRef
from protocol.segments import Segment

# numpy names; bfloat16 travels as its bits, uint16.
DTYPES = frozenset(
    f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)
) | frozenset({"float16", "float32", "float64", "bool"})
MAX_DIMENSIONS = 8
# Far above any tensor, far below where products of lengths stop being exact in 64 bits.
MAX_TENSOR_BYTES = 1 << 42


def nbytes(ref: TensorRef) -> int:
    """Bytes of a tensor of ours; what others claim is checked by `read`."""
    return np.dtype(ref.dtype).itemsize * prod(ref.shape)


class Frames:
    """Collects the frames of one message while its references are made."""

    def __init__(self) -> None:
        self.parts: list[memoryview] = []

    def add(self, array: NDArray[Any]) -> TensorRef:
        """Append `array` as the next frame. Not copied when C-contiguous: leave it unchanged
        until the message has been sent.
        """
        if array.dtype.name not in DTYPES:
            raise Malformed(f"dtype {array.dtype.name} does not travel; one of {sorted(DTYPES)}")
        ref = TensorRef(dtype=array.dtype.name, shape=array.shape, frame=len(self.parts))
        flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        self.parts.append(flat.data)
        return ref


class Attached:
    """Segments this process has mapped, by name, each mapped once."""

    def __init__(self, prefix: str = "trireme-") -> None:
        """Only segments whose name starts with `prefix` (that of the run) are opened."""
        self._prefix = prefix
        self._open: dict[str, Segment] = {}

    def get(self, name: str) -> Segment:
        """The segment, mapped now if it was not. Raises `SegmentError`."""
        found = self._open.get(name)
        if found is None:
            if not name.startswith(self._prefix):
                raise SegmentError(f"segment {name[:80]!r} is not one of this run's")
            found = self._open[name] = segments.attach(name)
        return found

    def close(self) -> None:
        """Unmap all."""
        while self._open:
            self._open.popitem()[1].close()

    def __enter__(self) -> "Attached":
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()


def ref_in(segment: Segment, dtype: str, shape: Sequence[int], offset: int) -> TensorRef:
    """Reference to a tensor that lies in `segment`, `offset` bytes from its start.

    Raises `SegmentError` when it would not fit.
    """
    segment.array(dtype, shape, offset)
    return TensorRef(dtype=dtype, shape=tuple(shape), segment=segment.name, offset=offset)


def read(
    ref: TensorRef, frames: Sequence[memoryview], attached: Attached | None = None
) -> NDArray[Any]:
    """The tensor `ref` points to: read-only, not copied.

    Without `attached`, references into segments are refused: a peer on another host has no
    business naming memory of this one. Raises `Malformed` or `SegmentError`.
    """
    count = _elements(ref)
    dtype = np.dtype(ref.dtype)
    if ref.segment:
        if attached is None:
            raise SegmentError(f"a reference to segment {ref.segment[:80]!r} is not accepted here")
        view = attached.get(ref.segment).array(dtype, ref.shape, ref.offset)
    else:
        if not 0 <= ref.frame < len(frames):
            raise Malformed(f"tensor refers to frame {ref.frame} of {len(frames)}")
        frame = frames[ref.frame]
        if ref.offset or frame.nbytes != count * dtype.itemsize:
            raise Malformed(
                f"frame {ref.frame} has {frame.nbytes} bytes; {ref.dtype} {ref.shape} needs "
                f"{count * dtype.itemsize}"
            )
        view = np.frombuffer(frame, dtype=dtype, count=count).reshape(ref.shape)
    view.flags.writeable = False
    return view


def _elements(ref: TensorRef) -> int:
    """How many elements `ref` has. Raises `Malformed` for types and shapes that cannot be."""
    if ref.dtype not in DTYPES:
        raise Malformed(f"unknown dtype {ref.dtype[:40]!r}; one of {sorted(DTYPES)}")
    if len(ref.shape) > MAX_DIMENSIONS or any(n < 0 for n in ref.shape):
        raise Malformed(f"impossible shape {ref.shape[: MAX_DIMENSIONS + 1]}")
    count = 1
    for n in ref.shape:
        count *= n
        if count * 8 > MAX_TENSOR_BYTES:
            raise Malformed(f"shape {ref.shape} is larger than any tensor here")
    return count
