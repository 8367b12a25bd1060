"""Whatever happens to workers, every sample is settled exactly once."""

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

from actors.data.leases import Grant, LeaseTable

LIMIT, LEASE_S, MAX_DEATHS = 3, 30.0, 3


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
            self.table.add((sample % 2, sample // 2), sample, slow=sample % 5 == 0)
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

    @precondition(lambda self: self.said)
    @rule(data=st.data())
    def park(self, data: st.DataObject) -> None:
        grant = data.draw(st.sampled_from(self.said))
        self.table.park(grant.worker, grant.lease, self.now)

    @precondition(lambda self: self.said)
    @rule(data=st.data())
    def at_work(self, data: st.DataObject) -> None:
        grant = data.draw(st.sampled_from(self.said))
        self.table.at_work(grant.worker, grant.lease, self.now)

    @precondition(lambda self: self.table.workers)
    @rule(data=st.data(), limit=st.integers(1, 5), slow=st.booleans())
    def change(self, data: st.DataObject, limit: int, slow: bool) -> None:
        name = data.draw(st.sampled_from(sorted(self.table.workers)))
        self.table.allow(name, limit)
        self.table.assign(name, "slow" if slow else "fast")

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
