"""Slots: never two in one place, given back when the last user is gone."""

import gc
import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.data.alone.slots import Arena, Room, Slot


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 40) | st.tuples(st.integers(1, 3000)), max_size=80))
def test_slots_never_overlap_and_all_room_comes_back(moves: list[int | tuple[int]]):
    room, held = Room(16384), list[Slot]()
    for move in moves:
        if isinstance(move, tuple):
            slot = room.take(move[0])
            if slot is not None:
                held.append(slot)
        elif held:
            room.give(held.pop(move % len(held)).offset)
        spans = sorted((slot.offset, slot.offset + slot.nbytes) for slot in held)
        assert all(a[1] <= b[0] for a, b in itertools.pairwise(spans))
        assert all(end <= room.size for _, end in spans)
        heir = Room(16384)
        heir.reserve(held)
        assert heir.taken == room.taken
    for slot in held:
        room.give(slot.offset)
    assert room.take(16384) == Slot(0, 16384)


def test_a_slot_given_back_twice_is_free_once():
    room = Room(1024)
    first, second = room.take(512), room.take(512)
    assert first is not None
    assert second is not None
    room.give(first.offset)
    room.give(first.offset)
    assert room.take(1024) is None
    assert room.take(512) == first


def test_a_lent_slot_is_released_with_the_last_array_on_it():
    arena = Arena(2, 8192)
    slot = Slot(4096, 1024)
    arena.write(1, slot, np.arange(1024, dtype=np.uint8))
    released: list[int] = []
    memory = arena.lend(1, slot, lambda: released.append(1))
    image = memory.view(np.int32).reshape(16, 16)[2:4]
    del memory
    gc.collect()
    assert not released
    assert image.tobytes() == bytes(range(128, 256))
    del image
    gc.collect()
    assert released == [1]
    arena.close()


def test_regions_are_apart():
    arena = Arena(3, 4096)
    slot = Slot(0, 4096)
    for seat in range(3):
        arena.write(seat, slot, np.full(4096, seat + 1, np.uint8))
    assert [int(arena.view(seat, slot).sum()) for seat in range(3)] == [4096, 8192, 12288]
    assert not arena.notes.any()
    arena.close()
