"""What passes between an attached trainer and the run: all it may say, in frames, and no more."""

from collections.abc import Iterator

import msgspec
import numpy as np
import pytest

from actors.standin.forwarding import refs_of, refuse_segments, unwrapped, without_segments, wrapped
from protocol import messages as m
from protocol import segments
from protocol.errors import Malformed
from protocol.tensors import Attached, Frames, read, ref_in
from protocol.transport import new_keypair

SEGMENT = "trireme-0badcafe-optimizer_shard.0-state"
TABLE = np.arange(12, dtype=np.float32).reshape(3, 4)


@pytest.fixture
def segment() -> Iterator[segments.Segment]:
    made = segments.create(SEGMENT, 4096)
    made.array("float32", (3, 4), 64)[...] = TABLE
    yield made
    made.close()
    segments.unlink(SEGMENT)


def update(segment: segments.Segment, out: Frames) -> m.Update:
    basis = m.BasisRef(version=2, digest="ab", tensors=(out.add(np.ones(2, np.float16)),))
    tensors = (ref_in(segment, "float32", (3, 4), 64), out.add(np.zeros(3, np.int8)))
    return m.Update(version=3, param="p", codec="dense", digest="cd", tensors=tensors, basis=basis)


def test_tensors_in_shared_memory_leave_as_frames(segment: segments.Segment):
    out = Frames()
    message = update(segment, out)
    with Attached("trireme-0badcafe-") as attached:
        moved, frames = without_segments(message, out.parts, attached)
        assert isinstance(moved, m.Update)
        assert moved.basis is not None
    segment.array("float32", (3, 4), 64)[...] = 0.0  # the next version
    assert not any(ref.segment for ref in refs_of(moved))
    whole, small = (read(ref, frames) for ref in moved.tensors)
    assert np.array_equal(whole, TABLE)
    assert np.array_equal(small, np.zeros(3, np.int8))
    assert np.array_equal(read(moved.basis.tensors[0], frames), np.ones(2, np.float16))
    assert msgspec.structs.replace(moved, tensors=(), basis=None) == msgspec.structs.replace(
        message, tensors=(), basis=None
    )


def test_what_lies_in_frames_already_is_passed_on_as_it_is():
    out = Frames()
    ref = out.add(TABLE)
    message = m.SketchRequest(step=1, param="p", round=1, tensors=(ref,))
    with Attached("trireme-0badcafe-") as attached:
        assert without_segments(message, out.parts, attached) == (message, out.parts)


def test_a_message_arrives_as_it_was():
    out = Frames()
    message = m.Sketch(step=1, rank=1, param="p", round=0, tokens=5, tensors=(out.add(TABLE),))
    forward, parts = wrapped("exchange/2", message, out.parts)
    assert (forward.channel, forward.kind) == ("exchange/2", "Sketch")
    views = [memoryview(part) for part in parts]
    found, frames = unwrapped(forward, views, "trainer/1")
    assert found == message
    assert np.array_equal(read(message.tensors[0], frames), TABLE)


@pytest.mark.parametrize(
    ("channel", "message", "speaker", "words"),
    [
        ("exchange/0", m.MetricsRequest(after=0), "trainer/1", "may not say MetricsRequest"),
        ("batches", m.PromptRequest(count=1, draw=0), "trainer/1", "may not say PromptRequest"),
        ("control", m.StopRequest(reason="mine"), "trainer/1", "may not say StopRequest"),
        ("samples", m.Goodbye(failed=""), "trainer/1", "may not say Goodbye"),
        ("exchange", m.CodesRequest(version=1), "trainer/1", "no channel 'exchange'"),
        ("elsewhere", m.CodesRequest(version=1), "trainer/1", "no channel 'elsewhere'"),
        ("exchange/0", m.CodesRequest(version=1), "nobody/1", "may not say CodesRequest"),
        ("batches", m.CodesRequest(version=1), "trainer/1", "may not say CodesRequest"),
    ],
)
def test_nothing_passes_that_the_channels_table_does_not_allow(
    channel: str, message: m.Message, speaker: str, words: str
):
    forward, parts = wrapped(channel, message, ())
    with pytest.raises(Malformed, match=words):
        unwrapped(forward, [memoryview(part) for part in parts], speaker)


@pytest.mark.parametrize(
    ("kind", "frames", "words"),
    [
        ("CodesRequest", (), "without a body"),
        ("Nothing", (b"\x80",), "unknown kind"),
        ("CodesRequest", (b"\x80",), "version"),
        ("CodesRequest", (b"\xc1",), "not msgpack"),
        ("CodesRequest", (b"\xdd\xff\xff\xff\xff",), "not msgpack"),
    ],
)
def test_nonsense_is_malformed_and_nothing_else(kind: str, frames: tuple[bytes, ...], words: str):
    forward = m.Forward(channel="exchange/0", kind=kind)
    with pytest.raises(Malformed, match=words):
        unwrapped(forward, [memoryview(frame) for frame in frames], "trainer/1")


def test_other_hosts_name_no_memory_of_this_one(segment: segments.Segment):
    out = Frames()
    with pytest.raises(Malformed, match="shared memory"):
        refuse_segments(update(segment, out))
    refuse_segments(m.InviteRequest(role="trainer", public_key=new_keypair()[0], label="x"))
