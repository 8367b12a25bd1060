"""The number of workers, on a simulated machine with samples that compute and wait."""

import itertools

import pytest

from actors.data.crowd import Crowd


def settle(
    crowd: Crowd, cores: float, computing: float, demand: float = 1e9, looks: int = 30
) -> list[int]:
    """Numbers over time, where samples compute for that share of their time on a line, and
    `demand` lines are all that the consumer's pace needs."""
    numbers: list[int] = []
    for _ in range(looks):
        # Cores are shared when lines would use more of them than there are.
        busy = min(crowd.number, demand)
        used = min(busy * computing, cores)
        numbers.append(crowd.decide(occupied=busy, used=used, starving=demand > crowd.number))
    return numbers


@pytest.mark.parametrize("computing", [1.0, 0.9])
def test_samples_that_compute_need_one_worker_a_core(computing: float):
    assert set(settle(Crowd(4, 64, 4.0), 4.0, computing)) == {4}


@pytest.mark.parametrize("computing", [0.5, 0.1, 0.02])
def test_samples_that_wait_get_as_many_as_keep_the_cores_busy(computing: float):
    numbers = settle(Crowd(2, 1000, 2.0), 2.0, computing)
    assert numbers[-1] * computing == pytest.approx(2.0, rel=0.2)
    assert sorted(numbers) == numbers
    assert len(set(numbers[10:])) == 1


def test_memory_bounds_them():
    assert settle(Crowd(2, 16, 2.0), 2.0, 0.001)[-1] == 16


@pytest.mark.parametrize("demand", [1.0, 3.0, 7.5, 20.0, 50.0])
def test_no_more_than_the_consumer_needs_and_no_swinging(demand: float):
    crowd = Crowd(2, 1000, 2.0)
    settle(crowd, 2.0, 0.02)
    numbers = settle(crowd, 2.0, 0.02, demand)
    assert numbers[-1] <= max(2, 2 * demand)
    assert numbers[-1] >= min(demand, 100)
    assert sum(a != b for a, b in itertools.pairwise(numbers)) <= 2


def test_they_come_back_when_they_are_needed_again():
    crowd = Crowd(2, 1000, 2.0)
    settle(crowd, 2.0, 0.02)
    settle(crowd, 2.0, 0.02, 1.0)
    assert crowd.number == 2
    assert settle(crowd, 2.0, 0.02)[-1] > 80
