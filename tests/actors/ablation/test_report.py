"""Figures of rows, from metrics and files that are made up."""

import json
import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from safetensors.numpy import save_file

from actors import hardware
from actors.ablation import measures, plots, report
from actors.ablation.rows import ROWS
from actors.ablation.trials import Plan, Trial, peak_bytes
from actors.parameters import unique_count
from actors.rundir import RunDir
from tests.actors.exchange import tiny


def trial(tmp_path: Path, losses: list[float], seed: int = 0) -> Trial:
    records: list[dict[str, Any]] = [
        {
            "step": step,
            "loss": loss,
            "tokens": 100,
            "step_s": 0.5 if step % 2 else 0.25,
            "up_bytes": 1000,
            "down_bytes": 500,
            "weights_digest": "ab",
        }
        for step, loss in enumerate(losses, start=1)
    ]
    run = RunDir(tmp_path / f"run-{seed}")
    peak = {"trainer": 200_000_000 + seed, "optimizer_shard": 100_000_000}
    return Trial("adamw", seed, 0.004, run, tiny(), records, peak, 3.0, "done")


def test_curves_are_means_over_a_window_and_over_seeds():
    assert measures.smoothed([4.0, 2.0, 0.0], 2) == [4.0, 3.0, 1.0]
    looks = [(10, 4.0), (20, 3.0), (30, 1.0)]
    assert [measures.steps_to(looks, loss) for loss in (5.0, 3.0, 2.0, 0.5)] == [10, 20, 25, None]


def test_speed_and_bytes_are_those_of_ordinary_steps(tmp_path: Path):
    one = trial(tmp_path, [3.0, 2.0, 2.0, 1.0])
    assert measures.tokens_per_s(one.records) == 400.0
    wire = measures.wire(one)
    assert (wire["up_bytes_per_step"], wire["down_bytes_per_step"]) == (1000, 500)
    assert wire["up_times_fewer_than_bf16"] == wire["down_times_fewer_than_bf16"] / 2
    assert measures.spread([1.0, 3.0]) == {
        "mean": 2.0,
        "std": pytest.approx(2**0.5),
        "each": [1.0, 3.0],
    }
    assert measures.tokens_per_s([]) == 0.0


def test_optimizer_bytes_are_counted_in_the_checkpoint(tmp_path: Path):
    one = trial(tmp_path, [1.0])
    assert measures.optimizer_bytes(one) is None
    directory = one.run.checkpoints / "step-00000001"
    directory.mkdir(parents=True)
    name = "layers.0.attention.q.weight"
    tensors = {
        f"{name}:master": np.zeros((32, 32), np.float32),
        f"{name}:momentum.codes": np.zeros((32, 32), np.int8),
        f"{name}:published.1.packed": np.zeros(256, np.uint8),
        f"{name}:memory.0.error": np.zeros((32, 32), np.float32),
        "embedding.weight:mean": np.zeros((300, 32), np.float32),
    }
    save_file(tensors, directory / "all-0.safetensors")
    found = measures.optimizer_bytes(one)
    assert found is not None
    everything = 1024 + 4 * 300 * 32
    assert found["all"] * 1_000 == pytest.approx(everything / _count(one) * 1_000)
    assert found["matrices"] < found["dense"]


def _count(one: Trial) -> int:
    return unique_count(one.topology.model)


def test_the_most_memory_a_process_had_is_known_while_it_lives():
    assert peak_bytes(os.getpid()) > 1_000_000
    assert peak_bytes(2**22 + 1) == 0


@dataclass
class _Measured:
    """As figures.Measured, without torch."""

    loss: float

    @property
    def held_out(self) -> dict[str, float]:
        return {"loss": self.loss, "bits_per_byte": self.loss / 2}

    @property
    def looks(self) -> list[tuple[int, float]]:
        return [(1, self.loss + 2.0), (3, self.loss)]

    @property
    def own(self) -> dict[str, float]:
        return {"isometry_defect": 0.5, "kept_share": 0.6}


def entries(tmp_path: Path) -> list[dict[str, Any]]:
    measured: list[Any] = [_Measured(loss) for loss in (2.5, 2.0, 1.0)]
    rows = [
        report.entry(ROWS[0], [trial(tmp_path, [3.0, 2.0, 1.0])], measured[:1]),
        report.entry(
            ROWS[1],
            [trial(tmp_path, [2.0, 0.5, 0.5], seed) for seed in (0, 1)],
            measured[1:],
        ),
        report.failure(ROWS[2], "the trainer died"),
    ]
    report.compare(rows)
    return rows


def test_rows_are_compared_with_the_baselines_last_loss(tmp_path: Path):
    first, second, failed = entries(tmp_path)
    assert (first["steps_to_baseline"], second["steps_to_baseline"]) == (3, 2)
    assert failed["failed"] == "the trainer died"
    assert second["peak_rss_bytes"]["trainer"] == 200_000_001
    assert second["seeds"] == [0, 1]


def test_document_table_and_file_hold_every_row(tmp_path: Path, capsys: Any):
    plan = Plan("local", 3, (), tmp_path, hardware.probe(gpus=()))
    found = report.document(plan, 2, entries(tmp_path), 61.0)
    assert json.loads(report.write(tmp_path, found).read_text()) == found
    Console(width=200).print(report.table(found))
    said = capsys.readouterr().out
    assert "kept share 0.6" in said
    assert "1.5000 ± 0.7071" in said
    assert "the trainer died" in said


def test_rows_trained_again_take_the_place_of_earlier_ones(tmp_path: Path):
    plan = Plan("local", 3, (), tmp_path, hardware.probe(gpus=()))
    path = report.write(tmp_path, report.document(plan, 2, entries(tmp_path), 61.0))
    before = report.earlier(path, plan, 2)
    again = {**before[1], "loss": measures.spread([1.0])}
    names = [row.name for row in ROWS[:3]]
    joined = report.joined(before, [again])
    assert [row["name"] for row in joined] == names
    assert [row["name"] for row in report.joined(joined[1:], joined[:1])] == names
    assert (joined[0], joined[1]["loss"]["mean"], joined[2]) == (before[0], 1.0, before[2])


def test_other_ablations_are_not_joined(tmp_path: Path):
    plan = Plan("local", 3, (), tmp_path, hardware.probe(gpus=()))
    path = report.write(tmp_path, report.document(plan, 2, entries(tmp_path), 61.0))
    for other, words in (
        (replace(plan, steps=4), "its steps is 3, not 4"),
        (replace(plan, settings=("seed=1",)), "its settings is"),
    ):
        with pytest.raises(report.OtherAblation, match=words):
            report.earlier(path, other, 2)
    with pytest.raises(report.OtherAblation, match="its seeds is 2, not 1"):
        report.earlier(path, plan, 1)
    for text in ("[", "[]", '{"steps": 3}'):
        path.write_text(text)
        with pytest.raises(report.OtherAblation, match="not an ablation"):
            report.earlier(path, plan, 2)
    with pytest.raises(report.OtherAblation, match="cannot be read: No such file"):
        report.earlier(tmp_path / "none.json", plan, 2)


def test_without_matplotlib_it_is_said_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(plots.NoPlots, match=r"pip install '\.\[bench\]'"):
        plots.write(tmp_path, {"rows": entries(tmp_path)})


@pytest.mark.slow
def test_plots_are_drawn(tmp_path: Path):
    pytest.importorskip("matplotlib")
    drawn = plots.write(tmp_path, {"rows": entries(tmp_path)})
    assert [path.read_bytes()[1:4] for path in drawn] == [b"PNG", b"PNG"]
