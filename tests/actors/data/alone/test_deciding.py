"""What a loader decides, on imagined workers: cores kept busy, consumers not kept waiting."""

import numpy as np
import pytest

from actors.data.cutoffs import NEVER_S
from actors.data.foresight import Features
from actors.data.ordering import Order
from tests.actors.data.alone.imagined import Stage, Work, World, mixture

SHARES = (0.05, 0.2, 0.5)


def bound(work: Work, workers: int = 2) -> float:
    """Samples a second when every core always computes."""
    parts = (sum(s.seconds for s in work(i) if not s.waits) for i in range(5000))
    return workers * 5000 / sum(parts)


@pytest.mark.parametrize("order", ["strict", "ready"])
@pytest.mark.parametrize("waiting", [False, True])
@pytest.mark.parametrize("share", SHARES)
def test_workers_always_have_something_to_compute(order: Order, waiting: bool, share: float):
    world = World(mixture(share, waiting=waiting), order=order).run(15 if waiting else 40)
    assert world.used > 0.95  # the first slow samples of all are everybody's wait
    assert world.most_out < 1000
    if waiting:
        assert world.rate(5.0) > 0.97 * bound(world.work)
        assert world.deciding.learning.cutoff.seconds == NEVER_S


@pytest.mark.parametrize("order", ["strict", "ready"])
@pytest.mark.parametrize("share", SHARES)
def test_what_is_delivered_is_what_was_computed(order: Order, share: float):
    # In the long run: how far the order of delivery may differ from that of drawing is bounded.
    world = World(mixture(share), order=order).run(150)
    assert world.of_bound(50) > 0.95
    assert 0.002 < world.deciding.learning.cutoff.seconds < 0.01
    assert world.deciding.learning.split.slow == 1


@pytest.mark.parametrize("order", ["strict", "ready"])
@pytest.mark.parametrize("waiting", [False, True])
@pytest.mark.parametrize("share", SHARES)
def test_a_consumer_below_the_bound_does_not_wait(order: Order, waiting: bool, share: float):
    work = mixture(share, waiting=waiting)
    seconds = 30 if waiting else 120
    world = World(work, order=order, interval_s=16 / (0.8 * bound(work))).run(seconds)
    assert world.waiting(seconds / 2) < 0.01


def test_the_look_ahead_grows_when_it_was_too_short_and_stays_bounded():
    work = mixture(0.05)
    world = World(work, ahead=1, interval_s=16 / (0.8 * bound(work))).run(120)
    assert world.waiting(0) > 2 * world.waiting(60)
    assert world.deciding.ahead() > 16
    assert world.most_out <= 4096


@pytest.mark.parametrize("slow", [False, True])
def test_samples_of_one_kind_are_not_handed_over(slow: bool):
    chance = np.random.default_rng(1)
    seconds = chance.uniform(0.1, 0.5, 5000) if slow else chance.uniform(0.001, 0.005, 20000)
    world = World(lambda i: (Stage(seconds[i] / 2),) * 2, samples=len(seconds), workers=4)
    world.run(60 if slow else 10)
    assert world.deciding.learning.handovers == 0
    assert world.used > 0.97


def test_queues_of_workers_are_longer_where_no_sample_keeps_a_line_for_long():
    even, mixed = World(mixture(0.2, waiting=True)).run(2), World(mixture(0.2)).run(2)
    assert even.deciding.learning.limits()["fast"] > 5
    assert mixed.deciding.learning.limits()["fast"] < 5


def test_a_mixture_that_changes_is_followed():
    few, many = mixture(0.02), mixture(0.4)
    world = World(
        lambda i: few(i) if i < 8000 else many(i), order="ready", workers=8, shuffle=False
    ).run(60)
    assert world.used > 0.97
    assert world.deciding.learning.split.slow >= 6
    assert 0.003 < world.deciding.learning.cutoff.seconds < 0.006


def test_foresight_begins_slow_samples_early_instead_of_looking_far_ahead():
    work = mixture(0.05, waiting=True)

    def features(i: int) -> Features:
        return ("slow" if work(i)[1].seconds else "quick"), 1.0

    blind = World(work).run(15)
    seeing = World(work, features=features).run(15)
    assert seeing.rate(5.0) > 0.97 * bound(work)
    assert seeing.most_out < 0.7 * blind.most_out


def test_a_hundred_workers_are_kept_busy():
    for order in ("strict", "ready"):
        world = World(mixture(0.05), workers=112, order=order, ahead=16, batch=64).run(3)
        assert world.used > 0.85


def test_whoever_waits_while_lines_are_empty_has_more_begun_at_once():
    work = mixture(0.2, waiting=True)
    assert World(work, batch=8).run(2.5).used > 0.95
    paced = World(work, batch=8, interval_s=8 / (0.8 * bound(work))).run(2.5)
    assert paced.waiting(0) < 0.05
    assert paced.most_out < 500
