"""Data loaders side by side: the same samples, two workers, one consumer.

    python tests/benchmarks/loading.py [--json] [--only LOADER,..] [--workloads W,..]
                                       [--repeats 5] [--merge FILE..]

Two questions for each workload (loading_work.py) and each loader (loading_peers.py). How many
samples a second, when the consumer takes batches as they come. And what share of its time does a
consumer wait that takes a batch every so often, at 80 % of the bound's pace, from its first batch
on. All of it takes 25 minutes; pieces of it, as JSON, are shown together by `--merge`.

"of bound" is what the delivered samples had to compute, as a share of all cores' time. Of cpu-S
and code that is for a whole epoch, from the first sample that any worker begins to the last batch's
delivery. Elsewhere an epoch would have no end: time counts from a third of the run on. What the
loader itself computes, its consumer's process included, is no excuse: it lowers the share. "free"
is what others left of the cores, by the kernel's count: of the bound no more can be reached.

Each loader has a process of its own, begun before the first run; loaders take turns (Ray comes
last, by itself: its servers compute though nobody asks them to); medians. Peers come with `pip
install -e '.[bench]'`; those that are missing are named.
"""

import argparse
import importlib.util
import json
import os
import select
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import psutil  # noqa: E402 - after the path

from tests.benchmarks.loading_peers import LOADERS, NEEDS  # noqa: E402
from tests.benchmarks.loading_work import CORES, NAMES, Workload, gather, workload  # noqa: E402

# A consumer that keeps pace leaves loaders this much of the cores.
PACE = 0.8
# Loaders that do not suffer others beside them.
APART = ("ray data",)
_LOOK_S = 0.5
_WORDS = ("workload", "loader", "problem")
# How long a run may take at most: what is asked for, and time to begin and to end.
_PATIENCE_S = 30.0


@dataclass(frozen=True)
class Asked:
    """One run."""

    name: str
    corpus: str
    run: str  # file that says when it began
    seconds: float
    interval_s: float = 0.0  # between two batches; 0: as they come


# --- one run, in its loader's process -------------------------------------------------------------


def measure(loader: str, asked: Asked) -> dict[str, Any]:
    """Take batches until there are no more, or for so long."""
    paced = asked.interval_s > 0
    work = workload(asked.name, run=asked.run, corpus=asked.corpus, paced=paced)
    with closing(LOADERS[loader](work)) as batches:
        first = next(batches)
        taken: list[tuple[float, Any]] = [(time.monotonic(), _ids(first))]
        del first
        began = float(Path(asked.run).read_text())
        others = [(taken[0][0], _others_cpu_s())]
        waited_s, ended, memory_mb = 0.0, False, 0.0
        due = taken[0][0] + asked.interval_s
        until = (taken[0][0] if paced else began) + asked.seconds
        while time.monotonic() < until:
            time.sleep(max(0.0, due - time.monotonic()))
            memory_mb = memory_mb or _memory_mb(len(taken))
            asked_at = time.monotonic()
            batch = next(batches, None)
            if batch is None:
                ended = True
                break
            taken.append((time.monotonic(), _ids(batch)))
            waited_s += taken[-1][0] - asked_at
            if taken[-1][0] > others[-1][0] + _LOOK_S:  # not at the end: who has gone is not ours
                others.append((taken[-1][0], _others_cpu_s()))
            due = taken[-1][0] + asked.interval_s
            del batch
        spent_s = max(taken[-1][0] - taken[0][0], 1e-9)
    return {
        **_speed(taken, began, work, whole=ended),
        "first_s": taken[0][0] - began,
        "waiting": waited_s / spent_s,
        "free": _free(others),
        "worker_mb": memory_mb,
    }


def _free(others: list[tuple[float, float]]) -> float | None:
    """What they left of the cores. `others`: when, and what they had computed by then."""
    (began, before), (ended, after) = others[0], others[-1]
    return 1 - (after - before) / (CORES * (ended - began)) if ended > began else None


def _memory_mb(taken: int) -> float:
    """Of the largest worker, beyond what it shares with others; 0: it is too soon to ask."""
    if taken < 4:
        return 0.0
    most = 0
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            most = max(most, child.memory_full_info().uss)
    return most / 1e6


def _speed(
    taken: list[tuple[float, Any]], began: float, work: Workload, *, whole: bool
) -> dict[str, float]:
    """Samples a second, and their computing as a share of the cores' time."""
    end = taken[-1][0]
    late = taken
    if not whole:
        from_s = began + (end - began) / 3
        late = [(at, ids) for at, ids in taken if at >= from_s]
        late = taken if len(late) < 2 else late
        began, late = late[0][0], late[1:]
    ids = [int(i) for _, batch in late for i in batch]
    wall_s = max(end - began, 1e-9)
    found = {"rate": len(ids) / wall_s}
    if work.costs is not None:
        found["of_bound"] = float(work.costs[ids].sum()) / (CORES * wall_s)
    return found


def _ids(batch: Any) -> list[int]:
    """Which samples a batch is made of, whoever made it."""
    if isinstance(batch, dict):
        found = batch["id"]
    elif isinstance(batch[0], tuple):
        found = [sample[0] for sample in batch]
    else:
        found = batch[0]
    return [int(i) for i in found]


def _others_cpu_s() -> float:
    """Computing of everything on this machine that is not ours."""
    times = psutil.cpu_times()
    busy = times.user + times.nice + times.system
    me = psutil.Process()
    ours = 0.0
    for process in (me, *me.children(recursive=True)):
        with suppress(psutil.Error):
            cpu = process.cpu_times()
            ours += cpu.user + cpu.system + cpu.children_user + cpu.children_system
    return busy - ours


def _serve(loader: str) -> None:
    """A loader's process: runs, as they are asked for, one a line."""
    with suppress(ImportError):
        importlib.import_module(NEEDS.get(loader, "actors.data"))
    for line in sys.stdin:
        found = measure(loader, Asked(**json.loads(line)))
        sys.stdout.write("\n#" + json.dumps(found) + "\n")
        sys.stdout.flush()
    os._exit(0)  # some loaders' threads would not end by themselves


# --- all of them ----------------------------------------------------------------------------------


class Process:
    """A loader's."""

    def __init__(self, loader: str, directory: Path) -> None:
        self._errors = directory / f"{loader.replace(' ', '_')}.err"
        with self._errors.open("w") as errors:
            self._process = subprocess.Popen(
                [sys.executable, __file__, "--serve", loader],
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                bufsize=0,  # or `select` would not see what has been read ahead
            )

    def run(self, asked: Asked) -> dict[str, Any]:
        """One run's figures; {"problem": ...} when it did not work."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(OSError):
            self._process.stdin.write(json.dumps(asdict(asked)).encode() + b"\n")
        until = time.monotonic() + 10 * asked.seconds + _PATIENCE_S
        while select.select([self._process.stdout], [], [], max(0.0, until - time.monotonic()))[0]:
            line = self._process.stdout.readline()
            if line.startswith(b"#"):
                return json.loads(line[1:])
            if not line:
                return {"problem": self._errors.read_text().strip()[-300:] or "it has ended"}
        return {"problem": "no end"}

    def end(self) -> None:
        """Its own processes end with it."""
        below = psutil.Process(self._process.pid).children(recursive=True)
        self._process.kill()
        for child in below:
            with suppress(psutil.Error):
                child.kill()
        self._process.communicate()


@contextmanager
def processes(loaders: list[str]) -> Generator[dict[str, Process]]:
    """One for each."""
    with tempfile.TemporaryDirectory() as directory:
        made = {loader: Process(loader, Path(directory)) for loader in loaders}
        try:
            yield made
        finally:
            for process in made.values():
                process.end()


class Table:
    """All runs of one workload."""

    def __init__(self, name: str, corpus: str, repeats: int) -> None:
        self.name, self.corpus, self.repeats = name, corpus, repeats
        self.runs: dict[tuple[str, bool], list[dict[str, Any]]] = {}
        kind = name.partition("-")[0]
        self._fast_s = {"cpu": 25.0, "code": 60.0}.get(kind, 2.5)  # cpu-S and code end before
        self._paced_s = {"cpu": 2.5, "code": 2.5}.get(kind, 2.0)

    def fill(self, loaders: list[str], directory: Path) -> None:
        """Run these in turn, as fast as they can and paced."""
        with processes(loaders) as made:
            for paced in (False, True):
                interval_s = self._interval_s() if paced else 0.0
                for repeat in range(self.repeats):
                    for loader in loaders:
                        run = directory / f"{self.name}-{loader}-{paced}-{repeat}"
                        seconds = self._paced_s if paced else self._fast_s
                        asked = Asked(self.name, self.corpus, str(run), seconds, interval_s)
                        found = made[loader].run(asked)
                        self.runs.setdefault((loader, paced), []).append(found)
                        print(".", end="", file=sys.stderr, flush=True)

    def _interval_s(self) -> float:
        """Between two batches: at `PACE` of the bound, or of the best where no bound is known."""
        work = workload(self.name, corpus=self.corpus)
        if work.costs is not None:
            return work.batch / (PACE * CORES / float(work.costs.mean()))
        rates = [median(found, "rate") or 0.0 for found in self.runs.values()]
        return work.batch / (PACE * max(*rates, 1e-3))

    def row(self, loader: str) -> dict[str, Any]:
        """Medians."""
        fast, paced = self.runs[loader, False], self.runs[loader, True]
        problems = [one["problem"] for one in (*fast, *paced) if "problem" in one]
        return {
            "workload": self.name,
            "loader": loader,
            **{what: median(fast, what) for what in ("rate", "of_bound", "free", "worker_mb")},
            **{what: median(paced, what) for what in ("waiting", "first_s")},
            "problem": problems[0] if problems else "",
        }


def median(found: list[dict[str, Any]], what: str) -> float | None:
    """Of those runs that have it."""
    values = [one[what] for one in found if one.get(what) is not None]
    return statistics.median(values) if values else None


def compare(name: str, loaders: list[str], repeats: int, corpus: str) -> list[dict[str, Any]]:
    """Rows of one workload."""
    table = Table(name, corpus, repeats)
    apart = [loader for loader in loaders if loader in APART]
    together = [loader for loader in loaders if loader not in APART]
    with tempfile.TemporaryDirectory() as directory:
        for group in (together, *([loader] for loader in apart)):
            if group:
                table.fill(group, Path(directory))
    return [table.row(loader) for loader in loaders]


def merged(documents: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of several tables; medians where one stands in more than one of them."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in (row for document in documents for row in document["rows"]):
        found.setdefault((row["workload"], row["loader"]), []).append(row)
    figures = [what for what in documents[0]["rows"][0] if what not in _WORDS]
    return [
        {
            **rows[0],
            **{what: median(rows, what) for what in figures},
            "problem": max(row["problem"] for row in rows),
        }
        for rows in found.values()
    ]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--only", default=",".join(LOADERS))
    parser.add_argument("--workloads", default=",".join(NAMES))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--merge", nargs="+", default=[], metavar="FILE", help="only show these")
    parser.add_argument("--serve", default="", help=argparse.SUPPRESS)
    wanted = parser.parse_args()
    if wanted.serve:
        _serve(wanted.serve)
    loaders = [loader for loader in LOADERS if loader in wanted.only.split(",")]
    missing = [name for name in loaders if not importlib.util.find_spec(NEEDS.get(name, "sys"))]
    rows: list[dict[str, Any]] = []
    if wanted.merge:
        rows = merged([json.loads(Path(file).read_text()) for file in wanted.merge])
    else:
        for name in missing:
            print(f"{name}: not installed; pip install -e '.[bench]'", file=sys.stderr)
        rows = _measured([name for name in loaders if name not in missing], wanted)
    if wanted.json:
        print(json.dumps({"benchmark": "loading", "missing": missing, "rows": rows}, indent=1))
    else:
        _show(rows)


def _measured(loaders: list[str], wanted: argparse.Namespace) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    names = wanted.workloads.split(",")
    with tempfile.TemporaryDirectory() as directory:
        corpus = gather(Path(directory)) if "code" in names else ""
        for name in names:
            rows += compare(name, loaders, wanted.repeats, corpus)
    print(file=sys.stderr)
    return rows


def _show(rows: list[dict[str, Any]]) -> None:
    head = (
        "workload",
        "loader",
        "samples/s",
        "of bound",
        "free",
        "waiting",
        "first s",
        "worker MB",
    )
    print("| " + " | ".join(head) + " |  |")
    print("|" + "---|" * (len(head) + 1))
    for row in rows:
        cells = (
            row["workload"],
            row["loader"],
            _cell(row["rate"], ",.1f"),
            *(_cell(row[what], ".1%") for what in ("of_bound", "free", "waiting")),
            _cell(row["first_s"], ".2f"),
            _cell(row["worker_mb"], ".0f"),
            row["problem"][-60:].replace("\n", " "),
        )
        print("| " + " | ".join(cells) + " |")


def _cell(value: float | None, how: str) -> str:
    return "-" if value is None else format(value, how)


if __name__ == "__main__":
    main()
