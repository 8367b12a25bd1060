"""The cut-off between fast and slow samples, on the mixtures it has to part."""

import random

import pytest

from actors.data.cutoffs import NEVER_S, WARM_UP, WINDOW, Cutoff, estimate


def mixture(share: float, count: int = WINDOW, seed: int = 0) -> list[float]:
    """1 to 5 ms, and that share of 100 to 500 ms."""
    chance = random.Random(seed)
    return [
        chance.uniform(0.1, 0.5) if chance.random() < share else chance.uniform(0.001, 0.005)
        for _ in range(count)
    ]


@pytest.mark.parametrize("share", [0.02, 0.05, 0.2, 0.35, 0.5])
@pytest.mark.parametrize("seed", range(20))
def test_the_cutoff_lies_among_the_fast_samples_of_a_mixture(share: float, seed: int):
    assert 0.002 < estimate(mixture(share, seed=seed)) <= 0.005


def test_times_without_memory_are_of_one_kind():
    for seed in range(20):
        chance = random.Random(seed)
        assert estimate([chance.expovariate(100) for _ in range(WINDOW)]) == NEVER_S


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_samples_of_one_kind_are_never_handed_over(share: float):
    for seed in range(20):
        assert estimate(mixture(share, seed=seed)) == NEVER_S


def test_samples_without_any_spread_are_never_handed_over():
    assert estimate([0.004] * WINDOW) == NEVER_S


def test_a_handover_that_costs_more_than_it_moves_is_not_made():
    assert estimate([time / 1000 for time in mixture(0.2)]) == NEVER_S


def test_what_was_configured_holds_until_enough_is_known():
    cutoff = Cutoff(0.05)
    for seconds in mixture(0.2, WARM_UP - 1):
        assert not cutoff.note(seconds)
    assert cutoff.seconds == 0.05
    assert cutoff.note(0.002)
    assert cutoff.seconds != 0.05


def test_the_cutoff_follows_the_data():
    cutoff = Cutoff()
    for seconds in mixture(0.2, 1000):
        cutoff.note(seconds)
    before = cutoff.seconds
    for seconds in mixture(0.2, 1000):
        cutoff.note(3 * seconds)
    assert cutoff.seconds == pytest.approx(3 * before, rel=0.2)
