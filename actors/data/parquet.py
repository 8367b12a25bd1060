"""Parquet and Arrow files: how many rows one has, and the text of one of them.

Arrow files are those of Hugging Face `datasets`: streams of record batches, mapped and not read.
pyarrow doubles a process's memory: it is imported only when the first such file is opened.
"""

import itertools
import os
from typing import Any, cast

import numpy as np

from actors.data.corpus import IntArray, Rows


class ColumnError(ValueError):
    """A file that is of no such format, or whose column is missing or holds no text."""


def parquet_rows(path: str, column: str) -> Rows:
    """One sample per row. Raises `ColumnError` and OSError."""
    opened = _open(path)
    try:
        _check_text(opened, path, column)
        count = opened.rows
    finally:
        opened.close()
    return Rows(
        offsets=np.zeros(count, np.int64),
        lengths=np.full(count, -1, np.int64),
        positions=np.arange(count, dtype=np.int64),
    )


class RowReader:
    """Reads single rows. Keeps the row groups read last: neighbours are often asked for
    together, and a row's text and its licence too."""

    def __init__(self) -> None:
        self._file: _Parquet | _Arrow | None = None
        self._key: tuple[str, int, int] = ("", 0, 0)
        self._columns: dict[tuple[str, int], Any] = {}

    def read(self, path: str, column: str, row: int) -> str | None:
        """Text of one row; None where the column is null there. Raises `ColumnError`, OSError."""
        _check_text(self._opened(path), path, column)
        return self.value(path, column, row)

    def value(self, path: str, column: str, row: int) -> Any:
        """What a row holds in any column. Raises `ColumnError`, OSError."""
        file = self._opened(path)
        if column not in file.schema.names:
            raise _no_column(file, path, column)
        if not 0 <= row < file.rows:
            raise ColumnError(f"{path} has {file.rows} rows; row {row} is gone")
        group, start = file.group_of(row)
        known = self._columns.get((column, group))
        if known is None:
            if any(other != group for _, other in self._columns):
                self._columns.clear()
            known = self._columns[column, group] = file.column(column, group)
        return known[row - start].as_py()

    def _opened(self, path: str) -> "_Parquet | _Arrow":
        facts = os.stat(path)
        key = path, facts.st_mtime_ns, facts.st_size
        if self._file is None or self._key != key:
            if self._file is not None:
                self._file.close()
            self._columns.clear()
            self._file, self._key = None, ("", 0, 0)
            self._file, self._key = _open(path), key
        return self._file


class _Parquet:
    """A parquet file, by row groups."""

    def __init__(self, path: str) -> None:
        import pyarrow.parquet as pq

        self._file: Any = cast("Any", pq.ParquetFile(path))
        self.schema: Any = self._file.schema_arrow
        metadata = self._file.metadata
        groups = range(metadata.num_row_groups)
        counts = [int(metadata.row_group(group).num_rows) for group in groups]
        ends: list[int] = list(itertools.accumulate(counts))
        self._ends: IntArray = np.array(ends, np.int64)
        self.rows: int = int(metadata.num_rows)

    def group_of(self, row: int) -> tuple[int, int]:
        """The group a row is in, and that group's first row."""
        group = int(np.searchsorted(self._ends, row, side="right"))
        return group, int(self._ends[group - 1]) if group else 0

    def column(self, name: str, group: int) -> Any:
        """One column of a group."""
        return self._file.read_row_group(group, columns=[name]).column(0)

    def close(self) -> None:
        """Let go of it."""
        self._file.close()


class _Arrow:
    """A stream of record batches, mapped."""

    def __init__(self, path: str) -> None:
        import pyarrow as pa

        self._map: Any = pa.memory_map(path)
        self._table: Any = pa.ipc.open_stream(self._map).read_all()
        self.schema: Any = self._table.schema
        self.rows = int(cast("Any", self._table).num_rows)

    def group_of(self, row: int) -> tuple[int, int]:
        """The whole of it is one group: nothing of it is read before it is asked for."""
        del row
        return 0, 0

    def column(self, name: str, group: int) -> Any:
        """One column."""
        del group
        return self._table.column(name)

    def close(self) -> None:
        """Let go of it."""
        self._map.close()


def _open(path: str) -> _Parquet | _Arrow:
    try:
        return _Arrow(path) if path.endswith(".arrow") else _Parquet(path)
    except (ValueError, NotImplementedError) as error:  # what arrow's own errors derive from
        kind = "an Arrow stream" if path.endswith(".arrow") else "a parquet file"
        raise ColumnError(f"{path} is not {kind}: {error}") from error


def _check_text(file: _Parquet | _Arrow, path: str, column: str) -> None:
    from pyarrow import types

    if column not in file.schema.names:
        raise _no_column(file, path, column)
    kind = file.schema.field(column).type
    if not (types.is_string(kind) or types.is_large_string(kind)):
        raise ColumnError(f"{path}: column {column!r} holds {kind}, not text")


def _no_column(file: _Parquet | _Arrow, path: str, column: str) -> ColumnError:
    return ColumnError(
        f"{path} has no column {column!r}; it has {', '.join(file.schema.names)}: "
        "say which one holds the text with `field`"
    )
