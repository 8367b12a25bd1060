"""What ties an actor to its supervisor, decided without sockets and without waiting."""

import pytest

from actors.lifeline import (
    Instruction,
    LeaveNow,
    Lifeline,
    RefuseOlder,
    SayBeat,
    SayHello,
    TellStop,
    Work,
)
from actors.topology import SupervisionSpec
from protocol.messages import PeerDown, PeerUp, Stop, Welcome

SPEC = SupervisionSpec(heartbeat_s=0.25, orphan_grace_s=10.0, stop_s=5.0)


@pytest.fixture
def line() -> Lifeline:
    return Lifeline("trainer/0", 1, SPEC, 0.0)


def run(line: Lifeline, until: float, start: float = 0.0) -> list[tuple[float, Instruction]]:
    """Tick ten times a second; what was instructed when, but for beats."""
    told: list[tuple[float, Instruction]] = []
    for n in range(round(start * 10), round(until * 10) + 1):
        todo = line.tick(n / 10)
        told += [(n / 10, one) for one in todo if not isinstance(one, SayBeat)]
    return told


def test_a_beat_is_due_every_heartbeat(line: Lifeline):
    beats = 0
    now = 0.0
    while now < 10.0:
        beats += SayBeat() in line.tick(now)
        now = line.due()
    assert beats == 40


def test_an_answered_actor_goes_on_for_ever(line: Lifeline):
    for second in range(100):
        line.hear(Welcome(peers={"trainer/0": 1}), 0, second)
        assert run(line, second + 0.9, second) == []
    assert line.stopping is None


def test_without_a_supervisor_an_actor_stops_and_is_ended_if_it_does_not(line: Lifeline):
    told = run(line, 20.0)
    assert told[0] == (
        10.1,
        TellStop(Stop(reason="no supervisor has answered for 10.1 s", within_s=5.0)),
    )
    assert isinstance(told[1][1], LeaveNow)
    assert told[1][0] == pytest.approx(15.2)
    assert line.state(begun=True) == "stopping"
    assert line.forsaken == "orphaned"


def test_an_actor_that_was_itself_suspended_has_not_been_forsaken(line: Lifeline):
    line.hear(Welcome(peers={}), 0, 5.0)
    run(line, 5.0)
    assert line.tick(65.0) == [SayBeat()]
    line.hear(Welcome(peers={}), 0, 65.1)
    assert line.stopping is None
    assert run(line, 70.0, 65.1) == []


def test_a_suspended_orphan_still_finds_out(line: Lifeline):
    run(line, 1.0)
    line.tick(60.0)
    assert isinstance(run(line, 75.0, 60.0)[0][1], TellStop)


def test_a_new_supervisor_is_greeted_once(line: Lifeline):
    assert line.hear(Welcome(peers={}), 3, 0.0)[0] == []
    assert line.hear(Welcome(peers={}), 4, 1.0)[0] == [SayHello()]
    assert line.hear(Welcome(peers={}), 4, 2.0)[0] == []


def test_answers_to_beats_reach_the_actor_only_when_they_bring_news(line: Lifeline):
    peers = {"trainer/0": 1, "loader": 2}
    todo, fate = line.hear(Welcome(peers=peers), 0, 0.0)
    assert fate == "deliver"
    assert RefuseOlder("loader", 2) in todo
    assert line.hear(Welcome(peers=dict(peers)), 0, 0.2) == ([], "keep")
    assert line.hear(Welcome(peers={**peers, "loader": 3}), 0, 0.4)[1] == "deliver"


def test_news_of_peers_say_whose_words_no_longer_count(line: Lifeline):
    assert line.hear(PeerUp(name="loader", incarnation=4), 0, 0.0) == (
        [RefuseOlder("loader", 4)],
        "deliver",
    )
    down = PeerDown(name="loader", incarnation=4, reason="killed by signal 9")
    assert line.hear(down, 0, 0.1) == ([RefuseOlder("loader", 5)], "deliver")
    mine = PeerDown(name="trainer/0", incarnation=1, reason="silent")
    assert line.hear(mine, 0, 0.2) == ([], "deliver")


@pytest.mark.parametrize(
    "news", [PeerUp(name="trainer/0", incarnation=2), Welcome(peers={"trainer/0": 2})]
)
def test_an_actor_that_has_been_replaced_leaves(line: Lifeline, news: PeerUp | Welcome):
    todo, _ = line.hear(news, 0, 1.0)
    stops = [one for one in todo if isinstance(one, TellStop)]
    assert [one.stop.reason for one in stops] == ["replaced: incarnation 2 of trainer/0 lives"]
    assert line.forsaken == "replaced"
    line.hear(news, 0, 2.0)
    assert any(isinstance(one, LeaveNow) for _, one in run(line, 7.0, 1.0))


def test_the_supervisors_own_stop_is_passed_on_and_remembered(line: Lifeline):
    stop = Stop(reason="done", within_s=3.0)
    assert line.hear(stop, 0, 0.0) == ([], "deliver")
    assert line.stopping == stop
    assert line.ask_to_stop("SIGTERM") == []


def test_a_sigterm_is_a_stop(line: Lifeline):
    assert line.ask_to_stop("SIGTERM") == [TellStop(Stop(reason="SIGTERM", within_s=5.0))]
    assert line.ask_to_stop("SIGTERM") == []


def test_a_wait_is_as_long_as_its_name_stays():
    work = Work()
    assert not work.begun
    work.note("optimizer_shard/0", 1.0)
    work.note("optimizer_shard/0", 2.0)
    assert (work.progress, work.waiting_s(4.0)) == (2, 3.0)
    work.note("loader", 4.0)
    assert work.waiting_s(4.5) == 0.5
    work.note("", 5.0)
    assert work.waiting_s(9.0) == 0.0
