"""From a cold start to the first committed step of emulated config_b.

    python -m tests.benchmarks.startup [--repeats 3] [--json]

"first" is a machine that has never run Trireme: the tokenizer is trained. "cached" has it. Bounds:
45 s and 20 s on two cores. Beside them, when each role was first of use (logs) in the median run.
"""

import statistics
from pathlib import Path

from tests.benchmarks.graph import Run, arguments, at, fresh_cache, report, running, show, spread

BOUNDS_S = {"first": 45.0, "cached": 20.0}


def main() -> None:
    """Measure and print."""
    options = arguments(__doc__, repeats=3)
    rows: list[dict[str, object]] = []
    timelines: list[dict[str, object]] = []
    with fresh_cache() as cache:
        for name, repeats in (("first", 1), ("cached", options.repeats)):
            runs = [once(cache) for _ in range(repeats)]
            steps = [first_step for first_step, _, _ in runs]
            bound_s = BOUNDS_S[name]
            rows.append(
                {
                    "start": name,
                    "first step, s": spread(steps),
                    "bound, s": bound_s,
                    "kept": statistics.median(steps) <= bound_s,
                    "whole run of 1 step, s": spread([whole for _, whole, _ in runs]),
                }
            )
            timelines += [{"start": name, **line} for line in sorted_timeline(runs[-1][2])]
    show("startup of emulated config_b", rows, as_json=options.json)
    if not options.json:
        show("\nwhen each was first of use", timelines, as_json=False)


def once(cache: Path) -> tuple[float, float, dict[str, float]]:
    """Seconds to the first step, to the end, and to each first useful message."""
    with running("--topology", "config_b", "--steps", "1", cache=cache) as run:
        first_step = run.until_step(1)
        whole = run.finish()
        return first_step, whole, timeline(run)


def timeline(run: Run) -> dict[str, float]:
    """Seconds from the first log record to each actor's first useful message of each kind."""
    records = run.logs()
    zero = at(records[0]) if records else 0.0
    found: dict[str, float] = {}
    for record in records:
        if record["event"] == "first message of a kind":
            found.setdefault(f"{record['actor']} {record['kind']}", at(record) - zero)
    return found


def sorted_timeline(found: dict[str, float]) -> list[dict[str, object]]:
    """As rows, earliest first."""
    return [
        {"who and what": name, "s after the first log line": seconds}
        for name, seconds in sorted(found.items(), key=lambda item: item[1])
    ]


if __name__ == "__main__":
    report(main)
