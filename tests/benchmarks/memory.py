"""Memory of every process of a run, at its highest.

    python -m tests.benchmarks.memory [--steps 30] [--json]

RSS is what `ps` shows; PSS shares what several processes map (libraries, the torch that both
trainers were forked with, shared segments) among them, so PSS adds up. Bound: processes without
torch stay under 60 MB RSS.
"""

import time
from collections.abc import Mapping
from pathlib import Path

from actors.roles import ROLES
from actors.supervisor import table
from tests.benchmarks.graph import Run, arguments, read_lines, report, running, show

BOUND_MB = 60.0
LOOK_S = 0.5  # reading a process's maps costs some milliseconds of somebody's core


def main() -> None:
    """Measure and print."""
    options = arguments(__doc__, steps=30)
    with running("--topology", "config_b", "--steps", str(options.steps)) as run:
        highest = watch(run)
        run.finish()
        steps = len(read_lines(run.run.metrics))
    rows = [row(name, *sizes) for name, sizes in sorted(highest.items())]
    rows.append(
        {
            "process": f"all together ({steps} steps)",
            "rss, MB": None,
            "pss, MB": total(highest),
            "torch": None,
            "kept": None,
        }
    )
    show("memory of emulated config_b", rows, as_json=options.json)


def watch(run: Run) -> dict[str, tuple[float, float]]:
    """Highest RSS and PSS (MB) by process, until the run ends."""
    highest: dict[str, tuple[float, float]] = {}
    while run.process.poll() is None:
        for name, pid in processes(run).items():
            found = sizes(pid)
            if found is not None:
                before = highest.get(name, (0.0, 0.0))
                highest[name] = (max(before[0], found[0]), max(before[1], found[1]))
        time.sleep(LOOK_S)
    return highest


def processes(run: Run) -> dict[str, int]:
    """Every process of the run by name; children that are no actors under their parent's."""
    found = {"run.py": run.process.pid}
    known = {name: row.pid for name, row in table.read(run.run).items() if row.pid}
    found |= known
    for name, pid in known.items():
        for child in children(pid):
            if child not in known.values():
                found[f"{name} > {comm(child)}"] = child
    return found


def children(pid: int) -> list[int]:
    """Pids of a process's children."""
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except OSError:
        return []
    return [int(child) for child in text.split()]


def comm(pid: int) -> str:
    """What `ps` calls a process."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return "?"


def sizes(pid: int) -> tuple[float, float] | None:
    """RSS and PSS in MB; None when it is gone."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return None
    fields = {line.split(":")[0]: line.split()[1] for line in lines[1:]}
    if "Rss" not in fields:
        return None
    return int(fields["Rss"]) / 1000, int(fields["Pss"]) / 1000


def total(highest: Mapping[str, tuple[float, float]]) -> float:
    """Sum of the highest PSS."""
    return sum(pss for _, pss in highest.values())


def row(name: str, rss_mb: float, pss_mb: float) -> dict[str, object]:
    """One line of the table."""
    entry = ROLES.get(name.partition("/")[0])
    torch = (entry is not None and entry.needs_torch) or name == "forkserver/torch"
    helper = " > " in name
    kept = None if torch or helper else rss_mb < BOUND_MB
    return {"process": name, "rss, MB": rss_mb, "pss, MB": pss_mb, "torch": torch, "kept": kept}


if __name__ == "__main__":
    report(main)
