"""`run.py eval`: the same figures every time, on files that were held out."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from actors import evaluation, trained
from actors.commands.eval import command
from actors.data.sources import list_corpus
from actors.rundir import RunDir
from tests.actors import trained_run

FUNCTION = 'def f{0}(x):\n    """Doc {0}."""\n    y = x + {0}\n    return y\n\n\n'


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    base = tmp_path_factory.mktemp("eval")
    (base / "code").mkdir()
    for number in range(12):
        text = "".join(FUNCTION.format(number * 10 + n) for n in range(6))
        (base / "code" / f"m{number}.py").write_text(text)
    source = f'data.sources=[{{kind="directory",path="{base / "code"}"}}]'
    return trained_run.make(base / "run", source, "data.held_out_share=0.5")


def call(run: RunDir, *args: str) -> Result:
    return CliRunner().invoke(command, ["--run", str(run.path), *args])


def document(run: RunDir, *args: str) -> dict[str, dict[str, float]]:
    result = call(run, "--json", *args)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_an_untrained_model_knows_nothing_and_that_is_measured(run: RunDir):
    found = document(run, "--prompts", "2")
    held = found["held_out"]
    assert held["loss"] == pytest.approx(math.log(300), abs=0.5)
    assert held["bits_per_byte"] > 1.0
    assert 1 <= held["files"] <= 11
    rate = found["rollouts"]
    assert (rate["completions"], rate["prompts"]) == (4, 2)
    assert rate["low"] <= rate["compile_rate"] <= rate["high"]


def test_the_same_weights_give_the_same_figures(run: RunDir):
    assert document(run, "--prompts", "1") == document(run, "--prompts", "1")


def test_people_get_a_few_lines(run: RunDir):
    result = call(run, "--prompts", "1", "--tokens", "500")
    assert "bits per byte" in result.stdout
    assert "95 %" in result.stdout


def test_without_prompts_no_rate_is_measured(run: RunDir):
    assert "rollouts" not in document(run, "--prompts", "0")


def test_too_little_held_out_text_is_said_not_divided_by_zero(run: RunDir):
    result = call(run, "--tokens", "1", "--prompts", "0")
    assert (result.exit_code, "no held-out text" in result.stdout) == (0, True)


def test_rows_hold_whole_documents_in_a_row_and_count_within_them(run: RunDir):
    found = trained.newest(run, print)
    corpus, _ = list_corpus(found.topology.data.sources)
    rows = evaluation.held_out_rows(found, corpus, run.tokenizer.read_bytes(), 2000)
    assert rows.tokens.shape[1] == found.topology.model.seq_len + 1
    assert rows.tokens.shape == rows.documents.shape
    assert (np.diff(rows.documents.reshape(-1)) >= 0).all()
    begins = rows.tokens.reshape(-1)[np.flatnonzero(np.diff(rows.documents.reshape(-1))) + 1]
    assert set(begins.tolist()) == {found.pen.bos}


def test_no_file_that_was_trained_on_is_measured(run: RunDir):
    found = trained.newest(run, print)
    corpus, _ = list_corpus(found.topology.data.sources)
    _, held = corpus.split(found.topology.data.held_out_share)
    names = {corpus.name(int(sample)) for sample in held}
    prompts = evaluation._prompts(found, corpus).draw(5, 20)
    assert {prompt.name.partition("::")[0] for prompt in prompts} <= names


def test_sources_that_have_gone_are_a_sentence(run: RunDir, tmp_path: Path):
    lonely = trained_run.make(tmp_path / "run")
    text = lonely.topology.read_text()
    lonely.topology.write_text(
        text.replace('kind = "python_stdlib"', 'kind = "directory"').replace(
            'path = ""', f'path = "{tmp_path / "gone"}"'
        )
    )
    result = call(lonely, "--prompts", "0")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "gone" in result.stderr
