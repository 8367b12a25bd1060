"""Loader and workers in real processes."""

import signal
from pathlib import Path

import pytest

from actors.data import noting
from actors.topology import DataSpec, Source
from tests.actors.data.small_graph import exactly_once, graph, small

pytestmark = pytest.mark.system

CODE = """def function_{i}(argument):
    '''Number {i}.'''
    total = {i}
    return total + argument
"""


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or leaves anything in the cache of whoever runs it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture
def code(tmp_path: Path) -> Path:
    """Forty small Python files."""
    folder = tmp_path / "code"
    folder.mkdir()
    for i in range(40):
        (folder / f"module_{i:02}.py").write_text("".join(CODE.format(i=i * k) for k in range(9)))
    return folder


def directory(path: Path, **settings: object) -> DataSpec:
    source = Source(kind="directory", path=str(path))
    return DataSpec(sources=(source,), held_out_share=0.1, **settings)  # pyright: ignore[reportArgumentType]


def test_batches_arrive_and_the_ledger_knows_them(tmp_path: Path, code: Path):
    with graph(tmp_path / "run", small(directory(code))) as made:
        batches = made.batches(range(1, 9))
        again = made.batch(8, 1)
        assert batches[-1] == again
        assert noting.read(noting.path_of(made.sockets, "data_worker/0"), 1) is not None
        tokens, documents, text_bytes = batches[0]
        assert [len(row) for row in tokens] == [33, 33]
        assert documents[0][0] == 0
        assert 33 < text_bytes < 66 * 8
        prompts = made.prompts(3)
        assert prompts == made.prompts(3)
        assert all(text.startswith("def function_") for text in prompts.texts)
        held_out = {Path(name.partition("::")[0]).name for name in prompts.names}
        delivered = made.sql("SELECT DISTINCT name FROM delivered JOIN samples USING (sample)")
        assert held_out.isdisjoint(Path(name).name for (name,) in delivered)
        assert made.stop("data_worker/0") == 0
        assert made.stop("loader") == 0
        assert made.goodbyes["loader"] == ""
    exactly_once(tmp_path / "run" / "ledger.sqlite")


def test_whoever_is_killed_the_batches_are_the_same(tmp_path: Path, code: Path):
    wanted = small(directory(code))
    steps = range(1, 25)
    with graph(tmp_path / "calm", wanted) as calm:
        expected = calm.batches(steps)
    with graph(tmp_path / "rough", wanted) as rough:
        found = []
        for step in steps:
            if step % 3 == 1:
                rough.kill("data_worker/0")
                rough.start("data_worker/0")
            if step in (7, 14):
                rough.kill("loader")
                rough.start("loader")
            if step == 10:
                rough.kill("data_worker/1", signal.SIGTERM)
                rough.start("data_worker/1", pool="slow")
            found += rough.batches(range(step, step + 1))
        assert found == expected
    exactly_once(tmp_path / "rough" / "ledger.sqlite")


def test_a_resumed_run_gets_old_batches_again(tmp_path: Path, code: Path):
    wanted = small(directory(code, order="ready"))
    with graph(tmp_path / "run", wanted) as made:
        expected = made.batches(range(1, 13))
    with graph(tmp_path / "run", wanted) as made:
        assert made.batches(range(4, 13)) == expected[6:]
        made.batches(range(13, 16))
    exactly_once(tmp_path / "run" / "ledger.sqlite")
