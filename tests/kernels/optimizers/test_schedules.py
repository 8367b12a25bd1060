"""Warm-up, stable, decay."""

import pytest

from kernels.optimizers.schedules import learning_rate, multiplier

SHAPE = {"warmup": 4, "stable": 3, "decay": 5}


def test_the_whole_course():
    course = [multiplier(step, **SHAPE, floor=0.5) for step in range(1, 15)]
    assert course == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1, 1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.5, 0.5])


def test_it_moves_from_the_first_step_and_ends_at_the_minimum():
    rates = [learning_rate(s, lr=3e-4, min_lr=3e-5, **SHAPE) for s in range(1, 100)]
    assert min(rates) > 0
    assert max(rates) == 3e-4
    assert rates[11:] == [pytest.approx(3e-5)] * len(rates[11:])


def test_without_decay_it_stays_at_the_peak():
    assert multiplier(10**6, warmup=0, stable=1, decay=0, floor=0.1) == 1.0


def test_steps_count_from_one():
    with pytest.raises(ValueError, match="count from 1"):
        multiplier(0, **SHAPE, floor=0.1)


def test_a_rate_of_zero_stays_zero():
    assert learning_rate(2, lr=0.0, min_lr=0.0, **SHAPE) == 0.0
