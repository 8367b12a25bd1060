"""Reading a run's log files: all of them in order of time, and what is added while one watches.

Files rotate (`x.jsonl` becomes `x.jsonl.1`, see `actors/recorder`), actors and recorder are
replaced, and the last line of a file may be half written. A file is known by its inode, so what a
rotation moved away, even while it was being read, is still read to its end.
"""

import heapq
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import BinaryIO

from actors.logview import Line, Wanted, parse_line

SUFFIX = ".jsonl"
# Read at most this much of one file at a time.
_PIECE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class _Part:
    """One file, as it was found in the directory."""

    path: Path
    age: int  # 0 for `x.jsonl`, N for `x.jsonl.N`
    inode: int
    size: int


@dataclass(slots=True)
class _Reading:
    """How far the files of one actor have been read: this far into that file."""

    inode: int = 0
    offset: int = 0
    torn: int = 0  # lines that were no records


def actors_in(logs: Path) -> list[str]:
    """The actors that have a log file. Raises OSError."""
    return sorted(_by_actor(logs, Wanted()))


def merged(logs: Path, wanted: Wanted) -> Iterator[Line]:
    """All lines wanted, in order of time. Holds a piece of each file. Raises OSError."""
    return Follower(logs, wanted).begin()


class Follower:
    """What there is in the log files, and then what is new in them at each look."""

    def __init__(self, logs: Path, wanted: Wanted) -> None:
        self._logs = logs
        self._wanted = wanted
        self._readings: dict[str, _Reading] = {}

    @property
    def torn(self) -> int:
        """Lines met so far that were no records."""
        return sum(reading.torn for reading in self._readings.values())

    def begin(self) -> Iterator[Line]:
        """The lines there are, in order of time. Exhaust it before `news`. Raises OSError."""
        streams: list[Iterator[Line]] = []
        for actor, parts in _by_actor(self._logs, self._wanted).items():
            reading = self._readings[actor] = _Reading()
            streams.append(self._lines(parts, reading))
        return heapq.merge(*streams, key=attrgetter("at"))

    def news(self) -> list[Line]:
        """Lines that have come since, in order of time. Raises OSError."""
        found: list[Line] = []
        for actor, parts in _by_actor(self._logs, self._wanted).items():
            reading = self._readings.setdefault(actor, _Reading())
            found += self._lines(_unread(parts, reading), reading)
        found.sort(key=attrgetter("at"))
        return found

    def _lines(self, parts: Sequence[_Part], reading: _Reading) -> Iterator[Line]:
        for part in parts:
            for raw in _raw_lines(part, reading):
                line = parse_line(raw)
                if line is None:
                    reading.torn += 1
                elif self._wanted.takes(line):
                    yield line


def _raw_lines(part: _Part, reading: _Reading) -> Iterator[bytes]:
    """Whole lines of a file from where `reading` stands, which moves along."""
    file = _open(part)
    if file is None:
        return
    with file:
        if part.inode != reading.inode:
            reading.inode, reading.offset = part.inode, 0
        # A recorder that repairs a torn line makes the file shorter.
        reading.offset = min(reading.offset, os.fstat(file.fileno()).st_size)
        rest = b""
        while piece := os.pread(file.fileno(), _PIECE_BYTES, reading.offset + len(rest)):
            *lines, rest = (rest + piece).split(b"\n")
            for raw in lines:
                reading.offset += len(raw) + 1
                yield raw


def _open(part: _Part) -> BinaryIO | None:
    """The file, wherever rotation has moved it meanwhile; None when it is gone."""
    moved = part.path.name.rpartition(".")[0] if part.age else part.path.name
    places = [part.path.with_name(f"{moved}.{age}") for age in range(part.age + 1, part.age + 9)]
    for path in (part.path, *places):
        try:
            file = path.open("rb")
        except FileNotFoundError:
            continue
        if os.fstat(file.fileno()).st_ino == part.inode:
            return file
        file.close()
    return None


def _unread(parts: Sequence[_Part], reading: _Reading) -> Sequence[_Part]:
    """Of one actor's files, oldest first, those from the one being read on that hold more."""
    begun = [n for n, part in enumerate(parts) if part.inode == reading.inode]
    later = parts[begun[0] :] if begun else parts
    return [part for part in later if (part.inode, part.size) != (reading.inode, reading.offset)]


def _by_actor(logs: Path, wanted: Wanted) -> dict[str, list[_Part]]:
    """The files of each actor wanted, oldest first. Raises OSError."""
    found: dict[str, list[_Part]] = {}
    with os.scandir(logs) as entries:
        for entry in entries:
            stem, age = _name(entry.name)
            actor = stem.replace(".", "/", 1)  # only the first dot stands for a slash
            if age < 0 or not wanted.takes_actor(actor):
                continue
            try:
                stat = os.stat(entry.path)
            except FileNotFoundError:
                continue  # rotated away this moment: the next look finds it
            part = _Part(Path(entry.path), age, stat.st_ino, stat.st_size)
            found.setdefault(actor, []).append(part)
    for parts in found.values():
        parts.sort(key=lambda part: -part.age)
    return found


def _name(name: str) -> tuple[str, int]:
    """What a file's name says: "trainer.0.jsonl.2" is ("trainer.0", 2); age -1 is no log file's."""
    if name.endswith(SUFFIX):
        return name.removesuffix(SUFFIX), 0
    stem, _, number = name.rpartition(".")
    if stem.endswith(SUFFIX) and number.isdecimal():
        return stem.removesuffix(SUFFIX), int(number)
    return name, -1
