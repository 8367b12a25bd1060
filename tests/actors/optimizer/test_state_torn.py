"""A shard may be killed at any instruction: its state is never torn.

Twice: dying before, in the middle of and after each single store, exhaustively; and for real, with
SIGKILL at random moments of a process that updates a shared segment.
"""

import hashlib
import os
import random
import signal
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from actors.optimizer import updates
from actors.optimizer.layout import Layout, state_layout
from actors.optimizer.state import Counts, Facts, Memory, State
from actors.published import Array, digest
from actors.topology import Topology
from protocol import segments
from protocol.segments import Segment
from tests.actors.exchange import PlainMemory, tiny

KILLS = 300
REDO_INDEX = 4  # word of the header: a parameter is being moved
# Codes, scales and folded moments: a second shard's FFN is just large enough to be quantised.
COMPRESSED = (
    "model.ffn_dim=256",
    "optimizer.matrices.kind=muon8bit",
    "optimizer.matrices.neuron_beta2=0.9",
    "optimizer.dense.kind=foam",
)


class Died(Exception):
    """Stands for SIGKILL."""


def gradient(name: str, shape: tuple[int, ...], step: int) -> Array:
    seed = hashlib.sha256(f"{name}:{step}".encode()).digest()
    return np.random.default_rng(list(seed)).standard_normal(shape, np.float32)


def facts(step: int) -> Facts:
    return Facts(step, 2 * step, 0.5 * step, 0.25 * step, 1.0, 0.0, 4)


def one_step(state: State, topology: Topology, step: int) -> None:
    """What a shard does in a step, for those parameters that have not moved yet."""
    if 0 not in state.facts(step):
        state.put_facts(step, 0, facts(step))
    for index, place in enumerate(state.layout.places):
        parameter = place.parameter
        if state.versions()[index] >= step:
            continue
        given = gradient(parameter.name, parameter.shape, step)
        new = updates.updated(topology, parameter, state.kept(index), given, step)
        shown = updates.published(parameter, new["master"])
        state.publish(index, step, shown, digest(parameter, shown), Counts(step, 2, 3))
        state.update(index, step, new)
    state.commit(step, {"step": step, "loss": 1.0 / step})


def layout_of(topology: Topology) -> Layout:
    """That of the second shard, if there is one: some matrices and some vectors."""
    return state_layout(topology, min(1, topology.actors.optimizer_shards - 1))


def fresh(topology: Topology, memory: Memory) -> State:
    """The state of a new life, whatever the last one left."""
    state = State(layout_of(topology), memory)
    if state.ready:
        state.recover()
    else:
        updates.fill_fresh(state, topology)
    return state


def seen(state: State) -> Iterator[tuple[str, int, str]]:
    """(parameter, version, digest) of all kept and published tensors."""
    for index, place in enumerate(state.layout.places):
        name, version = place.parameter.name, state.versions()[index]
        sha = hashlib.sha256()
        for array in state.kept(index).values():
            sha.update(array.tobytes())
        yield f"{name} kept", version, sha.hexdigest()
        for v in (version - 1, version):
            if state.has(index, v):
                shown = state.published(index, v)
                assert digest(place.parameter, shown) == state.digest(index, v)
                yield f"{name} published", v, state.digest(index, v).hex()


def history(topology: Topology, steps: int) -> set[tuple[str, int, str]]:
    """Everything an undisturbed run shows up to `steps`."""
    state = fresh(topology, PlainMemory(layout_of(topology).total_bytes))
    found = set(seen(state))
    for step in range(1, steps + 1):
        one_step(state, topology, step)
        found |= set(seen(state))
    return found


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
    topology = tiny("model.dim=64", "model.heads=1", "model.vocab_size=4000")
    layout = layout_of(topology)
    name = segments.segment_name("torntest", f"{os.getpid()}", "state")
    draw = random.Random(7)
    found: set[tuple[str, int, str]] = set()
    pending = 0
    with segments.create(name, layout.total_bytes) as segment:
        try:
            fresh(topology, segment)
            for number in range(KILLS):
                kill_one(topology, segment, draw.uniform(0.0, 0.02), aimed=number % 2 == 0)
                copy = PlainMemory(layout.total_bytes)
                copy.bytes[:] = segment.array("uint8", (layout.total_bytes,))
                state = State(layout, copy)
                pending += bool(state.recover())
                found |= set(seen(state))
            reached = max(version for _, version, _ in found)
            at_rest = fresh(topology, segment)
            one_step(at_rest, topology, at_rest.committed + 1)
            found |= set(seen(at_rest))
        finally:
            segments.unlink(name)
    assert found <= history(topology, reached + 1)
    assert reached >= 2, "the kills left no room for work"
    print(f"{KILLS} kills over {reached} steps; {pending} updates finished by a successor")


def kill_one(topology: Topology, segment: Segment, after_s: float, *, aimed: bool) -> None:
    """Fork a shard that updates, kill it `after_s` seconds after it has begun.

    Aimed: or as soon as it is seen to copy an update into place.
    """
    header = segment.array("int64", (16,))
    ready, begun = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            state = fresh(topology, segment)
            os.write(begun, b"x")
            while True:
                one_step(state, topology, state.committed + 1)
        finally:
            os._exit(code)
    os.close(begun)
    assert os.read(ready, 1) == b"x", "the child died by itself"
    os.close(ready)
    deadline = time.monotonic() + after_s
    while time.monotonic() < deadline and not (aimed and header[REDO_INDEX]):
        if not aimed:
            time.sleep(after_s)
    os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL


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
