"""What the graph costs: tokens/s of `local` with one trainer against a plain loop.

    python -m tests.benchmarks.overhead [--steps 60] [--repeats 3] [--json]

The plain loop (plain_loop.py) trains the same model on the same data with the same optimizer in a
single process with the same number of threads. The two alternate, because this machine's speed
changes from minute to minute, and end with the same weights, bit for bit. Bound: at least 0.90 of
the plain loop's speed. The last row leaves the rollout generator out, to show what it takes.
"""

import json
import statistics
import subprocess
import sys
from collections.abc import Callable

from tests.benchmarks.graph import (
    ROOT,
    BenchmarkFailed,
    arguments,
    report,
    running,
    show,
    spread,
    tokens_per_s,
)

Way = Callable[[], tuple[float, str]]  # measures tokens per second; the weights' digest

BOUND = 0.90
SKIP_STEPS = 10  # page faults, first batches, connections


def main() -> None:
    """Measure and print."""
    options = arguments(__doc__, steps=60, repeats=3)
    ways: dict[str, Way] = {
        "plain loop": lambda: plain(options.steps),
        "local, one trainer": lambda: graph(options.steps),
        "the same without rollouts": lambda: graph(options.steps, "actors.rollouts=0"),
    }
    found: dict[str, list[float]] = {name: [] for name in ways}
    digests: dict[str, set[str]] = {name: set() for name in ways}
    for _ in range(options.repeats):
        for name, measure in ways.items():
            speed, digest = measure()
            found[name].append(speed)
            digests[name].add(digest)
    rows: list[dict[str, object]] = []
    for name, speeds in found.items():
        # Round by round, because the machine is another one a minute later.
        pairs = zip(speeds, found["plain loop"], strict=True)
        ratio = statistics.median(speed / plain for speed, plain in pairs)
        kept = None if name == "plain loop" else ratio >= BOUND
        rows.append(
            {
                "way": name,
                "tokens/s": spread(speeds),
                "of the plain loop": ratio,
                "kept": kept,
                "same weights": digests[name] == digests["plain loop"],
            }
        )
    show("overhead of the graph", rows, as_json=options.json)


def plain(steps: int) -> tuple[float, str]:
    """Tokens per second and weights of the plain loop. Raises `BenchmarkFailed`."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.plain_loop", "--steps", str(steps), "--json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise BenchmarkFailed(f"plain_loop: {done.stderr[-2000:]}")
    document = json.loads(done.stdout)
    return tokens_per_s(document["records"], SKIP_STEPS), document["weights_digest"]


def graph(steps: int, *overrides: str) -> tuple[float, str]:
    """Tokens per second and weights of the graph. Raises `BenchmarkFailed`."""
    settings = [part for one in ("actors.trainers=1", *overrides) for part in ("--set", one)]
    with running("--topology", "local", "--steps", str(steps), *settings) as run:
        run.finish()
        records = run.metrics()
        return tokens_per_s(records, SKIP_STEPS), records[-1]["weights_digest"]


if __name__ == "__main__":
    report(main)
