"""Messages of other channels on their way between an attached trainer and those it works with.

Both ends use this file: what may be said on a channel is judged by the table of that channel, as
if it had been said there. Towards another host, tensors in shared memory become frames; from there
none are taken.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import numpy as np

from protocol import codec
from protocol.channels import channel, role_of
from protocol.codec import Buffer
from protocol.errors import Malformed
from protocol.messages import Forward, Message, TensorRef
from protocol.tensors import Attached, Frames, read


def wrapped(
    name: str, message: Message, frames: Sequence[Buffer], sender: str = ""
) -> tuple[Forward, list[Buffer]]:
    """`message` of channel `name` as it travels. Raises `Unsendable`."""
    forward = Forward(channel=name, kind=type(message).__name__, sender=sender)
    return forward, [codec.pack_body(message), *frames]


def unwrapped(
    forward: Forward, frames: Sequence[memoryview], speaker: str
) -> tuple[Message, Sequence[memoryview]]:
    """What `speaker` says on the channel it names, if it may. Raises `Malformed`."""
    try:
        table = channel(forward.channel)
    except ValueError as error:
        raise Malformed(f"forwarded: {error}") from error
    if not frames:
        raise Malformed(f"forwarded {forward.kind[:80]!r} without a body")
    message = codec.decode_body(forward.kind, frames[0])
    role = role_of(speaker)
    if role is None or not table.allows(role, message):
        raise Malformed(f"forwarded: {speaker[:80]} may not say {forward.kind} there")
    return message, frames[1:]


def refs_of(value: Any) -> Iterator[TensorRef]:
    """Every tensor that a message speaks of."""
    if isinstance(value, TensorRef):
        yield value
    elif isinstance(value, tuple):
        for item in value:  # pyright: ignore[reportUnknownVariableType]
            yield from refs_of(item)
    elif isinstance(value, msgspec.Struct):
        for name in value.__struct_fields__:
            yield from refs_of(getattr(value, name))


def refuse_segments(message: Message) -> None:
    """Raise `Malformed` when somebody of another host names memory of this one."""
    if any(ref.segment for ref in refs_of(message)):
        raise Malformed("forwarded: a reference to shared memory from another host")


def without_segments(
    message: Message, frames: Sequence[memoryview], attached: Attached
) -> tuple[Message, list[memoryview]]:
    """The same message with all its tensors in frames, and the frames. Raises `ProtocolError`.

    Copied at once: what lies in a segment is overwritten in time.
    """
    if not any(ref.segment for ref in refs_of(message)):
        return message, list(frames)
    out = Frames()

    def moved(value: Any) -> Any:
        if isinstance(value, TensorRef):
            array = read(value, frames, attached)
            return out.add(np.array(array) if value.segment else array)
        if isinstance(value, tuple):
            return tuple(moved(item) for item in value)  # pyright: ignore[reportUnknownVariableType]
        if isinstance(value, msgspec.Struct):
            changed = {name: moved(getattr(value, name)) for name in value.__struct_fields__}
            return msgspec.structs.replace(value, **changed)
        return value

    return moved(message), out.parts
