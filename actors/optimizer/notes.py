"""What a journal tells of a shard's steps, and how far it reaches. No torch.

Every reader of the same files finds the same step: the last one up to which everything has been
noted, by all shards, however many there were. What was noted of later ones does not count.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np

from actors import journal
from actors.journal import Found, OnTorn
from actors.published import Array

Kind = Literal["gradient", "basis", "memory"]


class Tensor(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One tensor of a record's body; they follow each other there."""

    of: Kind
    rank: int  # whose; 0 of a basis
    name: str
    dtype: str
    shape: tuple[int, ...]


class Moved(msgspec.Struct, frozen=True, tag="moved", kw_only=True, forbid_unknown_fields=True):
    """A parameter moves to version `step`."""

    step: int
    param: str
    digest: str  # of what it publishes then
    counts: tuple[int, int, int]
    absent: int
    tokens: dict[int, int]  # of the ranks that contributed
    tensors: tuple[Tensor, ...]


class Committed(
    msgspec.Struct, frozen=True, tag="committed", kw_only=True, forbid_unknown_fields=True
):
    """Shard 0 commits `step`."""

    step: int
    whole: bool  # nothing was left out of its moves that a run would need that goes on from here
    record: dict[str, Any]  # for metrics.jsonl


Note = Moved | Committed
_DECODER: msgspec.msgpack.Decoder[Note] = msgspec.msgpack.Decoder(Note)


@dataclass(slots=True)
class Index:
    """Where what has been noted lies: the newest note of each thing."""

    moves: dict[tuple[int, str], Found] = field(default_factory=dict[tuple[int, str], Found])
    commits: dict[int, Found] = field(default_factory=dict[int, Found])
    whole: set[int] = field(default_factory=set[int])
    # Of each file: where what is told of each step begins, in order; and where all ends.
    begins: dict[Path, dict[int, int]] = field(default_factory=dict[Path, dict[int, int]])
    ends: dict[Path, int] = field(default_factory=dict[Path, int])

    def reached(self, versions: Mapping[str, int], committed: int) -> int:
        """The last step from which a run can go on when parameters are at `versions`, which is
        `committed` or later.
        """
        step = last = committed
        while step + 1 in self.commits and all(
            version > step or (step + 1, name) in self.moves for name, version in versions.items()
        ):
            step += 1
            last = step if step in self.whole else last
        return last


def indexed(
    directory: Path,
    after: int,
    on_torn: OnTorn,
    progress: Callable[[], object] = lambda: None,
) -> Index:
    """Everything that was noted of the steps behind `after`. Raises `OSError`."""
    index = Index()
    paths = directory.iterdir() if directory.is_dir() else ()
    for part in journal.parts_of(path.name for path in paths):
        begins = index.begins.setdefault(directory / part.name, {})
        index.ends[directory / part.name] = 0
        for found in journal.records(directory / part.name, on_torn):
            try:
                note = note_of(found)
            except (msgspec.MsgspecError, UnicodeDecodeError) as error:
                on_torn(f"{found.path} was written by another release: {error}")
                break
            progress()
            begins.setdefault(note.step, found.begin)
            index.ends[found.path] = found.end
            where = found._replace(header=b"")
            if note.step <= after:
                continue
            if isinstance(note, Moved):
                index.moves[note.step, note.param] = where
            else:
                index.commits[note.step] = where
                if note.whole:
                    index.whole.add(note.step)
    return index


def cut(index: Index, upto: int, shards: Callable[[int], bool]) -> None:
    """A run goes on behind step `upto`: what those `shards` have noted of later ones never was, and
    must not be taken for what is to come. Raises `OSError`.
    """
    for path, end in index.ends.items():
        part = journal.part_of(path.name)
        later = (begin for step, begin in index.begins[path].items() if step > upto)
        size = min(later, default=end)
        if part is not None and shards(part.shard) and size < path.stat().st_size:
            os.truncate(path, size)


def note_of(found: Found) -> Note:
    """What a record says. Raises `msgspec.MsgspecError`."""
    return _DECODER.decode(found.header)


def tensors_of(note: Moved, body: bytes) -> Iterator[tuple[Tensor, Array]]:
    """The tensors of a record, in order."""
    at = 0
    for tensor in note.tensors:
        dtype = np.dtype(tensor.dtype)
        count = int(np.prod(tensor.shape, dtype=np.int64))
        yield tensor, np.frombuffer(body, dtype, count, at).reshape(tensor.shape)
        at += count * dtype.itemsize
