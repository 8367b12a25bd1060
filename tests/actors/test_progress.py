"""What a person sees of a run."""

import contextlib
import io
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from actors import rundir
from actors.progress import Live, Plain, Tail, Unfailing, step_line
from actors.rundir import RunDir
from actors.supervisor import table
from tests.harness import python, python_env

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


def test_a_full_disk_silences_what_is_shown_and_nothing_else(run: RunDir):
    with open("/dev/full", "w") as full:
        watcher = Unfailing(Plain(run, 30, full, resumed=False))
        _add(run, RECORD)
        watcher.look()
        watcher.say("nobody hears this")
        with contextlib.suppress(OSError):  # what was not taken is still in the buffer
            full.close()


def test_what_is_printed_to_nobody_does_not_change_how_a_command_ends():
    script = (
        "import os, sys; from actors.commands import run\n"
        "r, w = os.pipe(); os.close(r); os.dup2(w, 1)\n"
        "run._tell('a'); run._tell('b'); print('c'); sys.exit(7)"
    )
    done = subprocess.run(
        python("-c", script), check=False, env=python_env(), capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (7, "")
