"""Sizes that a light process works out, held against the codecs' own; memory that deaths spare."""

from typing import Any, get_args

import numpy as np
import pytest

from actors import codec_memory, uplink
from actors.codec_memory import CodecMemory, MemoryLost
from actors.gradient_slots import segment_bytes
from actors.optimizer_tables import Codec
from actors.parameters import parameters
from kernels.optimizers.codecs.named import NAMES, named
from tests.actors.exchange import PlainMemory, tiny

SHAPES = ((24, 40), (64, 64), (67, 129), (129, 67), (64, 1))


def plain(specs: Any) -> list[tuple[str, str, tuple[int, ...]]]:
    return [(spec.name, spec.dtype, tuple(spec.shape)) for spec in specs]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", SHAPES)
def test_payloads_and_memories_are_declared_as_the_codecs_have_them(
    name: str, shape: tuple[int, ...]
):
    codec = named(name, 12)
    assert plain(uplink.payload_of(name, shape, 12)) == plain(codec.payload(shape))
    assert sorted(plain(uplink.memory_of(name, shape, 12))) == sorted(plain(codec.memory(shape)))


def test_a_topology_can_name_every_codec_and_no_other():
    assert set(get_args(Codec)) == set(uplink.CODECS) == set(NAMES)


def test_norms_stay_dense_and_large_tables_may_be_coarser():
    topology = tiny("optimizer.codec=int4", "optimizer.dense_codec=int8", "model.vocab_size=300")
    chosen = {p.name: uplink.codec_of(topology.optimizer, p) for p in parameters(topology.model)}
    assert chosen["embedding.weight"] == "int8"
    assert chosen["layers.0.attention.q.weight"] == "int4"
    assert chosen["norm.weight"] == chosen["layers.0.ffn.sub_norm.weight"] == "dense"


@pytest.mark.parametrize(
    ("settings", "bytes_per_element"),
    [
        (("optimizer.codec=dense",), 4.0),
        (("optimizer.codec=int4",), 0.54),
        (("optimizer.codec=two_bit",), 0.26),
        (("optimizer.codec=ternary_rotated",), 0.21),
        (("optimizer.codec=ternary_scaled",), 0.22),
        (("optimizer.codec=power_int8", "optimizer.codec_rank=32"), 0.27),
    ],
)
def test_slots_shrink_with_the_codec(settings: tuple[str, ...], bytes_per_element: float):
    wide = tiny("model.dim=256", "model.heads=4", *settings)
    matrices = [p for p in parameters(wide.model) if p.group == "matrices"]
    held = sum(uplink.slot_bytes(wide.optimizer, p) for p in matrices)
    assert held / sum(p.numel for p in matrices) <= bytes_per_element
    rest = sum(4 * p.numel for p in parameters(wide.model) if p.group == "dense")
    assert 0 <= segment_bytes(wide.model, wide.optimizer) - held - rest < 64 * 40


def test_without_feedback_there_is_no_memory_to_keep():
    assert codec_memory.segment_bytes(tiny("optimizer.codec=int4_rotated")) == 0
    assert codec_memory.segment_bytes(tiny("optimizer.codec=ternary")) > 0
    assert codec_memory.segment_bytes(tiny("optimizer.codec=power", "optimizer.codec_rank=4")) > 0


# --- The memory -----------------------------------------------------------------------------------

NAME = "layers.0.attention.q.weight"


class Died(Exception):
    """The process is gone."""


@pytest.fixture
def topology():
    return tiny("optimizer.codec=power", "optimizer.codec_rank=3")


def values(version: int) -> dict[str, np.ndarray]:
    return {
        "warm": np.full((32, 3), version, np.float32),
        "error": np.full((32, 32), version / 2, np.float32),
    }


def same(found: Any, expected: dict[str, np.ndarray]) -> bool:
    return found.keys() == expected.keys() and all((found[k] == expected[k]).all() for k in found)


def test_the_two_newest_versions_can_be_read(topology: Any):
    memory = PlainMemory(codec_memory.segment_bytes(topology))
    kept = CodecMemory(topology, memory)
    assert same(kept.read(NAME, 0), values(0))
    for version in (1, 2, 3):
        kept.write(NAME, version, values(version))
    assert same(CodecMemory(topology, memory).read(NAME, 2), values(2))
    assert same(kept.read(NAME, 3), values(3))
    with pytest.raises(MemoryLost, match=r"after step 1 is gone.*resume it from its last"):
        kept.read(NAME, 1)
    assert not kept.remembers("norm.weight")


def test_a_successor_does_not_touch_what_is_there(topology: Any, monkeypatch: pytest.MonkeyPatch):
    kept = CodecMemory(topology, PlainMemory(codec_memory.segment_bytes(topology)))
    kept.write(NAME, 1, values(1))
    stores: list[object] = []
    monkeypatch.setattr(CodecMemory, "_store", staticmethod(lambda *a: stores.append(a)))
    kept.write(NAME, 1, values(1))
    assert not stores
    kept.fill(NAME, 1, values(5))
    assert len(stores) == 4


def test_dying_at_any_store_leaves_the_version_before_readable(
    topology: Any, monkeypatch: pytest.MonkeyPatch
):
    plain_store = CodecMemory._store
    for deadly in range(8):
        memory = PlainMemory(codec_memory.segment_bytes(topology))
        kept = CodecMemory(topology, memory)
        for version in (1, 2):
            kept.write(NAME, version, values(version))
        left = [deadly // 2]

        def store(target: Any, value: Any, left: list[int] = left, deadly: int = deadly) -> None:
            if not left[0]:
                if deadly % 2:  # half of it still happens
                    flat = target.reshape(-1)
                    flat[: flat.size // 2] = np.broadcast_to(value, target.shape).reshape(-1)[
                        : flat.size // 2
                    ]
                raise Died
            left[0] -= 1
            plain_store(target, value)

        monkeypatch.setattr(CodecMemory, "_store", staticmethod(store))
        with pytest.raises(Died):
            kept.write(NAME, 3, values(3))
        monkeypatch.setattr(CodecMemory, "_store", staticmethod(plain_store))
        successor = CodecMemory(topology, memory)
        assert same(successor.read(NAME, 2), values(2))
        assert not successor.has(NAME, 3)
        successor.write(NAME, 3, values(3))
        assert same(successor.read(NAME, 3), values(3))


def test_memory_of_another_topology_is_refused(topology: Any):
    with pytest.raises(MemoryLost, match="made for another one"):
        CodecMemory(topology, PlainMemory(64))
