"""What a parameter looks like to those who compute with it, and its digest.

A ternary parameter is published as packed 2-bit codes and one scale, a dense one as it is. Shards,
trainers, rollouts and readers of checkpoints all take names, shapes and digests from here.
"""

import hashlib
from collections.abc import Iterable, Mapping
from math import prod
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from actors.parameters import Parameter
from protocol.errors import Malformed

Array = NDArray[Any]


class TensorSpec(NamedTuple):
    """A tensor that is declared before it exists."""

    name: str
    dtype: str  # numpy name
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor."""
        return np.dtype(self.dtype).itemsize * prod(self.shape)


def published_tensors(parameter: Parameter) -> tuple[TensorSpec, ...]:
    """The tensors of a published parameter, in the order in which they are digested and sent."""
    if parameter.kind == "ternary":
        packed = TensorSpec("packed", "uint8", (-(-parameter.numel // 4),))
        return packed, TensorSpec("scale", "float32", ())
    return (TensorSpec("dense", "float32", parameter.shape),)


def codec_of(parameter: Parameter) -> str:
    """Name of the codec in which a whole parameter travels."""
    return "ternary2" if parameter.kind == "ternary" else "dense"


def digest(parameter: Parameter, tensors: Mapping[str, Array]) -> bytes:
    """SHA-256 (32 bytes) over the bytes of the published tensors of `parameter`, in order."""
    sha = hashlib.sha256()
    for spec in published_tensors(parameter):
        # A view of bytes: hashlib takes no strided arrays, and 0-dimensional ones become 1-D.
        sha.update(np.ascontiguousarray(tensors[spec.name]).reshape(-1).view(np.uint8).data)
    return sha.digest()


def weights_digest(digests: Iterable[bytes]) -> str:
    """SHA-256 over the digests of all parameters of a model in their fixed order, as hex."""
    return hashlib.sha256(b"".join(digests)).hexdigest()


def digest_from(text: str) -> bytes:
    """A digest from its hex. Raises `Malformed`."""
    try:
        raw = bytes.fromhex(text)
    except ValueError as error:
        raise Malformed(f"digest {text[:80]!r} is not hex") from error
    if len(raw) != 32:
        raise Malformed(f"digest of {len(raw)} bytes; SHA-256 has 32")
    return raw
