"""Whether the kernel killed for want of memory. A SIGKILL says nothing of its reason."""

import contextlib
from collections.abc import Iterator
from pathlib import Path


def oom_kills() -> int:
    """Out-of-memory kills so far in our control group; 0 where the kernel does not count them."""
    for path in _oom_files():
        try:
            text = path.read_text(encoding="ascii")
        except OSError:
            continue
        for line in text.splitlines():
            key, _, value = line.partition(" ")
            if key == "oom_kill" and value.isdecimal():
                return int(value)
    return 0


def _oom_files() -> Iterator[Path]:
    """Where this machine's kernel counts them: control groups of version 2, then of version 1."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines():
            _, controllers, group = line.split(":", 2)
            if controllers == "":
                yield Path("/sys/fs/cgroup" + group) / "memory.events"
            elif "memory" in controllers.split(","):
                yield Path("/sys/fs/cgroup/memory" + group) / "memory.oom_control"
    yield Path("/sys/fs/cgroup/memory/memory.oom_control")
