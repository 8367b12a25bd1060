"""`metrics.jsonl`: one object per committed step, in order, each step once.

Optimizer shard 0 knows what was committed; this file is a copy. A recorder that has just started
asks for all the shard remembers (its newest 256 steps) and makes the file agree: records the shard
tells differently, and records of steps that the shard has not come to, since the run was resumed
from an earlier checkpoint, are cut off. From then on it asks for what follows.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from actors.recorder.lines import LineFile


class _Step(msgspec.Struct):
    """What must be known of a line; other fields are left unread."""

    step: int


def encode(record: Mapping[str, Any]) -> bytes:
    """One line. Infinities and NaN, which JSON does not know, become null."""
    return msgspec.json.encode(record) + b"\n"


class MetricsFile:
    """The file and what it must hold next."""

    def __init__(self, path: Path) -> None:
        self.lines = LineFile(path)
        self.last = 0  # step of the last record taken
        self.missed = 0  # steps nobody could tell us about any more
        self.cut = 0  # records taken back because the shard knew better
        self.newest: Mapping[str, Any] = {}
        self._agreed = False

    @property
    def after(self) -> int:
        """Which step to ask the shard about: those behind it are wanted."""
        return self.last if self._agreed else 0

    def take(self, records: Sequence[Mapping[str, Any]]) -> int:
        """Write what is new in an answer of the shard; how many records that was.

        A record that the disk refuses is asked for again. Raises nothing.
        """
        steps = [record.get("step") for record in records]
        if not records or not all(isinstance(step, int) for step in steps):
            return 0
        if not self._agreed:
            try:
                records = self._agree(records)
            except OSError as error:
                self.lines.trouble = error.strerror or str(error)
                return 0
        taken = 0
        for record in records:
            if record["step"] <= self.last:
                continue  # an answer that came twice
            if not self.lines.append([encode(record)]):
                break
            if self.last:
                self.missed += record["step"] - self.last - 1
            self.last, self.newest = record["step"], record
            taken += 1
        return taken

    def _agree(self, records: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
        """Cut the file where it departs from `records`; those it lacks then. Raises OSError."""
        told = {record["step"]: encode(record) for record in records}
        size, self.last = _agreement(self.lines.path, told)
        self.cut += lines_behind(self.lines.path, size)
        self.lines.truncate(size)
        self.newest = next((r for r in records if r["step"] == self.last), self.newest)
        self._agreed = True
        return [record for record in records if record["step"] > self.last]


def _agreement(path: Path, told: Mapping[int, bytes]) -> tuple[int, int]:
    """How many bytes of the file agree with what was told, and the last step among them.

    Steps older than anything told are believed as they stand. Reads line by line: a long run's
    file does not fit into a recorder's memory.
    """
    first, size, last = min(told), 0, 0
    try:
        with path.open("rb") as file:
            for line in file:
                step = step_of(line)
                if step is None or step <= last or (step >= first and told.get(step) != line):
                    break
                size, last = size + len(line), step
    except FileNotFoundError:
        return 0, 0
    return size, last


def step_of(line: bytes) -> int | None:
    """The step a line is about; None when it is torn or no record."""
    if not line.endswith(b"\n"):
        return None
    try:
        return msgspec.json.decode(line, type=_Step).step
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def lines_behind(path: Path, offset: int) -> int:
    """Line feeds in a file from byte `offset` on; none when there is no file."""
    try:
        with path.open("rb") as file:
            file.seek(offset)
            return sum(piece.count(b"\n") for piece in iter(lambda: file.read(1 << 20), b""))
    except FileNotFoundError:
        return 0


def tail(path: Path, size: int) -> list[bytes]:
    """The whole lines, without their ends, within the last `size` bytes of a readable file."""
    try:
        with path.open("rb") as file:
            start = max(0, os.fstat(file.fileno()).st_size - size)
            file.seek(start)
            lines = file.read(size).split(b"\n")
    except OSError:
        return []
    return lines[1 if start else 0 : -1]
