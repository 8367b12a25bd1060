"""What a process may ask of the kernel for itself. Part of `actors.process`, which names it all."""

import ctypes
import errno
import fcntl
import os
import signal
from pathlib import Path

_PR_SET_PDEATHSIG, _PR_SET_NAME, _PR_SET_CHILD_SUBREAPER = 1, 15, 36


def become_subreaper() -> None:
    """Orphans among our descendants become our children instead of init's."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def die_with_parent(number: int = signal.SIGKILL) -> None:
    """Have the kernel signal us when the thread that made us ends. For helpers that own nothing."""
    _prctl(_PR_SET_PDEATHSIG, number)


def set_name(name: str) -> None:
    """What `ps` and `top` call this process; the kernel keeps 15 characters."""
    buffer = ctypes.create_string_buffer(name.encode()[:15])
    _prctl(_PR_SET_NAME, ctypes.addressof(buffer))


def try_lock(path: Path) -> int | None:
    """Lock a file until the returned descriptor is closed or we die; None when it is locked.

    Raises OSError when the file cannot be made.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    return fd


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl({option}): {errno.errorcode.get(number, '?')}")
