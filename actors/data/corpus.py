"""The corpus: every sample of a run, in one fixed order, in a few bytes each.

A sample's id is its place in this order and never changes within a run; the ledger keeps the
table, so a file that vanishes later does not move the others. Ten million lines cost a few
hundred megabytes as objects; as arrays they cost 20 bytes each, and a `SampleRef` is made when
one is handed out.

Which samples are held out (never trained, prompts are cut from them) is a pure function of their
names: the same on every machine, whatever else is in the corpus.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from actors.data.mixture import Choose, choosing, copies
from protocol.messages import SampleRef

# "packed": lines of a compressed .jsonl file, see packed.py
FileKind = Literal["file", "jsonl", "packed", "parquet"]
IntArray = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One file that samples come from."""

    name: str  # where it lies below its source; the same on every machine
    path: str  # where it lies here
    language: str
    kind: FileKind
    field: str  # JSON key or column; "" of a plain file
    size: int  # bytes, when listed
    source: int = 0  # which of the topology's
    weight: float = 1.0  # how often its samples come in an epoch


@dataclass(frozen=True, slots=True)
class Corpus:
    """All samples. Arrays are parallel, one entry per sample: the id is the index."""

    files: tuple[SourceFile, ...]
    file_ids: NDArray[np.int32]  # index into `files`
    offsets: IntArray  # bytes; 0 of plain files
    lengths: IntArray  # bytes; -1: to the end of the file, or a parquet row
    positions: IntArray  # line (from 1) or row (from 0); -1 of plain files
    copies: NDArray[np.int16]  # which of a sample's entries this is, from 0, see mixture.py
    digest: str  # see sources.corpus_digest

    def __len__(self) -> int:
        return len(self.file_ids)

    def file(self, sample: int) -> SourceFile:
        """The file a sample comes from."""
        return self.files[int(self.file_ids[sample])]

    def name(self, sample: int) -> str:
        """What people call it: a path, path:line, or path[row]."""
        file = self.file(sample)
        match file.kind:
            case "file":
                return file.name
            case "jsonl" | "packed":
                return f"{file.name}:{int(self.positions[sample])}"
            case "parquet":
                return f"{file.name}[{int(self.positions[sample])}]"

    def ref(self, sample: int) -> SampleRef:
        """Where its text lies."""
        file = self.file(sample)
        return SampleRef(
            name=self.name(sample),
            language=file.language,
            path=file.path,
            offset=int(self.offsets[sample]),
            length=int(self.lengths[sample]),
            row=int(self.positions[sample]) if file.kind in ("packed", "parquet") else -1,
            field=file.field,
        )

    def features(self, sample: int) -> tuple[str, float]:
        """What tells how long it will take: language, and bytes where they are known."""
        file, length = self.file(sample), int(self.lengths[sample])
        return file.language, float(file.size if file.kind == "file" else max(length, 0))

    def language(self, sample: int) -> str:
        """What it is written in."""
        return self.file(sample).language

    def bytes_listed(self) -> int:
        """Bytes of all files together."""
        return sum(file.size for file in self.files)

    def choosing(self, entries: IntArray, seed: int) -> Choose:
        """Which of `entries` come in an epoch."""
        of_file = np.array([file.source for file in self.files], np.int64)
        weights = dict(sorted((file.source, file.weight) for file in self.files))
        by_source = [weights.get(i, 1.0) for i in range(max(weights, default=0) + 1)]
        sources = of_file[self.file_ids[entries]]
        return choosing(entries, sources, self.copies[entries].astype(np.int64), by_source, seed)

    def split(self, share: float) -> tuple[IntArray, IntArray]:
        """Ids to train on and ids held out, both ascending."""
        return split(share, [self.name(sample) for sample in range(len(self))])


@dataclass(frozen=True, slots=True)
class Rows:
    """The samples of one file: parallel arrays, see `Corpus`."""

    offsets: IntArray
    lengths: IntArray
    positions: IntArray


def one_sample() -> Rows:
    """A plain file is one sample."""
    return Rows(*(np.array([value], np.int64) for value in (0, -1, -1)))


def assemble(entries: Sequence[tuple[SourceFile, Rows]], digest: str) -> Corpus:
    """The corpus of these files, sorted by name."""
    ordered = sorted(entries, key=lambda entry: entry[0].name)
    times = [copies(file.weight) for file, _ in ordered]
    rows = [len(rows.offsets) for _, rows in ordered]
    empty = np.empty(0, np.int64)

    def column(name: str) -> IntArray:
        parts = [np.tile(getattr(r, name), n) for (_, r), n in zip(ordered, times, strict=True)]
        return np.concatenate([empty, *parts])

    copy = [np.repeat(np.arange(n), count) for n, count in zip(times, rows, strict=True)]
    counts = [n * count for n, count in zip(times, rows, strict=True)]
    return Corpus(
        files=tuple(file for file, _ in ordered),
        file_ids=np.repeat(np.arange(len(ordered), dtype=np.int32), counts),
        offsets=column("offsets"),
        lengths=column("lengths"),
        positions=column("positions"),
        copies=np.concatenate([empty, *copy]).astype(np.int16),
        digest=digest,
    )


def held_out_score(name: str) -> int:
    """A number below 2**64 that depends on the name alone; small ones are held out."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big")


def split(share: float, names: Iterable[str]) -> tuple[IntArray, IntArray]:
    """Indices to train on and indices held out.

    With a share above 0 and two samples or more, each part gets at least one: a corpus of a
    handful of files would otherwise often have nothing to cut prompts from.
    """
    scores = np.array([held_out_score(name) for name in names], np.uint64)
    if share <= 0 or len(scores) < 2:
        return np.arange(len(scores)), np.empty(0, np.int64)
    held = scores < np.uint64(min(share, 1.0) * float(2**64 - 2**11))
    held[int(scores.argmin())] = True
    held[int(scores.argmax())] = False
    return np.flatnonzero(~held), np.flatnonzero(held)


def label_of(path: str) -> str:
    """The name a source's files start with: the last part of its path."""
    return PurePath(path).name or "root"
