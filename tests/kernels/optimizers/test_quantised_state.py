import bisect

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.optimizers.packing import pack, pack_trits, unpack, unpack_trits
from kernels.optimizers.quantised_state import (
    dequantise,
    dynamic_values,
    load,
    quantise,
    store,
    zeros,
)
from kernels.optimizers.state import Storage, declare, nbytes

KINDS = ("linear", "dynamic", "unsigned", "int4")


def sample(*shape: int, seed: int = 0) -> torch.Tensor:
    """Heavy-tailed, like momentum."""
    generator = torch.Generator().manual_seed(seed)
    spread = torch.randn(shape, generator=generator).exp()
    return torch.randn(shape, generator=generator) * spread


def slow_code(relative: float, kind: str) -> int:
    """The same in Python's float64."""
    if kind in ("linear", "int4"):
        return round(relative * (127 if kind == "linear" else 7))  # half to even
    values = dynamic_values(signed=kind == "dynamic")
    above = bisect.bisect_right(values, relative)
    low, high = max(above - 1, 0), min(above, 255)
    return high if relative - values[low] >= (values[high] - values[low]) / 2 else low


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("block", [64, 256, 2048])
def test_codes_agree_with_a_slow_reference_within_one(kind, block):
    x = sample(33, 71)
    x = x.abs() if kind == "unsigned" else x
    codes, scale = quantise(x, kind, block)
    codes = unpack(codes, 4, x.numel()) if kind == "int4" else codes.view(-1)
    flat = x.double().view(-1).tolist()
    assert len(scale) == -(-len(flat) // block)
    wrong = 0
    for start in range(0, len(flat), block):
        part = flat[start : start + block]
        largest = max(abs(value) for value in part)
        assert scale[start // block].item() == largest
        for offset, value in enumerate(part):
            difference = abs(int(codes[start + offset]) - slow_code(value / largest, kind))
            assert difference <= 1
            wrong += difference
    assert wrong <= 2  # a tie in float32 that is none in float64


def test_the_dynamic_maps_are_the_published_ones():
    signed, unsigned = dynamic_values(signed=True), dynamic_values(signed=False)
    for values in (signed, unsigned):
        assert len(set(values)) == 256
        assert list(values) == sorted(values)
        assert values[-1] == 1.0
    assert signed[0] == pytest.approx(-0.99297, abs=1e-5)
    assert sum(value < 0 for value in signed) == 127
    assert min(value for value in signed if value > 0) == pytest.approx(5.5e-7)
    assert unsigned[0] == 0.0
    assert unsigned[1] == pytest.approx(3.25e-7)


def test_ties_go_to_the_even_code():
    x = torch.tensor([127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5])
    codes, _ = quantise(x, "linear", 256)
    assert codes.tolist() == [127, 0, 2, 2, 0, -2, -2]
    codes, _ = quantise(torch.tensor([7.0, 0.5, 1.5, 2.5, -2.5]), "int4", 64)
    assert unpack(codes, 4, 5).tolist() == [7, 0, 2, 2, -2]


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_of_zeros_and_zeroed_bytes_decode_to_zeros(kind):
    x = torch.zeros(3, 300)
    x[2, 200:] = 1e-39  # denormal: its block must not divide by zero either
    codes, scale = quantise(x, kind, 256)
    back = dequantise(codes, scale, kind, 256, (3, 300))
    assert torch.isfinite(back).all()
    assert back.view(-1)[:512].eq(0).all()
    assert not back.view(-1)[:512].signbit().any()
    assert back[2, 200:].allclose(x[2, 200:], rtol=0.01, atol=0)
    fresh = load(zeros(declare("x", (64, 64), Storage(kind))), "x", Storage(kind), (64, 64))
    assert torch.equal(fresh, torch.zeros(64, 64))


@pytest.mark.parametrize("kind", KINDS)
def test_a_partial_last_block_has_its_own_scale(kind):
    x = sample(5, 101).abs()
    x.view(-1)[448:] *= 1e-3
    codes, scale = quantise(x, kind, 64)
    assert len(scale) == 8
    assert scale[7].item() == x.view(-1)[448:].max().item()
    back = dequantise(codes, scale, kind, 64, (5, 101))
    error = (back - x).abs().view(-1)[448:].max() / scale[7]
    assert float(error) <= (0.5001 / 7 if kind == "int4" else 0.0075)


@pytest.mark.parametrize(
    ("kind", "block", "bound"),
    [
        ("linear", 256, 0.025),
        ("linear", 2048, 0.045),
        ("dynamic", 256, 0.015),
        ("dynamic", 2048, 0.02),
    ],
)
def test_errors_are_as_small_as_published(kind, block, bound):
    x = sample(256, 256)
    back = dequantise(*quantise(x, kind, block), kind, block, (256, 256))
    assert float((back - x).norm() / x.norm()) < bound


def test_a_linear_map_flushes_squares_to_zero_where_the_dynamic_one_does_not():
    squares = sample(256, 256).square()
    flushed = {
        kind: float(
            dequantise(*quantise(squares, kind, 2048), kind, 2048, (256, 256)).eq(0).float().mean()
        )
        for kind in ("linear", "unsigned")
    }
    assert flushed["linear"] > 0.5
    assert flushed["unsigned"] < 0.1


def test_blocks_do_not_depend_on_how_rows_are_sharded():
    """Blocks run over the full matrix: whoever holds rows 0..5 cannot know their codes alone."""
    x = sample(11, 100)
    whole, scale = quantise(x, "linear", 256)
    halves = torch.cat([quantise(part, "linear", 256)[0] for part in (x[:6], x[6:])])
    assert not torch.equal(whole, halves)
    again, scale_again = quantise(x.view(100, 11), "linear", 256)
    assert torch.equal(whole.view(-1), again.view(-1))
    assert torch.equal(scale, scale_again)


def test_encoding_what_was_decoded_changes_nothing():
    for kind in ("linear", "int4"):
        codes, scale = quantise(sample(64, 64), kind, 256)
        back = dequantise(codes, scale, kind, 256, (64, 64))
        again, scale_again = quantise(back, kind, 256)
        assert torch.equal(codes, again)
        assert torch.equal(scale, scale_again)


def test_small_tensors_stay_float32():
    small, large = sample(63, 65), sample(64, 64)
    storage = Storage("linear", 2048)
    assert set(store("m", small, storage)) == {"m"}
    assert torch.equal(load(store("m", small, storage), "m", storage, (63, 65)), small)
    assert set(store("m", large, storage)) == {"m.codes", "m.scale"}


@pytest.mark.parametrize("kind", [*KINDS, "float32", "float16"])
@pytest.mark.parametrize("shape", [(64, 64), (65, 77), (5000,), (3, 5)])
def test_what_is_stored_is_what_was_declared(kind, shape):
    storage = Storage(kind, 256)
    stored = store("m", sample(*shape), storage)
    declared = declare("m", shape, storage)
    assert [(d.name, d.dtype, d.shape) for d in declared] == [
        (name, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))
        for name, tensor in stored.items()
    ]
    assert nbytes(declared) == sum(t.numel() * t.element_size() for t in stored.values())


def test_a_block_below_one_is_refused():
    with pytest.raises(ValueError, match="block must be at least 1"):
        declare("m", (64, 64), Storage("linear", 0))


@settings(max_examples=50, deadline=None)
@given(st.sampled_from([2, 4]), st.lists(st.integers(-8, 7), max_size=40))
def test_packed_codes_come_back(bits, values):
    largest = (1 << (bits - 1)) - 1
    codes = torch.tensor([max(-largest - 1, min(largest, v)) for v in values], dtype=torch.int8)
    packed = pack(codes, bits)
    assert packed.numel() == -(-len(values) * bits // 8)
    assert torch.equal(unpack(packed, bits, len(values)), codes)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 2), max_size=40))
def test_packed_trits_come_back(values):
    codes = torch.tensor(values, dtype=torch.int8)
    packed = pack_trits(codes)
    assert packed.numel() == -(-len(values) // 5)
    assert torch.equal(unpack_trits(packed, len(values)), codes)
