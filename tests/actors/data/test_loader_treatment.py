"""What the [data] tables ask for, in real processes: stages, weights, formats, limits."""

import gzip
import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from actors.topology import DataSpec, Source, Topology
from tests.actors.data.small_graph import Graph, exactly_once, graph, small
from tests.actors.data.test_loader import CODE

pytestmark = pytest.mark.system


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


def folder(path: Path, count: int, what: str = "fine") -> Source:
    path.mkdir()
    for i in range(count):
        (path / f"{what}_{i:02}.py").write_text("".join(CODE.format(i=i * k) for k in range(4)))
    return Source(kind="directory", path=str(path))


def spec(*sources: Source, **settings: Any) -> Topology:
    return small(DataSpec(sources=sources, held_out_share=0.0, **settings))


def epochs_of(made: Graph, count: int) -> Counter[tuple[int, str]]:
    """How often each source's files came, in epochs that are over."""
    step = 1
    while not made.run.ledger.exists() or (whole(made) < count):
        made.batches(range(step, step + 1))
        step += 1
    names = dict(made.sql("SELECT sample, name FROM samples"))
    found: Counter[tuple[int, str]] = Counter()
    for epoch, sample in made.sql("SELECT epoch, sample FROM documents"):
        if epoch < count:
            found[epoch, names[sample].partition("/")[0]] += 1
    return found


def whole(made: Graph) -> int:
    """Epochs of which every sample has begun."""
    rows = made.sql("SELECT value FROM facts WHERE key = 'open_epoch'")
    return int(rows[0][0]) if rows else 0


def test_weights_are_exact_in_every_epoch(tmp_path: Path):
    often = folder(tmp_path / "often", 3)
    seldom = folder(tmp_path / "seldom", 8)
    wanted = spec(
        Source(kind="directory", path=often.path, weight=2.0),
        Source(kind="directory", path=seldom.path, weight=0.5),
    )
    with graph(tmp_path / "run", wanted) as made:
        came = epochs_of(made, 2)
    assert came == {
        (0, "often"): 6, (0, "seldom"): 4, (1, "often"): 6, (1, "seldom"): 4
    }  # fmt: skip
    exactly_once(tmp_path / "run" / "ledger.sqlite")


def test_a_stage_of_ones_own_runs_in_the_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "own_stages.py").write_text(
        "def without_returns(text, name):\n"
        "    return None if name.endswith('_03.py') else text.replace('return', 'yield')\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    code = folder(tmp_path / "code", 6)
    with graph(tmp_path / "run", spec(code, stages=("own_stages:without_returns",))) as made:
        epochs_of(made, 1)
        assert made.sql("SELECT kind FROM refused") == [("left out by own_stages:without_returns",)]
        assert made.sql("SELECT count(DISTINCT sample) FROM documents") == [(5,)]


def test_a_stage_that_is_not_there_is_said_before_anything_is_read(tmp_path: Path):
    code = folder(tmp_path / "code", 3)
    with graph(tmp_path / "run", spec(code, stages=("nowhere:f",))) as made:
        made.until(lambda: "loader" in made.goodbyes, "the loader to say so")
        assert "data.stages: nowhere:f is not to be had" in made.goodbyes["loader"]


def test_near_duplicates_are_left_out_by_name(tmp_path: Path):
    pytest.importorskip("rensa")
    code = folder(tmp_path / "code", 4)
    first = (tmp_path / "code" / "fine_01.py").read_text()
    (tmp_path / "code" / "later.py").write_text(first + "\n\nextra = 1\n")
    with graph(tmp_path / "run", spec(code, near_duplicates=0.8)) as made:
        made.batches(range(1, 3))
        refused = made.sql("SELECT name, kind, detail FROM refused JOIN samples USING (sample)")
        assert ("code/later.py", "near-duplicate", "of code/fine_01.py") in refused


def test_a_run_on_code_that_does_not_compile_stops_with_the_rate(tmp_path: Path):
    code = folder(tmp_path / "code", 40)
    for i in range(90):
        (tmp_path / "code" / f"bad_{i}.py").write_text(f"def f{i}(:\n")
    with graph(tmp_path / "run", spec(code, min_compile_rate=0.95)) as made:
        for rank in range(2):
            made.peer(f"trainer/{rank}")
        made.until(lambda: _ask(made) or "loader" in made.goodbyes, "the run to stop", 60.0)
        assert "data.min_compile_rate = 0.95" in made.goodbyes["loader"]


def _ask(made: Graph) -> bool:
    from protocol import messages as m

    for rank in range(2):
        made.peers[f"trainer/{rank}"].send("batches", m.BatchRequest(step=500, rank=rank))
        made.peers[f"trainer/{rank}"].drain()
    return False


def test_compressed_lines_are_trained_on_and_named_by_line(tmp_path: Path):
    rows = [json.dumps({"code": CODE.format(i=i)}) for i in range(9)] + ['{"code": "def (:"}']
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress("\n".join(rows).encode()))
    source = Source(kind="jsonl", path=str(tmp_path / "rows.jsonl.gz"), field="code")
    with graph(tmp_path / "run", spec(source)) as made:
        epochs_of(made, 1)
        refused = made.sql("SELECT name, kind FROM refused JOIN samples USING (sample)")
        assert refused == [("rows.jsonl.gz:10", "does not compile")]
    exactly_once(tmp_path / "run" / "ledger.sqlite")


def test_filling_in_the_middle_is_the_same_in_every_run(tmp_path: Path):
    code = folder(tmp_path / "code", 6)
    found: list[Any] = []
    for name in ("one", "two"):
        with graph(tmp_path / name, spec(code, fim_share=0.5), workers=2) as made:
            found.append(made.batches(range(1, 6)))
    assert found[0] == found[1]
    marks = {3, 4, 5}
    assert any(marks & set(row) for tokens, _, _ in found[0] for row in tokens)
