"""The live progress follows metrics.jsonl even when the recorder takes steps back."""

import json
from pathlib import Path

import pytest

from actors import rundir
from actors.progress import Tail
from actors.rundir import RunDir


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return rundir.create(tmp_path / "run")


def add(run: RunDir, *steps: int) -> None:
    with run.metrics.open("a") as file:
        file.writelines(json.dumps({"step": step, "loss": 1 / step}) + "\n" for step in steps)


def steps(tail: Tail) -> list[int]:
    return [record["step"] for record in tail.new()]


def test_every_step_is_seen_once(run: RunDir):
    tail = Tail(run, skip_present=False)
    assert steps(tail) == []
    add(run, 1, 2)
    assert steps(tail) == [1, 2]
    add(run, 3)
    assert steps(tail) == [3]
    assert steps(tail) == []


def test_after_steps_were_taken_back_the_new_ones_are_seen(run: RunDir):
    add(run, *range(1, 18))
    tail = Tail(run, skip_present=True)
    assert steps(tail) == []
    run.metrics.unlink()
    add(run, *range(1, 11), 11)
    assert steps(tail) == [11]
    add(run, 12, 13)
    assert steps(tail) == [12, 13]


@pytest.mark.parametrize("kept", [0, 1])
def test_a_file_that_is_all_but_emptied_is_no_trouble(run: RunDir, kept: int):
    add(run, *range(1, 6))
    tail = Tail(run, skip_present=True)
    run.metrics.write_text("")
    add(run, *range(1, kept + 1))
    assert steps(tail) == list(range(1, kept + 1))
    add(run, 9)
    assert steps(tail) == [9]
