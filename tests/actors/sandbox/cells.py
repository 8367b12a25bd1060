"""What the sandbox's tests share: the means of this machine, hostile programs, the process table.

Each test of containment runs under every means that works here; one that does not is skipped with
the reason that the machine gives.
"""

import functools
import os
import uuid
from collections.abc import Sequence
from pathlib import Path

import pytest

from actors.sandbox import means, view
from actors.sandbox.running import run
from actors.sandbox.terms import MB, Kind, Limits, Means, Outcome

QUICK = Limits(wall_s=20.0, cpu_s=10.0, memory_bytes=128 * MB)
CELLS: dict[str, tuple[Kind, bool]] = {
    "bubblewrap": ("bubblewrap", os.geteuid() != 0),
    "namespaces": ("namespaces", os.geteuid() != 0),
    "namespaces of a user": ("namespaces", True),
    "landlock": ("landlock", False),
}


@functools.cache
def cell(name: str) -> Means | str:
    """These means, tried; or why they do not work here."""
    kind, user_namespace = CELLS[name]
    found = means.examine(Means(kind, user_namespace))
    return found if isinstance(found, str) else Means(kind, user_namespace, *found)


def needed(name: str) -> Means:
    found = cell(name)
    if isinstance(found, str):
        pytest.skip(f"this machine has no {name}: {found}")
    return found


def python(
    program: str,
    using: Means,
    *arguments: str,
    limits: Limits = QUICK,
    read_only: Sequence[str] = (),
    stdin: bytes = b"",
) -> Outcome:
    """Run a Python program in the sandbox, and see that it leaves no process."""
    mark = f"mark-{uuid.uuid4()}"
    argv = [view.interpreter(), "-I", "-S", "-c", program, *arguments, mark]
    outcome = run(
        argv, limits=limits, read_only=(*view.python(), *read_only), stdin=stdin, using=using
    )
    assert marked(mark) == []
    return outcome


def marked(mark: str) -> list[int]:
    """Living processes with that word in their command line; ours would not have it."""
    found: list[int] = []
    for entry in os.listdir("/proc"):
        if entry.isdecimal():
            try:
                words = Path(f"/proc/{entry}/cmdline").read_bytes()
            except OSError:
                continue
            if mark.encode() in words:
                found.append(int(entry))
    return found
