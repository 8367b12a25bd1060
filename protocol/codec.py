"""Messages to bytes and back: `[envelope][body][frame...]`.

Envelope and body are msgpack, frames are raw bytes that are never looked into here. Whatever
arrives, `decode` either returns a message of a declared type or raises a `ProtocolError`:

1. sizes and counts are checked before anything is unpacked;
2. `msgpack` unpacks under a limit for every length, without extension types and without binary;
3. `msgspec.convert` checks the result against the declared struct; unknown fields are refused;
4. fields of type Any may only hold plain data of bounded depth.

`encode` keeps the same limits, so nothing is sent that nobody would accept.

Not covered: the memory of a multipart message that never ends. libzmq collects all parts before
handing any of them over; only peers inside the 0700 directory or with an admitted key get so far.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast, get_type_hints

import msgpack
import msgspec

from protocol import messages
from protocol.errors import Malformed, Unsendable, VersionMismatch
from protocol.messages import WIRE_VERSION, Envelope, Message

Buffer = bytes | bytearray | memoryview

MAX_ENVELOPE_BYTES = 1024
# The longest legitimate bodies are status documents and lists of digests: well under a megabyte.
MAX_BODY_BYTES = 4 * 1024 * 1024
# msgpack allocates what an array's header promises, at each of up to 1024 nested levels. This
# bounds the worst case at 128 MiB of untouched memory; real arrays have hundreds of entries.
MAX_ITEMS = 16384
MAX_NAME_CHARS = 200
MAX_DEPTH = 16  # of plain data within fields of type Any
MAX_FRAMES = 64

KINDS: dict[str, type[Message]] = {
    name: thing
    for name, thing in vars(messages).items()
    if isinstance(thing, type) and issubclass(thing, Message) and thing is not Message
}


def _is_open(kind: type[Message]) -> bool:
    return any("Any" in str(hint) for hint in get_type_hints(kind).values())


# Kinds with a field of type Any: only these need a look at what the field holds.
_OPEN_KINDS = frozenset(name for name, kind in KINDS.items() if _is_open(kind))
_PLAIN = (str, int, float, bool, type(None))


@dataclass(frozen=True, slots=True)
class Decoded:
    """One message, checked. `frames` are views of the buffers that were decoded, not copies."""

    envelope: Envelope
    message: Message
    frames: tuple[memoryview, ...]


def encode(envelope: Envelope, message: Message) -> tuple[bytes, bytes]:
    """Envelope and body as they travel. Raises `Unsendable`."""
    return pack_envelope(envelope), pack_body(message)


def pack_envelope(envelope: Envelope) -> bytes:
    """The first part of a message. Raises `Unsendable`."""
    try:
        head = _packb(msgspec.to_builtins(envelope))
    except (TypeError, ValueError, OverflowError) as error:
        raise Unsendable(f"envelope of {envelope.kind}: {error}") from error
    if len(head) > MAX_ENVELOPE_BYTES:
        raise Unsendable(f"envelope of {envelope.kind}: longer than {MAX_ENVELOPE_BYTES} bytes")
    return head


def pack_body(message: Message) -> bytes:
    """The second part of a message. Raises `Unsendable`."""
    kind = type(message).__name__
    try:
        plain = msgspec.to_builtins(message)
        if kind in _OPEN_KINDS:
            _check_plain(plain)
        body = _packb(plain)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise Unsendable(f"{kind} holds something that cannot be encoded: {error}") from error
    if len(body) > MAX_BODY_BYTES:
        raise Unsendable(
            f"body of {kind}: {len(body)} bytes, limit {MAX_BODY_BYTES}; put bulk into frames"
        )
    return body


def decode(parts: Sequence[Buffer]) -> Decoded:
    """The message in `parts`. Raises `Malformed` or `VersionMismatch`, and nothing else."""
    if not 2 <= len(parts) <= 2 + MAX_FRAMES:
        raise Malformed(
            f"{len(parts)} parts; a message has an envelope, a body, <= {MAX_FRAMES} frames"
        )
    envelope = _decode_envelope(parts[0])
    message = decode_body(envelope.kind, parts[1])
    return Decoded(envelope, message, tuple(memoryview(part).cast("B") for part in parts[2:]))


def decode_body(name: str, body: Buffer) -> Message:
    """The message of the kind called `name` with that body. Raises `Malformed`."""
    kind = KINDS.get(name)
    if kind is None:
        raise Malformed(f"unknown kind of message: {name[:80]!r}")
    raw = _unpack(body, MAX_BODY_BYTES, f"body of {name}")
    try:
        if name in _OPEN_KINDS:
            _check_plain(raw)
        return msgspec.convert(raw, kind)
    except (msgspec.ValidationError, TypeError, ValueError, RecursionError) as error:
        raise Malformed(f"body of {name}: {error}") from error


def _packb(plain: object) -> bytes:
    return cast("bytes", msgpack.packb(plain))


def _decode_envelope(part: Buffer) -> Envelope:
    raw = _unpack(part, MAX_ENVELOPE_BYTES, "envelope")
    if isinstance(raw, list) and raw:
        wire = cast("list[object]", raw)[0]
        if type(wire) is int and wire != WIRE_VERSION:
            raise VersionMismatch(wire, WIRE_VERSION)
    try:
        envelope = msgspec.convert(raw, Envelope)
    except (msgspec.ValidationError, TypeError, ValueError, RecursionError) as error:
        raise Malformed(f"envelope: {error}") from error
    if not 0 < len(envelope.sender) <= MAX_NAME_CHARS:
        raise Malformed(f"envelope: a sender's name has 1 to {MAX_NAME_CHARS} characters")
    if envelope.incarnation < 0 or envelope.seq < 0 or envelope.step < 0:
        raise Malformed("envelope: incarnation, seq and step are never negative")
    return envelope


def _unpack(part: Buffer, limit: int, what: str) -> Any:
    size = memoryview(part).nbytes
    if size > limit:
        raise Malformed(f"{what}: {size} bytes, limit {limit}")
    # An array or map cannot have more entries than there are bytes to hold them.
    items = min(MAX_ITEMS, size)
    try:
        found = cast("Any", msgpack.unpackb)(
            part,
            raw=False,
            use_list=True,
            strict_map_key=True,
            max_str_len=size,
            max_bin_len=0,
            max_array_len=items,
            max_map_len=items,
            max_ext_len=0,
        )
    except (ValueError, TypeError, OverflowError, RecursionError, msgpack.UnpackException) as error:
        raise Malformed(f"{what}: not msgpack within the limits: {error}") from error
    return found


def _check_plain(value: object) -> None:
    """Refuse nesting beyond `MAX_DEPTH` and anything that is not JSON-like.

    Raises `ValueError` or `TypeError`.
    """
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        inner: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                inner.extend(item.keys())  # pyright: ignore[reportUnknownArgumentType]
                inner.extend(item.values())  # pyright: ignore[reportUnknownArgumentType]
            elif isinstance(item, list | tuple):
                inner.extend(item)  # pyright: ignore[reportUnknownArgumentType]
            elif not isinstance(item, _PLAIN):
                raise TypeError(f"a value of type {type(item).__name__} is not plain data")
        if not inner:
            return
        level = inner
    raise ValueError(f"plain data nested deeper than {MAX_DEPTH} levels")
