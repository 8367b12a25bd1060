"""How long each role is gone after SIGKILL, until its replacement is of use again.

    python -m tests.benchmarks.recovery [--repeats 3] [--json]

One run of emulated config_b; each role is killed in turn, `repeats` times. "first use" is the
first message of the new life that helps somebody (its log says so), or for the recorder its first
line, for the supervisor its answer to `status`. "slowest step" is the longest that any step took
which the death fell into or followed, beside the usual step. Bounds: data worker 0.3 s, trainer
2 s, and those of the architecture for the others.
"""

import json
import os
import signal
import statistics
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from actors import asking
from actors.supervisor import table
from protocol.messages import Status, StatusRequest
from tests.benchmarks.graph import (
    BenchmarkFailed,
    Run,
    arguments,
    at,
    report,
    running,
    show,
    spread,
)

BOUNDS_S = {
    "data_worker": 0.3,
    "trainer": 2.0,
    "loader": 2.0,
    "optimizer_shard": 3.0,
    "rollout": 3.0,
    "recorder": 2.0,
    "supervisor": 3.0,
}
# Messages by which a role is of use again. A rollout that asks for prompts has its weights.
FIRST_USE = {
    "data_worker": ("LeaseRequest", "SampleReady"),
    "loader": ("Lease", "Batch", "Prompts"),
    "trainer": ("Gradient",),
    "optimizer_shard": ("Codes", "Update", "Metrics"),
    "rollout": ("PromptRequest", "RolloutReport"),
}
SETTLE_S = 3.0


class Death(NamedTuple):
    """What one SIGKILL cost."""

    down_s: float
    slowest_step_s: float


def main() -> None:
    """Measure and print."""
    options = arguments(__doc__, repeats=3)
    rows: list[dict[str, Any]] = []
    with running("--topology", "config_b", "--steps", "1000000") as run:
        run.until_step(5)
        victims = first_of_each_role(run)
        for name in victims:
            deaths = [death(run, name) for _ in range(options.repeats)]
            rows.append(row(name, deaths))
        usual = statistics.median(record["step_s"] for record in run.metrics()[1:])
    for line in rows:
        line["usual step, s"] = usual
    show("recovery after SIGKILL, emulated config_b", rows, as_json=options.json)


def first_of_each_role(run: Run) -> list[str]:
    """One actor of each role, by the process table."""
    found: dict[str, str] = {}
    for name in sorted(table.read(run.run)):
        found.setdefault(name.partition("/")[0], name)
    return [found[role] for role in BOUNDS_S if role in found]


def death(run: Run, name: str) -> Death:
    """Kill `name` and see what comes of it."""
    row = table.read(run.run)[name]
    if not row.pid:
        raise BenchmarkFailed(f"{name} is not running:\n{run.said()}")
    before = run.newest_step()
    killed_at = time.time()
    killed = time.monotonic()
    os.kill(row.pid, signal.SIGKILL)
    if name == "supervisor":
        down = _until_status(run, row.pid, killed)
    else:
        found: list[float] = []

        def useful() -> bool:
            found[:] = [t for t in uses(run, name, row.incarnation) if t > killed_at]
            return bool(found)

        run.until(useful, f"{name} to be of use again")
        down = min(found) - killed_at
    time.sleep(SETTLE_S)
    run.until_step(before + 2)
    steps = [one["step_s"] for one in run.metrics() if one["step"] > before]
    return Death(down, max(steps))


def uses(run: Run, name: str, dead: int) -> list[float]:
    """When later lives than `dead` of an actor were of use: seconds since 1970."""
    role = name.partition("/")[0]
    return [
        at(record)
        for record in run.logs()
        if record.get("actor") == name
        and record.get("incarnation", 0) > dead
        and (role == "recorder" or record.get("kind") in FIRST_USE.get(role, ()))
    ]


def _until_status(run: Run, dead_pid: int, killed: float) -> float:
    """Seconds until another supervisor answers `status` with the run going on."""

    def answers() -> bool:
        if table.read(run.run)["supervisor"].pid == dead_pid:
            return False
        try:
            answer = asking.ask(run.run, StatusRequest(), timeout_s=0.5)
        except asking.Unanswered:
            return False
        return isinstance(answer, Status) and json.loads(answer.document)["state"] == "running"

    run.until(answers, "a new supervisor")
    return time.monotonic() - killed


def row(name: str, deaths: Sequence[Death]) -> dict[str, Any]:
    """One line of the table."""
    role = name.partition("/")[0]
    downs = [death.down_s for death in deaths]
    return {
        "killed": name,
        "first use after, s": spread(downs),
        "bound, s": BOUNDS_S[role],
        "kept": statistics.median(downs) <= BOUNDS_S[role],
        "slowest step, s": spread([death.slowest_step_s for death in deaths]),
    }


if __name__ == "__main__":
    report(main)
