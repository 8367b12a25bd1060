"""Killing a process at each of its system calls: the finest grain at which files can be torn.

A child is stopped at every entry into the kernel, through ptrace, and killed at the one wanted:
what it asked for then has not happened.
"""

import ctypes
import os
import signal
from collections.abc import Callable

_TRACEME, _SYSCALL, _SETOPTIONS = 0, 24, 0x4200
_TRACESYSGOOD, _EXITKILL = 0x1, 0x100000
_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]


class Untraceable(OSError):
    """ptrace is refused here."""


def until_call(number: int, work: Callable[[], object]) -> bool:
    """Do `work` in a child and kill it at its system call `number`, counted from 1. False: it had
    done its work before. The work must not start threads. Raises `Untraceable`."""
    pid = os.fork()
    if pid == 0:
        _trace_me(work)
    _, status = os.waitpid(pid, 0)
    if not os.WIFSTOPPED(status) or _ptrace(_SETOPTIONS, pid, _TRACESYSGOOD | _EXITKILL) < 0:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise Untraceable(ctypes.get_errno(), "ptrace is refused")
    calls = stops = 0
    while True:
        assert _ptrace(_SYSCALL, pid, 0) == 0
        _, status = os.waitpid(pid, 0)
        if os.WIFEXITED(status):
            assert os.WEXITSTATUS(status) == 0, "the work failed by itself"
            return False
        if not os.WIFSTOPPED(status) or os.WSTOPSIG(status) != signal.SIGTRAP | 0x80:
            continue
        stops += 1
        calls += stops % 2  # the other stop is on the way out
        if calls == number:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return True


def _trace_me(work: Callable[[], object]) -> None:
    code = 1
    try:
        if _ptrace(_TRACEME, 0, 0) == 0:
            os.kill(os.getpid(), signal.SIGSTOP)
            work()
            code = 0
    finally:
        os._exit(code)


def _ptrace(request: int, pid: int, data: int) -> int:
    return int(_libc.ptrace(request, pid, None, data))
