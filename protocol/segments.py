"""Shared memory segments: plain files under /dev/shm, mapped by whoever knows the name.

The supervisor creates them before it starts the actors and unlinks them when the run ends, so
they survive their writers. `multiprocessing.shared_memory` is not used: its resource tracker
unlinks segments when any one process dies, which is exactly when they are needed.

Not covered: two writers of one range (the exchange protocol's business), and a file truncated
under a mapping (nobody but the owner of the run may open it).
"""

import mmap
import os
import re
import stat
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import DTypeLike, NDArray

from protocol.errors import SegmentError

SHM_DIR = Path("/dev/shm")  # noqa: S108 - files are 0600 and opened with O_EXCL or O_NOFOLLOW
_NAME = re.compile(r"trireme-[A-Za-z0-9_.\-]{1,200}")


def segment_name(run_id: str, actor: str, what: str) -> str:
    """Name of the segment that holds `what` of `actor` in run `run_id`."""
    return f"trireme-{run_id}-{actor.replace('/', '.')}-{what}"


class Segment:
    """One mapped segment. Views made by `array` keep the mapping alive after `close`."""

    def __init__(self, name: str, mapping: mmap.mmap) -> None:
        self.name = name
        self.nbytes = len(mapping)
        self._mapping = mapping
        self._closed = False

    def array(self, dtype: DTypeLike, shape: Sequence[int], offset: int = 0) -> NDArray[np.generic]:
        """A writable view, without copying. `offset` in bytes. Raises `SegmentError`."""
        if self._closed:
            raise SegmentError(f"segment {self.name} has been closed by this process")
        kind = np.dtype(dtype)
        if any(n < 0 for n in shape):
            raise SegmentError(f"segment {self.name}: shape {tuple(shape)} has a negative length")
        count = 1
        for n in shape:
            count *= int(n)
        if offset < 0 or offset % kind.itemsize or offset + count * kind.itemsize > self.nbytes:
            raise SegmentError(
                f"segment {self.name} of {self.nbytes} bytes cannot hold {kind} {tuple(shape)} "
                f"at byte {offset} (offsets are multiples of {kind.itemsize})"
            )
        flat = (
            np.frombuffer(self._mapping, dtype=kind, count=count, offset=offset)
            if count
            else (np.empty(0, kind))
        )
        return flat.reshape(tuple(shape))

    def close(self) -> None:
        """Unmap now, or with the last view that is still in use. The file stays."""
        self._closed = True
        try:
            self._mapping.close()
        except BufferError:
            return  # views exist: the mapping goes with the last of them

    def __enter__(self) -> "Segment":
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()


def create(name: str, nbytes: int) -> Segment:
    """A new segment of zeros, 0600. Memory is reserved now, not at the first write.

    Raises `SegmentError` when the name is bad or taken, or when /dev/shm has no room.
    """
    if nbytes < 1:
        raise SegmentError(f"segment {name}: {nbytes} bytes; at least 1 is needed")
    path = _path(name)
    try:
        fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise SegmentError(f"cannot create segment {path}: {error.strerror}") from error
    try:
        os.posix_fallocate(fd, 0, nbytes)
        return Segment(name, mmap.mmap(fd, nbytes))
    except (OSError, ValueError) as error:
        path.unlink(missing_ok=True)
        raise SegmentError(
            f"cannot reserve {nbytes / 1e6:.0f} MB for segment {path}: {error}; "
            "see `df -h /dev/shm` (containers: raise --shm-size)"
        ) from error
    finally:
        os.close(fd)


def attach(name: str) -> Segment:
    """The existing segment of that name. Raises `SegmentError`."""
    path = _path(name)
    try:
        fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise SegmentError(f"cannot open segment {path}: {error.strerror}") from error
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
            raise SegmentError(f"segment {path} is not a regular file of this user")
        return Segment(name, mmap.mmap(fd, 0))
    except (OSError, ValueError) as error:
        raise SegmentError(f"cannot map segment {path}: {error}") from error
    finally:
        os.close(fd)


def unlink(name: str) -> bool:
    """Remove the name; mappings live on. False when it was gone already. Raises `SegmentError`."""
    try:
        _path(name).unlink()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise SegmentError(f"cannot remove segment {name}: {error.strerror}") from error
    return True


def listing(prefix: str) -> list[str]:
    """Names of the segments that start with `prefix`, sorted."""
    return sorted(
        path.name
        for path in SHM_DIR.iterdir()
        if path.name.startswith(prefix) and _NAME.fullmatch(path.name)
    )


def _path(name: str) -> Path:
    if not _NAME.fullmatch(name):
        raise SegmentError(
            f"bad segment name {name[:80]!r}: 'trireme-' and then letters, digits, '_', '.', '-'"
        )
    return SHM_DIR / name
