"""The supervisor's rules under random lives: crashes, hangs, refusals and zombies in any order.

What must hold whatever happens: no name lives twice, restarts are rationed, and a stop ends.
"""

import signal

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from actors.process import Identity
from actors.supervisor.events import (
    Ended,
    Finish,
    Fork,
    Forked,
    Heard,
    Kill,
    Memory,
    NotForked,
    StopWanted,
    Tick,
)
from actors.supervisor.supervision import Supervision
from protocol.clock import ManualClock
from tests.actors.supervisor.conftest import PLACES, SPEC


class Lives(RuleBasedStateMachine):
    """Processes that crash, hang, refuse to start and fall silent, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = ManualClock(50.0)
        self.decider = Supervision(SPEC, PLACES, now=50.0)
        self.alive: dict[tuple[str, int], Identity] = {}
        self.asked: list[Fork] = []
        self.ended: list[Ended] = []  # ends that the supervisor has not seen yet
        self.forks: dict[str, list[float]] = {}
        self.finished: list[Finish] = []
        self.pids = 1

    def tell(self, event) -> None:
        for one in self.decider.handle(event, self.clock.now()):
            match one:
                case Fork(name=name):
                    assert not [life for life in self.alive if life[0] == name]
                    assert not [fork for fork in self.asked if fork.name == name]
                    self.asked.append(one)
                    self.forks.setdefault(name, []).append(self.clock.now())
                case Kill(name=name, incarnation=incarnation, signal=signal.SIGKILL):
                    self.crash(name, incarnation)
                case Finish():
                    self.finished.append(one)
                case _:
                    pass

    def crash(self, name: str, incarnation: int) -> None:
        if self.alive.pop((name, incarnation), None) is not None:
            self.ended.append(Ended(name, incarnation, "killed"))

    @rule(s=st.sampled_from([0.01, 0.2, 0.9, 4.0, 40.0]))
    def time_passes(self, s: float):
        self.clock.advance(s)
        self.tell(Tick())

    @precondition(lambda self: self.asked)
    @rule(works=st.booleans())
    def a_fork_is_answered(self, works: bool):
        fork = self.asked.pop(0)
        if not works:
            self.tell(NotForked(fork.name, fork.incarnation, "no memory"))
            return
        self.pids += 1
        who = Identity(self.pids, self.pids)
        self.alive[fork.name, fork.incarnation] = who
        self.tell(Forked(fork.name, fork.incarnation, who))

    @precondition(lambda self: self.alive)
    @rule(data=st.data(), progress=st.integers(0, 2))
    def somebody_beats(self, data, progress: int):
        name, incarnation = data.draw(st.sampled_from(sorted(self.alive)))
        self.tell(Heard(name, incarnation, progress=progress))

    @rule()
    def everybody_beats(self):
        for name, incarnation in sorted(self.alive):
            self.tell(Heard(name, incarnation))

    @precondition(lambda self: self.alive)
    @rule(data=st.data())
    def somebody_crashes(self, data):
        self.crash(*data.draw(st.sampled_from(sorted(self.alive))))

    @precondition(lambda self: self.ended)
    @rule(twice=st.booleans())
    def an_end_is_seen(self, twice: bool):
        end = self.ended.pop(0)
        self.tell(end)
        if twice:
            self.tell(end)

    @precondition(lambda self: not self.asked)
    @rule()
    def the_supervisor_is_replaced(self):
        memories = {}
        for actor in self.decider.actors.values():
            memories[actor.name] = Memory(
                actor.incarnation, actor.who, actor.restarts, actor.rationing.deaths
            )
        end, reason = self.decider.end, self.decider.reason
        if self.finished:
            return
        self.decider = Supervision(SPEC, PLACES, now=self.clock.now(), memories=memories)
        if end is not None:
            self.tell(StopWanted(reason))

    @rule()
    def a_zombie_speaks(self):
        for actor in self.decider.actors.values():
            self.tell(Heard(actor.name, actor.incarnation - 1))

    @invariant()
    def one_life_per_name(self):
        self.decider.check()
        names = [name for name, _ in self.alive]
        assert len(names) == len(set(names))

    @invariant()
    def restarts_are_rationed(self):
        for times in self.forks.values():
            for first in range(len(times)):
                within = [at for at in times[first:] if at < times[first] + SPEC.period_s]
                # The first life of a period, and one more for each death that is allowed.
                assert len(within) <= SPEC.intensity + 1

    def teardown(self):
        """Whatever happened, a stop ends, once, and leaves nothing."""
        self.tell(StopWanted("the test is over"))
        for _ in range(400):
            while self.asked:
                self.a_fork_is_answered(works=True)
            while self.ended:
                self.tell(self.ended.pop(0))
            if self.finished:
                break
            self.clock.advance(0.25)
            self.tell(Tick())
        assert len(self.finished) == 1
        assert self.alive == {}


TestLives = Lives.TestCase
TestLives.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
