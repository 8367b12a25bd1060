"""What a watcher makes of process tables."""

from pathlib import Path

import pytest

from actors.chaos.history import History, Watch
from actors.process import Identity
from actors.rundir import RunDir
from actors.supervisor import table
from protocol.clock import ManualClock


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return RunDir(tmp_path)


@pytest.fixture
def history(tmp_path: Path):
    made = History(tmp_path / "history.jsonl", ManualClock())
    yield made
    made.close()


def test_times_count_from_the_beginning(tmp_path: Path):
    clock = ManualClock()
    history = History(tmp_path / "history.jsonl", clock)
    clock.advance(60.0)  # the twin runs
    history.begin()
    clock.advance(2.0)
    assert history.add("step", step=1)["t"] == 2.0
    history.close()


def write(run: RunDir, **pids: int) -> None:
    table.write(run, {name: table.row(Identity(pid, pid), pid) for name, pid in pids.items()})


def told(history: History) -> list[tuple[str, str, int]]:
    return [(event["event"], event["name"], event["pid"]) for event in history.events]


def test_another_process_under_a_name_is_a_death_and_a_life(run: RunDir, history: History):
    watch = Watch(run, history)
    for pid in (1, 2):
        write(run, loader=pid)
        watch.look()
    assert told(history) == [("life", "loader", 1), ("death", "loader", 1), ("life", "loader", 2)]


def test_a_name_that_is_gone_from_the_table_has_died(run: RunDir, history: History):
    watch = Watch(run, history)
    for pids in ({"loader": 1, "fork": 2}, {"loader": 1}, {"loader": 1, "fork": 3}):
        write(run, **pids)
        watch.look()
    assert told(history)[2:] == [("death", "fork", 2), ("life", "fork", 3)]


def test_a_table_that_is_not_there_says_nothing(run: RunDir, history: History):
    watch = Watch(run, history)
    write(run, loader=1)
    watch.look()
    run.processes.write_text("")
    watch.look()
    assert told(history) == [("life", "loader", 1)]
    assert watch.rows["loader"].pid == 1
