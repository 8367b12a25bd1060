"""`run.py generate` on a real checkpoint of a tiny model."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from actors import rundir
from actors.commands import Failed, Refused
from actors.commands.generate import generate
from actors.rundir import RunDir
from actors.topology import decode
from tests.actors import trained_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    return trained_run.make(tmp_path_factory.mktemp("generate") / "run")


def call(run: RunDir, *args: str, stdin: str = "") -> Result:
    arguments = ["--run", str(run.path), "--max-new-tokens", "8", *args]
    return CliRunner().invoke(generate, arguments, input=stdin)


def test_a_prompt_is_gone_on_from(run: RunDir):
    result = call(run, "--prompt", "def f():\n")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("def f():\n")


def test_json_says_which_weights_and_what_they_wrote(run: RunDir):
    result = call(run, "--prompt", "x = ", "--json", "--seed", "3")
    document = json.loads(result.stdout)
    assert (document["step"], document["prompt"], document["seed"]) == (7, "x = ", 3)
    assert len(document["weights_digest"]) == 64
    assert 1 <= document["tokens"] <= 8
    assert document["finished"] or document["tokens"] == 8
    assert document["log_prob"] < 0


def test_the_seed_decides_what_is_drawn(run: RunDir):
    said = [call(run, "--prompt", "x", "--seed", seed).stdout for seed in ("1", "1", "2")]
    assert said[0] == said[1] != said[2]


def test_greedy_needs_no_seed(run: RunDir):
    said = {call(run, "--prompt", "x", "--temperature", "0", "--seed", s).stdout for s in "12"}
    assert len(said) == 1


def test_the_prompt_may_come_from_stdin(run: RunDir):
    assert call(run, "--prompt", "-", stdin="y = 1\n").stdout.startswith("y = 1\n")


def test_an_empty_prompt_begins_a_document(run: RunDir):
    assert call(run, "--prompt", "").exit_code == 0


def test_of_a_long_prompt_the_end_is_read_and_that_is_said(run: RunDir):
    result = call(run, "--prompt", "q + " * 200)
    assert result.exit_code == 0
    assert "only the last 55 tokens" in result.stderr


def test_more_tokens_than_the_model_can_see_are_refused(run: RunDir):
    result = CliRunner().invoke(
        generate, ["--run", str(run.path), "--prompt", "x", "--max-new-tokens", "64"]
    )
    assert result.exit_code == 2
    assert "64 tokens at a time" in result.stderr


@pytest.mark.parametrize("args", [["--max-new-tokens", "0"], ["--temperature", "-1"]])
def test_impossible_numbers_are_refused(run: RunDir, args: list[str]):
    assert call(run, "--prompt", "x", *args).exit_code == 2


def test_a_damaged_checkpoint_is_skipped_by_name(tmp_path: Path):
    run = trained_run.make(tmp_path / "run", step=3)
    spec = decode(run.topology.read_text(), source="topology.toml")
    newest = trained_run.add_checkpoint(run, spec, step=9)
    file = newest / "all-0.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    result = call(run, "--prompt", "x", "--json")
    assert json.loads(result.stdout)["step"] == 3
    assert str(file) in result.stderr


def test_a_run_without_checkpoints_says_when_there_will_be_one(tmp_path: Path):
    run = trained_run.make(tmp_path / "run")
    for path in run.checkpoints.iterdir():
        path.rename(tmp_path / path.name)
    result = call(run, "--prompt", "x")
    assert isinstance(result.exception, SystemExit)
    assert (result.exit_code, "one every 100 steps" in result.stderr) == (Failed.exit_code, True)


def test_a_run_that_has_only_begun_is_no_traceback(tmp_path: Path):
    result = call(rundir.create(tmp_path / "run"), "--prompt", "x")
    assert (result.exit_code, "has not come far enough" in result.stderr) == (1, True)


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path):
    run = trained_run.make(tmp_path / "run")
    run.topology.write_text(run.topology.read_text().replace("dim = 32", "dim = 64"))
    result = call(run, "--prompt", "x")
    assert (result.exit_code, "another model" in result.stderr) == (1, True)


def test_what_is_no_run_directory_is_refused(tmp_path: Path):
    result = CliRunner().invoke(generate, ["--run", str(tmp_path), "--prompt", "x"])
    assert result.exit_code == Refused.exit_code
    assert "not a run directory" in result.stderr
