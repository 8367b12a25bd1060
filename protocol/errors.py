"""What can go wrong on the wire. A branch of the tree is something a caller does differently.

ProtocolError
|- Malformed         the bytes are not one of our messages       -> drop them, count, keep running
|- VersionMismatch   the peer was built from another schema      -> refuse it, say so, stop the run
|- Unsendable        what we were told to send breaks the limits -> a bug of ours: fix the caller
|- Refused           the peer does not let us in                 -> tell the person, do not retry
|  `- Unauthorised   ... because of our key                      -> the same, whenever it is said
|- EndpointError     an address cannot be used                   -> tell the person which and why
|- SegmentError      a shared segment is absent, short, foreign  -> ask for the tensor again
`- DeadlinePassed    something named took longer than allowed    -> the actor gives up and restarts
"""


class ProtocolError(Exception):
    """Base of everything this package raises on purpose."""


class Malformed(ProtocolError):
    """These bytes are not a message: truncated, oversized, of a wrong type, with unknown fields."""


class VersionMismatch(ProtocolError):
    """The sender speaks another version of the wire."""

    def __init__(self, theirs: int, ours: int) -> None:
        super().__init__(
            f"peer speaks wire version {theirs}, this process speaks {ours}: "
            "start every actor of a run, remote workers included, from the same release"
        )
        self.theirs = theirs
        self.ours = ours


class Unsendable(ProtocolError):
    """A message of ours that no receiver would accept: too long, too deep, or not plain data."""


class Refused(ProtocolError):
    """The other side does not let us in: wrong key, revoked key, or silence during a handshake."""


class Unauthorised(Refused):
    """The other side does not know our key, or knows it no more."""


class EndpointError(ProtocolError):
    """An endpoint cannot be bound or connected: busy port, unsafe directory, tcp without keys."""


class SegmentError(ProtocolError):
    """A shared memory segment is missing, too short, badly named or not ours."""


class DeadlinePassed(ProtocolError):
    """Something with a name took longer than it was allowed to."""
