"""The interval must be right at the edges, where compile rates start their life."""

import pytest

from actors.rates import Z_95, Rates, wilson


@pytest.mark.parametrize(
    ("good", "total", "low", "high"),
    [  # Newcombe 1998, table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_the_interval_agrees_with_published_values(good: int, total: int, low: float, high: float):
    rate = wilson(good, total)
    assert (round(rate.low, 4), round(rate.high, 4)) == (low, high)


@pytest.mark.parametrize(("good", "total"), [(1, 4), (3, 4), (7, 1000), (500, 1000)])
def test_the_bounds_are_where_the_score_test_turns(good: int, total: int):
    """At a bound p the observed share lies exactly z standard errors of p away."""
    rate = wilson(good, total)
    for p in (rate.low, rate.high):
        assert abs(rate.value - p) == pytest.approx(Z_95 * (p * (1 - p) / total) ** 0.5)


@pytest.mark.parametrize("total", [1, 10, 1000])
def test_none_and_all_keep_a_width_and_stay_within_bounds(total: int):
    none, every = wilson(0, total), wilson(total, total)
    assert (none.low, every.high) == (0.0, 1.0)
    assert 0.0 < none.high < 1.0
    assert none.high == pytest.approx(1 - every.low)


def test_of_nothing_nothing_is_known():
    assert (wilson(0, 0).low, wilson(0, 0).high, wilson(0, 0).value) == (0.0, 1.0, 0.0)


@pytest.mark.parametrize(("good", "total"), [(-1, 3), (4, 3), (1, 0)])
def test_impossible_counts_are_refused(good: int, total: int):
    with pytest.raises(ValueError, match="impossible"):
        wilson(good, total)


def test_versions_are_counted_apart_and_old_ones_forgotten():
    rates = Rates(limit=2)
    assert rates.newest() is None
    rates.add(1, 1, 4)
    rates.add(2, 0, 4)
    assert rates.add(1, 3, 4).good == 4
    rates.add(3, 2, 2)
    newest = rates.newest()
    assert newest is not None
    assert (newest[0], newest[1].value) == (3, 1.0)
    assert rates.add(2, 1, 4).total == 8, "version 1 was the one forgotten"
