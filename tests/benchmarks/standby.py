"""What a standby costs a run of emulated config_b, and how far it is behind.

    python -m tests.benchmarks.standby [--steps 120] [--every 30] [--repeats 3] [--json]

"noted": it was invited, so steps are noted, and nobody copies them. "attached": it runs on the same
cores, so its own work counts as well. Steps are those after the first checkpoint.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from actors import asking
from protocol.keys import KeyFile
from protocol.messages import Status, StatusRequest
from tests.benchmarks.graph import (
    ROOT,
    BenchmarkFailed,
    Run,
    arguments,
    report,
    running,
    show,
    spread,
)

WAYS = ("alone", "noted", "attached")
LOOK_S = 0.1
# A copy that is further behind is not looked at.
LOST_S = 20.0


def main() -> None:
    """Measure and print."""
    options = arguments(__doc__, steps=120, every=30, repeats=3)
    found: dict[str, list[tuple[float, float, float, float]]] = {way: [] for way in WAYS}
    for _ in range(options.repeats):
        for way in WAYS:
            found[way].append(once(way, options.steps, options.every))
    rows = [
        {
            "way": way,
            "step, s": spread([one[0] for one in each]),
            "noted a step, MB": spread([one[1] / 1e6 for one in each]),
            "behind, s": spread([one[2] for one in each]),
            "up a step, MB": spread([one[3] / 1e6 for one in each]),
        }
        for way, each in found.items()
    ]
    show("a standby of emulated config_b", rows, as_json=options.json)


def once(way: str, steps: int, every: int) -> tuple[float, float, float, float]:
    """Seconds of a step, bytes noted of one, seconds the copy is behind, bytes up of one."""
    every_steps = ("--set", f"checkpoint.every_steps={every}")
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        run = stack.enter_context(
            running("--topology", "config_b", "--steps", str(steps), *every_steps)
        )
        run.until_step(1)
        if way != "alone":
            invite(run, directory / "vault.key")
        if way == "attached":
            stack.callback(end, attach(directory))
        behind: list[float] = []
        noted: list[tuple[int, float]] = []
        while run.process.poll() is None and run.newest_step() < steps - 1:
            look(run, noted, after=every)
            if way == "attached" and noted:
                behind += lag(run, directory / "copy")
            time.sleep(LOOK_S)
        records = run.metrics()[every + 1 :]
        run.finish()
    (first, before), (last, after) = (noted[0], noted[-1]) if noted else ((0, 0.0), (1, 0.0))
    return (
        statistics.median(record["step_s"] for record in records),
        (after - before) / max(1, last - first),
        statistics.median(behind) if behind else 0.0,
        statistics.median(record["up_bytes"] for record in records),
    )


def invite(run: Run, key: Path) -> None:
    """A key for the standby. Raises `BenchmarkFailed`."""
    command = ("invite", "--role", "standby", "--label", "vault", "--out", str(key))
    done = run_py(*command, "--run", str(run.run.path))
    if done.wait():
        raise BenchmarkFailed("nobody can be invited")


def attach(directory: Path) -> "subprocess.Popen[bytes]":
    """The standby."""
    key = directory / "vault.key"
    endpoint, copy = KeyFile.read(key).endpoint, str(directory / "copy")
    return run_py("attach", endpoint, "--key", str(key), "--role", "standby", "--run", copy)


def end(standby: "subprocess.Popen[bytes]") -> None:
    """It leaves."""
    standby.terminate()
    standby.wait()


def run_py(*arguments: Sequence[str] | str) -> "subprocess.Popen[bytes]":
    """`run.py`, silent."""
    command = [sys.executable, "run.py", *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)


def look(run: Run, noted: list[tuple[int, float]], *, after: int) -> None:
    """Add how many bytes have been noted by now."""
    try:
        answer = asking.ask(run.run, StatusRequest())
    except asking.Unanswered:
        return
    assert isinstance(answer, Status)
    document = json.loads(answer.document)
    written = sum(actor.get("gauges", {}).get("noted_bytes", 0.0) for actor in document["actors"])
    if written and document["step"] > after:
        noted.append((document["step"], written))


def lag(run: Run, copy: Path) -> list[float]:
    """Seconds until what is noted now is in the copy; nothing when the run is over meanwhile."""
    newest = max(run.run.journal.glob("shard-0-*.journal"))
    size, began = newest.stat().st_size, time.monotonic()
    there = copy / "journal" / newest.name
    while not there.exists() or there.stat().st_size < size:
        if time.monotonic() - began > LOST_S or run.process.poll() is not None:
            return []
        time.sleep(0.002)
    return [time.monotonic() - began]


if __name__ == "__main__":
    report(main)
