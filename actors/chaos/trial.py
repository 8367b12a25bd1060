"""The whole of `run.py chaos`: a twin in peace, a run under faults, a verdict, a report."""

import datetime
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from actors import hardware, parameters, planner, preparing
from actors.chaos import figures, judge, kinds, means
from actors.chaos.drive import Disturbed, Gave, Orders, undisturbed
from actors.chaos.history import History
from actors.chaos.judge import Evidence, Finding
from actors.chaos.kinds import Fault, Terms
from actors.chaos.page import page
from actors.chaos.runs import Driven
from actors.chaos.torchrun import measure
from actors.rundir import RunDir
from protocol.clock import MonotonicClock

# What the trial changes about supervision: the same faults, noticed in seconds instead of minutes.
# Digests do not depend on it. Two beats without a word and an actor is taken for lost.
_HEARTBEAT_S, _SILENCE_S, _HANG_S = 1.0, 2.0, 6.0
_GRACE_S, _START_S = 20.0, 40.0
_BACKOFF_MAX_S = 0.4
# Deaths are what this is about: rationing must not end the run over them.
_INTENSITY_PER_KILL = 3
_CHECKPOINTS = 8  # in the course of a run
# Bytes of disk for every parameter and checkpoint kept, and besides.
_PARAMETER_BYTES, _DISK_BYTES = 40, 128 << 20
_KEEP = 3


@dataclass(frozen=True, slots=True)
class Asked:
    """What the command line said."""

    topology: str
    seed: int
    kills: int
    steps: int
    actors: str = "*"
    only_kinds: tuple[str, ...] = ()
    every_s: float = 0.0
    settings: tuple[str, ...] = ()


def settings(asked: Asked) -> tuple[str, ...]:
    """Everything that both runs change about the topology."""
    return (
        *asked.settings,
        f"supervision.heartbeat_s={_HEARTBEAT_S}",
        f"supervision.silence_s={_SILENCE_S}",
        f"supervision.hang_s={_HANG_S}",
        f"supervision.start_s={_START_S}",
        f"supervision.orphan_grace_s={_GRACE_S}",
        f"supervision.intensity={20 + _INTENSITY_PER_KILL * asked.kills}",
        f"supervision.backoff_max_s={_BACKOFF_MAX_S}",
        f"checkpoint.every_steps={max(2, asked.steps // _CHECKPOINTS)}",
        f"checkpoint.keep_last={_KEEP}",
        "data.lease_s=5.0",
        'remote.host="127.0.0.1"',
    )


class Trial:
    """One seed's trial. Everything lies below `directory`, which must be new."""

    def __init__(self, asked: Asked, directory: Path, say: Callable[[str], object]) -> None:
        """Raises `TopologyError`, OSError."""
        self._asked, self._directory, self._say = asked, directory, say
        self._clock = MonotonicClock()
        found = hardware.probe()
        prepared = preparing.prepare(asked.topology, found, overrides=settings(asked))
        self._topology = prepared.topology
        placed = [placement.name for placement in planner.plan(prepared.topology, found).actors]
        self._names = tuple(sorted({*placed, "supervisor", "forkserver/light", "forkserver/torch"}))
        directory.mkdir(parents=True)
        self._torchrun: dict[str, Any] = {}
        self._why_not = self._impossible()
        remote = prepared.topology.actors.remote_trainers
        self._orders = Orders(asked.topology, asked.steps, settings(asked), _HEARTBEAT_S, remote)

    def _impossible(self) -> dict[str, str]:
        """Kinds of faults that cannot be done here, and why."""
        missing = means.missing(self._directory)
        return {kind.name: missing[kind.needs] for kind in kinds.KINDS if kind.needs in missing}

    @property
    def names(self) -> tuple[str, ...]:
        """Who may be struck."""
        return self._names

    def schedule(self) -> list[Fault]:
        """What is going to happen."""
        possible = {kind.name for kind in kinds.KINDS} - set(self._why_not)
        if self._asked.only_kinds:
            possible &= set(self._asked.only_kinds)
        return kinds.draw(
            Terms(
                seed=self._asked.seed,
                kills=self._asked.kills,
                steps=self._asked.steps,
                names=self._names,
                silence_s=_SILENCE_S,
                possible=frozenset(possible),
                only=self._asked.actors,
                every_s=self._asked.every_s,
            )
        )

    def run(self, *, torchrun: bool) -> dict[str, Any]:
        """Both runs and the verdict: the report. Raises OSError."""
        if torchrun:
            self._say("first, what torchrun needs")
            self._torchrun = measure(self._directory / "torchrun", self._clock)
        faults = self.schedule()
        self._say(f"{len(faults)} faults are to come; first the same run in peace")
        twin, peace = RunDir(self._directory / "twin"), self._history("twin")
        ours, trouble = self._directory / "disk" / "run", self._history("disturbed")
        gave = ""
        on_disk = not means.mount(ours.parent, self._disk_bytes())
        try:
            undisturbed(twin, self._orders, self._directory / "twin.out", peace)
            self._say(f"in peace: {peace.now():.0f} s; now with faults")
            self._disturbed(RunDir(ours), faults, trouble)
        except Gave as error:
            gave = str(error)
        finally:
            peace.close()
            trouble.close()
            report = self._report(twin, RunDir(ours), faults, (peace, trouble), gave)
            for run in (twin, RunDir(ours)):  # of a run that did not come to its end
                Driven(run, Path()).forget_memory()
            if ours.exists():
                shutil.copytree(ours, self._directory / "run")
            if on_disk:
                means.unmount(ours.parent)
            else:
                shutil.rmtree(ours.parent, ignore_errors=True)
        return report

    def _history(self, name: str) -> History:
        return History(self._directory / f"{name}.jsonl", self._clock)

    def _disk_bytes(self) -> int:
        count = parameters.unique_count(self._topology.model)
        return _DISK_BYTES + _PARAMETER_BYTES * count * (_KEEP + 2)

    def _disturbed(self, run: RunDir, faults: list[Fault], history: History) -> None:
        Disturbed(
            run,
            self._orders,
            faults,
            history=history,
            clock=self._clock,
            directory=self._directory,
            # In the other order what is composed depends on who works.
            workers=self._topology.data.order == "strict",
            seed=self._asked.seed,
        ).see_through()

    # --- The report -------------------------------------------------------------------------------

    def _report(
        self,
        twin: RunDir,
        run: RunDir,
        faults: list[Fault],
        histories: tuple[History, History],
        gave: str,
    ) -> dict[str, Any]:
        peace, trouble = histories
        left = [*Driven(run, Path()).leftovers(), *Driven(twin, Path()).leftovers()]
        findings = judge.judge(
            Evidence(
                disturbed=run.path,
                twin=twin.path,
                steps=self._asked.steps,
                faults=self._asked.kills,
                strict=self._topology.data.order == "strict",
                events=trouble.events,
                leftovers=left,
            )
        )
        if gave:
            findings = [Finding("both runs came to their end", False, gave), *findings]
        rows = figures.per_fault(trouble.events, run.path, trouble.epoch)
        report = {
            "passed": all(finding.ok for finding in findings),
            "when": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "topology": self._topology.name,
            "asked": asdict(self._asked),
            "findings": [asdict(finding) for finding in findings],
            "figures": figures.summary(rows, trouble.events, peace.events),
            "kinds": {kind: sum(f.kind == kind for f in faults) for kind in kinds.BY_NAME},
            "torchrun": self._torchrun,
            "not_possible": self._why_not,
            "faults": rows,
        }
        self._write(report, trouble)
        return report

    def _write(self, report: dict[str, Any], history: History) -> None:
        text = json.dumps(report, indent=1) + "\n"
        (self._directory / "report.json").write_text(text, encoding="utf-8")
        shown = page(report, history.events)
        (self._directory / "report.html").write_text(shown, encoding="utf-8")
