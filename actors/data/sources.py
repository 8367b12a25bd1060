"""From [[data.sources]] tables to the corpus: which files there are, and which samples in them.

What cannot be used is not an error of the run: it is counted by kind, with a few names for the
log. An error (`SourceError`) is what a person has to put right: a path that is not there, a
parquet file without the column, nothing that matches.

pyarrow doubles a process's memory, so it is imported only where a parquet file is opened, and the
loader has that done by a child process (prepare.py).
"""

import glob
import hashlib
import os
import re
import sysconfig
from array import array
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from actors.data import hub, packed
from actors.data.corpus import Corpus, FileKind, Rows, SourceFile, assemble, label_of, one_sample
from actors.data.finding import Found, Skipped, Tree, kind_of, look, matches, walk
from actors.data.hub import FolderError
from actors.data.packed import PackError
from actors.data.parquet import ColumnError, parquet_rows
from actors.topology import Source

# Test packages hold files that are broken on purpose; site-packages are not the library; the
# config directory, _sysconfigdata and sitecustomize differ between machines.
_NOT_LIBRARY = frozenset({"test", "tests", "idle_test", "site-packages", "dist-packages"})
_NOT_LIBRARY_FILES = re.compile(r"(_sysconfigdata.*|sitecustomize|usercustomize)\.py")

# Contents are hashed whole up to this much of corpus: the standard library takes 0.03 s. Beyond,
# names, sizes, heads and tails stand for them, because reading a terabyte to start is no start.
DIGEST_WHOLE_BYTES = 64 * 1024 * 1024
_DIGEST_EDGE_BYTES = 4096

_CHUNK_BYTES = 1024 * 1024
# What a file is counted under that is not as its source says.
_WRONG = {ColumnError: "no such column", PackError: "damaged"}


class SourceError(ValueError):
    """A source that cannot be used as it is written: names the path and what to do."""


def list_corpus(sources: tuple[Source, ...]) -> tuple[Corpus, Skipped]:
    """Every sample of these sources, and what was left out. Raises `SourceError`."""
    skipped = Skipped()
    entries: list[tuple[SourceFile, Rows]] = []
    seen: set[tuple[int, int]] = set()
    taken: set[str] = set()
    for index, source in enumerate(sources):
        of_others, wrong = len(entries), ""
        for found in files_of(source, seen, skipped):
            try:
                kind, path, rows = _rows(source, found.path)
            except OSError as error:
                skipped.note(kind_of(error), found.path)
                continue
            except (ColumnError, PackError) as error:
                skipped.note(_WRONG[type(error)], found.path)
                wrong = wrong or str(error)
                continue
            file = SourceFile(
                name=_unique(found.name, taken),
                path=path,
                language=source.language,
                kind=kind,
                field="" if kind == "file" else source.field,
                size=found.size,
                source=index,
                weight=source.weight,
            )
            entries.append((file, rows))
        if wrong and len(entries) == of_others:  # one odd file of many is borne, nothing else is
            raise SourceError(wrong)
    entries.sort(key=lambda entry: entry[0].name)
    corpus = assemble(entries, corpus_digest([file for file, _ in entries]))
    if not len(corpus):
        left_out = ", ".join(f"{n} {kind}" for kind, n in sorted(skipped.counts.items()))
        raise SourceError(
            "data.sources: no sample in any source"
            + (f" (left out: {left_out})" if left_out else "")
            + "; name paths that hold text, or leave data.sources out for Python's own library"
        )
    return corpus, skipped


def corpus_digest(files: list[SourceFile]) -> str:
    """SHA-256 that is equal for equal corpora on any machine, at any path, after any checkout.

    Modification times are left out for that reason. See `DIGEST_WHOLE_BYTES` for large corpora:
    the worst that a change this cannot see does is to keep a tokenizer that still works.
    """
    whole = sum(file.size for file in files) <= DIGEST_WHOLE_BYTES
    digest = hashlib.sha256()
    for file in sorted(files, key=lambda file: file.name):
        facts = f"{file.name}\0{file.size}\0{file.language}\0{file.field}\0"
        if file.weight != 1.0:
            facts += f"{file.weight!r}\0"
        digest.update(facts.encode())
        digest.update(_content_digest(file, whole))
    return digest.hexdigest()


def _content_digest(file: SourceFile, whole: bool) -> bytes:
    try:
        with open(file.path, "rb") as stream:
            if whole:
                return hashlib.file_digest(stream, "sha256").digest()
            head = stream.read(_DIGEST_EDGE_BYTES)
            stream.seek(max(0, file.size - _DIGEST_EDGE_BYTES))
            return hashlib.sha256(head + stream.read(_DIGEST_EDGE_BYTES)).digest()
    except OSError:  # refused by name when a worker reads it
        return b"unreadable"


# --- Finding files --------------------------------------------------------------------------------


def files_of(source: Source, seen: set[tuple[int, int]], skipped: Skipped) -> Iterator[Found]:
    """Regular, non-empty files of a source, each once whatever paths lead to it.

    `seen` holds (device, inode) of files met so far, links included. Raises `SourceError` when
    the path itself is not there.
    """
    if source.kind == "python_stdlib":
        tree = Tree(library(), "stdlib", _in_library, _not_library)
        yield from walk(tree, seen, skipped)
        return
    if source.kind == "huggingface":
        yield from _in_folders(source, seen, skipped)
        return
    for path in _expand(source):
        if os.path.isdir(path):
            if source.kind != "directory":
                raise SourceError(
                    f"{path} is a directory; kind = {source.kind!r} takes files, "
                    f"for example path = {os.path.join(source.path, '*.' + source.kind)!r}"
                )
            tree = Tree(path, label_of(path), matches(source.pattern), _hidden)
            yield from walk(tree, seen, skipped)
        else:
            found = look(path, label_of(path), seen, skipped)
            if found is not None:
                yield found


def _in_folders(source: Source, seen: set[tuple[int, int]], skipped: Skipped) -> Iterator[Found]:
    for folder in _expand(source):
        if not os.path.isdir(folder):
            raise SourceError(
                f"{folder} is a file; kind = 'huggingface' takes the folder of a data set"
            )
        try:
            paths = hub.files(folder, source.split)
        except (FolderError, OSError) as error:
            raise SourceError(str(error)) from error
        for path in paths:
            name = f"{label_of(folder)}/{os.path.relpath(path, folder)}"
            found = look(path, name, seen, skipped)
            if found is not None:
                yield found


def library() -> str:
    """Where this Python's own standard library lies."""
    return sysconfig.get_path("stdlib")


def _expand(source: Source) -> list[str]:
    """Paths a source names, sorted. Raises `SourceError` when there is none."""
    if not source.path:
        raise SourceError(f"kind = {source.kind!r} needs a path")
    path = os.path.abspath(os.path.expanduser(source.path))
    if os.path.exists(path):
        if os.path.isdir(path) and not os.access(path, os.R_OK | os.X_OK):
            raise SourceError(f"{path} cannot be read: no permission")
        return [path]
    # A glob meets directories nobody means, too.
    paths = [found for found in sorted(glob.glob(path, recursive=True)) if not _is_cache(found)]
    if not paths:
        raise SourceError(f"path {source.path!r} does not exist (looked for {path})")
    return paths


def _hidden(directory: str) -> bool:
    """Directories nobody means: .git and caches."""
    return directory.startswith(".") or directory == "__pycache__"


def _not_library(directory: str) -> bool:
    return _hidden(directory) or directory in _NOT_LIBRARY or directory.startswith("config-")


def _in_library(relative: str) -> bool:
    name = relative.rpartition("/")[2]
    return name.endswith(".py") and not _NOT_LIBRARY_FILES.fullmatch(name)


def _is_cache(path: str) -> bool:
    return _hidden(os.path.basename(path)) and os.path.isdir(path)


def _unique(name: str, taken: set[str]) -> str:
    """`name`, or `name~2` and so on where two sources have files of the same name."""
    unique, n = name, 1
    while unique in taken:
        n += 1
        unique = f"{name}~{n}"
    taken.add(unique)
    return unique


# --- Samples within a file ------------------------------------------------------------------------


def _rows(source: Source, path: str) -> tuple[FileKind, str, Rows]:
    """What kind of file it is to workers, where they find it, and the samples in it.

    Raises `ColumnError`, `PackError`, OSError.
    """
    if source.kind in ("directory", "python_stdlib"):
        return "file", path, one_sample()
    if path.endswith((".parquet", ".arrow")) or source.kind == "parquet":
        return "parquet", path, parquet_rows(path, source.field)
    if packed.kind_of_file(path):
        return "packed", *packed.pack(path, _cache())
    return "jsonl", path, line_rows(path)


def _cache() -> Path:
    """Where compressed files lie that were packed anew."""
    home = os.environ.get("XDG_CACHE_HOME", "")
    base = Path(home) if home.startswith("/") else Path.home() / ".cache"
    return base / "trireme" / "packed"


def line_rows(path: str) -> Rows:
    """Where each line that is not blank starts and how long it is, without its newline.

    Reads in chunks: a single line of any length costs no more memory than a short one.
    """
    starts, lengths, numbers = array("q"), array("q"), array("q")  # 8 bytes each, not 36
    start = number = read = 0
    blank = True  # nothing but white space since `start`
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            ends = np.flatnonzero(np.frombuffer(chunk, np.uint8) == ord("\n")).tolist()
            at = 0
            for end in [*ends, len(chunk)]:
                blank = blank and not chunk[at:end].strip()
                if end == len(chunk):
                    break
                number += 1
                if not blank:
                    starts.append(start)
                    lengths.append(read + end - start)
                    numbers.append(number)
                start, at, blank = read + end + 1, end + 1, True
            read += len(chunk)
    if read > start and not blank:
        starts.append(start)
        lengths.append(read - start)
        numbers.append(number + 1)
    return Rows(*(np.array(column, np.int64) for column in (starts, lengths, numbers)))
