"""Values that travel between processes come out as they went in, or not at all."""

import math
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from actors.data.alone.payload import INLINE_BYTES, Untransferable, pack, unpack


class Pair(NamedTuple):
    a: int
    b: int


def there_and_back(value: Any) -> Any:
    body, large = pack(value)
    return unpack(body, [part.copy() for part in large])


def same(a: Any, b: Any) -> bool:
    if isinstance(a, np.ndarray):
        return (
            isinstance(b, np.ndarray)
            and (a.dtype, a.shape) == (b.dtype, b.shape)
            and a.tobytes() == b.tobytes()
        )
    if type(a) is not type(b):
        return False
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    return a == b or (a != a and b != b)


LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text()
    | st.binary()
    | arrays.arrays(
        st.sampled_from(["<f4", "<f8", "<i8", "|u1", "?", "<c16", "<M8[s]", "<U3", "S4"]),
        arrays.array_shapes(min_dims=0, min_side=0),
    )
)
TREES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.dictionaries(st.text() | st.integers(-9, 9), inner)
    ),
)


@settings(max_examples=200, deadline=None)
@given(TREES)
def test_trees_come_back_as_they_were(value: Any):
    assert same(value, there_and_back(value))


def test_large_parts_stand_beside_the_body():
    image = np.arange(30_000, dtype=np.uint16).reshape(100, 300)
    text, raw = "ä" * 9000, b"\x00\xff" * 9000
    body, large = pack({"image": image, "text": text, "raw": raw, "label": 3})
    assert len(body) < 200
    assert [part.nbytes for part in large] == [60_000, 18_000, 18_000]
    assert same(there_and_back((image, text, raw)), (image, text, raw))


def test_a_large_array_is_not_copied_on_either_side():
    image = np.ones((512, 512))
    body, large = pack(image)
    assert np.shares_memory(large[0], image)
    kept = large[0].copy()
    assert np.shares_memory(unpack(body, [kept]), kept)


def test_arrays_may_be_written_to():
    for shape in (3, 100_000):
        there_and_back(np.zeros(shape))[0] = 1.0


def test_what_is_not_contiguous_arrives_all_the_same():
    image = np.arange(10_000).reshape(100, 100)
    assert same(there_and_back(image[::2, ::-3]), np.ascontiguousarray(image[::2, ::-3]))


def test_numpy_scalars_keep_their_type():
    for scalar in (np.float32(1.5), np.int16(-3), np.bool_(True), np.datetime64("2026-11-23")):
        found = there_and_back(scalar)
        assert type(found) is type(scalar)
        assert found == scalar
    assert math.isnan(there_and_back(np.float64("nan")))


@pytest.mark.parametrize(
    "value",
    [
        object(), {1, 2}, lambda: 0, {(1, 2): 3}, np.array([object()]), [1 << 70], Pair(1, 2),
        np.zeros(2, dtype=[("a", "<i4")]),
    ],
)  # fmt: skip
def test_what_cannot_travel_is_refused_in_words(value: Any):
    with pytest.raises(Untransferable, match=r"cannot leave its process"):
        pack([value])


def test_tensors_of_any_type_arrive_as_tensors():
    torch = pytest.importorskip("torch")
    for dtype in (torch.float32, torch.bfloat16, torch.int64, torch.bool, torch.uint8):
        for shape in ((), (0,), (3,), (INLINE_BYTES, 2)):
            tensor = torch.ones(shape, dtype=dtype)
            found = there_and_back(tensor)
            assert found.dtype == dtype
            assert found.shape == tensor.shape
            assert torch.equal(found, tensor)
