"""What stands in the way of a run's data, found before anything starts.

Looks only as far as the first file of each source: listing a large corpus is the loader's
business. Parquet files are looked into by a child process, because pyarrow would double the size
of the launcher, which lives as long as the run.
"""

import os
import sys

import msgspec

from actors import process
from actors.data.finding import Skipped
from actors.data.parquet import ColumnError, parquet_rows
from actors.data.sources import SourceError, files_of, library
from actors.data.tokenizer import SMALLEST_VOCAB, TokenizerError, check_given
from actors.topology import Source, Topology

# Importing pyarrow takes a second on a cold disk; reading a footer takes none.
_CHILD_S = 60.0


def check(topology: Topology) -> list[str]:
    """Problems in words, each naming key and path; [] when there are none."""
    problems = [
        f"data.sources.{i}: {problem}"
        for i, source in enumerate(topology.data.sources)
        for problem in _source_problems(source)
    ]
    if topology.data.tokenizer:
        try:
            check_given(topology.data.tokenizer, topology.model.vocab_size)
        except TokenizerError as error:
            problems.append(str(error))
    elif topology.model.vocab_size < SMALLEST_VOCAB:
        problems.append(
            f"model.vocab_size: {topology.model.vocab_size} is too small for a byte-level "
            f"tokenizer; accepted: {SMALLEST_VOCAB} or more, or a tokenizer.json of your own as "
            "data.tokenizer"
        )
    return problems


def _source_problems(source: Source) -> list[str]:
    skipped = Skipped()
    try:
        found = next(files_of(source, set(), skipped), None)
    except SourceError as error:
        return [str(error)]
    if found is None:
        where = library() if source.kind == "python_stdlib" else source.path
        what = f" matches pattern {source.pattern!r}" if source.kind == "directory" else ""
        left_out = ", ".join(f"{n} {kind}" for kind, n in sorted(skipped.counts.items()))
        return [
            f"no file with any content below {where}{what}"
            + (f" (left out: {left_out})" if left_out else "")
        ]
    if not os.access(found.path, os.R_OK):
        return [f"{found.path} cannot be read: no permission"]
    return _column_problems(found.path, source.field) if source.kind == "parquet" else []


def _column_problems(path: str, column: str) -> list[str]:
    command = process.python("-m", "actors.data.checks", path, column)
    try:
        code, out, error = process.call(command, timeout_s=_CHILD_S, env=process.environment())
    except (OSError, TimeoutError) as problem:
        return [f"{path} cannot be looked into: {problem}"]
    if code != 0:
        return [f"{path} cannot be looked into: {error.strip().rpartition(chr(10))[2]}"]
    return msgspec.json.decode(out, type=list[str])


def _print_column_problems(path: str, column: str) -> None:
    """What the child process does."""
    problems: list[str] = []
    try:
        parquet_rows(path, column)
    except (ColumnError, OSError) as error:
        problems.append(str(error))
    sys.stdout.write(msgspec.json.encode(problems).decode())


if __name__ == "__main__":
    _print_column_problems(*sys.argv[1:3])
