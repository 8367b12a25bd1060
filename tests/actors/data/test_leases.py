"""Leases: one holder at a time, every sample finished once, nobody blamed without cause."""

from collections.abc import Iterator

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

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
    assert samples(table.grants(0.0)) == [("slow", 0)]


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


class Chaos(RuleBasedStateMachine):
    """Workers join, die, finish, hand over, repeat themselves and fall asleep at random."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.life = 0
        self.table = LeaseTable(lease_s=LEASE_S, limit=LIMIT, max_deaths=MAX_DEATHS)
        self.wanted: set[tuple[int, int]] = set()
        self.settled: set[tuple[int, int]] = set()
        self.said: list[Grant] = []

    @initialize()
    def begin(self) -> None:
        for sample in range(20):
            self.table.add((sample % 2, sample // 2), sample)
            self.wanted.add((sample % 2, sample // 2))

    def settle(self, key: tuple[int, int] | None) -> None:
        if key is not None:
            assert key not in self.settled, "finished twice"
            self.settled.add(key)

    @rule(name=st.sampled_from("abc"), pool=st.sampled_from(["fast", "slow"]))
    def join(self, name: str, pool: str) -> None:
        self.life += 1
        chosen = "slow" if pool == "slow" else "fast"
        for item in self.table.join(name, self.life, chosen, shares_files=True, now=self.now):
            self.settle(item.key)

    @rule(name=st.sampled_from("abc"), credit=st.integers(0, 5))
    def request(self, name: str, credit: int) -> None:
        self.table.request(name, credit, self.now)

    @rule()
    def grant(self) -> None:
        grants = self.table.grants(self.now)
        assert self.settled.isdisjoint(grant.key for grant in grants)
        self.said += grants

    @precondition(lambda self: self.said)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        grant = data.draw(st.sampled_from(self.said))
        self.settle(self.table.finished(grant.worker, grant.lease, self.now))

    @precondition(lambda self: self.said)
    @rule(data=st.data(), stage=st.integers(0, 3))
    def hand_over(self, data: st.DataObject, stage: int) -> None:
        grant = data.draw(st.sampled_from(self.said))
        self.table.handed_over(grant.worker, grant.lease, stage, b"x", self.now)

    @rule(name=st.sampled_from("abc"), blame=st.sampled_from(["", "died"]))
    def leave(self, name: str, blame: str) -> None:
        for item in self.table.leave(name, blame=blame, now=self.now):
            self.settle(item.key)

    @rule(s=st.sampled_from([0.5, 20.0, 31.0]))
    def wait(self, s: float) -> None:
        self.now += s
        for item in self.table.expire(self.now):
            self.settle(item.key)

    @invariant()
    def books_balance(self) -> None:
        self.table.check()
        assert self.table.unfinished() == len(self.wanted - self.settled)

    def teardown(self) -> None:
        """Whatever happened, an honest worker finishes what is left."""
        for name in list(self.table.workers):
            for item in self.table.leave(name, blame="", now=self.now):
                self.settle(item.key)
        self.table.join("honest", self.life + 1, "fast", shares_files=True, now=self.now)
        while self.table.unfinished():
            self.table.request("honest", LIMIT, self.now)
            for grant in self.table.grants(self.now):
                self.settle(self.table.finished("honest", grant.lease, self.now))
        assert self.settled == self.wanted


def test_whatever_happens_every_sample_is_settled_exactly_once():
    run_state_machine_as_test(
        Chaos, settings=settings(max_examples=60, stateful_step_count=40, deadline=None)
    )
