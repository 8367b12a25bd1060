"""A shard's state in its segment: read as arrays, changed so that no death can tear it.

An update of one parameter to version v goes:

    1. the new published tensors, digest and counters into the places of parity v, tagged v last
       (version v - 2 lay there; nobody can need it once every rank has contributed to v)
    2. the new master and optimizer state into the redo record
    3. the redo marker: from here on the update is certain to happen
    4. master and state copied into place, the parameter's version set to v, the marker cleared

A process killed before 3 leaves the parameter at v - 1, whole, with version v - 1 published. Killed
after 3, whoever maps the segment next repeats 4 (`recover`). Only the order of stores matters, not
their durability: memory outlives the process, and the host's death is the checkpoint's business.

Published readers ask for a version: the tag says whether its places still hold it.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from actors.optimizer.layout import LAYOUT_VERSION, MAGIC, RING_RECORDS, Layout
from actors.published import Array
from actors.slots import Memory, Slot, view, views

Ints = NDArray[np.int64]

# Words of the header.
_MAGIC, _LAYOUT_VERSION, _SEED, _COMMITTED, _REDO_INDEX, _REDO_VERSION = range(6)
_DIGEST = slice(8, 12)
# Words of a parameter's meta: the version, then a tag, counters and who was absent for each parity.
_VERSION, _TAGS, _FLIPS, _UP, _DOWN, _ABSENT = 0, 1, 3, 5, 7, 9
_RING_HEAD = 16


class StateError(RuntimeError):
    """A segment that does not hold what this run's shard expects."""


class Facts(NamedTuple):
    """What one rank said about one step; see `protocol.messages.StepFacts`."""

    tokens: int
    text_bytes: int
    loss_sum: float
    objective_sum: float
    step_s: float
    data_wait_s: float
    up_bytes: int


class Counts(NamedTuple):
    """What the update of one parameter to one version amounted to."""

    flips: int = 0
    up_bytes: int = 0
    down_bytes: int = 0


_FACTS = np.dtype(
    [
        ("step", "<i8"),
        ("tokens", "<i8"),
        ("text_bytes", "<i8"),
        ("loss_sum", "<f8"),
        ("objective_sum", "<f8"),
        ("step_s", "<f8"),
        ("data_wait_s", "<f8"),
        ("up_bytes", "<i8"),
    ]
)


class State:
    """Views of one shard's segment. Parameters are counted in the layout's order.

    `ready` says whether the segment holds a whole state; while it does not, fill it with `fill` for
    every parameter and `set_ready`. Not thread-safe: the computing thread owns it.
    """

    def __init__(self, layout: Layout, memory: Memory) -> None:
        """Raises `StateError` for a segment that is too small."""
        if memory.nbytes < layout.total_bytes:
            raise StateError(
                f"the state segment has {memory.nbytes} bytes, this topology needs "
                f"{layout.total_bytes}: it was made for another one"
            )
        self.layout = layout
        self._header = view(memory, layout.header)
        self._facts = view(memory, layout.facts).view(_FACTS)[..., 0]
        self._ring = view(memory, layout.ring)
        self._meta = view(memory, layout.meta)
        self._digests = view(memory, layout.digests)
        self._kept = [views(memory, place.kept) for place in layout.places]
        self._published = [
            tuple(views(memory, slots) for slots in place.published) for place in layout.places
        ]
        self._redo = [views(memory, place.redo) for place in layout.places]

    @staticmethod
    def _store(target: Array, value: Any) -> None:
        """The one way in which bytes of the segment change (tests die here)."""
        target[...] = value

    def _set(self, words: Array, index: int, value: int) -> None:
        # An aligned 8-byte store: readers and successors see the old word or the new one.
        self._store(words[index : index + 1], value)

    # --- the whole -------------------------------------------------------------------------------

    @property
    def ready(self) -> bool:
        """Whether a whole state lies here. Raises `StateError` when it is another run's."""
        if self._header[_MAGIC] != MAGIC:
            return False
        expected = np.frombuffer(self.layout.digest, np.int64)
        if (
            self._header[_LAYOUT_VERSION] != LAYOUT_VERSION
            or self._header[_SEED] != self.layout.seed
            or (self._header[_DIGEST] != expected).any()
        ):
            raise StateError(
                "the state segment was made for another model, optimizer, seed or number of "
                "trainers or shards; stop that run, or resume it with its own topology"
            )
        return True

    def set_ready(self, committed: int) -> None:
        """All parameters have been filled; step `committed` is the last one committed."""
        self._set(self._header, _LAYOUT_VERSION, LAYOUT_VERSION)
        self._set(self._header, _SEED, self.layout.seed)
        self._set(self._header, _COMMITTED, committed)
        self._set(self._header, _REDO_INDEX, 0)
        self._store(self._header[_DIGEST], np.frombuffer(self.layout.digest, np.int64))
        self._set(self._header, _MAGIC, MAGIC)

    @property
    def committed(self) -> int:
        """The last committed step."""
        return int(self._header[_COMMITTED])

    def recover(self) -> str:
        """Finish the update a dead predecessor had begun. Name of its parameter, or ""."""
        marker = int(self._header[_REDO_INDEX])
        if not marker:
            return ""
        self._finish(marker - 1)
        return self.layout.places[marker - 1].parameter.name

    # --- parameters ------------------------------------------------------------------------------

    def versions(self) -> list[int]:
        """Version of every parameter."""
        return [int(version) for version in self._meta[:, _VERSION]]

    def kept(self, index: int) -> Mapping[str, Array]:
        """Master and optimizer state, in place: read them, change them with `update` only."""
        return self._kept[index]

    def has(self, index: int, version: int) -> bool:
        """Whether that version of the parameter is published here."""
        tag = int(self._meta[index, _TAGS + version % 2])
        return tag == version + 1 and 0 <= version <= int(self._meta[index, _VERSION])

    def published(self, index: int, version: int) -> Mapping[str, Array]:
        """The published tensors, in place. Raises `StateError` for a version that is gone."""
        if not self.has(index, version):
            name = self.layout.places[index].parameter.name
            raise StateError(f"version {version} of {name} is not published (any more)")
        return self._published[index][version % 2]

    def published_slots(self, index: int, version: int) -> Mapping[str, Slot]:
        """Where `published` lies in the segment."""
        return self.layout.places[index].published[version % 2]

    def digest(self, index: int, version: int) -> bytes:
        """SHA-256 of the published version."""
        return self._digests[index, version % 2].tobytes()

    def counts(self, index: int, version: int) -> Counts:
        """What the update to `version` amounted to."""
        row, parity = self._meta[index], version % 2
        return Counts(int(row[_FLIPS + parity]), int(row[_UP + parity]), int(row[_DOWN + parity]))

    def absent(self, index: int, version: int) -> int:
        """Ranks whose gradient is not in that version, as bits: see attendance.py."""
        return int(self._meta[index, _ABSENT + version % 2])

    def publish(
        self,
        index: int,
        version: int,
        tensors: Mapping[str, Array],
        digest: bytes,
        counts: Counts = Counts(),  # noqa: B008 - immutable
        absent: int = 0,
    ) -> None:
        """Put a published version into the places of its parity (step 1 of an update)."""
        meta, parity = self._meta[index], version % 2
        self._set(meta, _TAGS + parity, 0)
        for name, place in self._published[index][parity].items():
            self._store(place, tensors[name])
        self._store(self._digests[index, parity], np.frombuffer(digest, np.uint8))
        self._set(meta, _FLIPS + parity, counts.flips)
        self._set(meta, _UP + parity, counts.up_bytes)
        self._set(meta, _DOWN + parity, counts.down_bytes)
        self._set(meta, _ABSENT + parity, absent)
        self._set(meta, _TAGS + parity, version + 1)

    def update(self, index: int, version: int, tensors: Mapping[str, Array]) -> None:
        """Replace master and state by `tensors` and move to `version` (steps 2 to 4)."""
        for name, place in self._redo[index].items():
            self._store(place, tensors[name])
        self._set(self._header, _REDO_VERSION, version)
        self._set(self._header, _REDO_INDEX, index + 1)
        self._finish(index)

    def _finish(self, index: int) -> None:
        for name, place in self._kept[index].items():
            self._store(place, self._redo[index][name])
        self._set(self._meta[index], _VERSION, int(self._header[_REDO_VERSION]))
        self._set(self._header, _REDO_INDEX, 0)

    def fill(self, index: int, version: int, tensors: Mapping[str, Array]) -> None:
        """Set a parameter's kept tensors before the state is ready; missing ones become zero.

        Nothing is published then: `publish` what should be.
        """
        self._store(self._meta[index], 0)
        for name, place in self._kept[index].items():
            self._store(place, tensors.get(name, 0))
        self._set(self._meta[index], _VERSION, version)

    # --- steps -----------------------------------------------------------------------------------

    def put_facts(self, step: int, rank: int, facts: Facts) -> None:
        """Keep what `rank` said about `step`, in place of what it said about `step` - 2."""
        row = self._facts[step % 2, rank : rank + 1]
        self._store(row["step"], 0)
        for name, value in facts._asdict().items():
            self._store(row[name], value)
        self._store(row["step"], step)

    def facts(self, step: int) -> dict[int, Facts]:
        """What each rank said about `step`, by rank; ranks that are still to speak are absent."""
        rows = self._facts[step % 2]
        return {
            rank: Facts(*row.tolist()[1:]) for rank, row in enumerate(rows) if row["step"] == step
        }

    def commit(self, step: int, record: Mapping[str, Any] | None = None) -> None:
        """Step `step` is over; shard 0 leaves its metrics record with it."""
        if record is not None:
            self.put_record(step, record)
        self._set(self._header, _COMMITTED, step)

    def put_record(self, step: int, record: Mapping[str, Any]) -> None:
        """Write the record of `step` into the ring, in place of one 256 steps older.

        Raises `StateError` when it is too long for its slot.
        """
        text = json.dumps(record, separators=(",", ":")).encode()
        slot = self._ring[step % RING_RECORDS]
        if len(text) > slot.size - _RING_HEAD:
            raise StateError(f"metrics record of step {step} has {len(text)} bytes: {text[:200]!r}")
        words = slot[:_RING_HEAD].view(np.int64)
        self._set(words, 0, 0)
        self._store(slot[_RING_HEAD : _RING_HEAD + len(text)], np.frombuffer(text, np.uint8))
        self._set(words, 1, len(text))
        self._set(words, 0, step)

    def records(self, after: int) -> Iterator[dict[str, Any]]:
        """Records of the committed steps after `after`, oldest first, as far back as they go."""
        last = self.committed
        for step in range(max(after + 1, last - RING_RECORDS + 1, 1), last + 1):
            slot = self._ring[step % RING_RECORDS]
            words = slot[:_RING_HEAD].view(np.int64)
            if words[0] == step:
                yield json.loads(slot[_RING_HEAD : _RING_HEAD + int(words[1])].tobytes())
