"""Leases: one holder at a time, every sample finished once, nobody blamed without cause."""

from collections.abc import Iterator

import pytest

from actors.data.leases import Grant, LeaseTable, Poisoned

LIMIT, LEASE_S, MAX_DEATHS = 3, 30.0, 3


@pytest.fixture
def table() -> Iterator[LeaseTable]:
    """Every test is a test of the invariants too."""
    made = LeaseTable(lease_s=LEASE_S, limit=LIMIT, max_deaths=MAX_DEATHS)
    yield made
    made.check()


def add(table: LeaseTable, *samples: int) -> None:
    for sample in samples:
        table.add((0, sample), sample)


def enter(table: LeaseTable, name: str, pool: str = "fast", credit: int = LIMIT) -> None:
    shares_files = not name.startswith("far")
    table.join(name, 1, "slow" if pool == "slow" else "fast", shares_files=shares_files, now=0.0)
    assert table.request(name, credit, 0.0)


def samples(grants: list[Grant]) -> list[tuple[str, int]]:
    return [(grant.worker, grant.key[1]) for grant in grants]


def test_the_most_urgent_sample_goes_to_whoever_holds_fewest(table: LeaseTable):
    add(table, 3, 1, 2)
    enter(table, "a")
    enter(table, "b")
    assert samples(table.grants(0.0)) == [("a", 1), ("b", 2), ("a", 3)]


def test_idle_workers_take_turns(table: LeaseTable):
    enter(table, "a")
    enter(table, "b")
    for sample in range(4):
        add(table, sample)
        (grant,) = table.grants(0.0)
        assert (grant.worker, sample) == ("ab"[sample % 2], sample)
        table.finished(grant.worker, grant.lease, 0.0)


def test_nobody_gets_more_than_asked_for(table: LeaseTable):
    add(table, *range(10))
    enter(table, "a", credit=2)
    assert len(table.grants(0.0)) == 2
    assert table.grants(0.0) == []
    table.request("a", 100, 0.0)
    assert len(table.grants(0.0)) == LIMIT - 2


def test_a_result_gives_its_place_back(table: LeaseTable):
    add(table, *range(5))
    enter(table, "a", credit=1)
    (grant,) = table.grants(0.0)
    assert table.finished("a", grant.lease, 1.0) == (0, 0)
    assert samples(table.grants(1.0)) == [("a", 1)]


def test_a_result_counts_once(table: LeaseTable):
    add(table, 0)
    enter(table, "a")
    (grant,) = table.grants(0.0)
    assert table.finished("a", grant.lease, 1.0) == (0, 0)
    assert table.finished("a", grant.lease, 1.0) is None
    assert table.late == 1


def test_death_frees_at_once_and_blames_the_oldest_lease_only(table: LeaseTable):
    add(table, *range(3))
    enter(table, "a")
    table.grants(0.0)
    for life in range(MAX_DEATHS - 1):
        assert table.leave("a", blame="was killed", now=0.0) == []
        table.join("a", 2 + life, "fast", shares_files=True, now=0.0)
        table.request("a", LIMIT, 0.0)
        assert samples(table.grants(0.0)) == [("a", 0), ("a", 1), ("a", 2)]
    (poisoned,) = table.leave("a", blame="was killed", now=0.0)
    assert poisoned.key == (0, 0)
    assert poisoned.deaths == MAX_DEATHS
    assert "a was killed" in poisoned.reason
    enter(table, "b")
    assert samples(table.grants(0.0)) == [("b", 1), ("b", 2)]


def test_a_worker_that_comes_back_as_a_new_life_frees_what_its_old_one_held(table: LeaseTable):
    add(table, 0)
    enter(table, "a")
    (old,) = table.grants(0.0)
    table.join("a", 2, "fast", shares_files=True, now=1.0)
    table.request("a", 1, 1.0)
    (new,) = table.grants(1.0)
    assert (new.key, new.attempt) == (old.key, 2)
    assert new.lease != old.lease


def test_a_late_result_of_an_expired_lease_still_counts_if_it_is_the_first(table: LeaseTable):
    add(table, 0)
    enter(table, "slowpoke")
    (old,) = table.grants(0.0)
    assert table.expire(LEASE_S) == []
    table.expire(LEASE_S + 1)
    enter(table, "b")
    (new,) = table.grants(40.0)
    assert table.finished("slowpoke", old.lease, 41.0) == (0, 0)
    assert table.finished("b", new.lease, 42.0) is None
    assert table.unfinished() == 0


def test_the_clock_of_a_queued_lease_starts_when_its_turn_comes(table: LeaseTable):
    add(table, 0, 1)
    enter(table, "a")
    first, _second = table.grants(0.0)
    table.finished("a", first.lease, LEASE_S - 1)
    table.expire(LEASE_S + 5)
    assert table.leased == 1
    assert table.next_due() == 2 * LEASE_S - 1


def test_who_lets_a_lease_expire_is_not_asked_until_it_speaks(table: LeaseTable):
    add(table, 0, 1)
    enter(table, "a")
    table.grants(0.0)
    table.expire(LEASE_S + 1)
    assert table.grants(LEASE_S + 1) == []
    table.request("a", 2, LEASE_S + 2)
    assert samples(table.grants(LEASE_S + 2)) == [("a", 0), ("a", 1)]


def test_a_sample_that_never_returns_is_given_up(table: LeaseTable):
    add(table, 0)
    now = 0.0
    given_up: list[Poisoned] = []
    for life in range(MAX_DEATHS):
        enter(table, f"w{life}")
        table.grants(now)
        now += LEASE_S + 1
        given_up += table.expire(now)
    assert [(item.key, item.deaths) for item in given_up] == [((0, 0), MAX_DEATHS)]
    assert "not done after 30 s" in given_up[0].reason


def test_poison_is_poison_in_every_epoch(table: LeaseTable):
    table.add((0, 5), 0)
    table.add((1, 5), 1)
    poisoned: list[Poisoned] = []
    for _ in range(MAX_DEATHS):
        enter(table, "a", credit=1)
        table.grants(0.0)
        poisoned += table.leave("a", blame="died", now=0.0)
    assert [item.key for item in poisoned] == [(0, 5), (1, 5)]


def test_a_handed_over_sample_resumes_from_the_stage_reached(table: LeaseTable):
    add(table, 0, 1)
    enter(table, "fast", credit=1)
    enter(table, "slow", "slow", credit=0)
    (grant,) = table.grants(0.0)
    assert table.handed_over("fast", grant.lease, 2, b"half done", 0.1)
    table.request("slow", 1, 0.1)
    by_worker = {grant.worker: grant for grant in table.grants(0.1)}
    assert (by_worker["slow"].stage, by_worker["slow"].state) == (2, b"half done")
    assert by_worker["fast"].key == (0, 1)


def test_when_a_slow_worker_dies_the_stage_reached_is_kept(table: LeaseTable):
    add(table, 0)
    enter(table, "fast", credit=1)
    enter(table, "slow", "slow", credit=0)
    (grant,) = table.grants(0.0)
    table.handed_over("fast", grant.lease, 1, b"text", 0.1)
    table.request("slow", 1, 0.1)
    table.grants(0.1)
    table.leave("slow", blame="died", now=0.2)
    enter(table, "slow", "slow", credit=1)
    (again,) = table.grants(0.2)
    assert (again.stage, again.state, again.attempt) == (1, b"text", 3)


def test_slow_workers_help_out_but_keep_a_place_free(table: LeaseTable):
    add(table, 0, 1, 2)
    enter(table, "slow", "slow")
    assert samples(table.grants(0.0)) == [("slow", 0), ("slow", 1)]


def test_fast_workers_help_out_when_there_is_nothing_new(table: LeaseTable):
    table.add((0, 0), 0, slow=True)
    table.add((0, 1), 1, slow=True)
    table.add((0, 2), 2)
    enter(table, "slow", "slow", credit=1)
    enter(table, "fast")
    grants = table.grants(0.0)
    assert sorted(samples(grants)) == [("fast", 2), ("slow", 0)]
    (new,) = (grant for grant in grants if grant.worker == "fast")
    assert table.finished("fast", new.lease, 1.0) == (0, 2)
    assert samples(table.grants(1.0)) == [("fast", 1)]


def test_a_sample_expected_to_be_slow_begins_with_a_slow_worker(table: LeaseTable):
    table.add((0, 0), 0, slow=True)
    add(table, 1)
    enter(table, "fast", credit=1)
    enter(table, "slow", "slow", credit=1)
    assert sorted(samples(table.grants(0.0))) == [("fast", 1), ("slow", 0)]


def test_a_worker_may_change_its_pool(table: LeaseTable):
    table.add((0, 0), 0, slow=True)
    add(table, 1)
    enter(table, "a", credit=1)
    enter(table, "b", credit=1)
    table.assign("b", "slow")
    assert sorted(samples(table.grants(0.0))) == [("a", 1), ("b", 0)]


def test_a_parked_sample_leaves_room_for_another(table: LeaseTable):
    add(table, 0, 1, 2)
    enter(table, "a", credit=1)
    table.allow("a", 1)
    (first,) = table.grants(0.0)
    table.park("a", first.lease, 0.1)
    (second,) = table.grants(0.1)
    assert second.key == (0, 1)
    assert table.finished("a", first.lease, 0.2) == (0, 0)
    assert table.grants(0.2) == []
    assert table.finished("a", second.lease, 0.3) == (0, 1)
    assert samples(table.grants(0.3)) == [("a", 2)]


def test_of_several_begun_samples_each_is_tried_alone_and_only_then_blamed(table: LeaseTable):
    add(table, *range(6))
    enter(table, "a")
    for grant in table.grants(0.0)[:2]:
        table.park("a", grant.lease, 0.0)
    table.grants(0.0)
    assert table.leave("a", blame="died", now=1.0) == []
    deaths: list[Poisoned] = []
    for _life in range(9):
        enter(table, "b")
        (grant,) = table.grants(1.0)
        if grant.key != (0, 1):
            assert table.finished("b", grant.lease, 1.0) == grant.key
        else:
            deaths += table.leave("b", blame="died", now=1.0)
        if deaths:
            break
    assert [(item.key, item.deaths) for item in deaths] == [((0, 1), MAX_DEATHS)]
    enter(table, "b")
    rest = table.grants(2.0)
    while rest:
        for grant in rest:
            table.finished("b", grant.lease, 2.0)
        rest = table.grants(2.0)
    assert table.unfinished() == 0


def test_whoever_is_known_to_be_at_work_is_the_one_to_blame(table: LeaseTable):
    add(table, *range(3))
    enter(table, "a")
    grants = table.grants(0.0)
    table.at_work("a", grants[1].lease, 0.5)
    for _ in range(MAX_DEATHS - 1):
        assert table.leave("a", blame="died", now=1.0) == []
        enter(table, "a")
        grants = table.grants(1.0)
        table.at_work("a", grants[1].lease, 1.0)
    (poisoned,) = table.leave("a", blame="died", now=1.0)
    assert poisoned.key == (0, 1)


def test_a_wait_that_does_not_end_expires_too(table: LeaseTable):
    add(table, 0, 1)
    enter(table, "a")
    grants = table.grants(0.0)
    table.park("a", grants[0].lease, 5.0)
    table.finished("a", grants[1].lease, 30.0)
    assert table.next_due() == 5.0 + LEASE_S
    assert table.expire(5.0 + LEASE_S) == []
    assert table.leased == 1
    table.expire(6.0 + LEASE_S)
    assert table.leased == 0


def test_without_slow_workers_fast_ones_finish_what_was_handed_over(table: LeaseTable):
    add(table, 0)
    enter(table, "fast")
    (grant,) = table.grants(0.0)
    table.handed_over("fast", grant.lease, 1, b"text", 0.1)
    (again,) = table.grants(0.1)
    assert (again.worker, again.stage) == ("fast", 1)


def test_a_hand_over_that_goes_back_in_time_is_a_wasted_lease(table: LeaseTable):
    add(table, 0)
    enter(table, "fast")
    (grant,) = table.grants(0.0)
    assert not table.handed_over("fast", grant.lease, 0, b"", 0.1)
    assert samples(table.grants(0.1)) == [("fast", 0)]


def test_a_sample_wanted_more_urgently_moves_forward(table: LeaseTable):
    add(table, 5, 6)
    table.add((0, 6), -1)
    enter(table, "a", credit=1)
    assert samples(table.grants(0.0)) == [("a", 6)]


def test_strangers_have_to_join_first(table: LeaseTable):
    assert not table.request("nobody", 4, 0.0)
    assert table.finished("nobody", 99, 0.0) is None


def test_only_workers_of_other_hosts_can_fall_silent(table: LeaseTable):
    enter(table, "here")
    enter(table, "far/0")
    table.request("far/0", 1, 3.0)
    assert table.silent(5.0, 8.0) == []
    assert table.silent(5.0, 8.1) == ["far/0"]
