"""What a run does without is counted by kind, named, and remembered by the next loader."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import structlog
from structlog.testing import CapturingLogger

from actors.commands import status
from actors.data.corpus import Corpus, SourceFile
from actors.data.feed import Refusal
from actors.data.leases import LeaseTable, Poisoned
from actors.data.ledger import Ledger
from actors.data.losses import NAMED, Losses
from actors.data.quality import CERTAIN, Quality
from actors.topology import DataSpec


@pytest.fixture
def said() -> CapturingLogger:
    return CapturingLogger()


def losses(said: CapturingLogger, **settings: Any) -> tuple[Losses, Quality]:
    quality = Quality(DataSpec(**settings))
    return Losses(quality, structlog.wrap_logger(said, processors=[])), quality


def test_every_loss_is_counted_by_kind_and_the_first_of_each_are_named(said: CapturingLogger):
    made, _ = losses(said)
    for sample in range(NAMED + 5):
        made.refused(f"f{sample}.py", Refusal((0, sample), "empty", "nothing"))
    made.refused("g.py", Refusal((0, 99), "binary", "a zero byte"))
    made.poisoned("h.py", Poisoned((0, 100), 3, "3 workers; the last: a died"))
    made.poisoned("i.py", Poisoned((0, 101), 3, "3 workers", "never returns"))
    assert made.gauges() == {
        "refused": NAMED + 6,
        "quarantined": 2,
        "refused: empty": NAMED + 5,
        "refused: binary": 1,
        "quarantined: ends its worker": 1,
        "quarantined: never returns": 1,
    }
    names = [call.kwargs["sample"] for call in said.calls]
    assert names[-3:] == ["g.py", "h.py", "i.py"]
    assert len(names) == NAMED + 3
    assert made.words() == f"{NAMED + 5} empty, 1 binary, 2 quarantined"


def test_samples_that_do_harm_count_towards_the_limit_too(said: CapturingLogger):
    made, quality = losses(said, max_bad_share=0.5)
    for sample in range(CERTAIN):
        assert quality.problem() == ""
        made.poisoned("x.py", Poisoned((0, sample), 3, "", "never returns"))
    assert f"{CERTAIN} never returns" in quality.problem()


def test_the_next_loader_goes_on_counting(said: CapturingLogger, tmp_path: Path):
    file = SourceFile("a.py", "/a.py", "python", "file", "", 10)
    one = np.zeros(1, np.int64)
    corpus = Corpus(
        (file,), one.astype(np.int32), one, one - 1, one, one.astype(np.int16), "digest"
    )
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        assert ledger.left_out() == {}
        ledger.store_corpus(corpus, {}, {"duplicate": 3, "link loop": 1})
        ledger.quarantine(0, "never returns: 3 workers; the last: a was not done", 3)
        ledger.quarantine(1, "ends its worker: 3 workers; the last: a died: SIGSEGV", 3)
    with Ledger(tmp_path / "ledger.sqlite", incarnation=2) as ledger:
        made, _ = losses(said)
        made.begin(ledger)
    assert made.gauges() == {
        "refused": 0,
        "quarantined": 2,
        "left out: duplicate": 3,
        "left out: link loop": 1,
        "quarantined: never returns": 1,
        "quarantined: ends its worker": 1,
    }


def test_a_sample_is_poison_by_what_it_did_last():
    table = LeaseTable(lease_s=1.0, limit=1, max_deaths=1)
    for key in ((0, 0), (0, 1)):
        table.add(key, key[1])
        table.join("a", 1, "fast", shares_files=True, now=0.0)
        table.allow("a", 1)
        table.grants(0.0)
        (poisoned,) = table.leave("a", blame="died", now=0.0) if key[1] else table.expire(2.0)
        table.leave("a", blame="", now=0.0)
        assert poisoned.kind == ("ends its worker" if key[1] else "never returns")


def test_status_says_in_one_line_what_is_wrong_with_the_data():
    gauges = {
        "compile_rate": 0.875,
        "refused: empty": 2.0,
        "refused: binary": 0.0,
        "left out: duplicate": 3.0,
        "quarantined: never returns": 1.0,
        "leased": 4.0,
    }
    actors = [{"role": "trainer"}, {"role": "loader", "gauges": gauges}]
    assert status._data(actors) == (
        "data 87.5% compile; left out: 3 duplicate; refused: 2 empty; quarantined: 1 never returns"
    )
    assert status._data([{"role": "loader", "gauges": {}}]) == ""
    assert status._data([{"role": "trainer"}]) == ""
