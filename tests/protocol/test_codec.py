"""Whatever arrives, decoding gives a declared message or a ProtocolError."""

import msgpack
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol import codec
from protocol import messages as m
from protocol.codec import decode, encode
from protocol.errors import Malformed, ProtocolError, Unsendable, VersionMismatch
from protocol.messages import WIRE_VERSION, Envelope
from tests.protocol.examples import EXAMPLES, parts_of

HELLO = parts_of("Hello")
ENVELOPE = [WIRE_VERSION, "Answer", "supervisor", 1, 0, 0]


def pack(thing: object) -> bytes:
    packed = msgpack.packb(thing)
    assert packed is not None
    return packed


def parts(body: object, envelope: object = ENVELOPE, *frames: bytes) -> list[bytes]:
    return [pack(envelope), pack(body), *frames]


def test_frames_are_views_of_what_arrived():
    frame = bytearray(b"tensor")
    decoded = decode([*parts({"ok": True, "text": ""}), frame])
    frame[0] = ord("T")
    assert bytes(decoded.frames[0]) == b"Tensor"


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        ({"ok": True}, "missing required field `text`"),
        ({"ok": True, "text": "", "extra": 1}, "unknown field `extra`"),
        ({"ok": 1, "text": ""}, "Expected `bool`"),
        ({"ok": True, "text": b"bytes"}, "not msgpack within the limits"),
        ({"ok": True, "text": msgpack.ExtType(5, b"x")}, "not msgpack within the limits"),
        ({"ok": True, "text": msgpack.Timestamp(0)}, "not msgpack within the limits"),
        ({1: 2}, "not msgpack within the limits"),
        ([], "Expected `object`"),
        (None, "Expected `object`"),
    ],
)
def test_a_body_of_another_shape_is_malformed(body: object, complaint: str):
    with pytest.raises(Malformed, match=complaint):
        decode(parts(body))


@pytest.mark.parametrize(
    "envelope",
    [
        None,
        {},
        [],
        ENVELOPE[:5],
        [*ENVELOPE, 0],
        [WIRE_VERSION, "Nothing", "supervisor", 1, 0, 0],
        [WIRE_VERSION, "Message", "supervisor", 1, 0, 0],
        [WIRE_VERSION, "Answer", "", 1, 0, 0],
        [WIRE_VERSION, "Answer", "x" * 201, 1, 0, 0],
        [WIRE_VERSION, "Answer", "supervisor", -1, 0, 0],
        [WIRE_VERSION, "Answer", "supervisor", 1, -1, 0],
        [WIRE_VERSION, "Answer", "supervisor", 1, 0, 0.5],
        [True, "Answer", "supervisor", 1, 0, 0],
    ],
)
def test_an_envelope_of_another_shape_is_malformed(envelope: object):
    with pytest.raises(Malformed):
        decode(parts({"ok": True, "text": ""}, envelope))


def test_another_wire_version_is_told_apart_even_when_its_envelope_differs():
    with pytest.raises(VersionMismatch, match="version 99") as caught:
        decode(parts({}, [99, "Whatever", {"new": "field"}]))
    assert caught.value.theirs == 99


@pytest.mark.parametrize("count", [0, 1, 3 + codec.MAX_FRAMES])
def test_a_message_has_two_parts_and_a_bounded_number_of_frames(count: int):
    with pytest.raises(Malformed, match="parts"):
        decode([*HELLO, *[b""] * codec.MAX_FRAMES, b""][:count])


def test_an_oversized_body_is_refused_before_it_is_unpacked():
    with pytest.raises(Malformed, match="limit"):
        decode([HELLO[0], b"\xc1" * (codec.MAX_BODY_BYTES + 1)])
    with pytest.raises(Malformed, match="limit"):
        decode([b"\xc1" * (codec.MAX_ENVELOPE_BYTES + 1), HELLO[1]])


@pytest.mark.parametrize(
    "promise",
    [
        b"\xdd\xff\xff\xff\xff",  # an array of 4 billion
        b"\xdf\xff\xff\xff\xff",  # a map of 4 billion
        b"\xdb\xff\xff\xff\xff",  # a string of 4 GB
        b"\xc6\xff\xff\xff\xff",  # binary
        b"\xc9\xff\xff\xff\xff\x01",  # an extension
        b"\xdc\x40\x01" + b"\xc0" * 0x4001,  # one entry more than arrays may have
    ],
)
def test_lengths_that_promise_too_much_are_refused(promise: bytes):
    with pytest.raises(Malformed, match="not msgpack within the limits"):
        decode([HELLO[0], promise])


@pytest.mark.parametrize("depth", [codec.MAX_DEPTH, 500, 5000, 100_000])
def test_deep_nesting_is_refused(depth: int):
    record = b"\x81\xa6record\x81\xa1k" + b"\x91" * depth + b"\xc0"
    envelope = pack([WIRE_VERSION, "LogRecord", "loader", 0, 0, 0])
    with pytest.raises(Malformed):
        decode([envelope, record])


def test_plain_data_of_modest_depth_travels():
    nested: object = 1
    for _ in range(codec.MAX_DEPTH - 4):
        nested = [nested]
    sent = m.LogRecord(record={"nested": nested, "none": None, "float": 0.5})
    head, body = encode(Envelope(WIRE_VERSION, "LogRecord", "loader", 0, 0, 0), sent)
    assert decode([head, body]).message == sent


def endless() -> dict[str, object]:
    found: dict[str, object] = {}
    found["me"] = found
    return found


@pytest.mark.parametrize(
    "record",
    [
        {"blob": object()},
        {"number": 1 << 70},
        {"text": "\ud800"},
        {"long": "x" * (codec.MAX_BODY_BYTES + 1)},
        endless(),
    ],
)
def test_what_no_receiver_would_accept_is_not_sent(record: dict[str, object]):
    with pytest.raises(Unsendable):
        codec.pack_body(m.LogRecord(record=record))


def test_a_sender_whose_name_does_not_fit_is_not_sent():
    with pytest.raises(Unsendable, match="longer than"):
        codec.pack_envelope(Envelope(WIRE_VERSION, "Hello", "x" * 2000, 0, 0, 0))


def only_protocol_errors(received: list[bytes]) -> None:
    try:
        decoded = decode(received)
    except ProtocolError:
        return
    # What gets through is a message that can be sent again.
    encode(decoded.envelope, decoded.message)


@given(st.lists(st.binary(max_size=200), max_size=5))
def test_arbitrary_bytes_never_raise_anything_else(received: list[bytes]):
    only_protocol_errors(received)


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=5)
    | st.binary(max_size=5)
    | st.builds(msgpack.ExtType, st.integers(0, 127), st.binary(max_size=16)),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(max_size=5) | st.integers() | st.binary(max_size=3), inner)
    ),
    max_leaves=10,
)


@given(st.sampled_from(sorted(EXAMPLES)), PLAIN)
def test_arbitrary_msgpack_never_raises_anything_else(kind: str, body: object):
    envelope = [WIRE_VERSION, kind, "loader", 0, 0, 0]
    try:
        received = [pack(envelope), pack(body)]
    except OverflowError:  # integers as keys may be too large to be sent at all
        return
    only_protocol_errors(received)


@given(st.sampled_from(sorted(EXAMPLES)), st.data())
@settings(max_examples=300)
def test_mutated_messages_never_raise_anything_else(kind: str, data: st.DataObject):
    received = [bytearray(part) for part in parts_of(kind)]
    for _ in range(data.draw(st.integers(1, 4), "mutations")):
        part = data.draw(st.sampled_from(received), "part")
        if not part:
            continue
        at = data.draw(st.integers(0, len(part) - 1), "at")
        match data.draw(st.sampled_from(["flip", "cut", "insert"]), "how"):
            case "flip":
                part[at] ^= data.draw(st.integers(1, 255), "bits")
            case "cut":
                del part[at:]
            case _:
                part[at:at] = data.draw(st.binary(max_size=8), "inserted")
    only_protocol_errors([bytes(part) for part in received])


@given(st.sampled_from(sorted(EXAMPLES)), st.data())
def test_one_foreign_field_anywhere_is_refused(kind: str, data: st.DataObject):
    head, body, *_ = parts_of(kind)
    fields = msgpack.unpackb(body)
    name = data.draw(st.text(max_size=8).filter(lambda text: text not in fields))
    with pytest.raises(Malformed, match="unknown field"):
        decode([head, pack({**fields, name: 0})])


def test_encoding_agrees_with_msgspecs_own():
    """Two independent encoders: what we send is plain msgpack, nothing private."""
    for kind, (message, _) in EXAMPLES.items():
        assert codec.pack_body(message) == msgspec.msgpack.encode(message), kind
