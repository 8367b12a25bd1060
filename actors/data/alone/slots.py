"""Shared memory for samples: one region for each worker, slots in it leased to samples.

The region's present worker places what it has made (`Room`, no lock: one writer). The parent maps
the same memory and gives slots back when nobody uses them any more; whoever works there next is
told which slots of its predecessor are still in use. The memory is anonymous, so nothing is left
behind when processes die, and a process forked later has the same mapping.

Bounded: regions never grow. What finds no room travels through the socket instead.
"""

import bisect
import ctypes
import mmap
import os
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from actors.data.alone.payload import Bytes

Words = NDArray[np.int64]

# Of slots: that of a cache line and of the widest vector registers.
_ALIGN = 64
# Words of a worker's note of what it is doing: lease, when it began (monotonic ns).
NOTE_WORDS = 8


@dataclass(frozen=True, slots=True)
class Slot:
    """A piece of a region."""

    offset: int  # bytes from the region's start
    nbytes: int


@dataclass(slots=True)
class Room:
    """What is free in a region: first fit. Pure."""

    size: int
    _starts: list[int] = field(default_factory=list[int])  # of free pieces, ascending
    _ends: list[int] = field(default_factory=list[int])
    _taken: dict[int, int] = field(default_factory=dict[int, int])  # offset -> length

    def __post_init__(self) -> None:
        self._starts, self._ends = [0], [self.size]

    @property
    def taken(self) -> int:
        """Bytes in use, what aligning costs included."""
        return sum(self._taken.values())

    def take(self, nbytes: int) -> Slot | None:
        """A slot of that size; None when no free piece is long enough."""
        length = max(_ALIGN, -(-nbytes // _ALIGN) * _ALIGN)
        for i, (start, end) in enumerate(zip(self._starts, self._ends, strict=True)):
            if end - start >= length:
                self._occupy(i, start, length)
                return Slot(start, nbytes)
        return None

    def reserve(self, slots: Iterable[Slot]) -> None:
        """These are in use already."""
        for slot in slots:
            i = bisect.bisect_right(self._starts, slot.offset) - 1
            self._occupy(i, slot.offset, -(-slot.nbytes // _ALIGN) * _ALIGN)

    def give(self, offset: int) -> None:
        """The slot that starts there is free. One that nobody has taken is ignored."""
        length = self._taken.pop(offset, 0)
        if not length:
            return
        start, end = offset, offset + length
        i = bisect.bisect_left(self._starts, start)
        if i < len(self._starts) and self._starts[i] == end:
            end = self._ends[i]
            del self._starts[i], self._ends[i]
        if i and self._ends[i - 1] == start:
            self._ends[i - 1] = end
        else:
            self._starts.insert(i, start)
            self._ends.insert(i, end)

    def _occupy(self, i: int, start: int, length: int) -> None:
        """`length` bytes from `start` on, which lie in free piece `i`."""
        first, last = self._starts[i], self._ends[i]
        assert first <= start
        assert start + length <= last
        self._taken[start] = length
        pieces = [(first, start), (start + length, last)]
        rest = [(a, b) for a, b in pieces if a < b]
        self._starts[i : i + 1] = [a for a, _ in rest]
        self._ends[i : i + 1] = [b for _, b in rest]


class Arena:
    """All regions, and the notes of who is doing what."""

    def __init__(self, seats: int, region_bytes: int, fd: int = -1) -> None:
        """`fd`: of an arena made by another process; -1: a new one. Raises OSError.

        Memory is used from the first write on, by whoever writes: on its NUMA node.
        """
        self.seats = seats
        self.region_bytes = -(-region_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
        notes = -(-seats * NOTE_WORDS * 8 // mmap.PAGESIZE) * mmap.PAGESIZE
        self.fd = os.memfd_create("trireme-samples", os.MFD_CLOEXEC) if fd < 0 else fd
        if fd < 0:
            os.ftruncate(self.fd, notes + seats * self.region_bytes)
        self._first = notes
        self._map = mmap.mmap(self.fd, notes + seats * self.region_bytes)
        self.notes: Words = np.frombuffer(self._map, np.int64, seats * NOTE_WORDS).reshape(
            seats, NOTE_WORDS
        )

    def write(self, seat: int, slot: Slot, data: Bytes) -> None:
        """Copy `data` into a slot."""
        start = self._start(seat, slot)
        into = np.frombuffer(self._map, np.uint8, slot.nbytes, start)
        into[:] = data

    def view(self, seat: int, slot: Slot) -> Bytes:
        """The bytes of a slot, without a copy. Good for as long as the slot is leased."""
        return np.frombuffer(self._map, np.uint8, slot.nbytes, self._start(seat, slot))

    def lend(self, seat: int, slot: Slot, released: Callable[[], object]) -> Bytes:
        """`view` that calls `released` once, when the last array made of it is gone."""
        holder = (ctypes.c_uint8 * slot.nbytes).from_buffer(self._map, self._start(seat, slot))
        weakref.finalize(holder, released).atexit = False
        return np.frombuffer(memoryview(holder), np.uint8)

    def _start(self, seat: int, slot: Slot) -> int:
        assert slot.offset >= 0
        assert slot.offset + slot.nbytes <= self.region_bytes
        return self._first + seat * self.region_bytes + slot.offset

    def close(self) -> None:
        """Give the descriptor back; the memory goes with the last view of it."""
        os.close(self.fd)
