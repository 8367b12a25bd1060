"""What goes into a `Node` and what comes out of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from protocol import codec
from protocol.channels import channel
from protocol.errors import Unsendable
from protocol.messages import Envelope, Message, Role


class Sent(StrEnum):
    """What became of a message. Only SENT messages are on their way."""

    SENT = "sent"
    NO_PEER = "no peer"  # nobody of that name has been heard on this channel, or it has gone
    FULL = "full"  # the queue to that peer is at its high-water mark: try again later


@dataclass(frozen=True, slots=True)
class Received:
    """One message that passed every check. `frames` are views, valid as long as they are kept."""

    channel: str
    sender: str
    role: Role
    incarnation: int
    envelope: Envelope
    message: Message
    frames: tuple[memoryview, ...]


@dataclass(frozen=True, slots=True)
class Packed:
    """A message that has been checked and encoded, but for its envelope."""

    channel: str
    kind: str
    body: bytes
    frames: tuple[codec.Buffer, ...]
    nbytes: int


def pack(name: str, role: Role, message: Message, frames: Sequence[codec.Buffer] = ()) -> Packed:
    """Check and encode what `role` wants to say on channel `name`. Raises `Unsendable`."""
    spec, kind = channel(name), type(message).__name__
    if not spec.allows(role, message):
        raise Unsendable(f"a {role} may not say {kind} on {name}: see channels.py")
    if len(frames) > codec.MAX_FRAMES:
        raise Unsendable(f"{kind} with {len(frames)} frames; the limit is {codec.MAX_FRAMES}")
    body = codec.pack_body(message)
    sizes = [memoryview(frame).nbytes for frame in frames]
    if max(sizes, default=0) > spec.max_part_bytes:
        raise Unsendable(
            f"{kind} with a frame of {max(sizes)} bytes on {name}; the limit is "
            f"{spec.max_part_bytes}"
        )
    return Packed(name, kind, body, tuple(frames), len(body) + sum(sizes))
