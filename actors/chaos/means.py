"""What this machine lets us do to processes, and why not what it does not."""

import contextlib
import os
import platform
import resource
import shutil
from pathlib import Path

from actors import process
from actors.chaos import threads

_V1, _V2 = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")
_CALL_S = 10.0
_GROUP = "trireme-chaos"


def missing(directory: Path) -> dict[str, str]:
    """Means that are not to be had -> why, in words. `directory`: where runs are to lie."""
    reasons = {
        "ptrace": _ptrace(),
        "cgroup": _cgroup(),
        "mount": _mount(directory),
        "rlimit": "" if hasattr(resource, "prlimit") else "there is no prlimit()",
    }
    return {name: why for name, why in reasons.items() if why}


def _ptrace() -> str:
    if platform.machine() != "x86_64":
        return f"threads are stopped one by one on x86_64 only, this is {platform.machine()}"
    return threads.refused()


# --- A control group of little memory -------------------------------------------------------------


def _cgroup() -> str:
    group = memory_group()
    if group is None:
        return "no control group for memory can be made (that takes root, or delegation)"
    group.close()
    return ""


class MemoryGroup:
    """A control group for memory. Closing it leaves its processes to the group above."""

    def __init__(self, path: Path, limit: str) -> None:
        self._path, self._limit = path, limit

    def squeeze(self, pid: int, spare_bytes: int) -> None:
        """Nothing beyond what it has now and a little: growing is its last act. Raises OSError."""
        (self._path / "cgroup.procs").write_text(f"{pid}\n")
        # What it had charged elsewhere stays there: only what is new counts.
        (self._path / self._limit).write_text(f"{spare_bytes}\n")

    def close(self) -> None:
        """Remove it; nothing happens while somebody is still in it."""
        with contextlib.suppress(OSError):
            self._path.rmdir()


def memory_group(name: str = _GROUP) -> MemoryGroup | None:
    """A new one below ours, or None."""
    for root, limit in ((_V1, "memory.limit_in_bytes"), (_V2, "memory.max")):
        path = root / f"{name}-{os.getpid()}"
        try:
            path.mkdir(exist_ok=True)
        except OSError:
            continue
        if (path / limit).exists() and os.access(path / limit, os.W_OK):
            return MemoryGroup(path, limit)
        MemoryGroup(path, limit).close()
    return None


# --- A disk of our own, to be filled --------------------------------------------------------------


def _mount(directory: Path) -> str:
    probe = directory / f".mount-{os.getpid()}"
    why = mount(probe, 1 << 20)
    if not why:
        unmount(probe)
    return why


def mount(path: Path, nbytes: int) -> str:
    """A file system of that size at `path`; why that cannot be done, else ""."""
    if os.geteuid() != 0:
        return "a disk that can be filled is mounted by root only"
    if shutil.which("mount") is None:
        return "there is no mount command"
    path.mkdir(parents=True, exist_ok=True)
    size = f"size={nbytes},mode=0700"
    command = ["mount", "-t", "tmpfs", "-o", size, "trireme-chaos", str(path)]
    code, _, err = process.call(command, timeout_s=_CALL_S)
    if code:
        path.rmdir()
        return f"no file system can be mounted: {err.strip()}"
    return ""


def unmount(path: Path) -> None:
    """Take it away, with all that lies in it."""
    process.call(["umount", "-l", str(path)], timeout_s=_CALL_S)
    path.rmdir()


# --- Limits of a process --------------------------------------------------------------------------


def starve(pid: int, spare_bytes: int) -> None:
    """No address space beyond what it has now and a little. Raises OSError, ValueError."""
    with open(f"/proc/{pid}/statm", encoding="ascii") as file:
        pages = int(file.read().split()[0])
    now = pages * os.sysconf("SC_PAGE_SIZE")
    _, hard = resource.prlimit(pid, resource.RLIMIT_AS)
    resource.prlimit(pid, resource.RLIMIT_AS, (now + spare_bytes, hard))
