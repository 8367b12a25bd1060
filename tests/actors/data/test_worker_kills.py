"""Workers killed in the middle of samples; `python -m tests.benchmarks.worker_kills` does more."""

from pathlib import Path

import pytest

from tests.benchmarks.worker_kills import ORDERS, Order, trial

pytestmark = [pytest.mark.system, pytest.mark.slow]


@pytest.mark.parametrize("order", ORDERS)
def test_the_ledger_stays_exact_whoever_is_killed_over_a_sample(
    tmp_path: Path, order: Order, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    result = trial(tmp_path, order, kills=6, steps_after=12)
    assert result.found == dict.fromkeys(result.found, 0)
    assert result.same_batches
    assert result.within_a_stage >= 1
