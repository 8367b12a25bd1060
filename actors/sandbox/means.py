"""What this machine offers for a sandbox: found out by trying it, best first."""

import contextlib
import functools
import os
import select
import shutil

from actors.sandbox import command, view
from actors.sandbox.box import START_S, Box
from actors.sandbox.terms import (
    HOLDS,
    MB,
    Hold,
    Kind,
    Level,
    Limits,
    Means,
    NotStarted,
    TooLittle,
)
from protocol.clock import Deadline, MonotonicClock

_PROBED = Limits(wall_s=START_S, memory_bytes=256 * MB)
# Held by every means: who starts the program watches over these.
_ALWAYS: tuple[Hold, ...] = ("cpu", "time", "output")
CURE = (
    "install bubblewrap and allow user namespaces (sysctl kernel.unprivileged_userns_clone=1, "
    "kernel.apparmor_restrict_unprivileged_userns=0; docker run --security-opt seccomp=unconfined "
    "--cap-add SYS_ADMIN), or use a kernel with Landlock (5.13)"
)


@functools.cache
def available() -> Means:
    """The best means that work here. Tried once in each process, which takes about 50 ms."""
    refused: dict[str, str] = {}
    for kind, user_namespace in _candidates():
        found = examine(Means(kind, user_namespace))
        if isinstance(found, str):
            refused[f"{kind}, user namespace" if user_namespace else kind] = found
            continue
        holds, lacks = found
        return Means(kind, user_namespace, holds, lacks, refused)
    words = "; ".join(f"{kind}: {why}" for kind, why in refused.items())
    raise NotStarted(f"no program can be started in any sandbox: {words}")


def require(level: Level, means: Means | None = None, limits: Limits | None = None) -> Means:
    """`means`, or the best of this machine, if they hold what `level` needs; else `TooLittle`."""
    found = means or available()
    missing = found.missing(level)
    if missing:
        whys = "; ".join(f"{hold} ({found.lacks.get(hold, 'not held')})" for hold in missing)
        better = "; ".join(f"{kind}: {why}" for kind, why in found.refused.items())
        raise TooLittle(
            f"untrusted programs cannot be run safely here (level {level!r}): {found.name} cannot "
            f"hold {whys}" + (f"; {better}" if better else "") + f"; {CURE}"
        )
    if limits is not None and limits.processes > 1 and not _counts_processes(found):
        raise TooLittle(
            f"a program that may start {limits.processes} processes cannot be held by {found.name} "
            f"here, only one that starts none (limits.processes = 1); {CURE}"
        )
    return found


def _counts_processes(means: Means) -> bool:
    """Whether several can be counted, and ended with us. What root is elsewhere is not counted."""
    if not command.has_own_files(means):
        return False
    return not (means.user_namespace and os.geteuid() == 0)


def examine(means: Means) -> tuple[tuple[Hold, ...], dict[Hold, str]] | str:
    """What holds and what does not under these means; or why they do not work here at all."""
    if means.kind == "bubblewrap" and shutil.which("bwrap") is None:
        return "not installed"
    wanted = command.Wanted(argv=(view.interpreter(),), limits=_PROBED, probe=True)
    clock = MonotonicClock()
    try:
        box = Box(wanted, means, clock)
    except NotStarted as error:
        return str(error)
    with contextlib.closing(box):
        poller = select.poll()
        poller.register(box.ended, select.POLLIN)
        poller.poll(Deadline.after(clock, START_S, "the sandbox's trial").left() * 1000)
    facts: dict[str, str] = dict(box.facts)
    holds: tuple[Hold, ...] = tuple(
        hold for hold in HOLDS if hold in _ALWAYS or facts.get(hold) == ""
    )
    if box.failure or box.status != 0 or not facts:
        return box.failure or "its trial was not finished"
    lacks: dict[Hold, str] = {
        hold: facts.get(hold, "not tried") for hold in HOLDS if hold not in holds
    }
    return holds, lacks


def _candidates() -> tuple[tuple[Kind, bool], ...]:
    rooted: tuple[bool, ...] = (False, True) if os.geteuid() == 0 else (True,)
    return (
        *(("bubblewrap", user) for user in rooted),
        *(("namespaces", user) for user in rooted),
        ("landlock", False),
        ("limits", False),
    )
