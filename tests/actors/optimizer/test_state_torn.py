"""A shard may be killed at any instruction: its state is never torn.

Twice: dying before, in the middle of and after each single store, exhaustively; and for real, with
SIGKILL at random moments of a process that updates a shared segment; thousands of them with
`python -m tests.benchmarks.state_kills`.
"""

from typing import Any

import numpy as np
import pytest
import torch

from actors.optimizer.layout import Layout, state_layout
from actors.optimizer.state import State
from actors.published import Array
from tests.actors.exchange import PlainMemory, tiny
from tests.actors.optimizer.torn import (
    COMPRESSED,
    facts,
    fresh,
    history,
    killed,
    layout_of,
    one_step,
    seen,
)

KILLS = 120


class Died(Exception):
    """Stands for SIGKILL."""


@pytest.mark.parametrize("settings", [(), COMPRESSED], ids=["plain", "compressed"])
def test_dying_at_any_store_is_repaired(monkeypatch: pytest.MonkeyPatch, settings: tuple[str, ...]):
    small = ("model.dim=16", "model.heads=1", "actors.optimizer_shards=5")
    topology = tiny(*small, *settings)
    layout = layout_of(topology)
    undisturbed = history(topology, 3)
    countdown = [0, 0]  # stores until death, and how much of the last one happens: 0, 1 or 2 halves

    def store(target: Array, value: Any) -> None:
        countdown[0] -= 1
        if countdown[0] != 0:
            target[...] = value
            return
        if countdown[1] == 1:
            flat = target.reshape(-1)
            half = np.broadcast_to(np.asarray(value, target.dtype), target.shape).reshape(-1)
            flat[: flat.size // 2] = half[: flat.size // 2]
        elif countdown[1] == 2:
            target[...] = value
        raise Died

    monkeypatch.setattr(State, "_store", staticmethod(store))
    memory = PlainMemory(layout.total_bytes)
    fresh(topology, memory)
    start = memory.bytes.copy()
    stores = 0
    for halves in (0, 1, 2):
        for stores in range(1, 100_000):
            memory.bytes[:] = start
            countdown[:] = [stores, halves]
            try:
                one_step(State(layout, memory), topology, 1)
            except Died:
                pass
            else:
                break
            countdown[0] = 0
            state = fresh(topology, memory)
            assert set(seen(state)) <= undisturbed
            one_step(state, topology, 1)
            assert state.committed == 1
            assert set(seen(state)) <= undisturbed
            assert list(state.records(0)) == [{"step": 1, "loss": 1.0}]
            assert state.facts(1) == {0: facts(1)}
    assert stores > 12 * len(layout.places)


def test_dying_while_the_state_is_made_starts_it_anew(monkeypatch: pytest.MonkeyPatch):
    topology = tiny("model.dim=16", "model.heads=1", "actors.optimizer_shards=5")
    layout = layout_of(topology)
    undisturbed = history(topology, 0)
    left = [0]

    def store(target: Array, value: Any) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise Died
        target[...] = value

    monkeypatch.setattr(State, "_store", staticmethod(store))
    for at in range(1, 400, 7):
        memory = PlainMemory(layout.total_bytes)
        left[0] = at
        try:
            fresh(topology, memory)
        except Died:
            left[0] = 0
            fresh(topology, memory)
        assert set(seen(State(layout, memory))) == undisturbed


@pytest.mark.slow
def test_sigkill_at_random_times_never_tears_the_state():
    torch.set_num_threads(1)
    result = killed(tiny("model.dim=64", "model.heads=1", "model.vocab_size=4000"), KILLS)
    assert result.torn == []
    assert result.steps > 2, "the kills left no room for work"


def test_a_layout_is_a_pure_function_and_its_places_do_not_overlap():
    for shards in (1, 2, 3):
        topology = tiny(f"actors.optimizer_shards={shards}")
        for shard in range(shards):
            layout = state_layout(topology, shard)
            assert layout == state_layout(topology, shard)
            assert_disjoint(layout)


def assert_disjoint(layout: Layout) -> None:
    slots = [layout.header, layout.facts, layout.ring, layout.meta, layout.digests]
    for place in layout.places:
        slots += [*place.kept.values()]
        slots += [slot for published in place.published for slot in published.values()]
        redo = [*place.redo.values()]
        assert_in_order(sorted(slots + redo) if place is layout.places[-1] else redo, layout)
    assert_in_order(sorted(slots), layout)


def assert_in_order(slots: list[Any], layout: Layout) -> None:
    end = 0
    for offset, dtype, shape in slots:
        assert offset >= end
        assert offset % 64 == 0
        end = offset + np.dtype(dtype).itemsize * int(np.prod(shape, dtype=np.int64))
    assert end <= layout.total_bytes
