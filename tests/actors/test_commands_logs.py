"""`run.py logs` on real files: merged, filtered, followed over rotations, ended with the run."""

import datetime
import json
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from actors import rundir
from actors.commands import logs as logs_module
from actors.commands.logs import logs
from actors.logfiles import Follower, actors_in
from actors.logview import Wanted
from actors.recorder.lines import LineFile
from actors.rundir import RunDir


def entry(second: float, event: str, **fields: object) -> bytes:
    at = datetime.datetime(2026, 11, 23, 12, 0, tzinfo=datetime.UTC)
    at += datetime.timedelta(seconds=second)
    record = {"timestamp": at.isoformat(timespec="microseconds"), "level": "info", "event": event}
    return json.dumps({**record, **fields}).encode() + b"\n"


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return rundir.create(tmp_path / "run")


def write(run: RunDir, actor: str, *entries: tuple[float, str], part: str = "") -> None:
    path = run.log_of(actor)
    with path.with_name(path.name + part).open("ab") as file:
        file.writelines(entry(at, event, actor=actor) for at, event in entries)


def call(run: RunDir, *args: str) -> Result:
    return CliRunner().invoke(logs, ["--run", str(run.path), *args])


def events(result: Result) -> list[str]:
    assert result.exit_code == 0, result.output
    return [json.loads(line)["event"] for line in result.stdout.splitlines()]


def test_the_lines_of_all_actors_come_in_order_of_time(run: RunDir):
    write(run, "loader", (0, "a"), (2, "c"), (5, "f"))
    write(run, "trainer/0", (1, "b"), (4, "e"))
    write(run, "data_worker/far-0.x", (3, "d"))
    assert events(call(run, "--json")) == list("abcdef")
    assert actors_in(run.logs) == ["data_worker/far-0.x", "loader", "trainer/0"]


def test_rotated_parts_belong_to_their_actor_oldest_first(run: RunDir):
    write(run, "loader", (0, "a"), part=".10")
    write(run, "loader", (1, "b"), part=".2")
    write(run, "loader", (2, "c"), part=".1")
    write(run, "loader", (3, "d"))
    (run.logs / "loader.stderr").write_text("no log")
    (run.logs / "death-loader-1.json").write_text("{}")
    assert events(call(run, "--json")) == list("abcd")


def test_raw_lines_are_those_of_the_file(run: RunDir):
    write(run, "loader", (0, "a"))
    assert call(run, "--json").stdout_bytes == run.log_of("loader").read_bytes()


def test_filters_combine(run: RunDir):
    with run.log_of("trainer/0").open("ab") as file:
        file.write(entry(0, "early", actor="trainer/0", level="error"))
        file.write(entry(9, "late", actor="trainer/0", level="error"))
        file.write(entry(9, "mild", actor="trainer/0", level="info"))
    write(run, "loader", (9, "other"))
    args = ("--actor", "trainer/*", "--level", "Warning", "--since", "2026-11-23T12:00:05+00:00")
    assert events(call(run, "--json", *args)) == ["late"]


def test_people_get_readable_lines(run: RunDir):
    write(run, "loader", (0, "epoch begins"))
    result = call(run)
    assert "loader" in result.stdout
    assert "epoch begins" in result.stdout
    assert "{" not in result.stdout


def test_torn_lines_are_left_out_and_counted(run: RunDir):
    write(run, "loader", (0, "a"))
    with run.log_of("loader").open("ab") as file:
        file.write(b'{"timestamp": "2026\n\xff\xfe\n' + entry(1, "b") + b'{"timest')
    result = call(run, "--json")
    assert events(result) == ["a", "b"]
    assert "2 torn lines" in result.stderr


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--actor", "trainr"], "no actor fits 'trainr': there are loader"),
        (["--actor", " "], "an empty glob"),
        (["--level", "loud"], "debug"),
        (["--since", "noon"], "90s, 5m, 2h or 1d"),
    ],
)
def test_wrong_options_say_what_is_accepted(run: RunDir, args: list[str], words: str):
    write(run, "loader", (0, "a"))
    result = call(run, *args)
    assert result.exit_code == 2
    assert words in result.stderr


def test_what_is_no_run_directory_is_refused(tmp_path: Path, run: RunDir):
    for path, words in [
        (tmp_path / "nowhere", "nothing is there"),
        (tmp_path, "not a run directory"),
    ]:
        result = CliRunner().invoke(logs, ["--run", str(path)])
        assert (result.exit_code, words in result.stderr) == (2, True)
    run.logs.rmdir()
    result = call(run)
    assert (result.exit_code, "no logs directory" in result.stderr) == (2, True)


def test_a_run_that_has_said_nothing_yet_is_no_error(run: RunDir):
    result = call(run)
    assert (result.exit_code, result.stdout) == (0, "")
    assert "nobody has logged anything yet" in result.stderr


def test_following_a_run_that_has_ended_shows_all_and_ends(run: RunDir):
    write(run, "loader", (0, "a"))
    run.outcome.write_text("{}")
    assert events(call(run, "--json", "-f")) == ["a"]


def test_following_ends_when_no_process_of_the_run_is_left(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
):
    write(run, "loader", (0, "a"))
    monkeypatch.setattr(logs_module, "LOOK_S", 0.01)
    monkeypatch.setattr(logs_module, "ALIVE_S", 0.02)
    result = call(run, "--json", "-f")
    assert events(result) == ["a"]
    assert "none of this run's processes is left" in result.stderr


def test_following_shows_what_comes_until_the_end(run: RunDir, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(logs_module, "LOOK_S", 0.02)
    write(run, "loader", (0, "a"))

    def live() -> None:
        write(run, "loader", (1, "b"))
        write(run, "trainer/0", (2, "c"))
        run.outcome.write_text("{}")

    timer = threading.Timer(0.2, live)
    timer.start()
    assert events(call(run, "--json", "-f")) == ["a", "b", "c"]
    timer.join()


# --- the follower, look by look -------------------------------------------------------------------


def looker(run: RunDir) -> Callable[[], list[str]]:
    follower = Follower(run.logs, Wanted())
    list(follower.begin())
    return lambda: [line.record["event"] for line in follower.news()]


def test_a_look_finds_what_came_since_the_last_one(run: RunDir):
    write(run, "loader", (0, "old"))
    look = looker(run)
    assert look() == []
    write(run, "loader", (2, "b"))
    write(run, "trainer/0", (1, "a"), (3, "c"))
    assert look() == ["a", "b", "c"]
    assert look() == []


def test_half_a_line_is_read_when_it_is_whole(run: RunDir):
    look = looker(run)
    whole = entry(0, "a")
    with run.log_of("loader").open("ab", buffering=0) as file:
        file.write(whole[:20])
        assert look() == []
        file.write(whole[20:])
        assert look() == ["a"]


def test_a_torn_line_that_is_repaired_does_not_confuse(run: RunDir):
    write(run, "loader", (0, "a"))
    look = looker(run)
    with run.log_of("loader").open("ab") as file:
        file.write(b"torn")
    assert look() == []
    recorder = LineFile(run.log_of("loader"))
    recorder.append([entry(1, "b")])
    recorder.close()
    assert look() == ["b"]


@pytest.mark.parametrize("rotations", [1, 2, 3])
def test_rotations_between_two_looks_lose_nothing(run: RunDir, rotations: int):
    file = LineFile(run.log_of("loader"), rotate_bytes=400)
    number = 0

    def say(count: int) -> list[str]:
        nonlocal number
        said = [f"{n:04d}" for n in range(number, number + count)]
        number += count
        for event in said:
            assert file.append([entry(int(event), event)])
        return said

    say(2)
    look = looker(run)
    for _ in range(3):
        assert look() == say(0)
        said = say(4 * rotations)
        assert look() == said
    file.close()


def test_a_rotation_during_the_reading_loses_nothing(run: RunDir):
    path = run.log_of("loader")
    write(run, "loader", (0, "a"), part=".1")
    write(run, "loader", (1, "b"))
    follower = Follower(run.logs, Wanted())
    lines = follower.begin()
    path.with_name("loader.jsonl.1").rename(path.with_name("loader.jsonl.2"))
    path.rename(path.with_name("loader.jsonl.1"))
    write(run, "loader", (2, "c"))
    assert [line.record["event"] for line in lines] == ["a", "b"]
    assert [line.record["event"] for line in follower.news()] == ["c"]


def test_a_file_that_is_deleted_and_begun_anew_is_read_from_its_beginning(run: RunDir):
    write(run, "loader", (0, "a"), (1, "b"))
    look = looker(run)
    run.log_of("loader").unlink()
    assert look() == []
    write(run, "other", (2, "keeps the inode busy"))
    write(run, "loader", (3, "c"))
    assert look() == ["keeps the inode busy", "c"]
