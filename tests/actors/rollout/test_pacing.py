"""Work never takes more than its share of the time, however it is spread."""

import random

import pytest

from actors.rollout.pacing import DutyCycle


@pytest.mark.parametrize("share", [0.05, 0.15, 0.5, 1.0])
def test_the_share_is_kept_over_any_mix_of_pieces_and_pauses(share: float):
    draw = random.Random(0)
    cycle, now = DutyCycle(share, 100.0), 100.0
    for _ in range(500):
        now += cycle.rest_s(now)
        if draw.random() < 0.1:
            now += draw.uniform(0, 5)  # nobody gave it anything to do
        piece = draw.uniform(0, 0.3)
        cycle.worked(now, piece)
        now += piece
    assert cycle.measured(now) <= share * (1 + 1e-6) + 0.3 / (now - 100.0)


def test_a_busy_worker_comes_close_to_its_share():
    cycle, now = DutyCycle(0.2, 0.0), 0.0
    for _ in range(200):
        now += cycle.rest_s(now)
        cycle.worked(now, 0.01)
        now += 0.01
    assert cycle.measured(now) == pytest.approx(0.2, rel=0.02)


def test_idling_earns_no_burst():
    cycle = DutyCycle(0.1, 0.0)
    cycle.worked(1000.0, 1.0)
    assert cycle.rest_s(1001.0) == pytest.approx(9.0)


def test_processor_time_beside_wall_time_owes_only_itself():
    """On a loaded machine a piece takes longer than the processor time it got."""
    cycle = DutyCycle(0.5, 0.0)
    cycle.worked(0.0, 0.1)
    assert cycle.rest_s(2.0) == 0.0


@pytest.mark.parametrize("share", [0.0, -1.0, 1.5])
def test_impossible_shares_are_refused(share: float):
    with pytest.raises(ValueError, match=r"rollout\.share"):
        DutyCycle(share, 0.0)
