"""The supervisor's rules under a manual clock, one scripted life at a time."""

import signal
from collections.abc import Iterator

import pytest

from actors.process import Identity
from actors.supervisor.events import (
    Bury,
    Committed,
    Completed,
    Ended,
    Finish,
    Fork,
    Forked,
    Heard,
    Instruction,
    Kill,
    Left,
    Memory,
    NotForked,
    StopWanted,
    Tell,
    Tick,
)
from protocol.messages import PeerDown, PeerUp, Stop
from tests.actors.supervisor.conftest import PLACES, SPEC
from tests.actors.supervisor.scripted import World, of


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    yield world
    world.decider.check()


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


def test_after_lives_that_did_their_work_nobody_waits(world: World):
    world.up()
    waits = []
    for lived_s in (0.5, 0.5, 2.5):
        world.wait(lived_s)
        waits.append(of(Bury, world.die("trainer/0"))[0].restart_in_s)
    assert waits == [0.0, 0.05, 0.0]


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


def test_one_that_never_begins_to_make_progress_is_killed_in_the_end(world: World):
    """It answers for its computing thread, which hangs before it has counted anything."""
    world.up()
    killed: dict[str, int] = {}
    for second in range(1, 310):
        world.clock.advance(1.0)
        for kill in of(Kill, world.tell(Tick())):
            killed.setdefault(kill.name, second)
        for name in list(world.alive):
            world.beat(name, progress=0 if name == "trainer/0" else second)
    assert killed == {"trainer/0": 301}


def test_one_that_waits_for_somebody_is_left_alone(world: World):
    world.up()
    for turn in range(100 * 4):
        world.clock.advance(0.25)
        world.tell(Tick())
        for name in list(world.alive):
            world.beat(name, progress=7 + turn, waiting_for="optimizer_shard/0")
    assert of(Kill, world.told) == []


def test_one_that_says_it_waits_and_does_not_turn_is_killed(world: World):
    world.up()
    for _ in range(100 * 4):
        world.clock.advance(0.25)
        world.tell(Tick())
        for name in list(world.alive):
            turns = 7 if name == "recorder" else int(world.clock.now())
            world.beat(name, progress=turns, waiting_for="optimizer_shard/0")
    assert {kill.name for kill in of(Kill, world.told)} == {"recorder"}


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


def test_a_hang_is_noticed_by_a_supervisor_that_pauses_again_and_again(world: World):
    world.up()
    told: list[Instruction] = []
    for _ in range(int(SPEC.hang_s)):
        world.clock.advance(3.0)  # a busy machine
        told += world.tell(Tick())
        for _ in range(4):
            world.clock.advance(0.5)
            world.beat("trainer/0", progress=7)
            told += world.tell(Tick())
    assert [kill.why for kill in of(Kill, told)][:1] == ["beats, but made no progress for 60 s"]


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


def test_a_new_supervisor_waits_as_long_as_the_one_that_died_would_have():
    memories = {"recorder": Memory(3, None, restarts=3, deaths=(99.0, 99.5, 99.97))}
    world = World(memories)  # it is 100.0, and the third death asks for 0.1 s
    assert of(Fork, world.tell(Tick())) == []
    world.clock.advance(0.05)
    assert of(Fork, world.tell(Tick())) == []
    world.clock.advance(0.05)
    assert of(Fork, world.tell(Tick())) == [Fork("recorder", 4)]


def test_deaths_before_the_machine_was_started_anew_hold_nobody_up_for_long():
    world = World({"recorder": Memory(3, None, deaths=(1e6, 1e6 + 1))})
    world.clock.advance(SPEC.backoff_max_s)
    assert of(Fork, world.tell(Tick())) == [Fork("recorder", 4)]


def test_only_a_present_life_has_a_say(world: World):
    world.up()
    assert world.decider.lives("trainer/0", 1)
    assert not world.decider.lives("trainer/0", 0)
    assert not world.decider.lives("trainer/0", 2)
    assert not world.decider.lives("trainer/7", 0)
    world.decider.handle(Ended("trainer/0", 1, "killed by SIGKILL"), world.clock.now())
    assert not world.decider.lives("trainer/0", 1)


def waits(world: World, s: float) -> list[Instruction]:
    """Everybody beats for so long, and waits for somebody."""
    told: list[Instruction] = []
    for _ in range(int(s)):
        world.clock.advance(1.0)
        for name in list(world.alive):
            world.beat(name, progress=int(world.clock.now()), waiting_for="a miracle")
        told += world.tell(Tick())
    return told


def test_a_run_that_stands_still_is_stopped_with_everybodys_stacks(world: World):
    world.up()
    world.tell(Committed(3))
    assert waits(world, SPEC.stall_s - 1) == []
    world.tell(Committed(4))
    assert waits(world, SPEC.stall_s - 1) == []
    told = waits(world, 2)
    assert {kill.signal for kill in of(Kill, told)} == {signal.SIGUSR2}
    assert {kill.name for kill in of(Kill, told)} == {place.name for place in PLACES}
    assert world.decider.end == "failed"
    said = "no step was committed for 900 s after step 4: recorder waits for a miracle; trainer/0"
    assert world.decider.reason.startswith(said)


def test_a_run_that_gets_ready_does_not_stand_still(world: World):
    world.begin()
    for _ in range(int(SPEC.stall_s) + 10):
        world.clock.advance(1.0)
        world.beat("recorder")
        for name in ("trainer/0", "trainer/1", "data_worker/0"):
            if name in world.alive:
                world.decider.handle(
                    Heard(name, 1, state="starting", progress=0), world.clock.now()
                )
        world.tell(Tick())
    assert world.decider.end is None
