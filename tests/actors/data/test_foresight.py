"""Costs learned, slow samples begun early, every draw made once."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.data.foresight import FARTHEST, Costs, Horizon, window


def draws(count: int) -> Horizon[int]:
    source = iter(range(count))
    return Horizon(lambda: next(source, None), lambda draw: 1.0 if draw % 10 == 7 else 0.001)


def test_a_sample_is_expected_to_take_what_it_took():
    costs = Costs(10)
    assert costs.expect(3) == 0.0
    costs.note(3, 0.25)
    assert costs.expect(3) == pytest.approx(0.25)


def test_of_an_unseen_sample_kind_and_size_decide():
    costs, chance = Costs(1000), random.Random(1)
    for sample in range(900):
        kind, size = chance.choice(["rust", "python"]), chance.uniform(100, 10_000)
        seconds = size * (1e-5 if kind == "rust" else 1e-7)
        costs.note(sample, seconds, (kind, size))
    assert costs.expect(990, ("rust", 8000)) == pytest.approx(0.08, rel=0.3)
    assert 0.003 < costs.expect(991, ("rust", 400)) < 0.015
    assert 0.0005 < costs.expect(992, ("python", 8000)) < 0.0015
    # Of an unknown size the kind is known, of an unknown kind nothing.
    assert costs.expect(993, ("rust", 10**9)) == pytest.approx(0.05, rel=0.3)
    assert costs.expect(994, ("go", 500)) == 0.0


def test_what_comes_as_a_surprise_is_remembered_for_a_while():
    costs = Costs(10_000)
    costs.note(1, 0.5)
    assert (costs.surprise, costs.longest) == (0.5, 0.5)
    for _epoch in range(10):
        costs.note(1, 0.5)
    assert costs.longest == 0.5
    assert 0.49 < costs.surprise < 0.5
    for sample in range(2, 7000):
        costs.note(sample, 0.001)
    assert costs.surprise < 0.002


def test_little_knowledge_does_not_outweigh_much():
    costs = Costs(1000)
    for sample in range(500):
        costs.note(sample, 0.001, ("python", 1000))
    costs.note(600, 0.5, ("python", 90_000))
    assert costs.expect(601, ("python", 90_000)) < 0.26


def test_what_is_expected_to_be_slow_begins_before_its_turn():
    horizon = draws(1000)
    assert [horizon.next() for _ in range(5)] == [0, 1, 2, 3, 4]
    # 20 turns a second: a sample of a second begins 40 turns ahead.
    assert horizon.early(0, 20.0, 1.0) == [7, 17, 27, 37]
    assert [horizon.next() for _ in range(5)] == [5, 6, 8, 9, 10]
    assert horizon.early(8, 20.0, 1.0) == [47]


def test_quick_samples_begin_in_their_turn():
    source = iter(range(100))
    horizon = Horizon(lambda: next(source, None), lambda _draw: 0.001)
    assert horizon.next() == 0
    assert horizon.early(0, 20.0, 0.001) == []
    assert horizon.next() == 1


def test_the_horizon_is_bounded():
    horizon = draws(100_000)
    horizon.early(0, 1e6, 1e6)
    assert len(horizon) <= FARTHEST


@settings(max_examples=100, deadline=None)
@given(st.lists(st.one_of(st.none(), st.floats(0.0, 200.0)), max_size=60))
def test_every_draw_is_made_once_whatever_the_rate(moves: list[float | None]):
    horizon, made, consumed = draws(100), list[int](), 0
    for rate in moves:
        if rate is None:
            draw = horizon.next()
            made += [] if draw is None else [draw]
        else:
            consumed = max(0, horizon.turn - 5)
            made += horizon.early(consumed, rate, 1.0)
    while (draw := horizon.next()) is not None:
        made.append(draw)
    assert sorted(made) == list(range(100))
    assert len(horizon) == 0


def test_the_window_covers_what_is_consumed_during_the_slowest_sample():
    assert window(100.0, 0.5, least=16, most=1000) == 100
    assert window(100.0, 0.001, least=16, most=1000) == 16
    assert window(100.0, 60.0, least=16, most=1000) == 1000
