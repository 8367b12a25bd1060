"""Files of JSON lines that survive what happens to files: crashes, full disks, endless growth.

A line is in the file whole or not at all: each batch is one `write`, a batch that the disk takes
only in part is taken back to the last whole line, and a line torn by a crash of the whole machine
is cut off when the file is opened again. What could not be written is counted, never raised.

Durability: a batch has reached the kernel when `append` returns, so the death of any process loses
nothing. Only `sync` makes it outlive the machine; the caller decides how often that is worth it.
"""

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path

# A file without a line end in its last part is searched backwards in pieces of this size.
_PIECE_BYTES = 1 << 16


class LineFile:
    """One append-only file. At `rotate_bytes` (0: never) it becomes PATH.1, PATH.1 becomes PATH.2.

    `keep` rotated files stay. Opened at the first append, and again whenever that failed.
    """

    def __init__(self, path: Path, *, rotate_bytes: int = 0, keep: int = 4) -> None:
        self.path = path
        self.written = 0  # lines
        self.dropped = 0  # lines the disk would not take
        self.repaired_bytes = 0  # cut off a torn end when opened
        self.trouble = ""  # why the last append failed; "" when it did not
        self._rotate_bytes = rotate_bytes
        self._keep = keep
        self._fd = -1
        self._size = 0
        self._unsynced = False

    def append(self, lines: Sequence[bytes]) -> bool:
        """Write lines, each ending in a line feed. False when none or not all could be."""
        if not lines:
            return True
        data = b"".join(lines)
        try:
            self._open()
            self._rotate_before(len(data))
            done = os.write(self._fd, data)
        except OSError as error:
            return self._failed(len(lines), error.strerror or str(error))
        if done < len(data):
            return self._take_back(lines, data[:done])
        self._size += done
        self.written += len(lines)
        self.trouble = ""
        self._unsynced = True
        return True

    def truncate(self, size: int) -> None:
        """Forget what lies behind byte `size`. Raises OSError."""
        self._open()
        os.ftruncate(self._fd, size)
        self._size = size
        self._unsynced = True

    def sync(self) -> None:
        """Wait until the disk holds what was appended. A disk that refuses is remembered."""
        if self._fd < 0 or not self._unsynced:
            return
        self._unsynced = False
        try:
            os.fsync(self._fd)
        except OSError as error:
            self.trouble = error.strerror or str(error)

    def close(self) -> None:
        """Close the file. The next append opens it again."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _open(self) -> None:
        if self._fd >= 0 and os.fstat(self._fd).st_nlink > 0:
            return
        self.close()  # somebody removed the file: what is said from now on goes into a new one
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        fd = os.open(self.path, flags, 0o644)
        try:
            size = os.fstat(fd).st_size
            whole = end_of_last_line(fd, size)
            if whole < size:
                os.ftruncate(fd, whole)
                self.repaired_bytes += size - whole
        except OSError:
            os.close(fd)
            raise
        self._fd, self._size = fd, whole

    def _rotate_before(self, more: int) -> None:
        if not self._rotate_bytes or not self._size or self._size + more <= self._rotate_bytes:
            return
        with contextlib.suppress(OSError):  # a directory that forbids it: one file grows instead
            for number in range(self._keep - 1, 0, -1):
                older = rotated(self.path, number)
                if older.exists():
                    older.replace(rotated(self.path, number + 1))
            self.path.replace(rotated(self.path, 1))
            self.close()
        self._open()

    def _take_back(self, lines: Sequence[bytes], begun: bytes) -> bool:
        """The disk filled up in the middle: keep the lines that are whole."""
        whole = begun.rfind(b"\n") + 1
        kept = begun.count(b"\n")
        try:
            os.ftruncate(self._fd, self._size + whole)
        except OSError:
            self.close()  # opening again cuts the torn line off
        self._size += whole
        self.written += kept
        return self._failed(len(lines) - kept, "No space left on device")

    def _failed(self, lines: int, why: str) -> bool:
        self.dropped += lines
        self.trouble = why
        return False


def rotated(path: Path, number: int) -> Path:
    """Where the `number`th newest rotated part of a file lies."""
    return path.with_name(f"{path.name}.{number}")


def end_of_last_line(fd: int, size: int) -> int:
    """Bytes up to and with the last line feed of a file of `size` bytes; 0 without any."""
    end = size
    while end > 0:
        start = max(0, end - _PIECE_BYTES)
        found = os.pread(fd, end - start, start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0
