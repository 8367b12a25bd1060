"""The ledger as a file: foreign, damaged, of another version, taken over, full."""

import sqlite3
from pathlib import Path

import numpy as np
import pytest

from actors import leftovers, rundir
from actors.data.corpus import Corpus, SourceFile
from actors.data.database import LedgerError, TakenOver, newest_life
from actors.data.feed import Composition, Fact, Refusal, Shape
from actors.data.ledger import Ledger
from actors.data.packing import Document, Packer
from actors.supervisor import table

SHAPE = Shape(ranks=1, rows=1, row_tokens=4, steps=10, lookahead=1)


def composition(step: int, sample: int = 0) -> Composition:
    document = Document((0, sample), np.arange(4, dtype=np.int32), 9)
    packer = Packer(4, 1)
    packer.add(document)
    packed = packer.take()
    assert packed is not None
    began = ((document.key, Fact.of(document)),)
    return Composition(step, packed, began, (Refusal((0, 99), "empty", ""),), 0)


def test_the_tables_are_those_other_tools_rely_on(tmp_path: Path):
    Ledger(tmp_path / "ledger.sqlite").close()
    with sqlite3.connect(tmp_path / "ledger.sqlite") as db:
        columns = {
            table: [row[1] for row in db.execute(f"PRAGMA table_info({table})")]
            for table in ("delivered", "quarantined")
        }
    db.close()
    assert columns == {
        "delivered": ["epoch", "sample", "start", "length", "step", "rank", "row", "offset"],
        "quarantined": ["sample", "reason", "deaths"],
    }


def test_the_corpus_comes_back_as_it_was_stored(tmp_path: Path):
    files = (
        SourceFile("a/x.py", "/a/x.py", "python", "file", "", 10),
        SourceFile("b.jsonl", "/b.jsonl", "text", "jsonl", "text", 20),
        SourceFile("c.parquet", "/c.parquet", "text", "parquet", "code", 30),
    )
    corpus = Corpus(
        files,
        np.array([0, 1, 1, 2], np.int32),
        np.array([0, 0, 9, 0]),
        np.array([-1, 8, 7, -1]),
        np.array([-1, 1, 2, 0]),
        np.array([0, 0, 0, 1], np.int16),
        "digest",
    )
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        assert ledger.corpus() is None
        ledger.store_corpus(corpus)
        again = ledger.corpus()
    assert again is not None
    assert again.files == files
    names = ["a/x.py", "b.jsonl:1", "b.jsonl:2", "c.parquet[0]"]
    assert [again.name(i) for i in range(4)] == names
    assert again.ref(2) == corpus.ref(2)
    with sqlite3.connect(tmp_path / "ledger.sqlite") as db:
        assert [name for (name,) in db.execute("SELECT name FROM samples")] == names
    db.close()


def test_a_token_cannot_be_delivered_twice(tmp_path: Path):
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        ledger.commit(composition(1), SHAPE)
        with pytest.raises(LedgerError, match="delivered twice"):
            ledger.commit(composition(2), SHAPE)
        assert ledger.recorded().next_step == 2  # all of it or nothing


def test_an_older_life_can_write_no_more(tmp_path: Path):
    with Ledger(tmp_path / "ledger.sqlite", incarnation=1) as old:
        old.commit(composition(1), SHAPE)
        with Ledger(tmp_path / "ledger.sqlite", incarnation=2) as new:
            with pytest.raises(TakenOver, match="incarnation 2"):
                old.commit(composition(2, sample=1), SHAPE)
            new.commit(composition(2, sample=1), SHAPE)
    with pytest.raises(TakenOver):
        Ledger(tmp_path / "ledger.sqlite", incarnation=1)


def test_a_file_that_is_no_database_is_refused(tmp_path: Path):
    path = tmp_path / "ledger.sqlite"
    path.write_bytes(b"these are not the tables you are looking for" * 100)
    with pytest.raises(LedgerError, match="damaged"):
        Ledger(path)


def test_the_database_of_another_program_is_refused(tmp_path: Path):
    path = tmp_path / "ledger.sqlite"
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE recipes (name TEXT)")
    db.close()
    with pytest.raises(LedgerError, match="database of something else"):
        Ledger(path)


def test_a_ledger_of_another_version_is_refused(tmp_path: Path):
    path = tmp_path / "ledger.sqlite"
    Ledger(path).close()
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(LedgerError, match="format 99, this release reads 2"):
        Ledger(path)


def test_a_damaged_ledger_is_refused(tmp_path: Path):
    path = tmp_path / "ledger.sqlite"
    with Ledger(path) as ledger:
        for step in range(1, 200):
            ledger.commit(composition(step, sample=step), SHAPE)
    content = bytearray(path.read_bytes())
    content[8192:] = b"\xa5" * (len(content) - 8192)
    path.write_bytes(content)
    with pytest.raises(LedgerError, match="damaged") as said:
        Ledger(path)
    assert "\n" not in str(said.value)  # whatever SQLite says: logs and last words are lines


def test_a_ledger_in_a_place_that_cannot_be_written_is_refused(tmp_path: Path):
    with pytest.raises(LedgerError, match="cannot be used"):
        Ledger(tmp_path / "no such directory" / "ledger.sqlite")


def test_a_full_disk_is_said_in_words(tmp_path: Path):
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        pages = ledger._db.execute("PRAGMA page_count").fetchone()[0]
        ledger._db.execute(f"PRAGMA max_page_count = {pages}")
        many = [composition(step, sample=step) for step in range(1, 500)]
        with pytest.raises(LedgerError, match="full; free space"):
            _ = [ledger.commit(each, SHAPE) for each in many]


def test_a_ledger_begun_under_other_facts_is_refused(tmp_path: Path):
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        ledger.bind_to({"seed": "1", "seq_len": "256"})
        ledger.bind_to({"seed": "1"})
        with pytest.raises(LedgerError, match="begun with seed = 1, now it is 2"):
            ledger.bind_to({"seed": "2"})


def test_batches_far_behind_are_dropped(tmp_path: Path):
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        for step in range(1, 6):
            ledger.commit(composition(step, sample=step), SHAPE, forget_before=step - 2)
        assert [ledger.batch(step, 0) is not None for step in range(1, 6)] == (
            [False, False, True, True, True]
        )


def test_a_resumed_run_counts_on_from_the_lives_the_ledger_knows(tmp_path: Path):
    run = rundir.create(tmp_path / "run")
    with Ledger(run.ledger, incarnation=5):
        pass
    table.write(run, {"loader": table.row(None, 2), "trainer/0": table.row(None, 3)})
    leftovers.clear(run)
    assert {name: row.incarnation for name, row in table.read(run).items()} == {
        "loader": 5,
        "trainer/0": 3,
    }
    run.processes.unlink()
    leftovers.clear(run)
    assert table.read(run)["loader"].incarnation == 5


def test_a_ledger_that_cannot_be_read_has_no_owner(tmp_path: Path):
    assert newest_life(tmp_path / "nothing") == 0
    (tmp_path / "noise").write_bytes(b"noise" * 1000)
    assert newest_life(tmp_path / "noise") == 0
