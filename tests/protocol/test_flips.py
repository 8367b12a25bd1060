"""Flips between two arrays of packed ternary codes, in few bytes and without trust."""

import math

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from protocol import flips
from protocol.errors import Malformed, ProtocolError


def pack(codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Stored codes 0, 1, 2 to bytes, the slow way; filled up with 1."""
    full = np.ones(-(-codes.size // 4) * 4, np.uint8)
    full[: codes.size] = codes
    return (full[0::4] | full[1::4] << 2 | full[2::4] << 4 | full[3::4] << 6).astype(np.uint8)


def trained_step(count: int, rate: float, seed: int = 0, jumps: bool = False):
    """Codes before and after a step in which about `rate` of them flip as they do in training."""
    rng = np.random.default_rng(seed)
    old = rng.choice(np.array([0, 1, 2], np.uint8), size=count, p=[0.31, 0.38, 0.31])
    new = old.copy()
    at = np.flatnonzero(rng.random(count) < rate)
    signs = rng.choice(np.array([0, 2], np.uint8), size=at.size)
    new[at] = np.where(old[at] == 1, signs, 1)
    if jumps:
        new[at[::3]] = 2 - old[at[::3]]
    return pack(old), pack(new), int((old != new).sum())


@settings(max_examples=200, deadline=None)
@given(
    pairs=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), max_size=300),
    same=st.integers(0, 2000),
)
def test_any_change_comes_back_exactly(pairs: list[tuple[int, int]], same: int):
    old = pack(np.array([a for a, _ in pairs] + [1] * same, np.uint8))
    new = pack(np.array([b for _, b in pairs] + [1] * same, np.uint8))
    count = len(pairs) + same
    data, changed = flips.encode(old, new, count)
    assert changed == sum(a != b for a, b in pairs)
    before = old.copy()
    assert (flips.decode(old, data, count) == new).all()
    assert (old == before).all()


@pytest.mark.parametrize("rate", [0.0, 0.0005, 0.005, 0.013, 0.05, 0.14, 0.16, 0.4, 1.0])
@pytest.mark.parametrize("jumps", [False, True])
def test_all_rates_come_back(rate: float, jumps: bool):
    old, new, changed = trained_step(10_001, rate, jumps=jumps)
    encoded = flips.encode(old, new, 10_001)
    assert encoded.flips == changed
    assert (flips.decode(old, encoded.data, 10_001) == new).all()


@pytest.mark.parametrize("rate", [0.0005, 0.005, 0.013, 0.05])
def test_bytes_are_near_the_entropy_and_half_of_xor_with_zstd(rate: float):
    count = 1 << 18
    old, new, changed = trained_step(count, rate)
    share = changed / count
    positions = -count * (share * math.log2(share) + (1 - share) * math.log2(1 - share)) / 8
    size = len(flips.encode(old, new, count).data)
    xor = len(zstandard.ZstdCompressor(level=3).compress((old ^ new).tobytes()))
    assert size < 1.08 * (positions + changed / 8) + 32
    assert size < 0.8 * xor


def test_the_same_codes_always_give_the_same_bytes():
    old, new, _ = trained_step(50_000, 0.013)
    first = flips.encode(old, new, 50_000)
    assert flips.encode(old.copy(), new.copy(), 50_000) == first


def test_many_flips_never_cost_much_more_than_xor():
    old, new, _ = trained_step(1 << 16, 0.6, jumps=True)
    size = len(flips.encode(old, new, 1 << 16).data)
    assert size <= len(zstandard.ZstdCompressor(level=3).compress((old ^ new).tobytes())) + 16


@settings(max_examples=300, deadline=None)
@given(data=st.binary(max_size=200))
def test_garbage_is_refused_or_gives_ternary_codes(data: bytes):
    old, _, _ = trained_step(1000, 0.0)
    try:
        new = flips.decode(old, data, 1000)
    except ProtocolError:
        return
    assert not ((new & (new >> 1)) & 0x55).any()


@settings(max_examples=300, deadline=None)
@given(cut=st.integers(0, 10_000), at=st.integers(0, 10_000), value=st.integers(0, 255))
@pytest.mark.parametrize("rate", [0.01, 0.5])
def test_damaged_bytes_never_do_worse_than_wrong_codes(rate: float, cut: int, at: int, value: int):
    old, new, _ = trained_step(4000, rate, jumps=True)
    whole = flips.encode(old, new, 4000).data
    damaged = bytearray(whole)
    damaged[at % len(whole)] = value
    for data in (bytes(damaged), whole[: cut % len(whole)], whole + b"x"):
        try:
            got = flips.decode(old, data, 4000)
        except ProtocolError:
            continue
        assert got.size == old.size
        assert not ((got & (got >> 1)) & 0x55).any()


def test_a_truncated_or_lengthened_message_is_refused():
    old, new, _ = trained_step(4000, 0.01)
    whole = flips.encode(old, new, 4000).data
    for data in (whole[:-1], whole + b"x", whole[:4], b""):
        with pytest.raises(Malformed, match="flips"):
            flips.decode(old, data, 4000)


def test_a_frame_that_unpacks_to_far_too_much_is_refused_before_it_does():
    old, _, _ = trained_step(4000, 0.0)
    bomb = zstandard.ZstdCompressor().compress(bytes(1 << 24))
    with pytest.raises(Malformed, match="expected"):
        flips.decode(old, bytes([1]) + bytes(11) + bomb, 4000)


def test_a_position_beyond_the_last_code_is_refused():
    old, new, _ = trained_step(4000, 0.01)
    data = flips.encode(old, new, 4000).data
    last = int(np.flatnonzero(np.unpackbits(old ^ new, bitorder="little"))[-1]) // 2
    short = last // 4 * 4
    with pytest.raises(Malformed, match="position"):
        flips.decode(old[: short // 4], data, short)
