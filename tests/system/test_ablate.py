"""`run.py ablate` trains its rows as real runs, everything at once among them."""

import json
from pathlib import Path

import pytest

from tests.system.conftest import SMALL
from tests.system.test_refusals import call

pytestmark = pytest.mark.system


def test_the_baseline_and_everything_at_once_train_and_are_compared(tmp_path: Path):
    sets = [part for setting in SMALL for part in ("--set", setting)]
    out = tmp_path / "results"
    wanted = ("--only", "everything", "--steps", "6", "--out", str(out), "--json")
    done = call("ablate", *wanted, *sets)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert json.loads((out / "ablation.json").read_text()) == found
    baseline, everything = found["rows"]
    assert (baseline["name"], everything["name"]) == ("adamw", "everything")
    for row in (baseline, everything):
        assert len(row["curve"]) == 6
        assert row["peak_rss_bytes"]["trainer"] > 50_000_000
        assert 0.0 < row["bits_per_byte"]["mean"] < 10.0
        assert row["up_bytes_per_step"] > 0
    assert everything["optimizer_bytes_per_parameter"]["all"] < 8.0
    assert baseline["optimizer_bytes_per_parameter"]["all"] == pytest.approx(8.0)
    own = {"kept_share", "gradient_error", "accepted_draft_share", "gain_forward"}
    assert own <= everything["own"].keys()
    assert "took" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--only", "sophia"], ["no row is called 'sophia'", "adamw, adamw8bit"]),
        (["--set", "model.dim=33"], ["row adamw", "heads"]),
        (["--set", "train.filter_reference=x"], ["row adamw", "filter_reference"]),
        (["--steps", "1"], ["steps"]),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_is(
    tmp_path: Path, arguments: list[str], words: list[str]
):
    done = call("ablate", "--out", str(tmp_path / "out"), *arguments)
    assert done.returncode == 2, done.stderr
    assert all(word in done.stderr for word in words)
    assert list(tmp_path.iterdir()) == []
