"""What cannot be answered is refused in words, at once; runs that lack a file are looked at."""

import json
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from actors import asking, rundir, topology
from actors.asking import Unanswered
from actors.commands import main
from protocol.messages import Message
from tests.harness import ROOT, python


def call(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["simulate", "--schedules", "0"], "--schedules"),
        (["simulate", "--schedules", "-3"], "--schedules"),
        (["simulate", "--data", "--seconds", "0"], "--seconds"),
        (["simulate", "--data", "--workers", "-3"], "--workers"),
        (["simulate", "--data", "--remote", "-1"], "--remote"),
        (["simulate", "--topology", "nope"], "--topology says what to simulate with --data"),
        (["simulate", "--set", "seed=1"], "--set says what to simulate with --data"),
    ],
)
def test_what_cannot_be_simulated_is_refused(arguments: list[str], words: str):
    result = call(*arguments)
    assert result.exit_code == 2, result.output
    assert words in result.output


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("arguments", [("--help",), ("plan", "--topology", "config_b")])
def test_output_that_cannot_be_written_is_said_in_words(arguments: tuple[str, ...]):
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            python("run.py", *arguments),
            check=False,
            cwd=ROOT,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert done.returncode == 1
    assert done.stderr == "what is printed cannot be written: No space left on device\n"


def test_chaos_that_strikes_nobody_is_refused_before_anything_runs(tmp_path: Path):
    out = tmp_path / "out"
    result = call("chaos", "--actors", "zzz*", "--out", str(out))
    assert result.exit_code == 2, result.output
    assert "no actor 'zzz*'" in result.output
    assert "loader" in result.output
    assert not out.exists()


def test_a_run_without_a_plan_has_a_status(tmp_path: Path):
    run = rundir.create(tmp_path / "run")
    result = call("status", "--json", "--run", str(run.path))
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert (document["state"], document["actors"]) == ("dead", [])
    assert "plan.json cannot be read" in document["reason"]


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_a_silent_supervisor_does_not_hide_what_the_run_directory_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: list[str]
):
    def silent(*_asked: object) -> Message:
        raise Unanswered("the supervisor has not answered for 5 s")

    monkeypatch.setattr(asking, "lives", lambda _run: True)  # pyright: ignore[reportUnknownLambdaType]
    monkeypatch.setattr(asking, "ask", silent)
    run = rundir.create(tmp_path / "run")
    run.plan.write_text(json.dumps({"actors": []}))
    run.metrics.write_text(json.dumps({"step": 7, "loss": 2.5}) + "\n")
    result = call("status", "--run", str(run.path), *form)
    assert result.exit_code == 0, result.output
    assert "has not answered for 5 s" in result.output
    assert "step 7" in result.output or json.loads(result.stdout)["step"] == 7


@pytest.mark.parametrize("arguments", [["generate", "--prompt", "x"], ["eval"]])
@pytest.mark.parametrize("text", [b"model.dim = 'wide'", b"\xff\xfe"])
def test_a_damaged_topology_is_a_mistake_in_the_configuration(
    tmp_path: Path, arguments: list[str], text: bytes
):
    run = rundir.create(tmp_path / "run")
    run.topology.write_bytes(text)
    result = call(*arguments, "--run", str(run.path))
    assert result.exit_code == 2, result.output
    assert "topology.toml" in result.output


def test_entries_of_arrays_can_be_set_in_a_resolved_copy():
    resolved = topology.load("local")
    other = topology.override(resolved, ("data.sources.0.weight=3.0",), source="it")
    assert other.data.sources[0].weight == 3.0
    assert topology.decode(topology.to_toml(other), source="it") == other
