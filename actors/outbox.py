"""Where the acting halves of actors put what they say: a mailbox, or a list in tests."""

from collections.abc import Sequence
from typing import Any, Protocol

from protocol.messages import Message


class Outbox(Protocol):
    """`actors.loop.Mailbox.send`."""

    def send(
        self,
        channel: str,
        message: Message,
        *,
        to: str = "",
        frames: Sequence[Any] = (),
        step: int = 0,
    ) -> None:
        """Queue a message; frames must stay unchanged until it has left."""
        ...
