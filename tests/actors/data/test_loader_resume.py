"""A run resumed twice in one epoch, every time with another number of workers; and at its end."""

from pathlib import Path

import msgspec
import pytest

from actors.data.ordering import Order
from actors.topology import DataSpec, Source
from tests.actors.data.small_graph import exactly_once, graph, small
from tests.actors.data.test_loader import CODE

pytestmark = [pytest.mark.system, pytest.mark.slow]


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.mark.parametrize("order", ["strict", "ready"])
def test_a_run_resumed_twice_in_one_epoch_with_other_workers_delivers_what_it_would_have(
    tmp_path: Path, order: Order
):
    code = tmp_path / "code"
    code.mkdir()
    for i in range(60):
        (code / f"module_{i:02}.py").write_text("".join(CODE.format(i=i * k) for k in range(4)))
    source = Source(kind="directory", path=str(code))
    data = DataSpec(sources=(source,), held_out_share=0.0, order=order)
    wanted = small(data)
    train = msgspec.structs.replace(wanted.train, rows_per_trainer=4)
    wanted = small(data, train=train)
    with graph(tmp_path / "run", wanted, workers=1) as made:
        found = made.batches(range(1, 5))
        assert made.sql("SELECT max(epoch) FROM documents") == [(0,)]
    with graph(tmp_path / "run", wanted, workers=2) as made:
        # The trainers' checkpoint may be older than the last batch they were given.
        assert made.batches(range(3, 5)) == found[4:]
        found += made.batches(range(5, 8))
        assert made.sql("SELECT max(epoch) FROM documents") == [(0,)]
    with graph(tmp_path / "run", wanted, workers=1) as made:
        assert made.batches(range(6, 8)) == found[10:]
        step = 8
        while made.sql("SELECT value FROM facts WHERE key = 'open_epoch'") != [("1",)]:
            found += made.batches(range(step, step + 1))
            step += 1
    with graph(tmp_path / "run", wanted, workers=2) as made:  # its epoch is over
        found += made.batches(range(step, step + 5))
    exactly_once(tmp_path / "run" / "ledger.sqlite")
    with graph(tmp_path / "calm", wanted, workers=1) as calm:
        if order == "strict":
            assert calm.batches(range(1, step + 5)) == found
        (samples,) = made.sql("SELECT count(DISTINCT sample) FROM documents WHERE epoch = 0")[0]
        assert samples == 60
