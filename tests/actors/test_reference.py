"""A model to compare losses with: what is refused before a run, and that filters really use it."""

from pathlib import Path

import pytest

from actors import hardware
from actors.beginning import Wanted, begin
from actors.checkpoints import CheckpointError
from actors.reference import reference_problem
from actors.topology import TopologyError
from actors.trainer.reference import load_reference
from tests.actors import trained_run
from tests.actors.exchange import Exchange, rows_of, tiny
from tests.benchmarks.plain_loop import PlainLoop


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    run = trained_run.make(tmp_path / "earlier")
    (path,) = run.checkpoints.iterdir()
    return path


def test_a_reference_of_the_same_tokens_is_accepted(checkpoint: Path):
    tokenizer = checkpoint.parent.parent / "tokenizer.json"
    assert reference_problem(str(checkpoint), str(tokenizer)) == ""


def test_what_cannot_be_compared_with_is_refused_in_words(checkpoint: Path, tmp_path: Path):
    run = checkpoint.parent.parent
    tokenizer = run / "tokenizer.json"
    assert "is no checkpoint; accepted: a directory such as" in reference_problem(str(run), "")
    for other in ("", str(run / "topology.toml")):
        why = reference_problem(str(checkpoint), other)
        assert f'reads other tokens; set data.tokenizer = "{tokenizer}"' in why
    assert "No such file" in reference_problem(str(checkpoint), str(tmp_path / "absent.json"))
    alone = tmp_path / "alone"
    checkpoint.rename(alone)
    assert "does not lie in a run directory" in reference_problem(str(alone), str(tokenizer))


def test_a_run_is_not_begun_without_its_reference(checkpoint: Path, tmp_path: Path):
    wanted = Wanted(
        run_dir=tmp_path / "new",
        settings=("train.filter=excess", f"train.filter_reference={checkpoint}"),
    )
    with pytest.raises(TopologyError, match=r"train\.filter_reference: .* reads other tokens"):
        begin(wanted, hardware.probe(gpus=()))
    assert not (tmp_path / "new").exists()


def test_a_damaged_reference_names_its_file(checkpoint: Path):
    topology = tiny("train.filter=excess", f"train.filter_reference={checkpoint}")
    assert load_reference(tiny(), "cpu") is None
    file = next(checkpoint.glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-1] + bytes([file.read_bytes()[-1] ^ 1]))
    with pytest.raises(CheckpointError, match=r"safetensors is damaged"):
        load_reference(topology, "cpu")


def test_the_graph_filters_by_the_reference_as_a_plain_loop_does(checkpoint: Path):
    """Its vocabulary is that of the tiny model; its other sizes are its own."""
    settings = ("steps=3", "train.filter=excess", f"train.filter_reference={checkpoint}")
    topology = tiny(*settings)
    loop = PlainLoop(topology)
    for step in range(1, 4):
        loop.step(step, [rows_of(topology, step, 0)])
    assert Exchange(topology).run() == loop.weights_digest()
    by_loss = Exchange(tiny("steps=3", "train.filter=loss")).run()
    assert loop.weights_digest() != by_loss
