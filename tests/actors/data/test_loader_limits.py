"""Too many bad samples, and results that come too late: loader and workers in real processes."""

import signal
from pathlib import Path

import pytest

from actors.topology import DataSpec, Source
from tests.actors.data.small_graph import exactly_once, graph, small
from tests.actors.data.test_loader import CODE

pytestmark = [pytest.mark.system, pytest.mark.slow]

FINE = "".join(CODE.format(i=i) for i in range(4))


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


def test_too_large_a_share_of_bad_samples_stops_the_run_in_words(tmp_path: Path):
    code = tmp_path / "code"
    code.mkdir()
    for i in range(150):
        (code / f"{i}.py").write_text(f"x = {i}\n" if i % 3 else f"x = '\0{i}'\n")
    data = DataSpec(
        sources=(Source(kind="directory", path=str(code)),), held_out_share=0.0, max_bad_share=0.2
    )
    with graph(tmp_path / "run", small(data)) as made:
        made.until(lambda: bool(made.ask(500) or made.goodbyes), "the run to stop")
        assert "data.max_bad_share = 0.2" in made.goodbyes["loader"]
        assert "binary" in made.goodbyes["loader"]


def test_a_result_that_comes_after_another_workers_is_dropped(tmp_path: Path):
    code = tmp_path / "code"
    code.mkdir()
    for i in range(20):
        (code / f"{i:02}.py").write_text("x = 'SLOW'\n" * (i % 4 == 0) + FINE)
    slow = {(f"{i:02}.py", "verify") for i in range(0, 20, 4)}
    data = DataSpec(
        sources=(Source(kind="directory", path=str(code)),),
        held_out_share=0.0,
        lease_s=1.0,
        max_deaths_per_sample=1000,
    )
    with graph(tmp_path / "calm", small(data)) as calm:
        expected = calm.batches(range(1, 16))
    with graph(tmp_path / "rough", small(data), workers=2, mischief=True) as rough:
        found = rough.batches(range(1, 3))
        busy: list[str] = []

        def at_a_slow_one() -> bool:
            names = [name for name in rough.processes if name != "loader"]
            busy.extend(name for name in names if rough.last_note(name) in slow)
            rough.ask(3)
            return bool(busy)

        rough.until(at_a_slow_one, "somebody at a slow sample")
        frozen = rough.processes[busy[0]]
        frozen.send_signal(signal.SIGSTOP)
        found += rough.batches(range(3, 16))  # with whom it had leased
        frozen.send_signal(signal.SIGCONT)
        rough.until(lambda: (rough.gauge("loader", "late") or 0) > 0, "its late result")
        assert found == expected
    exactly_once(tmp_path / "rough" / "ledger.sqlite")
