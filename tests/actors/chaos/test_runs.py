"""How a driven run ended, as far as it has said so."""

from pathlib import Path

import pytest

from actors import outcome
from actors.chaos.runs import Driven
from actors.outcome import Outcome
from actors.rundir import RunDir


@pytest.fixture
def driven(tmp_path: Path) -> Driven:
    (tmp_path / "run").mkdir()
    (tmp_path / "out").write_text("resuming\nError: no space left on device\n")
    return Driven(RunDir(tmp_path / "run"), tmp_path / "out")


@pytest.mark.parametrize("code", [1, 2])
def test_what_could_not_be_recorded_or_not_begun_has_been_said(driven: Driven, code: int):
    driven.code = code
    assert driven.outcome() == Outcome(end="failed", reason="Error: no space left on device")


def test_a_launcher_that_was_killed_has_said_nothing(driven: Driven):
    driven.code = -9
    assert driven.outcome() is None


def test_what_was_recorded_counts(driven: Driven):
    driven.code = 1
    recorded = Outcome(end="failed", reason="loader: the ledger is damaged")
    assert outcome.write(driven.run, recorded)
    assert driven.outcome() == recorded
