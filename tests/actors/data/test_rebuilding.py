"""The ledger made again elsewhere knows all that the one it was copied from knew."""

import errno
import os
import shutil
import sqlite3
from pathlib import Path

import pytest

from actors import journal, rundir
from actors.data.database import LedgerError
from actors.data.feed import Shape
from actors.data.ledger import Ledger
from actors.data.rebuilding import rebuild
from actors.rundir import RunDir, RunDirError
from tests.actors.data.test_ledger import SHAPE, composition


def contents(path: Path) -> dict[str, list[tuple[object, ...]]]:
    tables = ("delivered", "documents", "refused", "quarantined", "facts")
    with sqlite3.connect(path) as db:
        found = {table: sorted(db.execute(f"SELECT * FROM {table}")) for table in tables}
    db.close()
    return found


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    made = rundir.create(tmp_path / "run")
    made.journal.mkdir()
    return made


def nothing_torn(why: str) -> None:
    pytest.fail(why)


def test_every_change_is_made_again(run: RunDir):
    with Ledger(run.ledger) as ledger:
        ledger.bind_to({"seed": "1"})
        ledger.commit(composition(1), SHAPE)
        ledger.note_in(run.journal).join()
        for step in range(2, 6):
            ledger.commit(composition(step, sample=step), SHAPE)
        ledger.quarantine(7, "crash: three deaths", 3)
        ledger.truncate(5, 5, "changed", "not what it was")
        ledger.commit(composition(5, sample=6), SHAPE)
        ledger.reshape(6)
        recorded = ledger.recorded()
        shape = Shape(ranks=1, rows=1, row_tokens=4, steps=10, lookahead=1)
        spans = ledger.spans(5, shape)
    before = contents(run.ledger)
    run.ledger.unlink()
    assert rebuild(run, nothing_torn)
    assert contents(run.ledger) == before
    with Ledger(run.ledger, incarnation=1) as again:
        assert again.recorded() == recorded
        assert again.spans(5, shape) == spans


def test_what_was_rolled_back_is_not_noted(run: RunDir):
    with Ledger(run.ledger) as ledger:
        ledger.note_in(run.journal).join()
        ledger.commit(composition(1), SHAPE)
        with pytest.raises(Exception, match="twice"):
            ledger.commit(composition(2), SHAPE)
        ledger.commit(composition(2, sample=1), SHAPE)
    before = contents(run.ledger)
    run.ledger.unlink()
    assert rebuild(run, nothing_torn)
    assert contents(run.ledger) == before


def test_a_later_life_leaves_one_copy_of_its_own(run: RunDir):
    for life in (1, 2):
        with Ledger(run.ledger, incarnation=life) as ledger:
            ledger.note_in(run.journal).join()
            ledger.commit(composition(life, sample=life), SHAPE)
    names = sorted(path.name for path in run.journal.iterdir())
    assert names == ["ledger-0002.journal", "ledger-0002.sqlite"]
    before = contents(run.ledger)
    run.ledger.unlink()
    assert rebuild(run, nothing_torn)
    assert contents(run.ledger) == before


def test_a_copy_shows_the_moment_in_which_it_was_begun(run: RunDir):
    """However long it takes."""
    with Ledger(run.ledger) as ledger:
        ledger.commit(composition(1), SHAPE)
        copying = ledger.note_in(run.journal)
        for step in range(2, 40):
            ledger.commit(composition(step, sample=step), SHAPE)
        copying.join()
    assert not copying.failed
    before = contents(run.ledger)
    run.ledger.unlink()
    assert rebuild(run, nothing_torn)
    assert contents(run.ledger) == before


def test_a_copy_that_cannot_be_made_says_why(run: RunDir):
    with Ledger(run.ledger) as ledger:
        (run.journal / "ledger-0001.sqlite.tmp").mkdir()
        copying = ledger.note_in(run.journal)
        copying.join()
    assert copying.failed
    assert not (run.journal / "ledger-0001.sqlite").exists()


def test_notes_that_cannot_be_written_stop_the_run_in_words(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
):
    """A copy of a ledger that has gone on without its notes would mislead whoever holds both."""
    with Ledger(run.ledger) as ledger:
        ledger.note_in(run.journal).join()
        ledger.commit(composition(1), SHAPE)

        def full(*_: object) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(journal.Writer, "append", full)
        with pytest.raises(LedgerError, match="No space left on device; free space on its disk"):
            ledger.commit(composition(2, sample=1), SHAPE)
    shutil.rmtree(run.journal)
    with (
        Ledger(run.ledger, incarnation=1) as again,
        pytest.raises(LedgerError, match="journal, which a standby copies, cannot be written"),
    ):
        again.note_in(run.journal)


def test_a_ledger_that_is_there_stays(run: RunDir):
    with Ledger(run.ledger) as ledger:
        ledger.note_in(run.journal).join()
    (run.journal / "ledger-0001.sqlite").write_bytes(b"")
    assert not rebuild(run, nothing_torn)


def test_a_torn_end_is_left_out_by_name(run: RunDir):
    with Ledger(run.ledger) as ledger:
        ledger.note_in(run.journal).join()
        ledger.commit(composition(1), SHAPE)
        ledger.commit(composition(2, sample=1), SHAPE)
    run.ledger.unlink()
    notes = run.journal / "ledger-0001.journal"
    notes.write_bytes(notes.read_bytes()[:-1])
    torn: list[str] = []
    assert rebuild(run, torn.append)
    assert "ledger-0001.journal" in torn[0]
    with Ledger(run.ledger, incarnation=1) as again:
        assert again.recorded().next_step == 2


def test_a_copy_that_is_none_is_refused(run: RunDir):
    (run.journal / "ledger-0001.sqlite").write_bytes(b"no database" * 1000)
    with pytest.raises(RunDirError, match=r"ledger-0001\.sqlite"):
        rebuild(run, nothing_torn)
