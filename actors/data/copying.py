"""A copy of a SQLite file that is being written, made on a thread of its own."""

import contextlib
import os
import sqlite3
import threading
from collections.abc import Sequence
from pathlib import Path


class Copying(threading.Thread):
    """Copies what `reader` has begun to look at. Under its name, the copy is whole and on disk."""

    def __init__(self, reader: sqlite3.Connection, path: Path, instead_of: Sequence[Path]) -> None:
        """`instead_of`: what goes then."""
        super().__init__(name="copying", daemon=True)
        self._reader, self._path, self._instead_of = reader, path, instead_of
        self.failed = ""  # why there is no copy

    def run(self) -> None:
        """The thread."""
        try:
            self._copy()
        except (OSError, sqlite3.Error) as error:
            self.failed = str(error) or type(error).__name__

    def _copy(self) -> None:
        unfinished = self._path.with_name(f"{self._path.name}.tmp")
        with contextlib.closing(self._reader):
            unfinished.unlink(missing_ok=True)
            with contextlib.closing(sqlite3.connect(unfinished)) as copy:
                self._reader.backup(copy)
        with unfinished.open("rb") as file:
            os.fsync(file.fileno())
        unfinished.rename(self._path)
        for path in self._instead_of:
            path.unlink(missing_ok=True)
