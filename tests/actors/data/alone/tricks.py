"""Stages that do to their worker what the sample says, notes of who did what, and of who lives."""

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np


def busy(seconds: float) -> None:
    """Compute for so long, by this thread's own clock."""
    until = time.thread_time() + seconds
    while time.thread_time() < until:
        sum(range(200))


def pair(i: int) -> dict[str, Any]:
    return {"i": i, "x": np.full(4, i, np.float32)}


def noting(path: Path, name: str) -> Callable[[Any], Any]:
    """A stage that writes down that it ran, on which sample, in which process."""

    def note(value: Any) -> Any:
        with path.open("a") as file:
            file.write(f"{name} {value['i'] if isinstance(value, dict) else value} {os.getpid()}\n")
        return value

    return note


def notes(path: Path) -> list[tuple[str, int, int]]:
    lines = (line.split() for line in path.read_text().splitlines())
    return [(name, int(sample), int(pid)) for name, sample, pid in lines]


def striking(
    *, kill: int = -1, segfault: int = -1, hang: int = -1, fail: int = -1, eat: int = -1,
    once: Path | None = None,
) -> Callable[[int], int]:  # fmt: skip
    """A stage that harms on certain samples; with `once`, only the first time."""

    def strike(i: int) -> int:
        if i not in (kill, segfault, hang, fail, eat):
            return i
        if once is not None:
            if once.exists():
                return i
            once.touch()
        if i == kill:
            os.kill(os.getpid(), signal.SIGKILL)
        elif i == segfault:
            os.kill(os.getpid(), signal.SIGSEGV)
        elif i == hang:
            while True:
                signal.pause()
        elif i == eat:
            return len(bytearray(1 << 46))
        raise ValueError(f"sample {i} is not to my taste")

    return strike


def children(pid: int) -> list[int]:
    """None of a process that is no more."""
    found: list[int] = []
    with suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            found += [int(child) for child in (task / "children").read_text().split()]
    return found


def family(pid: int) -> list[int]:
    below = children(pid)
    return below + [grandchild for child in below for grandchild in family(child)]


def name(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text().strip()


def gone(pids: list[int], within_s: float = 5.0) -> bool:
    until = time.monotonic() + within_s
    while time.monotonic() < until:
        if not any(Path(f"/proc/{pid}").exists() for pid in pids):
            return True
        time.sleep(0.02)
    return False
