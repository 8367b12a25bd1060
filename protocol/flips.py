"""Which of many 2-bit codes changed, in few bytes.

Ternary codes travel packed, four in a byte, the first in the lowest bits; each of the three values
has a 2-bit pattern, one pattern is unused. From one step to the next about one code in a hundred
changes, so an update carries only positions and new values:

    positions   gaps between flips, Rice-coded (unary quotients, then k low bits each): within 4 %
                of the entropy of random positions, where XOR + zstd needs about twice as much
    values      one bit per flip, because only two other values exist; one bit for all of them
                together when every non-zero code that flipped became zero, as nearly all do

Above `TRY_BOTH` (the first steps of a run) XOR of the packed bytes through zstd is made too and
the smaller is kept. Bytes are a function of the two code arrays alone: the same on every machine
with the same zstd. Measured, 1 Mi codes, bytes (bits per code): 0.05 % flips 855 (0.007), 0.5 %
6.2 k (0.047), 1.3 % 13.9 k (0.11), 5 % 40.5 k (0.31); XOR + zstd 1.7 k, 12.0 k, 26.9 k, 67.6 k.
"""

import struct
from typing import NamedTuple

import numpy as np
import zstandard
from numpy.typing import NDArray

from protocol.errors import Malformed

Bytes = NDArray[np.uint8]

# A code is stored as code + 1; the pattern 3 never occurs.
MINUS, ZERO, PLUS = 0, 1, 2
# A larger share of flips than this and XOR + zstd may win (it does from about a quarter on).
TRY_BOTH = 0.15

_GAPS, _XOR = 0, 1
_HEAD = struct.Struct("<BBBxII")  # method, k, any jumps, flips, bytes of the unary part
_PLACES = np.array([0, 2, 4, 6], dtype=np.uint8)


class Encoded(NamedTuple):
    """An encoded difference and how many codes it changes."""

    data: bytes
    flips: int


def packed_bytes(count: int) -> int:
    """Bytes that hold `count` codes."""
    return -(-count // 4)


def encode(old: Bytes, new: Bytes, count: int) -> Encoded:
    """What turns `old` into `new`, both `packed_bytes(count)` long."""
    difference = old ^ new
    positions = _positions(difference)
    if positions.size > TRY_BOTH * count:
        gaps, xor = _encode_gaps(old, new, positions), _encode_xor(difference, positions.size)
        return Encoded(min(gaps, xor, key=len), positions.size)
    return Encoded(_encode_gaps(old, new, positions), positions.size)


def decode(old: Bytes, data: bytes | memoryview, count: int) -> Bytes:
    """The codes that `encode(old, new, count)` was made from. `old` stays as it is.

    Raises `Malformed` for bytes that no `encode` on these codes can have made.
    """
    view = memoryview(data).cast("B")
    if view.nbytes < _HEAD.size:
        raise Malformed(f"flips: {view.nbytes} bytes; the head alone has {_HEAD.size}")
    method, k, jumps, flips, unary = _HEAD.unpack_from(view)
    if flips > count or k > 31 or jumps > 1:
        raise Malformed(f"flips: {flips} of {count} codes, k {k}, jumps {jumps}")
    body = view[_HEAD.size :]
    if method == _GAPS:
        return _decode_gaps(old, body, count, (k, jumps, flips, unary))
    if method == _XOR:
        return _decode_xor(old, body, count, flips)
    raise Malformed(f"flips: unknown method {method}")


def _positions(difference: Bytes) -> NDArray[np.int64]:
    """Indices of the codes whose bits differ, ascending."""
    touched = np.flatnonzero(difference)
    codes = (difference[touched, None] >> _PLACES) & 3
    row, place = np.nonzero(codes)
    return (touched[row] * 4 + place).astype(np.int64)


def _codes_at(packed: Bytes, positions: NDArray[np.int64]) -> Bytes:
    return ((packed[positions >> 2] >> _PLACES[positions & 3]) & 3).astype(np.uint8)


def _encode_gaps(old: Bytes, new: Bytes, positions: NDArray[np.int64]) -> bytes:
    flips = positions.size
    if not flips:
        return _HEAD.pack(_GAPS, 0, 0, 0, 0)
    gaps = np.diff(positions, prepend=-1) - 1
    k = _rice_parameter(gaps)
    ends = np.cumsum((gaps >> k) + 1)
    bits = np.zeros(int(ends[-1]), dtype=np.uint8)
    bits[ends - 1] = 1
    unary = np.packbits(bits).tobytes()
    low = np.packbits((gaps[:, None] >> np.arange(k)) & 1 != 0).tobytes()
    before, after = _codes_at(old, positions), _codes_at(new, positions)
    was_zero = before == ZERO
    signs = np.packbits(after[was_zero] == MINUS).tobytes()
    # A non-zero code either became zero (0) or jumped to the other sign (1).
    jumped = after[~was_zero] != ZERO
    jumps = bool(jumped.any())
    tail = np.packbits(jumped).tobytes() if jumps else b""
    return _HEAD.pack(_GAPS, k, jumps, flips, len(unary)) + unary + low + signs + tail


def _rice_parameter(gaps: NDArray[np.int64]) -> int:
    """The number of low bits that makes the code shortest."""
    guess = max(0, int(np.log2(max(1.0, float(gaps.mean()) * 0.6931))))
    sizes = {k: int((gaps >> k).sum()) + gaps.size * (k + 1) for k in (guess, guess + 1)}
    return min(sizes, key=lambda k: (sizes[k], k))


def _decode_gaps(old: Bytes, body: memoryview, count: int, head: tuple[int, ...]) -> Bytes:
    k, jumps, flips, unary_bytes = head
    low_bytes = -(-flips * k // 8)
    if body.nbytes < unary_bytes + low_bytes:
        raise Malformed(f"flips: {body.nbytes} bytes for {flips} positions; some are missing")
    positions = _decode_positions(body, count, head)
    new = old.copy()
    before = _codes_at(old, positions)
    was_zero = before == ZERO
    zeros = int(was_zero.sum())
    rest = body[unary_bytes + low_bytes :]
    sign_bytes, jump_bytes = -(-zeros // 8), -(-(flips - zeros) // 8) if jumps else 0
    if rest.nbytes != sign_bytes + jump_bytes:
        raise Malformed(f"flips: {rest.nbytes} bytes of values, expected {sign_bytes + jump_bytes}")
    after = np.full(flips, ZERO, dtype=np.uint8)
    after[was_zero] = np.where(_bits(rest[:sign_bytes], zeros), MINUS, PLUS)
    if jumps:
        other = before[~was_zero] ^ (PLUS ^ MINUS)
        after[~was_zero] = np.where(_bits(rest[sign_bytes:], flips - zeros), other, ZERO)
    # Several flips may share a byte, so bits are combined rather than assigned.
    change = (before ^ after) << _PLACES[positions & 3]
    np.bitwise_xor.at(new, positions >> 2, change)
    return new


def _decode_positions(body: memoryview, count: int, head: tuple[int, ...]) -> NDArray[np.int64]:
    """Positions of the flips, checked to lie among `count` codes."""
    k, _, flips, unary_bytes = head
    ends = np.flatnonzero(np.unpackbits(np.frombuffer(body[:unary_bytes], np.uint8)))
    if ends.size != flips:
        raise Malformed(f"flips: {ends.size} positions where {flips} were promised")
    if not flips:
        return ends
    quotients = np.diff(ends, prepend=-1) - 1
    low_bits = _bits(body[unary_bytes : unary_bytes + -(-flips * k // 8)], flips * k)
    low = low_bits.reshape(flips, k).astype(np.int64) @ (1 << np.arange(k, dtype=np.int64))
    # Exact integers first: an array would overflow silently on hostile bytes.
    last = (int(quotients.sum()) << k) + int(low.sum()) + flips - 1
    if last >= count:
        raise Malformed(f"flips: position {last} of {count} codes")
    return np.cumsum((quotients << k) + low + 1) - 1


def _bits(view: memoryview, count: int) -> Bytes:
    return np.unpackbits(np.frombuffer(view, np.uint8), count=count)


def _encode_xor(difference: Bytes, flips: int) -> bytes:
    head = _HEAD.pack(_XOR, 0, 0, flips, 0)
    return head + zstandard.ZstdCompressor(level=3).compress(difference.tobytes())


def _decode_xor(old: Bytes, body: memoryview, count: int, flips: int) -> Bytes:
    try:
        # The size a frame declares is allocated before anything is checked, so it is asked first.
        declared = zstandard.get_frame_parameters(body).content_size
        if declared != old.size:
            raise Malformed(f"flips: zstd frame of {declared} bytes where {old.size} are expected")
        raw = zstandard.ZstdDecompressor().decompress(body, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise Malformed(f"flips: {error}") from error
    new = old ^ np.frombuffer(raw, np.uint8)
    positions = _positions(old ^ new)
    if positions.size != flips or (positions >= count).any() or _has_unused(new):
        raise Malformed(f"flips: not {flips} flips between ternary codes")
    return new


def _has_unused(packed: Bytes) -> bool:
    return bool((packed & (packed >> 1) & 0x55).any())
