"""2-bit codes: what goes in comes out, and nothing else is let in."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kernels.precision.packing import pack, pack_array, packed_bytes, unpack, unpack_array


@given(st.lists(st.sampled_from([-1, 0, 1]), max_size=70))
def test_round_trip_of_any_length(codes: list[int]):
    array = np.array(codes, dtype=np.int8)
    packed = pack_array(array)
    assert packed.shape == (packed_bytes(len(codes)),)
    np.testing.assert_array_equal(unpack_array(packed, array.shape), array)


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (4, 4), (64, 96), (7, 33)])
def test_round_trip_of_matrices(shape: tuple[int, int]):
    generator = torch.Generator().manual_seed(1)
    codes = torch.randint(-1, 2, shape, generator=generator).to(torch.int8)
    packed = pack(codes)
    assert packed.dtype == torch.uint8
    assert torch.equal(unpack(packed, shape), codes)


def test_the_first_code_is_in_the_low_bits_and_the_rest_is_filled_with_code_zero():
    assert pack_array(np.array([-1, 0, 1, 1, -1], dtype=np.int8)).tolist() == [
        0b10_10_01_00,
        0b01_01_01_00,
    ]


def test_a_transposed_matrix_is_packed_row_by_row():
    codes = torch.tensor([[1, 0, -1], [0, 1, 1]], dtype=torch.int8)
    assert torch.equal(unpack(pack(codes.mT), (3, 2)), codes.mT)


def test_the_value_three_is_refused():
    with pytest.raises(ValueError, match="value 3"):
        unpack_array(np.array([0b11_00_00_00], dtype=np.uint8), (4,))


def test_a_wrong_size_is_refused():
    with pytest.raises(ValueError, match="5 codes of shape"):
        unpack_array(np.zeros(1, dtype=np.uint8), (5,))


def test_wrong_filling_is_refused():
    with pytest.raises(ValueError, match="filled up"):
        unpack_array(np.array([0b00_00_00_01], dtype=np.uint8), (1,))
