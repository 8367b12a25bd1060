"""What pinning is worth: a run's processes on the cores of their plan, and free to go anywhere.

    python -m tests.benchmarks.placement [--topology config_b] [--repeats 5] [--seconds 10] [--json]

One run; for some seconds at a time its threads sit where the plan has them or are let go, in turns,
so both see the same machine. The counters are the kernel's, of all threads of all actors: moves to
another core, times pushed off a core, time spent waiting for one, and how much of each process's
memory lies on the node it works on.
"""

import os
import statistics
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from actors import numa
from actors.hardware import from_json
from actors.supervisor import table
from tests.benchmarks.graph import Run, arguments, report, running, show


class Counted(NamedTuple):
    """Of all threads, since each began; and tokens of all committed steps."""

    moves: int
    pushed_off: int
    waited_s: float
    tokens: int


class Window(NamedTuple):
    """One stretch of a run, per second."""

    moves: float
    pushed_off: float
    waited: float
    tokens: float


def main() -> None:
    """Measure and print."""
    options = arguments(__doc__, repeats=5, seconds=10, topology="config_b")
    windows: dict[str, list[Window]] = {"as planned": [], "anywhere": []}
    with running("--topology", options.topology, "--steps", "1000000") as run:
        run.until_step(5)
        planned = affinities(run)
        for _ in range(options.repeats):
            for name, found in windows.items():
                settle(run, planned, free=name == "anywhere")
                found.append(window(run, options.seconds))
        settle(run, planned, free=False)
        near = near_share(run)
    rows = [row(name, found) for name, found in windows.items()]
    rows[0]["memory on its node"] = f"{near:.0%}" if near is not None else "not counted here"
    show(f"placement of {options.topology}", rows, as_json=options.json)


def threads(run: Run) -> Iterable[tuple[int, int]]:
    """(pid, tid) of every thread of every actor."""
    for name, row in table.read(run.run).items():
        if row.pid and not name.startswith("forkserver/"):
            with suppress(OSError):
                for tid in os.listdir(f"/proc/{row.pid}/task"):
                    yield row.pid, int(tid)


def affinities(run: Run) -> dict[int, set[int]]:
    """Where each thread may run, as its actor has left it."""
    found: dict[int, set[int]] = {}
    for _, tid in threads(run):
        with suppress(OSError):
            found[tid] = os.sched_getaffinity(tid)
    return found


def settle(run: Run, planned: dict[int, set[int]], *, free: bool) -> None:
    """Put all threads where the plan has them, or let them go; then a moment for them to move."""
    everywhere = os.sched_getaffinity(0)
    for _, tid in threads(run):
        with suppress(OSError):
            os.sched_setaffinity(tid, everywhere if free else planned.get(tid, everywhere))
    time.sleep(0.5)


def window(run: Run, seconds: float) -> Window:
    """What happens for so long."""
    before, began = count(run), time.monotonic()
    time.sleep(seconds)
    after, took = count(run), time.monotonic() - began
    return Window(*((b - a) / took for a, b in zip(before, after, strict=True)))


def count(run: Run) -> Counted:
    """The kernel's counters of this moment."""
    moves = pushed_off = waited_ns = 0
    for pid, tid in threads(run):
        task = Path(f"/proc/{pid}/task/{tid}")
        with suppress(OSError, ValueError, IndexError):
            waited_ns += int((task / "schedstat").read_text().split()[1])
            moves += _field(task / "sched", "nr_migrations")
            pushed_off += _field(task / "status", "nonvoluntary_ctxt_switches")
    tokens = sum(record["tokens"] for record in run.metrics())
    return Counted(moves, pushed_off, waited_ns / 1e9, tokens)


def _field(path: Path, name: str) -> int:
    """The number after `name` in a file of the kernel's."""
    for line in path.read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip().removeprefix("se.") == name:
            return int(value)
    return 0


def near_share(run: Run) -> float | None:
    """Share of the actors' memory on the node where the plan has them; None: nobody counts it."""
    hardware = from_json(run.run.hardware.read_text())
    node_of = {cpu.id: cpu.node for cpu in hardware.cpus}
    near = far = 0
    for row in table.read(run.run).values():
        if row.pid:
            with suppress(OSError):
                home = {node_of[cpu] for cpu in os.sched_getaffinity(row.pid)}
                for node, nbytes in numa.where(row.pid).items():
                    near += nbytes if node in home else 0
                    far += 0 if node in home else nbytes
    return near / (near + far) if near + far else None


def row(name: str, windows: list[Window]) -> dict[str, Any]:
    """One line of the table."""
    middle = Window(*(statistics.median(figure) for figure in zip(*windows, strict=True)))
    return {
        "threads": name,
        "tokens/s": middle.tokens,
        "moves to another core/s": middle.moves,
        "pushed off/s": middle.pushed_off,
        "s waiting for a core, per s": middle.waited,
        "memory on its node": None,
    }


if __name__ == "__main__":
    report(main)
