"""Shared memory segments: plain files under /dev/shm, mapped by whoever knows the name.

The supervisor creates them before it starts the actors and unlinks them when the run ends, so
they survive their writers. `multiprocessing.shared_memory` is not used: its resource tracker
unlinks segments when any one process dies, which is exactly when they are needed.

Not covered: two writers of one range (the exchange protocol's business), and a file truncated
under a mapping (nobody but the owner of the run may open it).
"""

import errno
import mmap
import os
import re
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from protocol.errors import SegmentError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import DTypeLike, NDArray

SHM_DIR = Path("/dev/shm")  # noqa: S108 - files are 0600 and opened with O_EXCL or O_NOFOLLOW
# A fifth of a second of the kernel's work, or less.
_PIECE_BYTES = 256 << 20
# At the end of the name of a segment that is not complete.
_BEING_MADE = ".new"
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

    def array(
        self, dtype: "DTypeLike", shape: Sequence[int], offset: int = 0
    ) -> "NDArray[np.generic]":
        """A writable view, without copying. `offset` in bytes. Raises `SegmentError`."""
        import numpy as np  # a supervisor only makes and removes segments, and is to start quickly

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


def create(name: str, nbytes: int, pulse: Callable[[], object] = lambda: None) -> Segment:
    """A new segment of zeros, 0600. Memory is reserved now, not at the first write.

    That takes most of a second per gigabyte, so `pulse` is called every now and then. The name
    appears when all of it is there: who is killed before leaves a temporary name, which the next
    `create` removes. Raises `SegmentError` when the name is bad or taken, or when /dev/shm has no
    room.
    """
    if nbytes < 1:
        raise SegmentError(f"segment {name}: {nbytes} bytes; at least 1 is needed")
    path, fresh = _path(name), _path(name + _BEING_MADE)
    try:
        if path.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        fresh.unlink(missing_ok=True)
        fd = os.open(fresh, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise SegmentError(f"cannot create segment {path}: {error.strerror}") from error
    try:
        _reserve(fd, nbytes, pulse)
        mapping = mmap.mmap(fd, nbytes)
        path.hardlink_to(fresh)  # unlike a rename, it replaces nobody's
        return Segment(name, mapping)
    except (OSError, ValueError) as error:
        raise SegmentError(
            f"cannot reserve {nbytes / 1e6:.0f} MB for segment {path}: {error}; "
            "see `df -h /dev/shm` (containers: raise --shm-size)"
        ) from error
    finally:
        fresh.unlink(missing_ok=True)
        os.close(fd)


def _reserve(fd: int, nbytes: int, pulse: Callable[[], object]) -> None:
    """Raises OSError, at once when there is less room than that."""
    room = os.statvfs(fd)
    if room.f_blocks and nbytes > room.f_bavail * room.f_frsize:  # 0 blocks: no limit is set
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    for at in range(0, nbytes, _PIECE_BYTES):
        pulse()
        os.posix_fallocate(fd, at, min(_PIECE_BYTES, nbytes - at))


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


def discard(name: str, pulse: Callable[[], object]) -> bool:
    """Remove the segment, mapped or not, calling `pulse` while its memory is given back piece by
    piece. Whoever still uses it is killed by SIGBUS. False when it was gone. Raises `SegmentError`.
    """
    try:
        fd = os.open(_path(name), os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return unlink(name)
    try:
        found = unlink(name)  # first: a name stands for a whole segment
        for at in reversed(range(0, os.fstat(fd).st_size, _PIECE_BYTES)):
            pulse()
            os.ftruncate(fd, at)
    except OSError as error:
        raise SegmentError(f"cannot empty segment {name}: {error.strerror}") from error
    finally:
        os.close(fd)
    return found


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
