"""Strict order is a pure function of (seed, epoch); ready order loses nobody."""

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from actors.data.ordering import Buffer, Draws, permutation

SAMPLES = np.arange(50) * 3


def test_a_permutation_depends_on_seed_and_epoch_alone():
    first = permutation(7, 2, SAMPLES)
    assert np.array_equal(first, permutation(7, 2, SAMPLES))
    assert not np.array_equal(first, permutation(7, 3, SAMPLES))
    assert not np.array_equal(first, permutation(8, 2, SAMPLES))
    assert sorted(first) == SAMPLES.tolist()


def test_permutations_are_the_same_on_every_machine():
    """A change here makes resumed runs differ from those that were never stopped."""
    assert permutation(0, 0, np.arange(10)).tolist() == [0, 2, 9, 1, 8, 5, 4, 3, 6, 7]


def test_permutations_do_not_favour_places():
    places = np.array([permutation(seed, 0, np.arange(10)) for seed in range(2000)])
    counts = np.array([np.bincount(places[:, place], minlength=10) for place in range(10)])
    assert counts.min() > 140
    assert counts.max() < 265


def test_draws_go_through_every_sample_of_every_epoch():
    draws = Draws(5, SAMPLES)
    taken = [draw for _ in range(2 * len(SAMPLES)) if (draw := draws.next())]
    for epoch in (0, 1):
        samples = [draw.sample for draw in taken if draw.epoch == epoch]
        assert samples == permutation(5, epoch, SAMPLES).tolist()
    assert [draw.turn for draw in taken] == list(range(2 * len(SAMPLES)))


def test_settled_samples_are_passed_over_in_their_epoch_only():
    draws = Draws(5, SAMPLES, epoch=1, settled={1: {0, 3, 6}})
    taken = [draw for _ in range(len(SAMPLES)) if (draw := draws.next())]
    assert {0, 3, 6}.isdisjoint(draw.sample for draw in taken if draw.epoch == 1)
    assert [draw.epoch for draw in taken] == [1] * 47 + [2] * 3


def test_samples_left_out_are_never_drawn_again():
    draws = Draws(5, SAMPLES)
    first = draws.next()
    assert first is not None
    draws.left_out.add(first.sample)
    taken = [draw.sample for _ in range(3 * len(SAMPLES)) if (draw := draws.next())]
    assert first.sample not in taken
    assert len(set(taken)) == len(SAMPLES) - 1


def test_when_all_are_left_out_there_is_nothing_to_draw():
    draws = Draws(5, SAMPLES, left_out=set(SAMPLES.tolist()))
    assert draws.next() is None


def test_epochs_that_are_settled_whole_are_skipped():
    everyone = set(SAMPLES.tolist())
    draw = Draws(5, SAMPLES, settled={0: everyone, 1: everyone, 2: everyone}).next()
    assert draw is not None
    assert draw.epoch == 3


@given(st.permutations(range(12)), st.sets(st.integers(0, 11)))
def test_strict_order_gives_back_turns_in_order(ends: list[int], nothing: set[int]):
    buffer: Buffer[int] = Buffer("strict")
    out: list[int] = []
    for turn in ends:
        buffer.put(turn, None if turn in nothing else turn)
        while (item := buffer.pop()) is not None:
            out.append(item)
    assert out == [turn for turn in range(12) if turn not in nothing]
    assert len(buffer) == 0


def test_strict_order_waits_for_whoever_is_next():
    buffer: Buffer[str] = Buffer("strict")
    buffer.put(1, "b")
    buffer.put(2, "c")
    assert buffer.pop() is None
    assert len(buffer) == 2
    buffer.put(0, "a")
    assert [buffer.pop() for _ in range(3)] == ["a", "b", "c"]


def test_a_turn_ends_once():
    buffer: Buffer[str] = Buffer("strict")
    for item in ("a", "again"):
        buffer.put(0, item)
    assert buffer.pop() == "a"
    assert buffer.pop() is None


@given(st.permutations(range(12)))
def test_ready_order_is_the_order_of_arrival(ends: list[int]):
    buffer: Buffer[int] = Buffer("ready")
    for turn in ends:
        buffer.put(turn, turn)
    out = [buffer.pop() for _ in ends]
    assert out == ends
    assert all(a != b for a, b in pairwise(out))
