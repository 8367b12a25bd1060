"""Single threads of other processes, stopped or misled through ptrace (x86_64 Linux).

A signal stops a whole process. A computing thread that alone stands still, with or without the
interpreter's lock in its hands, is what a hang in somebody's code looks like, and that takes
ptrace. What is stopped here stays stopped until it is let go or its process is killed.

ptrace knows the thread that asks, so all that is done to one process must be done by one thread,
and that one must `reap` now and then: a traced thread that dies is gone only when its tracer has
been told. `Holder` is such a thread.
"""

import contextlib
import ctypes
import os
import select
import signal
import threading
from pathlib import Path

from protocol.clock import Clock, Deadline

_SEIZE, _INTERRUPT, _DETACH = 0x4206, 0x4207, 17
_GETREGS, _SETREGS = 12, 13
_WALL = 0x40000000
_EXIT_GROUP = 231
_SYSCALL = b"\x0f\x05"
# A lock that is waited for is asked for again every 5 ms; whoever just waits for a message wakes
# far more rarely.
_SWITCHES_PER_S = 100.0
_SLICE_S = 0.1
_REAP_S = 0.005

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.restype = ctypes.c_long
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]


class _Registers(ctypes.Structure):
    """struct user_regs_struct of x86_64."""

    _fields_ = [
        (name, ctypes.c_ulonglong)
        for name in (
            *("r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8"),
            *("rax", "rcx", "rdx", "rsi", "rdi", "orig_rax", "rip", "cs", "eflags", "rsp", "ss"),
            *("fs_base", "gs_base", "ds", "es", "fs", "gs"),
        )
    ]


class Stopped:
    """One thread that we have stopped."""

    def __init__(self, tid: int) -> None:
        """Raises OSError."""
        self.tid = tid
        _call(_SEIZE, tid)
        try:
            _call(_INTERRUPT, tid)
            os.waitpid(tid, _WALL)
        except OSError:
            self.release()
            raise

    def release(self) -> None:
        """Let it go on."""
        with contextlib.suppress(OSError):
            _call(_DETACH, self.tid)

    def reap(self) -> bool:
        """Whether it has died; to be asked until it has, or has been released."""
        try:
            pid, status = os.waitpid(self.tid, _WALL | os.WNOHANG)
        except ChildProcessError:
            return True
        return pid != 0 and (os.WIFEXITED(status) or os.WIFSIGNALED(status))

    def exit(self, code: int) -> None:
        """Have its process leave with that code, whatever the thread was about to do."""
        registers = _Registers()
        _call(_GETREGS, self.tid, ctypes.byref(registers))
        registers.rip = _somewhere(self.tid, _SYSCALL)
        registers.rax, registers.rdi = _EXIT_GROUP, code
        registers.orig_rax = ctypes.c_ulonglong(-1).value  # no system call is to be taken up again
        _call(_SETREGS, self.tid, ctypes.byref(registers))
        self.release()


def refused() -> str:
    """Why threads of our children cannot be stopped here; "" when they can."""
    pid = os.fork()
    if pid == 0:
        while True:
            signal.pause()
    try:
        Stopped(pid).release()
    except OSError as error:
        return f"ptrace is refused: {error.strerror}"
    finally:
        os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, 0)
    return ""


def stuck(pid: int, *, lock: bool, watch_s: float, within_s: float, clock: Clock) -> Stopped | None:
    """Stop the main thread of `pid` while it holds the interpreter's lock, or while it does not.

    It is stopped where it happens to be; then its other threads, which wake at least every
    `watch_s`, show whether they wait for the lock. If it is not as wanted, it is let go and tried
    again. None: it never was. Raises OSError.
    """
    within = Deadline.after(clock, within_s, "a thread to be caught as wanted")
    while not within.passed():
        if lock and not _computes(pid):
            _wait(0.001)
            continue
        stopped = Stopped(pid)
        if (
            _lock_is_wanted(pid, Deadline.after(clock, watch_s, "somebody to want the lock"))
            == lock
        ):
            return stopped
        stopped.release()
        _wait(0.02)
    return None


class Holder(threading.Thread):
    """Catches a thread of another process, and holds it until that dies or is let go."""

    def __init__(
        self, pid: int, *, lock: bool, watch_s: float, within_s: float, clock: Clock
    ) -> None:
        """As in `stuck`. Begins at once."""
        super().__init__(name=f"holder-{pid}", daemon=True)
        self.pid = pid
        self.caught: bool | None = None  # None: still at it
        self.problem = ""
        self._how = {"lock": lock, "watch_s": watch_s, "within_s": within_s}
        self._clock = clock
        self._let_go = threading.Event()
        self.start()

    def run(self) -> None:
        """In its own thread."""
        try:
            stopped = stuck(self.pid, clock=self._clock, **self._how)  # pyright: ignore[reportArgumentType]
        except OSError as error:
            self.problem, self.caught = str(error), False
            return
        self.caught = stopped is not None
        while stopped is not None and not stopped.reap():
            if self._let_go.wait(_REAP_S):
                stopped.release()
                return

    def release(self) -> None:
        """Let it go on."""
        self._let_go.set()
        self.join()


def _computes(pid: int) -> bool:
    """Whether its main thread is on a processor: only then may it hold the lock."""
    with open(f"/proc/{pid}/task/{pid}/stat", encoding="utf-8", errors="replace") as file:
        return file.read().rpartition(")")[2].split()[0] == "R"


def _lock_is_wanted(pid: int, within: Deadline) -> bool:
    before = _switches(pid)
    while not within.passed():
        _wait(_SLICE_S)
        now = _switches(pid)
        if any(now[tid] - before.get(tid, 0) > _SWITCHES_PER_S * _SLICE_S for tid in now):
            return True
        before = now
    return False


def _wait(s: float) -> None:
    select.select([], [], [], s)


def _switches(pid: int) -> dict[int, int]:
    """How often each thread but the main one has waited so far."""
    found: dict[int, int] = {}
    for tid in os.listdir(f"/proc/{pid}/task"):
        if int(tid) == pid:
            continue
        with contextlib.suppress(OSError):
            text = Path(f"/proc/{pid}/task/{tid}/status").read_text(encoding="utf-8")
            count = next(line for line in text.splitlines() if line.startswith("voluntary"))
            found[int(tid)] = int(count.split()[1])
    return found


def _somewhere(pid: int, code: bytes) -> int:
    """Address of these bytes in its executable memory. Raises OSError."""
    with open(f"/proc/{pid}/maps", encoding="utf-8") as maps, open(f"/proc/{pid}/mem", "rb") as mem:
        for line in maps:
            span, access, *rest = line.split()
            if "x" not in access or not rest or "libc" not in rest[-1]:
                continue
            first, last = (int(part, 16) for part in span.split("-"))
            mem.seek(first)
            at = mem.read(last - first).find(code)
            if at >= 0:
                return first + at
    raise OSError("no system call found in its memory")


def _call(request: int, tid: int, data: object = None) -> None:
    if _libc.ptrace(request, tid, None, data) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
