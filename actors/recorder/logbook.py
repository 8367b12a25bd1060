"""The log files: one per actor, over all its incarnations, rotated by size.

Log files are never fsynced. Every batch is handed to the kernel at once, so the death of any
process, ours included, loses nothing that reached us; only a crash of the whole machine may take
the last seconds. Waiting for the disk per batch would cost more than those lines are worth.
"""

import re
from collections import Counter, OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from actors.recorder.lines import LineFile
from actors.rundir import file_name

ROTATE_BYTES = 16 << 20
ROTATED_KEPT = 4
MAX_LINE_BYTES = 1 << 16
# Descriptors held at once; an actor beyond that has its file opened again when it speaks.
MAX_OPEN = 128

# What an actor may be called: a role, or a role and something. Becomes part of a file name.
_NAME = re.compile(r"[a-z_]{1,32}(/[A-Za-z0-9][A-Za-z0-9._-]{0,63})?")


class LogBook:
    """Sorts records into files. `add` buffers, `flush` writes."""

    def __init__(self, directory: Path, *, rotate_bytes: int = ROTATE_BYTES) -> None:
        self.directory = directory
        self.levels: Counter[str] = Counter()  # records by level, for the dashboard
        self.dropped = 0  # records the disk would not take
        self.forged = 0  # records whose actor cannot have said that
        self._rotate_bytes = rotate_bytes
        self._files: OrderedDict[str, LineFile] = OrderedDict()
        self._pending: dict[str, list[bytes]] = {}

    def add(self, sender: str, record: Mapping[str, Any]) -> None:
        """Take a record that `sender` sent. Only the loader speaks for others: remote workers."""
        actor = record.get("actor", sender)
        speaks_for_another = sender == "loader" and str(actor).startswith("data_worker/")
        if actor != sender and not speaks_for_another:
            self.forged += 1
            actor = sender
        if not isinstance(actor, str) or not _NAME.fullmatch(actor):
            self.forged += 1
            return
        self._pending.setdefault(actor, []).append(_line(record, actor))
        self.levels[str(record.get("level", "info"))[:16]] += 1

    def flush(self) -> str:
        """Write what was added; why some of it could not be, or ""."""
        trouble = ""
        for actor, lines in self._pending.items():
            file = self._file(actor)
            before = file.dropped
            if not file.append(lines):
                trouble = file.trouble
                self.dropped += file.dropped - before
        self._pending.clear()
        return trouble

    def close(self) -> None:
        """Write what is left and close every file."""
        self.flush()
        for file in self._files.values():
            file.close()
        self._files.clear()

    def _file(self, actor: str) -> LineFile:
        file = self._files.get(actor)
        if file is None:
            path = self.directory / f"{file_name(actor)}.jsonl"
            file = LineFile(path, rotate_bytes=self._rotate_bytes, keep=ROTATED_KEPT)
            self._files[actor] = file
            if len(self._files) > MAX_OPEN:
                self._files.popitem(last=False)[1].close()
        self._files.move_to_end(actor)
        return file


def _line(record: Mapping[str, Any], actor: str) -> bytes:
    line = msgspec.json.encode({**record, "actor": actor}) + b"\n"
    if len(line) <= MAX_LINE_BYTES:
        return line
    kept = {
        key: record[key] for key in ("timestamp", "level", "incarnation", "step") if key in record
    }
    event = str(record.get("event", ""))[:1000]
    return (
        msgspec.json.encode({**kept, "event": event, "actor": actor, "cut_bytes": len(line)})
        + b"\n"
    )
