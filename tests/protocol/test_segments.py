"""Shared segments, and tensors that lie in them or in frames."""

import os
import subprocess
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import segments, tensors
from protocol.errors import Malformed, ProtocolError, SegmentError
from protocol.messages import TensorRef
from protocol.segments import SHM_DIR, Segment
from protocol.tensors import Attached, Frames, read, ref_in
from tests.harness import python, python_env

RUN = f"test{os.getpid()}"


@pytest.fixture
def segment() -> Iterator[Segment]:
    name = segments.segment_name(RUN, "trainer/0", "gradients")
    with segments.create(name, 4096) as made:
        yield made
    segments.unlink(name)
    assert segments.listing(f"trireme-{RUN}-") == []


def test_a_segment_is_private_zeroed_and_outlives_its_creator(segment: Segment):
    assert segment.name == f"trireme-{RUN}-trainer.0-gradients"
    assert (SHM_DIR / segment.name).stat().st_mode & 0o777 == 0o600
    view = segment.array("float32", (4, 8), 128)
    assert not view.any()
    view[:] = 7
    del view
    segment.close()
    with segments.attach(segment.name) as again:
        assert again.nbytes == 4096
        assert (again.array("float32", (4, 8), 128) == 7).all()


def test_views_stay_valid_after_close(segment: Segment):
    view = segment.array("int32", (10,))
    segment.close()
    view[:] = 3
    assert view.sum() == 30
    with pytest.raises(SegmentError, match="closed"):
        segment.array("int32", (10,))


def test_two_mappings_see_the_same_bytes(segment: Segment):
    with segments.attach(segment.name) as other:
        segment.array("uint8", (4096,))[:] = 9
        assert (other.array("uint8", (4096,)) == 9).all()


@pytest.mark.parametrize(
    ("dtype", "shape", "offset"),
    [
        ("float32", (1025,), 0),
        ("float32", (1024,), 4),
        ("float32", (1,), 2),
        ("float32", (1,), -4),
        ("float32", (-1,), 0),
        ("float32", (1 << 40, 1 << 40), 0),
    ],
)
def test_a_view_outside_the_segment_is_refused(
    segment: Segment, dtype: str, shape: tuple[int, ...], offset: int
):
    with pytest.raises(SegmentError):
        segment.array(dtype, shape, offset)
    with pytest.raises(SegmentError):
        ref_in(segment, dtype, shape, offset)


def test_creating_twice_says_so(segment: Segment):
    with pytest.raises(SegmentError, match="File exists"):
        segments.create(segment.name, 4096)


def test_more_than_there_is_memory_is_refused_at_once_and_leaves_nothing():
    name = segments.segment_name(RUN, "x", "huge")
    with pytest.raises(SegmentError, match="df -h /dev/shm"):
        segments.create(name, 1 << 50)
    assert segments.listing(name) == []


def test_who_is_killed_while_it_makes_one_is_in_nobodys_way():
    name = segments.segment_name(RUN, "x", "half")
    script = (
        "import os; from protocol import segments; segments._PIECE_BYTES = 4096; beats = []\n"
        "def pulse():\n beats.append(1)\n if len(beats) == 3: os.kill(os.getpid(), 9)\n"
        f"segments.create({name!r}, 16384, pulse)"
    )
    done = subprocess.run(python("-c", script), check=False, env=python_env())
    assert done.returncode == -9
    assert segments.listing(name) == [f"{name}.new"]  # found by whoever removes all of a run
    with pytest.raises(SegmentError, match="No such file"):
        segments.attach(name)
    with segments.create(name, 16384) as made:
        assert not made.array("uint8", (16384,)).any()
    assert segments.listing(name) == [name]
    segments.unlink(name)


def test_making_and_removing_much_shows_that_it_goes_on(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(segments, "_PIECE_BYTES", 4096)
    name = segments.segment_name(RUN, "x", "large")
    beats: list[int] = []
    segments.create(name, 10_000, lambda: beats.append(1)).close()
    assert len(beats) == 3
    assert (SHM_DIR / name).stat().st_size == 10_000
    assert segments.discard(name, lambda: beats.append(1))
    assert len(beats) == 6
    assert segments.listing(name) == []
    assert not segments.discard(name, lambda: beats.append(1))


@pytest.mark.parametrize(
    "name", ["", "other", "trireme-../x", "trireme-a/b", "trireme-" + "x" * 300]
)
def test_names_that_are_not_ours_are_refused(name: str):
    for action in (segments.attach, segments.unlink):
        with pytest.raises(SegmentError, match="bad segment name"):
            action(name)
    with pytest.raises(SegmentError, match="bad segment name"):
        segments.create(name, 16)


def test_an_absent_segment_is_an_error_to_map_and_nothing_to_remove():
    name = segments.segment_name(RUN, "nobody", "nothing")
    with pytest.raises(SegmentError, match="No such file"):
        segments.attach(name)
    assert segments.unlink(name) is False


def test_links_and_empty_files_are_not_mapped(segment: Segment):
    link = SHM_DIR / f"trireme-{RUN}-link"
    empty = SHM_DIR / f"trireme-{RUN}-empty"
    link.symlink_to(SHM_DIR / segment.name)
    empty.touch()
    try:
        for path in (link, empty):
            with pytest.raises(SegmentError):
                segments.attach(path.name)
    finally:
        link.unlink()
        empty.unlink()


def test_a_tensor_reads_the_same_from_a_frame_and_from_a_segment(segment: Segment):
    tensor = np.arange(12, dtype=np.float32).reshape(3, 4)
    frames = Frames()
    in_frame = frames.add(tensor)
    segment.array("float32", (3, 4), 64)[:] = tensor
    in_segment = ref_in(segment, "float32", (3, 4), 64)
    with Attached(f"trireme-{RUN}-") as attached:
        for ref in (in_frame, in_segment):
            found = read(ref, frames.parts, attached)
            np.testing.assert_array_equal(found, tensor)
            assert not found.flags.writeable
            del found


def test_reading_does_not_copy(segment: Segment):
    with Attached() as attached:
        found = read(ref_in(segment, "uint8", (16,), 0), [], attached)
        segment.array("uint8", (16,))[:] = 5
        assert found.sum() == 80
        del found
    frame = bytearray(16)
    found = read(TensorRef(dtype="uint8", shape=(16,), frame=0), [memoryview(frame)])
    frame[0] = 1
    assert found.sum() == 1


def test_a_transposed_tensor_arrives_as_it_looks():
    tensor = np.arange(6, dtype=np.int32).reshape(2, 3).T
    frames = Frames()
    ref = frames.add(tensor)
    np.testing.assert_array_equal(read(ref, frames.parts), tensor)


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2)])
def test_scalars_and_empty_tensors_travel(shape: tuple[int, ...]):
    frames = Frames()
    ref = frames.add(np.zeros(shape, np.float32))
    assert read(ref, frames.parts).shape == shape


def test_a_type_without_a_name_on_the_wire_is_not_sent():
    with pytest.raises(Malformed, match="complex64 does not travel"):
        Frames().add(np.zeros(2, np.complex64))


def test_references_into_memory_are_refused_where_no_segments_are_expected(segment: Segment):
    ref = ref_in(segment, "uint8", (16,), 0)
    with pytest.raises(SegmentError, match="not accepted here"):
        read(ref, [])
    with Attached("trireme-otherrun-") as attached, pytest.raises(SegmentError, match="not one of"):
        read(ref, [], attached)


@pytest.mark.parametrize(
    "ref",
    [
        TensorRef(dtype="float32", shape=(4,), frame=0),  # the frame has 8 bytes
        TensorRef(dtype="float32", shape=(2,), frame=1),
        TensorRef(dtype="float32", shape=(2,), frame=-1),
        TensorRef(dtype="float32", shape=(2,), frame=0, offset=4),
        TensorRef(dtype="object", shape=(1,), frame=0),
        TensorRef(dtype="float32", shape=(-2, -1), frame=0),
        TensorRef(dtype="float32", shape=(2,) + (1,) * tensors.MAX_DIMENSIONS, frame=0),
        TensorRef(dtype="float32", shape=(1 << 62, 1 << 62), frame=0),
    ],
)
def test_a_reference_that_does_not_fit_its_frame_is_malformed(ref: TensorRef):
    with pytest.raises(Malformed):
        read(ref, [memoryview(bytes(8))])


@given(
    st.builds(
        TensorRef,
        dtype=st.sampled_from(sorted(tensors.DTYPES)) | st.text(max_size=9),
        shape=st.lists(st.integers(-2, 9) | st.integers(), max_size=9).map(tuple),
        frame=st.integers(-2, 3),
        segment=st.just("") | st.text(max_size=9),
        offset=st.integers(-9, 99) | st.integers(),
    ),
    st.lists(st.binary(max_size=40), max_size=2),
)
def test_no_reference_raises_anything_but_a_protocol_error(ref: TensorRef, parts: list[bytes]):
    with Attached() as attached:
        try:
            found = read(ref, [memoryview(part) for part in parts], attached)
        except ProtocolError:
            return
        assert found.nbytes == len(parts[ref.frame])
