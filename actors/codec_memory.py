"""What a rank's codecs remember from step to step, in a segment that outlives the trainer.

Error feedback is state of the run: losing it would change every later step. Each rank has a
segment "memory", made by the supervisor like all others. It holds every tensor twice, by parity of
the version:

    a trainer computing step s   reads version s - 1, writes version s, then sends its gradient
    a trainer that replaces it   does the same again: version s - 1 is still there, because it is
                                 overwritten in step s + 1, which begins when s is over everywhere
    a shard at version v         copies version v into checkpoints before it moves to v + 1, and
                                 fills the segments from a checkpoint before it answers anybody

Tags say which version lies where and are stored last, so half of a version is never taken for a
whole one. Version 0 is all zeros, and so is one that FIRE has ended. No torch.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from actors.fire import is_touched
from actors.parameters import parameters
from actors.published import Array, TensorSpec
from actors.slots import Cursor, Memory, Slot, view, views
from actors.topology import Topology
from actors.uplink import memory_tensors


class MemoryLost(RuntimeError):
    """A codec's memory is not where it should be; the message says what to do."""


@dataclass(frozen=True, slots=True)
class MemoryTable:
    """Where everything lies: the same for every rank."""

    tags: Slot  # int64 (parameters, 2): version + 1, by parity
    places: dict[str, tuple[dict[str, Slot], dict[str, Slot]]]  # of parameters with memory
    total_bytes: int  # 0 when no codec remembers anything


def memory_table(topology: Topology) -> MemoryTable:
    """A pure function of the topology."""
    specs = specs_of(topology)
    cursor = Cursor()
    tags = cursor.take("int64", (len(specs), 2))
    places = {
        name: (cursor.take_all(wanted), cursor.take_all(wanted)) for name, wanted in specs.items()
    }
    return MemoryTable(tags, places, cursor.at if specs else 0)


def segment_bytes(topology: Topology) -> int:
    """Size of the segment "memory" of one trainer; 0: there is none."""
    return memory_table(topology).total_bytes


def specs_of(topology: Topology) -> dict[str, tuple[TensorSpec, ...]]:
    """What is remembered of each parameter of which something is."""
    found = {p.name: memory_tensors(topology.optimizer, p) for p in parameters(topology.model)}
    return {name: specs for name, specs in found.items() if specs}


class CodecMemory:
    """One rank's memory, mapped."""

    def __init__(self, topology: Topology, memory: Memory) -> None:
        """Raises `MemoryLost` when `memory` was made for another topology."""
        table = memory_table(topology)
        if memory.nbytes < table.total_bytes:
            raise MemoryLost(
                f"the memory of the gradient codec has {memory.nbytes} bytes where this topology "
                f"needs {table.total_bytes}: it was made for another one"
            )
        optimizer = topology.optimizer
        self._fired = frozenset(optimizer.fire_at)
        self._touched = {p.name for p in parameters(topology.model) if is_touched(optimizer, p)}
        self._tags = view(memory, table.tags)
        self._row = {name: row for row, name in enumerate(table.places)}
        self._tensors = {
            name: tuple(views(memory, slots) for slots in both)
            for name, both in table.places.items()
        }

    @staticmethod
    def _store(target: Array, value: object) -> None:
        """The one way in which bytes of the segment change (tests die here)."""
        target[...] = value

    def remembers(self, name: str) -> bool:
        """Whether there is anything to remember of parameter `name`."""
        return name in self._row

    def has(self, name: str, version: int) -> bool:
        """Whether `version` can be read. Empty ones always can."""
        return self._empty(name, version) or bool(
            self._tags[self._row[name], version % 2] == version + 1
        )

    def read(self, name: str, version: int) -> Mapping[str, Array]:
        """The memory of `name` after step `version`, in place: for reading only.

        Raises `MemoryLost`.
        """
        if not self.has(name, version):
            raise MemoryLost(
                f"what the gradient codec remembers of {name} after step {version} is gone from "
                "shared memory: stop the run, then resume it from its last checkpoint"
            )
        tensors = self._tensors[name][version % 2]
        if self._empty(name, version):
            return {key: np.zeros_like(array) for key, array in tensors.items()}
        return tensors

    def write(self, name: str, version: int, tensors: Mapping[str, Array]) -> None:
        """Keep the memory of `name` after step `version`. What is there already stays: a successor
        arrives at the same bits, and a shard may be reading them.
        """
        if not self.has(name, version):
            self._put(name, version, tensors)

    def fill(self, name: str, version: int, tensors: Mapping[str, Array]) -> None:
        """Take over what a checkpoint holds, whatever lies here."""
        self._put(name, version, tensors)

    def _empty(self, name: str, version: int) -> bool:
        """Before the first step, and after FIRE: errors made on other weights are no errors."""
        return version == 0 or (version in self._fired and name in self._touched)

    def _put(self, name: str, version: int, tensors: Mapping[str, Array]) -> None:
        parity = version % 2
        tag = self._tags[self._row[name], parity : parity + 1]
        self._store(tag, 0)
        for key, place in self._tensors[name][parity].items():
            self._store(place, tensors[key])
        self._store(tag, version + 1)
