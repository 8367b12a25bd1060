"""The shard is right about what was committed; the file follows, each step once."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from actors.recorder.metrics import MetricsFile, tail


def record(step: int, run: str = "a") -> dict[str, Any]:
    return {"step": step, "loss": 7.0 - step / 8, "step_s": 0.1, "weights_digest": f"{run}{step}"}


def records(first: int, last: int, run: str = "a") -> list[dict[str, Any]]:
    return [record(step, run) for step in range(first, last + 1)]


def written(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "metrics.jsonl"


@pytest.fixture
def file(path: Path) -> Iterator[MetricsFile]:
    file = MetricsFile(path)
    yield file
    file.lines.close()
    steps = [one["step"] for one in written(path)] if path.exists() else []
    assert steps == sorted(set(steps)), "a step twice, or out of order"


def begin(path: Path, have: list[dict[str, Any]], torn: bytes = b"") -> None:
    path.write_bytes(b"".join(json.dumps(one).encode() + b"\n" for one in have) + torn)


def test_a_new_run_is_copied_as_it_grows(file: MetricsFile, path: Path):
    assert file.after == 0
    assert file.take([]) == 0
    assert file.take(records(1, 2)) == 2
    assert file.after == 2
    assert file.take(records(3, 3)) == 1
    assert (written(path), file.newest) == (records(1, 3), record(3))


def test_an_answer_that_comes_twice_is_written_once(file: MetricsFile, path: Path):
    file.take(records(1, 3))
    assert file.take(records(2, 3)) == 0
    assert file.take(records(2, 4)) == 1
    assert written(path) == records(1, 4)


def test_a_restarted_recorder_asks_for_everything_and_goes_on(file: MetricsFile, path: Path):
    MetricsFile(path).take(records(1, 5))
    assert file.after == 0
    assert file.take(records(1, 7)) == 2
    assert (file.after, file.cut, written(path)) == (7, 0, records(1, 7))


def test_a_restarted_recorder_with_nothing_new_knows_the_newest(file: MetricsFile, path: Path):
    MetricsFile(path).take(records(1, 5))
    assert file.take(records(3, 5)) == 0
    assert (file.after, file.newest, written(path)) == (5, record(5), records(1, 5))


def test_older_steps_than_the_shard_remembers_are_kept(file: MetricsFile, path: Path):
    MetricsFile(path).take(records(1, 300))
    assert file.take(records(150, 310)) == 10
    assert written(path) == records(1, 310)


def test_a_run_resumed_from_an_earlier_checkpoint_takes_later_steps_back(
    file: MetricsFile, path: Path
):
    MetricsFile(path).take(records(1, 17))
    assert file.take(records(11, 11, run="b")) == 1
    assert written(path) == [*records(1, 10), *records(11, 11, run="b")]
    assert (file.after, file.cut) == (11, 7)


def test_steps_the_shard_has_not_come_to_are_taken_back_even_when_the_rest_agrees(
    file: MetricsFile, path: Path
):
    MetricsFile(path).take(records(1, 17))
    assert file.take(records(11, 12)) == 0
    assert (written(path), file.after, file.cut) == (records(1, 12), 12, 5)


def test_a_run_resumed_from_nothing_starts_the_file_anew(file: MetricsFile, path: Path):
    MetricsFile(path).take(records(1, 9))
    assert file.take(records(1, 2, run="b")) == 2
    assert (written(path), file.cut) == (records(1, 2, run="b"), 9)


@pytest.mark.parametrize("torn", [b'{"step":6,"lo', b"\x00" * 100, b'{"step":6}'])
def test_a_line_torn_by_a_crash_is_repaired(file: MetricsFile, path: Path, torn: bytes):
    MetricsFile(path).take(records(1, 5))
    with path.open("ab") as opened:
        opened.write(torn)
    assert file.take(records(1, 6)) == 1
    assert written(path) == records(1, 6)


def test_damage_in_the_middle_is_replaced_as_far_as_the_shard_remembers(
    file: MetricsFile, path: Path
):
    begin(path, records(1, 3), torn=b"garbage\n" + json.dumps(record(5)).encode() + b"\n")
    file.take(records(1, 6))
    assert written(path) == records(1, 6)


def test_steps_nobody_remembers_are_counted(file: MetricsFile, path: Path):
    MetricsFile(path).take(records(1, 5))
    file.take(records(300, 301))
    assert (written(path), file.missed) == ([*records(1, 5), *records(300, 301)], 294)


@pytest.mark.parametrize("answer", [[{}], [{"step": "1"}], [{"loss": 1.0}, {"step": 1}]])
def test_answers_without_steps_are_not_written(file: MetricsFile, path: Path, answer: Any):
    assert file.take(answer) == 0
    assert not path.exists()


def test_numbers_json_does_not_know_become_null(file: MetricsFile, path: Path):
    file.take([{"step": 1, "loss": math.nan, "lr": math.inf}])
    assert written(path) == [{"step": 1, "loss": None, "lr": None}]
    again = MetricsFile(path)
    assert again.take([{"step": 1, "loss": math.nan, "lr": math.inf}]) == 0
    assert again.cut == 0
    again.lines.close()


def test_what_a_full_disk_refused_is_asked_for_again(tmp_path: Path):
    file = MetricsFile(tmp_path / "missing" / "metrics.jsonl")
    assert file.take(records(1, 3)) == 0
    assert (file.after, file.lines.trouble) == (0, "No such file or directory")
    (tmp_path / "missing").mkdir()
    assert file.take(records(1, 3)) == 3
    file.lines.close()


def test_the_tail_of_a_file_has_whole_lines_only(path: Path):
    assert tail(path, 100) == []
    path.write_bytes(b"first\nsecond\nthird\nto")
    assert tail(path, 1000) == [b"first", b"second", b"third"]
    assert tail(path, 12) == [b"third"]
