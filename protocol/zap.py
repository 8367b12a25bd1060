"""ZeroMQ's authentication protocol (ZAP, RFC 27), the deciding half: one request, one reply.

libzmq asks at every handshake of a CURVE server. The user id of an admitted peer is its public
key; every message it sends carries it, so that its role is looked up by key and never believed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from protocol.keys import Allow, z85

ENDPOINT = "inproc://zeromq.zap.01"
_VERSION = b"1.0"
_KEY_BYTES = 32


@dataclass(frozen=True, slots=True)
class Verdict:
    """`reply` for libzmq; `refused` says in words who was not let in ("" when let in)."""

    reply: list[bytes]
    refused: str


def answer(request: Sequence[bytes], allow_of: Mapping[bytes, Allow]) -> Verdict:
    """Decide about one handshake.

    `request`: the frames after the empty delimiter. `allow_of`: allow-list of each ZAP domain,
    which is the name of the channel that was knocked at.
    """
    number = request[1] if len(request) > 1 else b""
    if len(request) != 7 or request[0] != _VERSION or request[5] != b"CURVE":
        return _refuse(number, "a handshake that is not CURVE")
    peer = request[3].decode(errors="replace")
    allow = allow_of.get(request[2])
    if allow is None or len(request[6]) != _KEY_BYTES:
        return _refuse(number, f"a handshake from {peer} for no channel of ours")
    public_key = z85(request[6])
    try:
        admitted = allow(public_key)
    except OSError as error:
        return _refuse(number, f"{peer}: the allow-list cannot be read ({error})")
    if admitted is None:
        at = request[2].decode(errors="replace")
        return _refuse(number, f"{peer}: key {public_key} is not on the allow-list of {at}")
    return Verdict([_VERSION, number, b"200", b"OK", public_key.encode(), b""], "")


def _refuse(number: bytes, why: str) -> Verdict:
    return Verdict([_VERSION, number, b"400", b"not on the allow-list", b"", b""], why)
