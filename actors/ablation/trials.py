"""One row, one seed: a real run of the whole graph, watched from outside.

The run's launcher lives in this process. What is looked at is what any run leaves behind, the
metrics and the checkpoint, and how large its processes have been, which /proc says while they live.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from actors.ablation.rows import BASELINE, COMMON, Row, in_steps, schedule
from actors.beginning import Wanted, begin
from actors.hardware import Hardware
from actors.launcher import Launcher
from actors.progress import Tail
from actors.rundir import RunDir
from actors.supervisor import table
from actors.topology import Topology
from protocol.clock import Clock, MonotonicClock

_LOOK_EVERY_S = 0.5


@dataclass(slots=True)
class Trial:
    """What one run left."""

    row: str
    seed: int
    rate: float
    run: RunDir
    topology: Topology
    records: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    peak_bytes: dict[str, int] = field(default_factory=dict[str, int])  # by role
    took_s: float = 0.0
    end: str = ""  # done, stopped, failed
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Plan:
    """What all trials of an ablation share."""

    topology: str
    steps: int
    settings: tuple[str, ...]
    directory: Path
    hardware: Hardware


def train(plan: Plan, row: Row, seed: int, factor: float = 1.0) -> Trial:
    """Run `row` to its end. Raises `TopologyError`, `RunDirError`, OSError."""
    name = f"{row.name}-{seed}" + ("" if factor == 1.0 else f"-rate-{factor:g}")
    settings = settings_of(plan, row, seed, factor)
    wanted = Wanted(plan.topology, plan.steps, plan.directory / name, settings)
    clock = MonotonicClock()
    began = clock.now()
    begun = begin(wanted, plan.hardware)
    trial = Trial(row.name, seed, row.rate() * factor, begun.run, begun.topology)
    watch = _Watch(trial, clock)
    try:
        spec = begun.topology.supervision
        with Launcher(begun.run, spec, watcher=watch) as launcher:
            outcome = launcher.drive()
    finally:
        begun.release()
    trial.records += watch.tail.new()
    trial.end, trial.reason = outcome.end, outcome.reason
    trial.took_s = clock.now() - began
    return trial


def settings_of(plan: Plan, row: Row, seed: int, factor: float = 1.0) -> tuple[str, ...]:
    """Of the topology. What the user set comes last but for the row's own."""
    return (
        *COMMON,
        *schedule(plan.steps),
        f"seed={seed}",
        *BASELINE,
        *plan.settings,
        *in_steps(row.at_rate(factor)[len(BASELINE) :], plan.steps),
    )


class _Watch:
    """Looks at a run's processes while it goes on."""

    def __init__(self, trial: Trial, clock: Clock) -> None:
        self._trial, self._clock = trial, clock
        self._due = 0.0
        self.tail = Tail(trial.run, skip_present=False)

    def look(self) -> None:
        """How large its processes have been, and what it has come to."""
        now = self._clock.now()
        if now < self._due:
            return
        self._due = now + _LOOK_EVERY_S
        self._trial.records += self.tail.new()
        for name, row in table.read(self._trial.run).items():
            role = name.partition("/")[0]
            if row.pid:
                peak = max(self._trial.peak_bytes.get(role, 0), peak_bytes(row.pid))
                self._trial.peak_bytes[role] = peak

    def say(self, text: str) -> None:
        """What the launcher has to say is in its log."""


def peak_bytes(pid: int) -> int:
    """The most memory a process has had resident; 0 when it is gone."""
    try:
        text = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except OSError:
        return 0
    lines = (line.split() for line in text.splitlines() if line.startswith("VmHWM:"))
    return next((int(fields[1]) * 1024 for fields in lines), 0)
