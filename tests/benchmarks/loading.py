"""Data loaders side by side: the same samples, two workers, one consumer.

    python tests/benchmarks/loading.py [--json] [--only LOADER,..] [--workloads W,..]
                                       [--seconds 10] [--repeats 5]

Two questions for each workload (loading_work.py) and each loader (loading_peers.py). How many
samples a second, when the consumer takes batches as they come; "of bound" is what those samples had
to compute, as a share of the cores' time. And what share of its time does a consumer wait that
takes a batch every so often, at 80 % of the bound's pace. Every figure is from a process of its
own; loaders take turns; medians. Time counts from the first sample that any worker begins ("first":
until the first batch), so starting up is free.

The machine may be shared: "free" is what others left of the cores, by the kernel's count of their
computing. Of the bound no more than that can be reached. Peers come with `pip install -e
'.[bench]'`; those that are missing are named.
"""

import argparse
import importlib.util
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import psutil  # noqa: E402 - after the path

from tests.benchmarks.loading_peers import LOADERS, NEEDS  # noqa: E402
from tests.benchmarks.loading_work import (  # noqa: E402
    BATCH,
    BEGAN,
    CORES,
    NAMES,
    Workload,
    workload,
)

# A consumer that keeps pace leaves loaders this much of the cores.
PACE = 0.8
RUST_FILES, PYTHON_FILES = 400, 600


# --- one run, in a process of its own -------------------------------------------------------------


def measure(loader: str, work: Workload, seconds: float, interval_s: float) -> dict[str, Any]:
    """Take batches for so long. `interval_s`: between two; 0: as they come.

    The rate is that of the last two thirds: what is made ahead is made by then.
    """
    batches = LOADERS[loader](work)
    first = next(batches)
    taken: list[tuple[float, Any]] = [(time.monotonic(), _ids(first))]
    del first
    began = float(Path(os.environ[BEGAN]).read_text())
    others, from_s, waited_s = _others_cpu_s(), taken[0][0], 0.0
    while time.monotonic() - began < seconds:
        if interval_s:
            time.sleep(interval_s)
        asked = time.monotonic()
        batch = next(batches, None)
        if batch is None:
            break
        taken.append((time.monotonic(), _ids(batch)))
        waited_s += taken[-1][0] - asked
        del batch
    others_s = _others_cpu_s() - others
    workers = psutil.Process().children(recursive=True)
    memory = [child.memory_full_info().uss for child in workers if child.is_running()]
    spent_s = max(time.monotonic() - from_s, 1e-9)
    return {
        **_speed(taken, began + seconds / 3, work),
        "first_s": taken[0][0] - began,
        "waiting": waited_s / spent_s,
        "free": 1 - others_s / (CORES * spent_s),
        "worker_mb": max(memory, default=0) / 1e6,
    }


def _speed(taken: list[tuple[float, Any]], after: float, work: Workload) -> dict[str, float]:
    """Samples a second, and their computing as a share of the cores' time."""
    late = [(at, ids) for at, ids in taken if at >= after]
    if len(late) < 2:
        late = taken
    wall_s = max(late[-1][0] - late[0][0], 1e-9)
    ids = [int(i) for _, batch in late[1:] for i in batch]
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
    ours = sum(
        cpu.user + cpu.system + cpu.children_user + cpu.children_system
        for cpu in (process.cpu_times() for process in (me, *me.children(recursive=True)))
    )
    return busy - ours


def _run_one(text: str) -> None:
    asked = json.loads(text)
    corpus = Path(asked["corpus"]) if asked["corpus"] else None
    found = measure(
        asked["loader"], workload(asked["workload"], corpus), asked["seconds"], asked["interval_s"]
    )
    sys.stdout.write("\n" + json.dumps(found) + "\n")
    sys.stdout.flush()
    os._exit(0)  # some loaders' threads would not end by themselves


# --- all of them ----------------------------------------------------------------------------------


def run(loader: str, name: str, seconds: float, interval_s: float, corpus: str) -> dict[str, Any]:
    """One run's figures; {"problem": ...} when it did not work."""
    asked = {
        "loader": loader,
        "workload": name,
        "seconds": seconds,
        "interval_s": interval_s,
        "corpus": corpus,
    }
    with tempfile.TemporaryDirectory() as directory:
        env = {**os.environ, BEGAN: f"{directory}/began", "PYTHONPATH": str(ROOT)}
        try:
            done = subprocess.run(
                [sys.executable, __file__, "--one", json.dumps(asked)],
                env=env,
                capture_output=True,
                text=True,
                check=False,
                timeout=10 * seconds + 60,
            )
        except subprocess.TimeoutExpired:
            return {"problem": "no end"}
    last = done.stdout.strip().rpartition("\n")[2]
    if done.returncode != 0 or not last.startswith("{"):
        return {"problem": (done.stderr.strip() or "no figures")[-300:]}
    return json.loads(last)


def compare(name: str, loaders: list[str], wanted: argparse.Namespace, corpus: str) -> list[Any]:
    """Rows of one workload."""
    runs: dict[tuple[str, bool], list[dict[str, Any]]] = {}
    interval_s = 0.0
    for paced in (False, True):
        if paced:
            interval_s = _interval_s(name, runs)
        for _ in range(wanted.repeats):
            for loader in loaders:
                found = run(loader, name, wanted.seconds, interval_s, corpus)
                runs.setdefault((loader, paced), []).append(found)
                print(".", end="", file=sys.stderr, flush=True)
    return [_row(name, loader, runs) for loader in loaders]


def _interval_s(name: str, runs: dict[tuple[str, bool], list[dict[str, Any]]]) -> float:
    """Between two batches: at `PACE` of the bound, or of the best where no bound is known."""
    if name == "code":
        rates = [_median(found, "rate") or 0.0 for found in runs.values()]
        return BATCH / (PACE * max(rates))
    known = workload(name).costs
    rate = 20_000.0 if known is None else CORES / float(known.mean())
    return workload(name).batch / (PACE * rate)


def _median(found: list[dict[str, Any]], what: str) -> float | None:
    values = [one[what] for one in found if what in one]
    return statistics.median(values) if values else None


def _row(name: str, loader: str, runs: Any) -> dict[str, Any]:
    fast, paced = runs[loader, False], runs[loader, True]
    problems = [one["problem"] for one in (*fast, *paced) if "problem" in one]
    return {
        "workload": name,
        "loader": loader,
        "samples_per_s": _median(fast, "rate"),
        "of_bound": _median(fast, "of_bound"),
        "free": _median(fast, "free"),
        "waiting": _median(paced, "waiting"),
        "first_s": _median(paced, "first_s"),
        "worker_mb": _median(fast, "worker_mb"),
        "problem": problems[0] if problems else "",
    }


def _corpus(directory: Path) -> str:
    """Python's library and Rust's, some files of each, and a tokenizer for them."""
    from actors.data import tokenizer
    from actors.data.sources import library

    rust = next(
        (p for p in (Path("/usr/src"), Path("/usr/lib/rustlib")) if any(p.rglob("*.rs"))), None
    )
    found = sorted(Path(library()).glob("*.py"))[:PYTHON_FILES]
    if rust is not None:
        found += [p for p in sorted(rust.rglob("*.rs")) if p.stat().st_size < 200_000][:RUST_FILES]
    for i, path in enumerate(found):
        shutil.copy(path, directory / f"{i:05}_{path.name}")
    texts = (path.read_text(errors="replace") for path in found[::10])
    (directory / "tokenizer.json").write_bytes(tokenizer.train(texts, 2000))
    return str(directory)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--only", default=",".join(LOADERS))
    parser.add_argument("--workloads", default=",".join(NAMES))
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--one", default="", help=argparse.SUPPRESS)
    wanted = parser.parse_args()
    if wanted.one:
        _run_one(wanted.one)
    loaders = [loader for loader in LOADERS if loader in wanted.only.split(",")]
    missing = [name for name in loaders if not importlib.util.find_spec(NEEDS.get(name, "sys"))]
    for name in missing:
        print(f"{name}: not installed; pip install -e '.[bench]'", file=sys.stderr)
    loaders = [name for name in loaders if name not in missing]
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as directory:
        names = wanted.workloads.split(",")
        corpus = _corpus(Path(directory)) if "code" in names else ""
        for name in names:
            rows += compare(name, loaders, wanted, corpus)
    print(file=sys.stderr)
    if wanted.json:
        print(json.dumps({"benchmark": "loading", "missing": missing, "rows": rows}, indent=1))
    else:
        _show(rows)


def _show(rows: list[dict[str, Any]]) -> None:
    head = ("workload", "loader", "samples/s", "of bound", "free", "waiting", "first", "MB")
    line = "{:9} {:21} {:>9} {:>9} {:>7} {:>8} {:>7} {:>4}  {}"
    print(line.format(*head, ""))
    for row in rows:
        print(
            line.format(
                row["workload"],
                row["loader"],
                _cell(row["samples_per_s"], ",.1f"),
                *(_cell(row[what], ".1%") for what in ("of_bound", "free", "waiting")),
                _cell(row["first_s"], ".2f"),
                _cell(row["worker_mb"], ".0f"),
                row["problem"][-60:].replace("\n", " "),
            )
        )


def _cell(value: float | None, how: str) -> str:
    return "-" if value is None else format(value, how)


if __name__ == "__main__":
    main()
