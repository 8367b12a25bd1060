"""Parquet: how many rows a file has, and the text of one of them.

pyarrow doubles a process's memory: it is imported only when the first parquet file is opened.
"""

from typing import Any

import numpy as np

from actors.data.corpus import Rows


class ColumnError(ValueError):
    """A file that is no parquet, or whose column is missing or holds no text."""


def parquet_rows(path: str, column: str) -> Rows:
    """One sample per row. Raises `ColumnError` and OSError."""
    with _open(path) as file:
        _check_column(file, path, column)
        count = int(file.metadata.num_rows)
    return Rows(
        offsets=np.zeros(count, np.int64),
        lengths=np.full(count, -1, np.int64),
        positions=np.arange(count, dtype=np.int64),
    )


class RowReader:
    """Reads single rows. Keeps the row group read last: neighbours are often asked for together."""

    def __init__(self) -> None:
        self._key = ("", "", -1)
        self._group: Any = None

    def read(self, path: str, column: str, row: int) -> str | None:
        """Text of one row; None where the column is null there. Raises `ColumnError`, OSError."""
        with _open(path) as file:
            _check_column(file, path, column)
            metadata = file.metadata
            start = 0
            for group in range(metadata.num_row_groups):
                count = int(metadata.row_group(group).num_rows)
                if row < start + count:
                    if self._key != (path, column, group):
                        self._group = file.read_row_group(group, columns=[column]).column(0)
                        self._key = (path, column, group)
                    return self._group[row - start].as_py()
                start += count
        raise ColumnError(f"{path} has {start} rows; row {row} is gone")


def _check_column(file: Any, path: str, column: str) -> None:
    from pyarrow import types

    schema = file.schema_arrow
    if column not in schema.names:
        raise ColumnError(
            f"{path} has no column {column!r}; it has {', '.join(schema.names)}: "
            "say which one holds the text with `field`"
        )
    kind = schema.field(column).type
    if not (types.is_string(kind) or types.is_large_string(kind)):
        raise ColumnError(f"{path}: column {column!r} holds {kind}, not text")


def _open(path: str) -> Any:
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(path)
    except (ValueError, NotImplementedError) as error:  # what arrow's own errors derive from
        raise ColumnError(f"{path} is not a parquet file: {error}") from error
