"""Does the sandbox hold? Tried from within, in place of a program. Part of the jail.

Each attempt does what a hostile program would do first. Reported is what happened, not what ought
to: `holds WHAT`, or `lacks WHAT WHY`.
"""

import _socket
import errno
import mmap
import os

from actors.sandbox import kernel

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

# Readable by everyone on every machine, and never among the paths that a probe may see.
_CANARY = "/etc/passwd"
_PLACES = ("/", "/tmp", "/var/tmp", "/dev/shm", "/run")  # noqa: S108 - where one might write
_HUGE = 1 << 40


def report(say: "Callable[..., None]", outside: int) -> None:
    """Try everything and say what came of it. `outside`: pid of a process that is not ours."""
    attempts = {
        "memory": _memory,
        "files": _files,
        "names": _names,
        "network": _network,
        "processes": _processes,
        "signals": lambda: _signals(outside),
        "privileges": _privileges,
        "calls": _calls,
    }
    for what, attempt in attempts.items():
        why = attempt()
        say("lacks" if why else "holds", what, why)


def _memory() -> str:
    try:
        mmap.mmap(-1, _HUGE).close()
    except (OSError, MemoryError):
        return ""
    return "a terabyte could be mapped"


def _files() -> str:
    try:
        os.close(os.open(_CANARY, os.O_RDONLY))
    except OSError:
        pass
    else:
        return f"{_CANARY} could be read"
    for place in _PLACES:
        path = os.path.join(place, f"trireme-probe-{os.getpid()}")
        try:
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        except OSError:
            continue
        os.unlink(path)
        return f"a file could be made in {place}"
    return ""


def _names() -> str:
    return f"{_CANARY} can be seen" if os.path.lexists(_CANARY) else ""


def _network() -> str:
    for family in (_socket.AF_INET, _socket.AF_UNIX):
        try:
            _socket.socket(family, _socket.SOCK_STREAM).close()
        except OSError:
            continue
        return "a socket could be made"
    return ""


def _processes() -> str:
    try:
        child = os.fork()
    except OSError:
        return ""
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    return "a process could be started"


def _signals(outside: int) -> str:
    try:
        os.kill(outside, 0)
    except OSError:
        return ""
    return "a process outside could be signalled"


def _privileges() -> str:
    if kernel.capabilities():
        return "capabilities are left"
    if os.geteuid() == 0 and not kernel.root_is_ordinary():
        return "programs it executes would be root"
    return "" if kernel.privileges_forgone() else "a set-uid program would be honoured"


def _calls() -> str:
    try:
        kernel.unshare(kernel.NEW_USER)
    except OSError as error:
        # An old kernel or a missing right says something else than the filter.
        if error.errno == errno.EPERM and kernel.filtered():
            return ""
    return "no filter of system calls"
