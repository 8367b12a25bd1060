"""The supervisor's rules, under a manual clock: scripted lives first, then lives made at random."""

import signal
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from actors.process import Identity
from actors.supervisor.events import (
    Bury,
    Completed,
    Ended,
    Event,
    Finish,
    Fork,
    Forked,
    Heard,
    Instruction,
    Kill,
    Left,
    Memory,
    NotForked,
    Place,
    StopWanted,
    Tell,
    Tick,
)
from actors.supervisor.supervision import Supervision
from actors.topology import SupervisionSpec
from protocol.clock import ManualClock
from protocol.messages import PeerDown, PeerUp, Stop

SPEC = SupervisionSpec(
    silence_s=5.0,
    hang_s=60.0,
    start_s=30.0,
    intensity=3,
    period_s=60.0,
    backoff_s=0.05,
    backoff_max_s=5.0,
    stop_s=10.0,
)
PLACES = (
    Place("recorder", "recorder", 0, 9),
    Place("trainer/0", "trainer", 3, 6),
    Place("trainer/1", "trainer", 3, 6),
    Place("data_worker/0", "data_worker", 4, 5),
)


class World:
    """Processes that do as they are told, and a supervisor that is told what they do."""

    def __init__(self, memories: dict[str, Memory] | None = None) -> None:
        self.clock = ManualClock(100.0)
        self.decider = Supervision(SPEC, PLACES, now=self.clock.now(), memories=memories)
        self.alive: dict[str, tuple[int, Identity]] = {}
        self.told: list[Instruction] = []
        self.pids = 1000

    def tell(self, *events: Event) -> list[Instruction]:
        """Hand events over and obey forks and kills; returns all instructions of this call."""
        mine: list[Instruction] = []
        queue = list(events)
        while queue:
            given = self.decider.handle(queue.pop(0), self.clock.now())
            self.decider.check()
            mine += given
            for instruction in given:
                if isinstance(instruction, Fork):
                    assert instruction.name not in self.alive
                    self.pids += 1
                    who = Identity(self.pids, self.pids)
                    self.alive[instruction.name] = (instruction.incarnation, who)
                    queue.append(Forked(instruction.name, instruction.incarnation, who))
                elif isinstance(instruction, Kill) and instruction.signal == signal.SIGKILL:
                    self.alive.pop(instruction.name, None)
                    end = Ended(instruction.name, instruction.incarnation, "killed by SIGKILL")
                    queue.append(end)
        self.told += mine
        return mine

    def begin(self) -> list[Instruction]:
        return self.tell(Tick())

    def beat(self, name: str, **what: Any) -> list[Instruction]:
        return self.tell(Heard(name, self.alive[name][0], **what))

    def beat_all(self) -> None:
        for name in list(self.alive):
            self.beat(name)

    def up(self) -> "World":
        """Everybody runs."""
        self.begin()
        for _ in range(4):
            self.beat_all()
        assert self.decider.complete()
        return self

    def die(self, name: str, how: str = "killed by SIGSEGV") -> list[Instruction]:
        incarnation, _ = self.alive.pop(name)
        return self.tell(Ended(name, incarnation, how))

    def wait(self, s: float, *, beating: bool = True, every: float = 0.25) -> list[Instruction]:
        mine: list[Instruction] = []
        end = self.clock.now() + s
        while self.clock.now() < end:
            self.clock.advance(every)
            mine += self.tell(Tick())
            if beating:
                self.beat_all()
        return mine


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    yield world
    world.decider.check()


def of(kind: type, instructions: list[Instruction]) -> list[Any]:
    return [one for one in instructions if isinstance(one, kind)]


def test_groups_start_one_after_the_other(world: World):
    assert of(Fork, world.begin()) == [Fork("recorder", 1)]
    assert of(Fork, world.beat("recorder")) == [Fork("trainer/0", 1), Fork("trainer/1", 1)]
    assert of(Fork, world.beat("trainer/0")) == []
    assert of(Fork, world.beat("trainer/1")) == [Fork("data_worker/0", 1)]


def test_everybody_learns_of_a_new_peer_once(world: World):
    world.begin()
    first = of(Tell, world.beat("recorder"))
    assert first == [Tell("", PeerUp(name="recorder", incarnation=1))]
    assert of(Tell, world.beat("recorder")) == []


def test_a_death_is_announced_and_answered_at_once(world: World):
    world.up()
    told = world.die("trainer/0")
    assert Tell("", PeerDown(name="trainer/0", incarnation=1, reason="killed by SIGSEGV")) in told
    assert Fork("trainer/0", 2) in told
    assert of(Bury, told) == [Bury("trainer/0", 1, "killed by SIGSEGV", 0.0)]


def test_an_end_reported_twice_is_one_death(world: World):
    world.up()
    world.die("trainer/0")
    assert world.tell(Ended("trainer/0", 1, "killed by SIGSEGV")) == []
    assert world.decider.actors["trainer/0"].restarts == 1


def test_repeated_deaths_are_answered_ever_more_slowly(world: World):
    world.up()
    waits = []
    for _ in range(3):
        waits.append(of(Bury, world.die("trainer/0"))[0].restart_in_s)
        world.wait(0.5)
    assert waits == [0.0, 0.05, 0.1]


def test_a_restart_waits_for_its_turn(world: World):
    world.up()
    world.die("trainer/0")
    world.beat("trainer/0")
    assert of(Fork, world.die("trainer/0")) == []
    world.clock.advance(0.04)
    assert of(Fork, world.tell(Tick())) == []
    world.clock.advance(0.02)
    assert of(Fork, world.tell(Tick())) == [Fork("trainer/0", 3)]


def test_a_zombie_does_not_speak_for_its_successor(world: World):
    world.up()
    world.die("trainer/0")
    world.beat("trainer/0")
    for _ in range(24):
        world.clock.advance(0.25)
        world.tell(Tick(), Heard("trainer/0", 1))
        for name in list(world.alive):
            if name != "trainer/0":
                world.beat(name)
    assert of(Kill, world.told)[0].why.startswith("silent for 5.")


def test_answers_that_come_late_or_twice_change_nothing(world: World):
    world.up()
    incarnation, who = world.alive["trainer/0"]
    assert world.tell(Forked("trainer/0", incarnation, who)) == []
    assert world.tell(NotForked("trainer/0", incarnation, "it was asked twice")) == []
    world.die("trainer/0")
    assert world.tell(NotForked("trainer/0", incarnation, "of a past life")) == []
    assert world.decider.actors["trainer/0"].incarnation == incarnation + 1


def test_too_many_deaths_end_the_run_with_the_reason(world: World):
    world.up()
    for _ in range(4):
        world.die("trainer/0", "exit code 3")
        world.wait(0.5)
    (finish,) = of(Finish, world.wait(60.0))
    assert finish.end == "failed"
    assert finish.reason == ("trainer/0 died 4 times within 60 s, the last time: exit code 3")


def test_deaths_far_apart_are_forgiven(world: World):
    world.up()
    for _ in range(12):
        assert of(Bury, world.die("trainer/0"))[0].restart_in_s == 0.0
        world.wait(61.0)
    assert world.decider.end is None


def test_a_silent_actor_prints_its_stacks_and_is_killed(world: World):
    world.up()
    told = []
    for _ in range(24):
        world.clock.advance(0.25)
        told += world.tell(Tick())
        for name in list(world.alive):
            if name != "trainer/0":
                world.beat(name)
    kills = of(Kill, told)
    assert [kill.signal for kill in kills] == [signal.SIGUSR2, signal.SIGKILL]
    assert kills[0].why.startswith("silent for 5.")
    assert Fork("trainer/0", 2) in told


def test_one_that_beats_without_progress_is_killed(world: World):
    world.up()
    world.beat("trainer/0", progress=7)
    for _ in range(61 * 4):
        world.clock.advance(0.25)
        world.tell(Tick())
        for name in list(world.alive):
            world.beat(name, progress=7 if name == "trainer/0" else 0)
    report = of(Bury, world.told)[0]
    assert report.why.startswith("beats, but made no progress for 60 s")


def test_one_that_waits_for_somebody_is_left_alone(world: World):
    world.up()
    for _ in range(100 * 4):
        world.clock.advance(0.25)
        world.tell(Tick())
        for name in list(world.alive):
            world.beat(name, progress=7, waiting_for="optimizer_shard/0")
    assert of(Kill, world.told) == []


def test_one_that_never_speaks_is_killed_after_the_start_timeout(world: World):
    world.begin()
    told = world.wait(31.0, beating=False)
    assert of(Bury, told)[0].why.startswith("no beat within 30 s of its start")


def test_a_failed_fork_counts_as_a_death(world: World):
    world.begin()
    world.beat("recorder")
    actor = world.decider.actors["trainer/0"]
    world.alive.pop("trainer/0")
    actor.stage, actor.who = "asked", None
    told = world.tell(NotForked("trainer/0", 1, "fork: out of memory"))
    assert of(Bury, told) == [
        Bury("trainer/0", 1, "could not be started: fork: out of memory", 0.0)
    ]
    assert of(Fork, told) == [Fork("trainer/0", 2)]


def test_after_a_pause_of_our_own_nobody_is_blamed(world: World):
    world.up()
    world.clock.advance(100.0)
    assert world.tell(Tick()) == []


def test_actors_stop_in_reverse_and_politely(world: World):
    world.up()
    order = []
    told = world.tell(StopWanted("enough"))
    while not of(Finish, told):
        stops = [one for one in of(Tell, told) if isinstance(one.message, Stop)]
        assert stops, "nobody is told to stop, and nothing is finished"
        order.append({one.name for one in stops})
        told = [one for stop in stops for one in world.die(stop.name, "exit code 0")]
    assert order == [{"data_worker/0"}, {"trainer/0", "trainer/1"}, {"recorder"}]
    assert of(Finish, told) == [Finish("stopped", "enough")]
    assert of(Bury, world.told) == []


def test_whoever_does_not_leave_is_killed(world: World):
    world.up()
    world.tell(StopWanted("enough"))
    told = world.wait(35.0)
    assert of(Finish, told) == [Finish("stopped", "enough")]
    assert world.alive == {}


def test_a_second_wish_to_stop_does_not_wait(world: World):
    world.up()
    world.tell(StopWanted("enough"))
    world.tell(StopWanted("enough", at_once=True))
    assert of(Finish, world.wait(1.0)) == [Finish("stopped", "enough")]


def test_a_finished_run_is_done(world: World):
    world.up()
    world.tell(Completed(30, "abc"))
    assert of(Finish, world.wait(35.0)) == [Finish("done", "step 30 is committed")]


def test_an_actor_that_says_why_it_cannot_go_on_ends_the_run(world: World):
    world.up()
    world.tell(Left("trainer/1", 1, "the disk is full"))
    assert of(Finish, world.wait(35.0)) == [Finish("failed", "trainer/1: the disk is full")]


def test_nothing_is_restarted_while_stopping(world: World):
    world.up()
    world.tell(StopWanted("enough"))
    assert of(Fork, world.die("trainer/0")) == []


def test_adopted_actors_are_not_started_again():
    who = Identity(7, 7)
    memories = {place.name: Memory(3, who, restarts=2) for place in PLACES}
    world = World(memories)
    assert of(Fork, world.begin()) == []
    world.alive = {place.name: (3, who) for place in PLACES}
    world.beat_all()
    assert world.decider.complete()
    assert Fork("trainer/1", 4) in world.die("trainer/1")


def test_a_death_while_nobody_supervised_is_a_death():
    memories = {place.name: Memory(1, Identity(7, 7)) for place in PLACES}
    world = World(memories)
    told = world.tell(Ended("trainer/0", 1, "ended, nobody saw how"))
    assert of(Fork, told) == [Fork("trainer/0", 2)]


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
