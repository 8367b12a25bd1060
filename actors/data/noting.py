"""What a worker is at, where its loader finds it after the worker's death.

Results may still lie in a queue when a worker is killed: without the note, the first sample whose
result did not arrive would be blamed for what the next one did.
"""

import os
import struct
from pathlib import Path

_FORMAT = struct.Struct("<qq")  # life, lease
IDLE = -1


def path_of(socket_dir: str, name: str) -> Path:
    """Where the worker of that name notes it. Goes with the run's sockets."""
    return Path(socket_dir, f"at.{name.replace('/', '.')}")


class Note:
    """One life's note; a file of 16 bytes, written in place."""

    def __init__(self, path: Path | None, life: int) -> None:
        """None: nobody reads it."""
        self._fd = -1
        self._life = life
        if path is None:
            return
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            self.write(IDLE)
        except OSError:  # a full disk: the loader does without
            self.close()

    def write(self, lease: int) -> None:
        """Work on this lease begins; `IDLE`: on none."""
        if self._fd >= 0:
            os.pwrite(self._fd, _FORMAT.pack(self._life, lease), 0)

    def close(self) -> None:
        """Write no more."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def read(path: Path, life: int) -> int | None:
    """The lease that life was at, or `IDLE`; None when it left no note."""
    try:
        found = path.read_bytes()
    except OSError:
        return None
    if len(found) != _FORMAT.size:
        return None
    noted, lease = _FORMAT.unpack(found)
    return lease if noted == life else None
