"""Runs of the real `python run.py` for benchmarks, and tables of what they measured.

Everything is measured from outside: the run directory, /proc and the logs. This machine is shared
and noisy, so benchmarks repeat, alternate what they compare, and quote medians.
"""

import argparse
import contextlib
import datetime
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from actors.rundir import RunDir

ROOT = Path(__file__).parents[2]
POLL_S = 0.005
# A benchmark that waits longer than this for something has found a bug, not a figure.
PATIENCE_S = 300.0


class BenchmarkFailed(Exception):
    """A run did not do what was to be measured: says what it said."""


@dataclass
class Run:
    """One `run.py`, alive or ended."""

    process: "subprocess.Popen[str]"
    run: RunDir
    began: float  # time.monotonic()
    output: Path
    records: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])

    def metrics(self) -> list[dict[str, Any]]:
        """The committed steps so far."""
        return read_lines(self.run.metrics)

    def until(self, what: Callable[[], bool], about: str) -> float:
        """Wait; seconds since the start of `run.py`. Raises `BenchmarkFailed`."""
        deadline = time.monotonic() + PATIENCE_S
        while not what():
            if self.process.poll() is not None:
                raise BenchmarkFailed(f"run.py ended before {about}:\n{self.said()}")
            if time.monotonic() > deadline:
                raise BenchmarkFailed(f"no {about} within {PATIENCE_S:g} s:\n{self.said()}")
            time.sleep(POLL_S)
        return time.monotonic() - self.began

    def until_step(self, step: int) -> float:
        """Wait for a committed step; seconds since the start of `run.py`."""
        return self.until(lambda: self.newest_step() >= step, f"step {step}")

    def newest_step(self) -> int:
        """The last committed step; 0 before the first."""
        found = self.metrics()
        return found[-1]["step"] if found else 0

    def finish(self) -> float:
        """Wait for the end; seconds since the start. Raises `BenchmarkFailed` unless it exits 0."""
        try:
            code = self.process.wait(timeout=PATIENCE_S)
        except subprocess.TimeoutExpired:
            raise BenchmarkFailed(f"run.py does not end:\n{self.said()}") from None
        if code != 0:
            raise BenchmarkFailed(f"run.py exited with {code}:\n{self.said()}")
        return time.monotonic() - self.began

    def said(self) -> str:
        """The end of what it printed."""
        return self.output.read_text(errors="replace")[-4000:]

    def logs(self) -> list[dict[str, Any]]:
        """Every log record so far, in order of time."""
        found = [
            record
            for path in self.run.logs.glob("*.jsonl*")
            for record in read_lines(path)
            if "timestamp" in record
        ]
        return sorted(found, key=at)


@contextlib.contextmanager
def running(
    *arguments: str, cache: Path | None = None, env: Mapping[str, str] | None = None
) -> Generator[Run]:
    """Start `run.py ARGUMENTS --run DIR` in a directory of its own; afterwards nothing is left."""
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        run = RunDir(Path(directory) / "run")
        output = Path(directory) / "output"
        environment = {**os.environ, **(env or {})}
        if cache is not None:
            environment["XDG_CACHE_HOME"] = str(cache)
        with output.open("w") as file:
            began = time.monotonic()
            child = subprocess.Popen(
                [sys.executable, "run.py", *arguments, "--run", str(run.path)],
                cwd=ROOT,
                env=environment,
                stdout=file,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                text=True,
            )
        try:
            yield Run(child, run, began, output)
        finally:
            _end(child)


def _end(child: "subprocess.Popen[str]") -> None:
    """Ctrl-C, which is a clean stop; then less polite."""
    for number, patience_s in ((signal.SIGINT, 30), (signal.SIGTERM, 15), (signal.SIGKILL, 5)):
        if child.poll() is not None:
            return
        child.send_signal(number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(timeout=patience_s)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The whole JSON lines of a file; none while there is none."""
    try:
        text = path.read_bytes()
    except OSError:
        return []
    found: list[dict[str, Any]] = []
    for line in text[: text.rfind(b"\n") + 1].splitlines():
        with contextlib.suppress(ValueError):
            found.append(json.loads(line))
    return found


def at(record: Mapping[str, Any]) -> float:
    """When a log record was made: seconds since 1970."""
    return datetime.datetime.fromisoformat(record["timestamp"]).timestamp()


def tokens_per_s(records: Sequence[Mapping[str, Any]], skip: int) -> float:
    """Median over committed steps, without the first `skip`, of tokens per second."""
    return statistics.median(one["tokens"] / one["step_s"] for one in records[skip:])


# --- Showing --------------------------------------------------------------------------------------


def report(main: Callable[[], None]) -> None:
    """Run a benchmark; when what it measures does not work, say so and exit with 1."""
    try:
        main()
    except BenchmarkFailed as error:
        sys.exit(f"benchmark failed: {error}")


def arguments(description: str | None, **defaults: int | str) -> argparse.Namespace:
    """The options of a benchmark: `--json`, and one each for `defaults`, of that type."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--json", action="store_true", help="one JSON document")
    for name, value in defaults.items():
        parser.add_argument(f"--{name}", type=type(value), default=value, help=f"default {value}")
    return parser.parse_args()


def show(title: str, rows: Sequence[Mapping[str, Any]], *, as_json: bool) -> None:
    """Rows of one table, all with the same keys."""
    if as_json:
        print(json.dumps({"benchmark": title, "rows": list(rows)}, indent=1))
        return
    head = list(rows[0]) if rows else []
    cells = [head, *([_cell(row[key]) for key in head] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    print(title)
    for number, line in enumerate(cells):
        print(
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        )
        if number == 0:
            print("  ".join("-" * width for width in widths))


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 100 else f"{value:,.0f}"
    return "-" if value is None else str(value)


def spread(values: Sequence[float]) -> str:
    """The median, and between what it lies."""
    if not values:
        return "-"
    return f"{statistics.median(values):.3g} [{min(values):.3g} - {max(values):.3g}]"


@contextlib.contextmanager
def fresh_cache() -> Generator[Path]:
    """An empty directory to stand in for ~/.cache."""
    path = Path(tempfile.mkdtemp(prefix="bench-cache-"))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
