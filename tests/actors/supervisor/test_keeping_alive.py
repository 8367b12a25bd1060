"""Real processes die in every way there is; the supervisor and the launcher put things right."""

import signal
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from actors import process, rundir
from actors.launcher import Launcher
from actors.progress import quiet
from actors.rundir import RunDir
from actors.topology import SupervisionSpec
from tests.actors.supervisor.conftest import ACTORS, Crew
from tests.harness import wait_until

pytestmark = pytest.mark.system


def test_a_run_starts_in_order_stops_in_reverse_and_leaves_nothing(crew: Crew):
    born = [crew.rows()[name].started_ticks for name in ACTORS]
    assert born == sorted(born)
    crew.interrupt()
    assert crew.finish() == 130, crew.story()
    groups = [name.partition("/")[0] for name in crew.stopped()]
    assert groups == ["data_worker", "trainer", "trainer", "loader", "recorder"]
    assert crew.leftovers() == []


def test_a_killed_actor_is_replaced_at_once(crew: Crew):
    took: list[float] = []
    for name in ("data_worker/0", "trainer/0", "loader", "data_worker/0", "trainer/0"):
        who = crew.kill(name)
        killed = time.monotonic()
        wait_until(lambda who=who: not process.alive(who))
        crew.wait_for_another(name, who)
        took.append(time.monotonic() - killed)
        time.sleep(0.3)
    print("SIGKILL to the next life's process:", [f"{s * 1000:.0f} ms" for s in took])
    assert statistics.median(took) < 0.3
    reports = sorted(path.name for path in crew.run.logs.glob("death-*.json"))
    assert "death-data_worker.0-1.json" in reports


def test_a_death_report_tells_what_a_person_wants_to_know(crew: Crew):
    crew.tell("trainer/1", "crash")
    path = crew.run.death_of("trainer/1", 1)
    wait_until(path.exists)
    report = rundir.read_json(path)
    assert report is not None
    assert report["how"] == "exit code 1: ValueError: on purpose"
    assert any("ValueError: on purpose" in line for line in report["stderr"])
    assert report["last_beat"]["role"] == "trainer"
    assert report["max_rss_bytes"] > 10_000_000
    crew.tell("trainer/1", "")


def test_a_stopped_process_counts_as_lost_and_is_replaced(crew: Crew):
    who = crew.kill("trainer/0", signal.SIGSTOP)
    crew.wait_for_another("trainer/0", who, 10.0)
    path = crew.run.death_of("trainer/0", 1)
    wait_until(path.exists)
    assert "silent for 1." in path.read_text()


def test_the_supervisor_is_replaced_and_nobody_else_notices(crew: Crew):
    before = crew.rows()
    who = crew.kill("supervisor")
    crew.wait_for_another("supervisor", who, 10.0)
    time.sleep(2.5)  # longer than silence_s: whoever it does not hear by then is killed
    after = crew.rows()
    for name in (*ACTORS, "forkserver/light"):
        assert after[name].who == before[name].who
        assert after[name].incarnation == before[name].incarnation
    # The new one has not just read the table: it watches.
    old = crew.kill("data_worker/0")
    crew.wait_for_another("data_worker/0", old)
    crew.interrupt()
    assert crew.finish() == 130, crew.story()
    assert crew.leftovers() == []


def test_what_an_actor_has_started_outlives_the_supervisor(crew: Crew):
    """A sandbox in which completions are scored, for instance."""
    crew.tell("data_worker/0", "start")
    path = crew.run.path / "started"
    wait_until(lambda: path.exists() and bool(path.read_text()))
    child = process.identity(int(path.read_text()))
    assert child is not None
    crew.wait_for_another("supervisor", crew.kill("supervisor"))
    worker = crew.kill("data_worker/0")  # answered by a supervisor that has taken over
    assert process.alive(child)
    crew.wait_for_another("data_worker/0", worker)
    crew.interrupt()
    assert crew.finish() == 130, crew.story()
    assert crew.leftovers() == []


def test_a_run_goes_on_when_nobody_reads_what_is_shown(crew: Crew):
    assert crew.popen.stdout is not None
    crew.popen.stdout.close()
    for _ in range(2):  # each is said by the launcher; the first to nobody
        crew.wait_for_another("supervisor", crew.kill("supervisor"))
    crew.interrupt()
    assert crew.finish() == 130, crew.story()
    assert crew.leftovers() == []


def test_a_death_without_a_supervisor_is_noticed_by_the_next_one(crew: Crew):
    supervisor = crew.kill("supervisor", signal.SIGSTOP)
    trainer = crew.kill("trainer/0")
    process.send_signal(supervisor, signal.SIGKILL)
    crew.wait_for_another("trainer/0", trainer)
    assert crew.rows()["trainer/0"].incarnation == 2


def test_a_supervisor_that_hangs_is_replaced(crew: Crew):
    who = crew.kill("supervisor", signal.SIGSTOP)
    crew.wait_for_another("supervisor", who, 10.0)
    assert crew.rows()["trainer/0"].incarnation == 1


def test_a_supervisor_that_hangs_prints_where_before_it_is_killed(make_crew: Callable[..., Crew]):
    def hang(run: RunDir) -> None:
        (run.path / "do-hang").touch()

    crew = make_crew(before=hang)
    crew.wait_for("recorder", s=40.0)
    stacks = crew.run.stderr_of("supervisor").read_text()
    assert "dummies.py" in stacks
    assert "in _take_over" in stacks


def test_a_killed_forkserver_takes_nobody_with_it(crew: Crew):
    before = crew.rows()
    crew.kill("forkserver/light")
    crew.wait_for_another("forkserver/light", before["forkserver/light"].who)
    assert crew.who("trainer/0") == before["trainer/0"].who
    old = crew.kill("trainer/0")
    crew.wait_for_another("trainer/0", old)
    crew.interrupt()
    assert crew.finish() == 130, crew.story()
    assert crew.leftovers() == []


def test_everything_killed_at_once_comes_back(crew: Crew):
    before = crew.rows()
    for name in ("forkserver/light", "supervisor", *ACTORS):
        crew.kill(name)
    for name in ACTORS:
        crew.wait_for_another(name, before[name].who)
    assert {crew.rows()[name].incarnation for name in ACTORS} == {2}


def test_without_launcher_and_supervisor_everything_leaves(make_crew: Callable[..., Crew]):
    crew = make_crew((*ACTORS, "rollout/0"), "supervision.orphan_grace_s=1.5")
    crew.wait_for(*ACTORS, "rollout/0", s=60.0)  # forked from a second forkserver
    crew.kill_launcher()
    crew.kill("supervisor")
    crew.kill("trainer/1")  # it cannot take anything away itself
    wait_until(lambda: not crew.leftovers(), 20.0, "the end of all that is left")


def test_a_new_launcher_adopts_what_still_lives(crew: Crew):
    before = crew.rows()
    crew.kill_launcher()
    crew.kill("supervisor")
    crew.again()
    crew.wait_for_another("supervisor", before["supervisor"].who)
    time.sleep(2.5)
    for name in ACTORS:
        assert crew.rows()[name].who == before[name].who
    crew.interrupt()
    assert crew.finish() == 130, crew.story()
    assert crew.leftovers() == []


def test_a_launcher_joins_a_run_whose_supervisor_lives(crew: Crew):
    before = crew.rows()
    crew.kill_launcher()
    crew.again()
    crew.interrupt()
    assert crew.finish() == 130, crew.story()
    assert crew.rows()["supervisor"].incarnation == before["supervisor"].incarnation
    assert crew.leftovers() == []


def test_an_actor_that_keeps_dying_ends_the_run_with_the_reason(make_crew: Callable[..., Crew]):
    crew = make_crew()
    crew.tell("trainer/0", "exit 9")
    assert crew.finish() == 1, crew.story()
    assert crew.last_line == "trainer/0 died 4 times within 30 s, the last time: exit code 9"
    assert crew.leftovers() == []


def test_an_actor_that_gives_up_ends_the_run_with_its_reason(crew: Crew):
    crew.tell("loader", "give up: the corpus is empty")
    assert crew.finish() == 1, crew.story()
    assert crew.last_line == "loader: the corpus is empty"
    assert crew.leftovers() == []


def test_a_finished_run_ends_with_zero(make_crew: Callable[..., Crew]):
    crew = make_crew(("recorder", "optimizer_shard/0"))
    crew.tell("optimizer_shard/0", "done")
    assert crew.finish() == 0, crew.story()
    found = crew.outcome()
    assert found is not None
    assert (found.end, found.step, found.weights_digest) == ("done", 3, "d" * 64)
    assert crew.leftovers() == []


def test_signals_that_are_ignored_on_entry_stay_ignored(tmp_path: Path):
    """As under nohup: the terminal is closed and the run goes on."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    terminated = signal.getsignal(signal.SIGTERM)
    try:
        with Launcher(RunDir(tmp_path), SupervisionSpec(), watcher=quiet()):
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
            assert signal.getsignal(signal.SIGTERM) != terminated
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        assert signal.getsignal(signal.SIGTERM) == terminated
    finally:
        signal.signal(signal.SIGHUP, before)


def test_whoever_does_not_leave_is_killed_in_the_end(crew: Crew):
    crew.tell("trainer/1", "never leave")
    crew.interrupt()
    assert crew.finish() == 130, crew.story()
    assert crew.leftovers() == []


def test_interrupting_twice_does_not_wait(crew: Crew):
    for name in ACTORS:
        crew.tell(name, "never leave")
    begin = time.monotonic()
    crew.interrupt()
    time.sleep(0.3)
    crew.interrupt()
    assert crew.finish() == 130, crew.story()
    assert time.monotonic() - begin < 2.0
    assert crew.leftovers() == []


def test_a_supervisor_that_keeps_dying_ends_the_run(crew: Crew):
    for _ in range(4):
        who = crew.kill("supervisor")
        if crew.popen.poll() is None:
            wait_until(
                lambda who=who: (
                    crew.popen.poll() is not None or crew.who("supervisor") not in (None, who)
                )
            )
    assert crew.finish() == 1, crew.story()
    assert (
        "the supervisor died 4 times within 30 s, the last time: killed by SIGKILL"
        in crew.last_line
    )
    assert crew.leftovers() == []


def test_a_supervisor_killed_while_stopping_does_not_revive_the_run(crew: Crew):
    crew.tell("data_worker/0", "never leave")
    crew.interrupt()
    time.sleep(0.3)
    crew.kill("supervisor")
    assert crew.finish() == 130, crew.story()
    assert crew.leftovers() == []


def test_a_supervisor_killed_when_all_is_done_does_not_forget_what_was_reached(
    make_crew: Callable[..., Crew],
):
    crew = make_crew(("recorder", "optimizer_shard/0", "data_worker/0"))
    crew.wait_for("recorder", "optimizer_shard/0", "data_worker/0")
    crew.tell("data_worker/0", "never leave")
    crew.tell("optimizer_shard/0", "done")
    wait_until(lambda: crew.rows()["supervisor"].end == "done")
    crew.kill("supervisor")
    assert crew.finish() == 0, crew.story()
    found = crew.outcome()
    assert found is not None
    assert (found.step, found.weights_digest) == (3, "d" * 64)
