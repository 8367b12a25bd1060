"""A shard's state under updates that are cut short: what it may look like, and SIGKILL for real."""

import hashlib
import os
import random
import signal
import time
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from actors.optimizer import updates
from actors.optimizer.layout import Layout, state_layout
from actors.optimizer.state import Counts, Facts, Memory, State
from actors.published import Array, digest
from actors.topology import Topology
from protocol import segments
from protocol.segments import Segment
from tests.actors.exchange import PlainMemory

Seen = tuple[str, int, str]  # parameter and what of it, version, digest
REDO_INDEX = 4  # word of the header: a parameter is being moved
# Codes, scales and folded moments: a second shard's FFN is just large enough to be quantised.
COMPRESSED = (
    "model.ffn_dim=256",
    "optimizer.matrices.kind=muon8bit",
    "optimizer.matrices.neuron_beta2=0.9",
    "optimizer.dense.kind=foam",
)
# Longer than an update of any parameter takes.
_LONGEST_S = 0.02
# Within this it copies one into place, on a busy machine too.
_AIM_S = 1.0


class Killed(NamedTuple):
    """What came of many kills."""

    kills: int
    steps: int  # that were reached meanwhile
    pending: int  # updates that a successor had to finish
    torn: list[Seen]  # seen, and never in an undisturbed run


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


def seen(state: State) -> Iterator[Seen]:
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


def history(topology: Topology, steps: int) -> set[Seen]:
    """Everything an undisturbed run shows up to `steps`."""
    state = fresh(topology, PlainMemory(layout_of(topology).total_bytes))
    found = set(seen(state))
    for step in range(1, steps + 1):
        one_step(state, topology, step)
        found |= set(seen(state))
    return found


def killed(topology: Topology, kills: int, seed: int = 7) -> Killed:
    """Kill a process that does nothing but update, again and again, at random moments: every
    second one while it copies an update into place. After each, look at all there is."""
    layout = layout_of(topology)
    name = segments.segment_name("torntest", f"{os.getpid()}", "state")
    draw = random.Random(seed)
    found: set[Seen] = set()
    pending = 0
    with segments.create(name, layout.total_bytes) as segment:
        try:
            fresh(topology, segment)
            for number in range(kills):
                kill_one(topology, segment, draw.uniform(0.0, _LONGEST_S), aimed=number % 2 == 0)
                copy = PlainMemory(layout.total_bytes)
                copy.bytes[:] = segment.array("uint8", (layout.total_bytes,))
                state = State(layout, copy)
                pending += bool(state.recover())
                found |= set(seen(state))
            at_rest = fresh(topology, segment)
            steps = at_rest.committed + 1
            one_step(at_rest, topology, steps)
            found |= set(seen(at_rest))
        finally:
            segments.unlink(name)
    return Killed(kills, steps, pending, sorted(found - history(topology, steps)))


def kill_one(topology: Topology, segment: Segment, after_s: float, *, aimed: bool) -> None:
    """Fork a shard that updates, kill it `after_s` seconds after it has begun.

    Aimed: as soon as it is seen to copy an update into place.
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
    deadline = time.monotonic() + (_AIM_S if aimed else after_s)
    while time.monotonic() < deadline and not (aimed and header[REDO_INDEX]):
        if not aimed:
            time.sleep(after_s)
    os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
