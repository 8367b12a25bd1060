"""What a person sees of a run."""

import io
import json
from pathlib import Path
from typing import Any

import pytest

from actors import rundir
from actors.progress import Live, Plain, Tail, step_line
from actors.rundir import RunDir
from actors.supervisor import table

RECORD = {
    "step": 3,
    "loss": 6.25,
    "bits_per_byte": 2.5,
    "tokens": 4096,
    "step_s": 2.0,
    "data_wait_s": 0.5,
}


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return rundir.create(tmp_path / "run")


def _add(run: RunDir, *records: dict[str, Any]) -> None:
    with run.metrics.open("a") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)


def test_a_step_is_one_line():
    assert step_line(RECORD, 30, 2) == (
        "step 3/30  loss 6.2500  2.500 bits/byte  2,048 tokens/s  waiting 25%  restarts 2"
    )


def test_a_step_without_figures_is_still_a_line():
    assert step_line({"step": 1}, 30, 0) == "step 1/30  restarts 0"


def test_steps_are_shown_once_and_whole(run: RunDir):
    out = io.StringIO()
    plain = Plain(run, 30, out, resumed=False)
    plain.look()
    _add(run, RECORD)
    with run.metrics.open("a") as file:
        file.write('{"step": 4, "lo')
    plain.look()
    plain.look()
    with run.metrics.open("a") as file:
        file.write('ss": 1.0}\n')
    plain.look()
    assert [line.split("  ")[0] for line in out.getvalue().splitlines()] == [
        "step 3/30",
        "step 4/30",
    ]


def test_a_resumed_run_shows_only_what_is_new(run: RunDir):
    _add(run, RECORD)
    out = io.StringIO()
    plain = Plain(run, 30, out, resumed=True)
    _add(run, RECORD | {"step": 4})
    plain.look()
    assert out.getvalue().startswith("step 4/30")


def test_damaged_lines_are_left_out(run: RunDir):
    run.metrics.write_text('nonsense\n[1]\n{"step": 1}\n')
    assert Tail(run, skip_present=False).new() == [{"step": 1}]


def test_restarts_are_those_of_the_process_table(run: RunDir):
    table.write(run, {"trainer/0": table.row(None, 3, restarts=2), "loader": table.row(None, 1)})
    out = io.StringIO()
    plain = Plain(run, 30, out, resumed=False)
    _add(run, RECORD)
    plain.look()
    assert out.getvalue().rstrip().endswith("restarts 2")


def test_the_live_line_stays_when_the_run_ends(run: RunDir, capsys: pytest.CaptureFixture[str]):
    live = Live(run, 30, resumed=False)
    live.look()
    _add(run, RECORD)
    live.look()
    live.say("supervisor killed by SIGKILL; restarting it")
    live.close()
    shown = capsys.readouterr().out
    assert "supervisor killed by SIGKILL" in shown
    assert shown.rstrip().endswith("restarts 0")
