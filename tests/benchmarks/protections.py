"""What protection costs a run that nobody disturbs: processor time, counted in the run itself.

    python -m tests.benchmarks.protections [--steps 60] [--repeats 3] [--json]

`local` with one trainer, 4,096 tokens a step, and without rollouts, which would take whatever is
left. The processes of supervisor, forkservers and launcher count in full, and so do the functions
of counted.py in all others; their sum is set against the processor time of the whole run between
two steps. Numerator and denominator are of the same seconds, so the share hardly moves with the
machine's speed; what beats is a matter of seconds, though, and weighs more on a busy machine.
Bound: 3 %. (`overhead` sets the whole graph against a plain loop that has none of this.)
"""

import json
import statistics
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

from actors import process
from actors.supervisor import table
from tests.benchmarks import counted
from tests.benchmarks.graph import ROOT, Run, arguments, report, running, show, spread

BOUND = 0.03
SKIP_STEPS = 10
WATCHERS = "supervisor, forkservers, launcher"
# Only forkservers: whoever else would import all that pays for it.
HOOK = """
import sys
if "actors.forkserver" in sys.orig_argv:
    import tests.benchmarks.counted
"""


class Spent(NamedTuple):
    """Seconds of processor time so far."""

    all: float
    on: dict[str, float]


def main() -> None:
    """Measure and print."""
    options = arguments(__doc__, steps=60, repeats=3)
    shares: dict[str, list[float]] = defaultdict(list)
    for _ in range(options.repeats):
        for what, share in one(options.steps).items():
            shares[what].append(share)
    rows: list[dict[str, object]] = [
        {"protection": what, "share of processor time, %": spread([100 * one for one in found])}
        for what, found in shares.items()
    ]
    for row, found in zip(rows, shares.values(), strict=True):
        whole = row["protection"] == "all"
        row["kept"] = statistics.median(found) < BOUND if whole else None
    show("overhead of all protections, undisturbed", rows, as_json=options.json)


def one(steps: int) -> dict[str, float]:
    """Share of each protection in one run."""
    sets = ("actors.trainers=1", "actors.rollouts=0", "train.accumulation=4")
    settings = [part for one in sets for part in ("--set", one)]
    with tempfile.TemporaryDirectory(prefix="bench-counted-") as name:
        directory = Path(name)
        (directory / "sitecustomize.py").write_text(HOOK)
        env = {counted.DIRECTORY: name, "PYTHONPATH": f"{name}:{ROOT}"}
        with running("--topology", "local", "--steps", str(steps + 20), *settings, env=env) as run:
            run.until_step(SKIP_STEPS)
            before = spent(run, directory)
            run.until_step(SKIP_STEPS + steps)
            after = spent(run, directory)
    whole = after.all - before.all
    shares = {what: (after.on[what] - before.on.get(what, 0.0)) / whole for what in after.on}
    return shares | {"all": sum(shares.values())}


def spent(run: Run, directory: Path) -> Spent:
    """Until now."""
    pids = {name: row.pid for name, row in table.read(run.run).items() if row.pid}
    pids["launcher"] = run.process.pid
    taken = {name: process.cpu_s(pid) for name, pid in pids.items()}
    watchers = ("supervisor", "forkserver/light", "forkserver/torch", "launcher")
    on = {WATCHERS: sum(taken[name] for name in watchers)}
    for path in directory.glob("*.json"):
        for what, spent_s in json.loads(path.read_text()).items():
            on[what] = on.get(what, 0.0) + spent_s
    return Spent(sum(taken.values()), on)


if __name__ == "__main__":
    report(main)
