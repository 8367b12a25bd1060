"""The ledger made again from a copy and what was noted since: see `Ledger.note_in`.

Batches of the steps around the present one are not in it; they are made again when they are asked
for, and compared with what the ledger says of them.
"""

import contextlib
import os
import shutil
import sqlite3
from pathlib import Path

import msgspec

from actors import journal
from actors.data.database import CHANGES, Change
from actors.journal import OnTorn
from actors.rundir import RunDir, RunDirError


def rebuild(run: RunDir, on_torn: OnTorn) -> bool:
    """Put the ledger in its place when there is none, and a copy; whether that was so.

    Raises `RunDirError`.
    """
    if run.ledger.exists() or not run.journal.is_dir():
        return False
    names = {path.name for path in run.journal.iterdir()}
    numbers = {number for name in names if (number := journal.ledger_number(name)) is not None}
    whole = [number for number in numbers if journal.ledger_names(number)[0] in names]
    if not whole:
        return False
    copy, notes = (run.journal / name for name in journal.ledger_names(max(whole)))
    unfinished = run.path / f".{run.ledger.name}.tmp"
    try:
        shutil.copyfile(copy, unfinished)
        with contextlib.closing(sqlite3.connect(unfinished, isolation_level=None)) as connection:
            connection.execute("BEGIN")
            for changes in _noted(notes, on_torn):
                for what, rows in changes:
                    connection.executemany(CHANGES[what], rows)
            connection.execute("COMMIT")
            connection.execute("PRAGMA journal_mode = WAL")
        with unfinished.open("rb") as file:
            os.fsync(file.fileno())
        unfinished.rename(run.ledger)
    except (OSError, sqlite3.Error, KeyError, msgspec.MsgspecError) as error:
        raise RunDirError(
            f"the ledger cannot be made again from {copy} and {notes.name}: {error}"
        ) from error
    return True


def _noted(path: Path, on_torn: OnTorn) -> list[list[Change]]:
    if not path.exists():
        return []
    decoder = msgspec.msgpack.Decoder(list[Change])
    return [decoder.decode(found.header) for found in journal.records(path, on_torn)]
