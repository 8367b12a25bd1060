"""Journals: files of records that are only ever added to, so that steps after a checkpoint survive
the loss of everything else. Present once a standby has been invited.

    journal/shard-0-00000100-0003.journal    what shard 0 did to its state from step 101 on
    journal/ledger-0002.sqlite               the ledger when a life of the loader began to note
    journal/ledger-0002.journal              how it has changed since

    record    magic, lengths of header and body, SHA-256 of both; header; body

Every life of a writer begins a file of its own, numbered on: what a death has torn is at a file's
end, nothing is ever written behind it, and a reader drops it by name. Where two records tell of the
same thing, the later file is right: the earlier one was written, and then not acted upon.
"""

import hashlib
import re
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from protocol.codec import Buffer

MAGIC = b"TrJ1"
_HEAD = struct.Struct("<4sIQ32s")
# A header that claims to be longer is none.
MAX_HEADER_BYTES = 64 << 20
_CHUNK = 1 << 20
_PART = re.compile(r"shard-(\d+)-(\d{8,})-(\d{4,})\.journal")
_LEDGER = re.compile(r"ledger-(\d{4,})\.(sqlite|journal)")

OnTorn = Callable[[str], object]


class Part(NamedTuple):
    """One file of a shard's journal: of steps after `start`."""

    shard: int
    start: int
    number: int

    @property
    def name(self) -> str:
        """Its name."""
        return f"shard-{self.shard}-{self.start:08d}-{self.number:04d}.journal"


def part_of(name: str) -> Part | None:
    """What a file of that name is; None: nothing of a shard's."""
    found = _PART.fullmatch(name)
    return None if found is None else Part(*(int(group) for group in found.groups()))


def parts_of(names: Iterable[str]) -> list[Part]:
    """Files of shards' journals among `names`: of each shard in the order they were written."""
    found = (part_of(name) for name in names)
    return sorted((part for part in found if part is not None), key=lambda p: (p.shard, p.number))


def superseded(names: Iterable[str], step: int) -> list[str]:
    """Those of shards' files that a whole checkpoint of `step` makes needless."""
    return [part.name for part in parts_of(names) if part.start < step]


def ledger_number(name: str) -> int | None:
    """Which copy of the ledger a file belongs to; None: to none."""
    found = _LEDGER.fullmatch(name)
    return None if found is None else int(found[1])


def ledger_names(number: int) -> tuple[str, str]:
    """A copy of the ledger, and the journal that goes on from it."""
    return f"ledger-{number:04d}.sqlite", f"ledger-{number:04d}.journal"


# --- Writing --------------------------------------------------------------------------------------


class Writer:
    """Adds records to a file of its own. What it has written outlives the process, not the host."""

    def __init__(self, path: Path) -> None:
        """Raises `OSError`, also when the file exists."""
        self._file = path.open("xb")
        self.path = path

    def append(self, header: bytes, body: Sequence[Buffer] = ()) -> None:
        """Raises `OSError`: then nothing may be appended any more."""
        parts = [memoryview(part).cast("B") for part in body if memoryview(part).nbytes]
        sha = hashlib.sha256(header)
        for part in parts:
            sha.update(part)
        nbytes = sum(part.nbytes for part in parts)
        self._file.write(_HEAD.pack(MAGIC, len(header), nbytes, sha.digest()))
        self._file.write(header)
        for part in parts:
            self._file.write(part)
        self._file.flush()

    def close(self) -> None:
        """No more of it. What could not be written is lost, as it was said when it failed."""
        try:
            self._file.close()
        except OSError:
            return


# --- Reading --------------------------------------------------------------------------------------


class Found(NamedTuple):
    """One whole record."""

    path: Path
    header: bytes
    header_bytes: int
    at: int  # where its body lies
    body_bytes: int

    def again(self) -> "Found":
        """With its header, for one that was kept without. Raises `OSError`."""
        start = self.at - self.header_bytes
        with self.path.open("rb") as file:
            file.seek(start)
            return self._replace(header=file.read(self.header_bytes))

    @property
    def begin(self) -> int:
        """Where it begins."""
        return self.at - self.header_bytes - _HEAD.size

    @property
    def end(self) -> int:
        """Where the next record begins."""
        return self.at + self.body_bytes

    def body(self) -> bytes:
        """Read anew. Raises `OSError`."""
        with self.path.open("rb") as file:
            file.seek(self.at)
            return file.read(self.body_bytes)


def records(path: Path, on_torn: OnTorn, start: int = 0) -> Iterator[Found]:
    """The whole records from byte `start` on, every byte of them checked.

    `on_torn` is told where the rest cannot be used, and why. Raises `OSError`.
    """
    with path.open("rb") as file:
        at = file.seek(start)
        while head := file.read(_HEAD.size):
            problem = "ends in the middle of a record"
            if len(head) == _HEAD.size:
                magic, header_bytes, body_bytes, digest = _HEAD.unpack(head)
                if magic != MAGIC or header_bytes > MAX_HEADER_BYTES:
                    on_torn(f"{path} is damaged: no record begins at byte {at}")
                    return
                header = file.read(header_bytes)
                sha, left = hashlib.sha256(header), body_bytes
                while left and (chunk := file.read(min(left, _CHUNK))):
                    sha.update(chunk)
                    left -= len(chunk)
                whole = len(header) == header_bytes and not left
                if whole and sha.digest() == digest:
                    found = Found(
                        path, header, header_bytes, at + _HEAD.size + header_bytes, body_bytes
                    )
                    yield found
                    at = found.end
                    file.seek(at)
                    continue
                if whole:
                    problem = "is damaged: a record does not match its digest"
            on_torn(f"{path} {problem} (at byte {at}); what follows is left out")
            return
