"""Runs as a person starts them: `run.py` in a process of its own, and again after each end."""

import contextlib
import os
import select
import signal
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from actors import outcome, process
from actors.outcome import Outcome
from actors.process import Identity
from actors.rundir import RunDir
from protocol import segments

# What was killed leaves the process table within this.
_TRIES, _TRY_S = 500, 0.01
# How `run.py` ends when it cannot go on, or not even begin: it has said why.
_SAID_WHY = (1, 2)
_CALL = "import sys; from actors.commands import call; sys.exit(call())"


def command(*arguments: str) -> list[str]:
    """`run.py ARGUMENTS`, wherever this is installed."""
    return process.python("-c", _CALL, *arguments)


@dataclass(slots=True)
class Driven:
    """One run directory and whoever drives it."""

    run: RunDir
    output: Path  # what all its launchers print
    launches: int = 0
    launcher: Identity | None = None
    code: int | None = None  # how the last launcher ended
    _started: list[int] = field(default_factory=list[int])  # ours to reap

    def begin(self, topology: str, steps: int, settings: Iterable[str]) -> None:
        """A new run."""
        sets = [part for setting in settings for part in ("--set", setting)]
        self._launch("run", "--topology", topology, "--steps", str(steps), *sets)

    def resume(self) -> None:
        """Go on with it: with what lives, or from the last checkpoint."""
        self._launch("run", "--resume")

    def _launch(self, *arguments: str) -> None:
        wanted = command(*arguments, "--run", str(self.run.path))
        env = process.environment()
        self.launcher = process.start(wanted, output=self.output, env=env)
        self._started.append(self.launcher.pid)
        self.launches += 1

    def reap(self) -> bool:
        """Whether the launcher has just ended. Nobody else is reaped: some are being traced."""
        gone = False
        for pid in list(self._started):
            for ended in process.reap(pid):
                self._started.remove(pid)
                if self.launcher is not None and pid == self.launcher.pid:
                    self.launcher, self.code, gone = None, ended.code, True
        return gone

    def outcome(self) -> Outcome | None:
        """How it ended; None while it has not, and after a crash. What could not be recorded, the
        disk being full, its launcher has said, and so it has what kept it from resuming."""
        found = outcome.read(self.run)
        if found is None and self.code in _SAID_WHY:
            return Outcome(end="failed", reason=self.last_words())
        return found

    def everybody(self) -> list[Identity]:
        """Every process of it but the launcher."""
        return process.of_run(self.run.run_id)

    def end_everything(self) -> None:
        """SIGKILL to whatever it consists of, and its memory is gone, as with the machine."""
        launcher, self.launcher = self.launcher, None
        if launcher is not None:
            process.send_signal(launcher, signal.SIGKILL)
        for _ in range(_TRIES):
            left = self.everybody()
            for who in left:
                process.send_signal(who, signal.SIGKILL)
            self.reap()
            if not left:
                return
            select.select([], [], [], _TRY_S)

    def forget_memory(self) -> None:
        """What a machine forgets when it goes down."""
        for name in segments.listing(f"trireme-{self.run.run_id}-"):
            segments.unlink(name)
        self.run.remove_socket_dir()

    def leftovers(self) -> list[str]:
        """What a run that is over must not leave."""
        left = [f"process {who.pid}" for who in self.everybody()]
        left += [
            f"shared memory {name}" for name in segments.listing(f"trireme-{self.run.run_id}-")
        ]
        if self.run.socket_dir.exists():
            left.append(str(self.run.socket_dir))
        return left

    def last_words(self) -> str:
        """The last line that a launcher printed."""
        with contextlib.suppress(OSError):
            lines = self.output.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            return lines[-1] if lines else ""
        return ""


def descendants(who: Identity) -> list[Identity]:
    """Children of that process, and theirs."""
    parents = {int(pid): process.parent(int(pid)) for pid in os.listdir("/proc") if pid.isdecimal()}
    found: list[int] = [who.pid]
    for pid in found:
        found += [child for child, parent in parents.items() if parent == pid]
    return [one for pid in found[1:] if (one := process.identity(pid)) is not None]
