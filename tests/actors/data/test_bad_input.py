"""Everything wrong with data, in one run: counted by kind, named, and the rest trains."""

import os
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from actors.topology import DataSpec, Source
from tests.actors.data.small_graph import Graph, exactly_once, graph, small
from tests.actors.data.test_loader import CODE

pytestmark = [pytest.mark.system, pytest.mark.slow]

# What a stage of somebody's own may do. `os._exit` and a segmentation fault end the worker.
TREATMENT = """
import ctypes, os

def treat(text, name):
    what = name.rpartition("/")[2].partition(".")[0]
    match what:
        case "raises": raise RuntimeError("not to my taste")
        case "segfault": ctypes.string_at(0)
        case "exits": os._exit(3)
        case "memory": bytearray(1 << 45)
        case "recursion": return treat(text, name)
        case "nothing": return ""
        case "none": return None
        case "number": return 7
        case "gigabyte": return "x" * (1 << 30)
        case "breaks": return text + "\\ndef ("
        case "surrogate": return text + chr(0xD800)
    return text
"""
STAGE = "treatment:treat"
TREATED = {
    "raises": f"fails in {STAGE}",
    "memory": f"fails in {STAGE}",
    "recursion": f"fails in {STAGE}",
    "nothing": f"fails in {STAGE}",
    "number": f"fails in {STAGE}",
    "surrogate": f"fails in {STAGE}",
    "none": f"left out by {STAGE}",
    "gigabyte": "too large",
    "breaks": f"broken by {STAGE}",
}
ENDING = ("segfault", "exits")  # their workers
FINE = "".join(CODE.format(i=i) for i in range(4))


@pytest.fixture(autouse=True)
def surroundings(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
    (tmp_path / "treatment.py").write_text(TREATMENT)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")


def folder(path: Path, names: tuple[str, ...]) -> Source:
    """Files of those names, a few good ones, and links of all sorts."""
    path.mkdir()
    for name in (*names, *(f"fine_{i}" for i in range(12))):
        (path / f"{name}.py").write_text(f"# {name}\n{FINE}")
    (path / "again.py").symlink_to(path / "fine_0.py")
    os.link(path / "fine_1.py", path / "and_again.py")
    (path / "circle").symlink_to(path)
    (path / "snake.py").symlink_to(path / "snake.py")
    (path / "nowhere.py").symlink_to(path / "missing")
    (path / "empty.py").touch()
    os.mkfifo(path / "fifo.py")
    (path / "latin.py").write_bytes(b"x = '\xe9'\n")
    (path / "utf16.py").write_bytes("x = 1\n".encode("utf-16"))
    return Source(kind="directory", path=str(path))


def tables(path: Path) -> Source:
    """Parquet files: good, without the column, damaged."""
    path.mkdir()
    rows = [FINE, None, "def (:", FINE + "x = 1\n"]
    pq.write_table(pa.table({"code": rows}), path / "good.parquet")
    pq.write_table(pa.table({"body": [FINE]}), path / "other.parquet")
    (path / "torn.parquet").write_bytes((path / "good.parquet").read_bytes()[:-40])
    return Source(kind="parquet", path=str(path / "*.parquet"), field="code")


def names_of(made: Graph, event: str) -> dict[str, str]:
    said = [record for record in made.records if record["event"] == event]
    return {record["sample"].rpartition("/")[2]: record["kind"] for record in said}


def test_whatever_is_wrong_with_the_data_is_counted_and_named_and_the_rest_is_trained_on(
    tmp_path: Path,
):
    code = folder(tmp_path / "code", (*TREATED, *ENDING, "vanishes", "shrinks", "swapped"))
    lines = tmp_path / "lines.jsonl"
    lines.write_text('{"text": "fine"}\n{"text": "cut off"}\n')
    sources = (
        code,
        tables(tmp_path / "tables"),
        Source(kind="jsonl", path=str(lines), language="text"),
    )
    data = DataSpec(
        sources=sources,
        held_out_share=0.0,
        stages=(STAGE,),
        max_sample_bytes=100_000,
        worker_memory_mb=4000,
    )
    with graph(tmp_path / "run", small(data), workers=2) as made:
        made.mends = True
        made.until(made.run.tokenizer.exists, "the data to be prepared")
        (tmp_path / "code" / "vanishes.py").unlink()
        (tmp_path / "code" / "shrinks.py").write_text("def (")
        (tmp_path / "code" / "swapped.py").unlink()
        (tmp_path / "code" / "swapped.py").mkdir()
        lines.write_text('{"text": "fine"}\n{"text"')
        _whole_epoch(made)
        refused = names_of(made, "sample refused")
        assert refused == {
            **{f"{name}.py": kind for name, kind in TREATED.items()},
            "vanishes.py": "vanished",
            "shrinks.py": "does not compile",
            "swapped.py": "not a file",
            "latin.py": "not utf-8",
            "utf16.py": "not utf-8",
            "good.parquet[1]": "empty",
            "good.parquet[2]": "does not compile",
            "lines.jsonl:2": "truncated",
        }
        quarantined = names_of(made, "sample quarantined")
        assert quarantined == {f"{name}.py": "ends its worker" for name in ENDING}
        expected = {
            **{f"refused: {kind}": n for kind, n in Counter(refused.values()).items()},
            **{f"quarantined: {kind}": n for kind, n in Counter(quarantined.values()).items()},
            **{f"left out: {kind}": n for kind, n in LEFT_OUT.items()},
        }

        def counted() -> bool:
            gauges = made.gauges.get("loader", {})
            found = {name: n for name, n in gauges.items() if ": " in name}
            return found == expected

        made.until(counted, "the figures")
        # Of what is left, everything was delivered.
        came = made.sql("SELECT count(DISTINCT sample) FROM documents")
        assert came == [(12 + 2 + 1,)]
    exactly_once(tmp_path / "run" / "ledger.sqlite")


LEFT_OUT = {
    "duplicate": 2,
    "directory seen before": 1,
    "link loop": 1,
    "vanished": 1,
    "empty": 1,
    "not a file": 1,
    "no such column": 2,
}


def _whole_epoch(made: Graph) -> None:
    """Until every sample of the first epoch is settled, some of them by the end of workers."""
    for step in range(1, 400):
        made.batches(range(step, step + 1))
        rows = made.sql("SELECT value FROM facts WHERE key = 'open_epoch'")
        if rows and int(rows[0][0]) >= 1:
            return
    raise AssertionError("the epoch does not end")
