"""Temporary directories that outlive nobody for long: who makes one removes those of the dead.

A process that is killed cannot clean up after itself. Each directory is locked for as long as its
owner lives, whoever and in whichever container that is; one that nobody holds has no owner. They
are looked for once in a process's life.
"""

import contextlib
import fcntl
import functools
import os
import shutil
import tempfile
from collections.abc import Generator
from pathlib import Path

_ATTEMPTS = 8


@contextlib.contextmanager
def directory(purpose: str) -> Generator[Path]:
    """A directory of this user's alone, gone afterwards. Raises OSError."""
    prefix = f"trireme-{purpose}-"
    _remove_forsaken(prefix)
    path, lock = _made(prefix)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(lock)


def _made(prefix: str) -> tuple[Path, int]:
    for _ in range(_ATTEMPTS):
        path = Path(tempfile.mkdtemp(prefix=prefix))
        lock = _lock(path)
        if lock is not None:
            return path, lock
        # Somebody who removes what nobody holds was quicker than our lock.
    raise FileNotFoundError(f"{prefix}* was taken away {_ATTEMPTS} times while it was made")


@functools.cache
def _remove_forsaken(prefix: str) -> None:
    for path in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        lock = _lock(path)
        if lock is not None:
            shutil.rmtree(path, ignore_errors=True)
            os.close(lock)


def _lock(path: Path) -> int | None:
    """Hold the directory; None when somebody else does, or it is gone, or not ours."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    with contextlib.suppress(OSError):
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        held, there = os.fstat(fd), os.lstat(path)
        same = (held.st_dev, held.st_ino) == (there.st_dev, there.st_ino)
        if same and os.geteuid() in (0, held.st_uid):
            return fd
    os.close(fd)
    return None
