"""What a person sees while a run goes on: a line per step, or one live line per phase.

Reads the run directory (metrics.jsonl, processes.json) and asks nobody, so it shows the same
whether it started the run or found it running.
"""

import json
import os
import sys
from collections.abc import Callable
from typing import Any, BinaryIO, Protocol, TextIO

import msgspec

from actors.rundir import RunDir
from actors.supervisor import table
from protocol.clock import Clock, MonotonicClock

# A record is a few hundred bytes; a reader that was away long catches up piece by piece.
_PIECE_BYTES = 1 << 20
_LINE_BYTES = 1 << 14  # more than any record takes
_RESTARTS_EVERY_S = 1.0


class Watcher(Protocol):
    """Told by the launcher to look, and what to say."""

    def look(self) -> None:
        """Show what is new."""
        ...

    def say(self, text: str) -> None:
        """A sentence about the run itself."""
        ...


class Unfailing:
    """A watcher that falls silent when nobody takes what it shows: a reader that has left, a full
    disk, a terminal that was closed. None of that is the run's business.
    """

    def __init__(self, watcher: Watcher) -> None:
        self._watcher: Watcher | None = watcher

    def look(self) -> None:
        """As the watcher does, while it can."""
        self._try(lambda watcher: watcher.look())

    def say(self, text: str) -> None:
        """As the watcher does, while it can."""
        self._try(lambda watcher: watcher.say(text))

    def _try(self, show: Callable[[Watcher], None]) -> None:
        if self._watcher is not None:
            try:
                show(self._watcher)
            except OSError:
                self._watcher = None


class Tail:
    """Complete records added to metrics.jsonl since the last look."""

    def __init__(self, run: RunDir, *, skip_present: bool) -> None:
        """`skip_present`: what is there already has been shown by an earlier launcher."""
        self._path = run.metrics
        self._at = 0
        self._rest = b""
        if skip_present and self._path.exists():
            self._at = self._path.stat().st_size

    def new(self) -> list[dict[str, Any]]:
        """Records in the order of the file. Lines that are no JSON objects are left out."""
        try:
            with self._path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                if size < self._at:
                    # The recorder cut off what a run resumed from further back has not come to,
                    # and wrote the first step after that.
                    self._at, self._rest = _last_line(file, size), b""
                file.seek(self._at)
                piece = file.read(_PIECE_BYTES)
        except OSError:
            return []
        self._at += len(piece)
        *lines, self._rest = (self._rest + piece).split(b"\n")
        found: list[dict[str, Any]] = []
        for line in lines:
            try:
                record = msgspec.json.decode(line, type=dict[str, Any])
            except msgspec.DecodeError:
                continue
            found.append(record)
        return found


def _last_line(file: BinaryIO, size: int) -> int:
    """Where the last whole line of a file begins."""
    start = max(0, size - _LINE_BYTES)
    file.seek(start)
    end = file.read(size - start)
    return start + end.rfind(b"\n", 0, end.rfind(b"\n")) + 1 if b"\n" in end else size


class _Restarts:
    """How many actors have been restarted, looked up now and then."""

    def __init__(self, run: RunDir, clock: Clock) -> None:
        self._run, self._clock = run, clock
        self._at = -_RESTARTS_EVERY_S
        self._count = 0

    def count(self) -> int:
        if self._clock.now() - self._at >= _RESTARTS_EVERY_S:
            self._at = self._clock.now()
            self._count = sum(row.restarts for row in table.read(self._run).values())
        return self._count


def step_line(record: dict[str, Any], steps: int, restarts: int) -> str:
    """One committed step, for people."""
    parts = [f"step {record.get('step', '?')}/{steps}"]
    if isinstance(loss := record.get("loss"), int | float):
        parts.append(f"loss {loss:.4f}")
    if isinstance(bits := record.get("bits_per_byte"), int | float):
        parts.append(f"{bits:.3f} bits/byte")
    step_s = record.get("step_s") or 0.0
    if step_s and record.get("tokens"):
        parts.append(f"{record['tokens'] / step_s:,.0f} tokens/s")
    if step_s and "data_wait_s" in record:
        parts.append(f"waiting {min(1.0, record['data_wait_s'] / step_s):.0%}")
    parts.append(f"restarts {restarts}")
    return "  ".join(parts)


class Plain:
    """One plain line per step. For files, pipes and logs."""

    def __init__(self, run: RunDir, steps: int, out: TextIO, *, resumed: bool) -> None:
        self._steps = steps
        self._out = out
        self._tail = Tail(run, skip_present=resumed)
        self._restarts = _Restarts(run, MonotonicClock())

    def look(self) -> None:
        """Print the steps that are new."""
        for record in self._tail.new():
            self.say(step_line(record, self._steps, self._restarts.count()))

    def say(self, text: str) -> None:
        """Print it."""
        print(text, file=self._out, flush=True)

    def close(self) -> None:
        """Nothing to leave behind."""


class Live:
    """One line per phase on a terminal, the present one moving."""

    def __init__(self, run: RunDir, steps: int, *, resumed: bool) -> None:
        from rich.console import Console
        from rich.status import Status

        self._run, self._steps = run, steps
        self._tail = Tail(run, skip_present=resumed)
        self._restarts = _Restarts(run, MonotonicClock())
        self._console = Console(highlight=False)
        self._line = "starting"
        self._status = Status(self._line, console=self._console, spinner="dots")
        self._status.start()

    def look(self) -> None:
        """Move the present line."""
        records = self._tail.new()
        if records:
            if self._line == "starting":
                self._console.print("started", markup=False)
            self._line = step_line(records[-1], self._steps, self._restarts.count())
            self._status.update(self._line)
        elif self._line == "starting":
            rows = table.read(self._run)
            up = sorted(name for name, row in rows.items() if row.pid and "/" not in name)
            self._status.update(f"starting: {len(rows)} processes ({', '.join(up)}, ...)")

    def say(self, text: str) -> None:
        """A line that stays, above the moving one."""
        self._console.print(text, markup=False, soft_wrap=True)

    def close(self) -> None:
        """Leave the last line standing."""
        self._status.stop()
        if self._line != "starting":
            self._console.print(self._line, markup=False)


class _Quiet:
    """For a launcher nobody looks at: only what it says itself, into its log."""

    def __init__(self, print_line: Callable[[str], object]) -> None:
        self._print = print_line

    def look(self) -> None:
        """Nothing."""

    def say(self, text: str) -> None:
        """A line in the log."""
        self._print(json.dumps({"event": text}) + "\n")


def quiet() -> Watcher:
    """Shows nothing."""
    return _Quiet(sys.stderr.write)
