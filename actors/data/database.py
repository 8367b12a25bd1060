"""A SQLite file with one writer: opening, checking, fencing, and errors in words.

A process that was declared dead may still run for a moment. Each life writes its incarnation
first and every transaction checks that it is still there, so an older one can change nothing.
"""

import contextlib
import sqlite3
from collections.abc import Generator, Iterable
from pathlib import Path
from typing import Any

import msgspec

from actors import journal
from actors.data.copying import Copying

FORMAT = 2
Row = tuple[Any, ...]
# What was done, and with which rows.
Change = tuple[str, list[Row]]
# Every change that a copy elsewhere has to go through as well.
CHANGES = {
    "set fact": "INSERT OR REPLACE INTO facts VALUES (?, ?)",
    "deliver": "INSERT INTO delivered VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
    "describe": "INSERT INTO documents VALUES (?, ?, ?, ?, ?)",
    "refuse": "INSERT OR IGNORE INTO refused VALUES (?, ?, ?, ?)",
    "quarantine": "INSERT OR REPLACE INTO quarantined VALUES (?, ?, ?)",
    "forget documents": "DELETE FROM documents WHERE (epoch, sample) IN "
    "(SELECT epoch, sample FROM delivered WHERE step >= ? AND start = 0)",
    "forget steps": "DELETE FROM delivered WHERE step >= ?",
    "forget batches": "DELETE FROM spool WHERE step >= ?",
}
_APPLICATION_ID = 0x5472694C  # "TriL"
# Checking every page takes about 1 s per 200 MB: beyond this, only the structure is checked.
_CHECK_WHOLE_BYTES = 64 * 1024 * 1024
_BUSY_S = 5.0


class LedgerError(Exception):
    """The ledger cannot be used: says which file, why, and what to do."""


class TakenOver(LedgerError):
    """A later life of the loader writes this ledger now."""


def newest_life(path: Path) -> int:
    """Incarnation of the last owner of that file; 0 when there is none, or it cannot be read."""
    if not path.exists():
        return 0
    try:
        with contextlib.closing(sqlite3.connect(path, timeout=_BUSY_S)) as connection:
            query = "SELECT value FROM facts WHERE key = 'incarnation'"
            row = connection.execute(query).fetchone()
    except sqlite3.DatabaseError:
        return 0  # whoever opens it says what is wrong
    return 0 if row is None else int(row[0])


class Database:
    """The file, with table `facts` (key, value) among those of `schema`."""

    def __init__(
        self,
        path: Path,
        schema: str,
        *,
        incarnation: int,
        durable: bool,
        one_thread: bool = True,
    ) -> None:
        """Opens or makes it. `durable`: fsync at every commit. `one_thread`: only the one that
        made it may use it; otherwise one after the other. Raises `LedgerError`."""
        self._path = path
        self._incarnation = incarnation
        self._notes: journal.Writer | None = None
        self._changes: list[Change] = []  # of the transaction under way
        with self.clear_errors():
            self.connection = sqlite3.connect(
                path, timeout=_BUSY_S, isolation_level=None, check_same_thread=one_thread
            )
        try:
            with self.clear_errors():
                self._prepare(schema, durable)
        except BaseException:
            self.connection.close()
            raise

    def _prepare(self, schema: str, durable: bool) -> None:
        execute = self.connection.execute
        version, owner = self.one("PRAGMA user_version"), self.one("PRAGMA application_id")
        if (owner, version, self.one("SELECT count(*) FROM sqlite_schema")) == (0, 0, 0):
            execute("PRAGMA journal_mode = WAL")
            execute("BEGIN IMMEDIATE")
            for statement in schema.split(";\n"):
                execute(statement)
            execute(f"PRAGMA application_id = {_APPLICATION_ID}")
            execute(f"PRAGMA user_version = {FORMAT}")
            execute("COMMIT")
        elif owner != _APPLICATION_ID:
            raise LedgerError(
                f"{self._path} is a database of something else; move it away, or give this run "
                "another directory with --run"
            )
        elif version != FORMAT:
            raise LedgerError(
                f"{self._path} has ledger format {version}, this release reads {FORMAT}; continue "
                "the run with the release that began it, or start a new one with --run"
            )
        if self._path.stat().st_size <= _CHECK_WHOLE_BYTES:
            verdict = self.one("PRAGMA quick_check(1)")
            if verdict != "ok":
                raise LedgerError(self.damaged(str(verdict)))
        execute("PRAGMA cache_size = -2000")  # 2 MB: the loader stays small
        # On disk before anybody is told of this life, even where steps are not: see `newest_life`.
        execute("PRAGMA synchronous = FULL")
        self._take_over()
        execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")

    def _take_over(self) -> None:
        self.connection.execute("BEGIN IMMEDIATE")
        newest = int(self.fact("incarnation") or -1)
        if newest > self._incarnation:
            self.connection.execute("ROLLBACK")
            raise self._taken_over(newest)
        self.set_fact("incarnation", str(self._incarnation))
        self.connection.execute("COMMIT")

    def close(self) -> None:
        """Let go of the file."""
        if self._notes is not None:
            self._notes.close()
        self.connection.close()

    def one(self, query: str, parameters: tuple[object, ...] = ()) -> Any:
        """The first column of the first row; None without rows."""
        row = self.connection.execute(query, parameters).fetchone()
        return None if row is None else row[0]

    def fact(self, key: str) -> str | None:
        """A stored word; None when there is none."""
        return self.one("SELECT value FROM facts WHERE key = ?", (key,))

    def set_fact(self, key: str, value: str) -> None:
        """Store a word, within the caller's transaction."""
        self.change("set fact", [(key, value)])

    def change(self, what: str, rows: Iterable[Row]) -> None:
        """One of `CHANGES`, for each of `rows`, within the caller's transaction."""
        listed = list(rows)
        self.connection.executemany(CHANGES[what], listed)
        if self._notes is not None and listed:
            self._changes.append((what, listed))

    def note_in(self, directory: Path) -> Copying:
        """Note every change from now on there, beside a copy of the file as it is now, which is
        made on a thread of its own. Earlier copies go when it is whole.

        Raises `LedgerError`.
        """
        with _noting(directory):
            names = [path.name for path in directory.iterdir()]
            earlier = {name: n for name in names if (n := journal.ledger_number(name)) is not None}
            number = 1 + max(earlier.values(), default=0)
            copy, notes = (directory / name for name in journal.ledger_names(number))
            noting = journal.Writer(notes)
        # What a reader has begun to look at does not change under it.
        with self.clear_errors():
            reader = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM facts").fetchone()
        if self._notes is not None:
            self._notes.close()
        self._notes = noting
        copying = Copying(reader, copy, [directory / name for name in earlier])
        copying.start()
        return copying

    @contextlib.contextmanager
    def transaction(self) -> Generator[None]:
        """All of it or nothing. Raises `LedgerError`, `TakenOver`."""
        with self.clear_errors():
            self.connection.execute("BEGIN IMMEDIATE")
            try:
                self._check_owner()
                self._changes.clear()
                yield
                self.connection.execute("COMMIT")
                self._note()
            except BaseException:
                if self.connection.in_transaction:
                    self.connection.execute("ROLLBACK")
                raise

    def _note(self) -> None:
        """A ledger that has gone on without its notes would mislead whoever copies both."""
        if self._notes is not None and self._changes:
            with _noting(self._notes.path):
                self._notes.append(msgspec.msgpack.encode(self._changes))

    def _check_owner(self) -> None:
        owner = int(self.fact("incarnation") or -1)
        if owner != self._incarnation:
            raise self._taken_over(owner)

    def _taken_over(self, by: int) -> TakenOver:
        return TakenOver(
            f"{self._path} is written by loader incarnation {by}; this is {self._incarnation}"
        )

    @contextlib.contextmanager
    def clear_errors(self) -> Generator[None]:
        """SQLite's errors in words of ours. Raises `LedgerError`."""
        try:
            yield
        except sqlite3.IntegrityError as error:
            raise LedgerError(
                f"{self._path}: a token would be delivered twice ({error}); this is a bug, "
                "please report it with the ledger"
            ) from error
        except sqlite3.OperationalError as error:
            raise LedgerError(
                f"{self._path} cannot be used: {error}; free space on its disk and make sure it "
                "can be written, then run again with --resume"
            ) from error
        except sqlite3.DatabaseError as error:
            raise LedgerError(self.damaged(str(error))) from error
        except (TypeError, ValueError, OverflowError) as error:  # columns of another type, and such
            raise LedgerError(self.damaged(str(error))) from error

    def damaged(self, what: str) -> str:
        """What to tell people about a file that is not whole, in one line."""
        return (
            f"{self._path} is damaged ({' '.join(what.split())}); restore it from a copy, or "
            "start a new run with --run; `sqlite3 FILE .recover` saves what can be read"
        )


@contextlib.contextmanager
def _noting(path: Path) -> Generator[None]:
    try:
        yield
    except OSError as error:
        raise LedgerError(
            f"{path}, which a standby copies, cannot be written: {error.strerror or error}; free "
            "space on its disk, then run again with --resume"
        ) from error
