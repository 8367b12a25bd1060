"""What is special about stand-ins for other hosts: they are nobody until somebody has come."""

from actors.identity import Identity
from actors.supervisor.events import (
    Bury,
    Ended,
    Event,
    Fork,
    Forked,
    Heard,
    Instruction,
    Memory,
    Place,
    StopWanted,
    Tell,
    Tick,
)
from actors.supervisor.supervision import Supervision
from protocol.messages import PeerDown, PeerUp
from tests.actors.supervisor.conftest import SPEC

WHO = Identity(7, 7)
NAME = "trainer/1"
PLACE = Place(NAME, "trainer", 3, 6, remote=True)


def said(name: str, state: str, life: int = 1) -> Heard:
    return Heard(name, life, state=state, progress=1)  # pyright: ignore[reportArgumentType]


def supervision(memory: Memory | None = None) -> Supervision:
    return Supervision(SPEC, (PLACE,), now=0.0, memories={NAME: memory} if memory else None)


def told(instructions: list[Instruction]) -> list[object]:
    return [given.message for given in instructions if isinstance(given, Tell)]


def play(decider: Supervision, now: float, *events: Event) -> list[Instruction]:
    done: list[Instruction] = []
    for event in events:
        done += decider.handle(event, now)
        decider.check()
    return done


def test_it_is_announced_when_a_guest_has_come_and_not_before():
    decider = supervision()
    assert play(decider, 0.0, Tick()) == [Fork(NAME, 1)]
    assert play(decider, 0.0, Forked(NAME, 1, WHO), said(NAME, "starting")) == []
    assert decider.peers() == {}
    assert told(play(decider, 1.0, said(NAME, "running"))) == [PeerUp(name=NAME, incarnation=1)]
    assert decider.peers() == {NAME: 1}
    # A new supervisor is greeted by Hello, which says "starting".
    assert play(decider, 1.1, said(NAME, "starting"), said(NAME, "running")) == []
    assert decider.peers() == {NAME: 1}


def test_a_guest_that_leaves_is_no_death_however_often():
    decider = supervision()
    play(decider, 0.0, Tick())
    for life in range(1, 30):
        now = float(life)
        play(decider, now, Forked(NAME, life, WHO), said(NAME, "running", life))
        done = play(decider, now, Ended(NAME, life, "exit code 0"))
        assert told(done) == [PeerDown(name=NAME, incarnation=life, reason="exit code 0")]
        assert not [given for given in done if isinstance(given, Bury)]
        assert play(decider, now + SPEC.backoff_s, Tick()) == [Fork(NAME, life + 1)]
    assert decider.actors[NAME].restarts == 0
    assert decider.end is None


def test_its_own_deaths_are_counted_like_anybodys():
    decider = supervision()
    play(decider, 0.0, Tick())
    for life in range(1, SPEC.intensity + 2):
        now = float(life)
        play(decider, now, Forked(NAME, life, WHO), said(NAME, "starting", life))
        play(decider, now, Ended(NAME, life, "killed by SIGKILL"))
        play(decider, now + 0.9, Tick())
    assert decider.end == "failed"


def test_waiting_for_a_guest_is_a_run_that_stands_still_one_day():
    decider = supervision()
    play(decider, 0.0, Tick(), Forked(NAME, 1, WHO))
    for now in range(int(SPEC.stall_s) + 3):
        waits = Heard(NAME, 1, state="starting", progress=now, waiting_for="a host to attach")
        play(decider, float(now), waits, Tick())
    assert decider.end == "failed"
    assert decider.reason.endswith("trainer/1 waits for a host to attach")


def test_an_adopted_one_is_nobody_until_it_says_whom_it_stands_in_for():
    decider = supervision(Memory(4, WHO))
    assert decider.peers() == {}
    up = PeerUp(name=NAME, incarnation=4)
    assert told(play(decider, 0.1, said(NAME, "running", 4))) == [up]


def test_its_polite_end_ends_it_when_the_run_ends():
    decider = supervision()
    play(decider, 0.0, Tick(), Forked(NAME, 1, WHO), said(NAME, "running"))
    play(decider, 1.0, StopWanted("enough"))
    play(decider, 1.1, Ended(NAME, 1, "exit code 0"))
    assert decider.actors[NAME].stage == "gone"
