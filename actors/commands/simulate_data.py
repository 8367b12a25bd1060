"""`run.py simulate --data`: how a run's loader fares with as many workers as one likes."""

import json
import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from actors.simulation.leasing import Report
    from actors.topology import Topology

# Files that stages are measured on, and tokens of the tokenizer made for that.
FILES, VOCABULARY = 100, 2048


def simulate_data(
    topology: "Topology",
    *,
    workers: int,
    remote: int,
    tokens_per_s: float,
    seconds: float,
    as_json: bool,
) -> None:
    """Measure the stages, simulate, and say what was seen."""
    from actors.data import tokenizer
    from actors.data.sources import library
    from actors.data.terms import terms_of
    from actors.simulation.leasing import Leasing
    from actors.simulation.stage_times import measured
    from protocol.messages import SampleRef

    actors = topology.actors
    workers = workers or actors.fast_workers + actors.slow_workers
    paths = sorted(Path(library()).glob("*.py"))[:FILES]
    document = tokenizer.train((path.read_text() for path in paths[::10]), VOCABULARY)
    terms = terms_of(topology, document)
    refs = [SampleRef(name=path.name, language="python", path=str(path)) for path in paths]
    files = measured(refs, terms)
    simulation = Leasing(
        topology, terms, files, workers=workers, remote=remote, tokens_per_s=tokens_per_s
    )
    report = simulation.run(seconds)
    stage_ms = [1000 * sum(file.stage_s) for file in files]
    found = {
        "topology": topology.name,
        "workers": workers,
        "remote": remote,
        "stages_ms": {
            "median": round(statistics.median(stage_ms), 2),
            "mean": round(statistics.mean(stage_ms), 2),
            "longest": round(max(stage_ms), 2),
        },
        **_figures(report, workers + remote),
    }
    click.echo(json.dumps(found, indent=1) if as_json else words(found))


def _figures(report: "Report", workers: int) -> dict[str, Any]:
    parts = {part: round(us, 1) for part, us in report.us_per_sample.items()}
    seconds = report.seconds
    return {
        "samples_per_s": round(report.samples / seconds, 1),
        "tokens_per_s": round(report.tokens / seconds),
        "workers_busy": round(report.worker_busy_s / seconds / workers, 4),
        "loader_busy": round(sum(report.computed_s.values()) / seconds, 4),
        "loader_us_per_sample": {"all": round(sum(parts.values()), 1), **parts},
        "messages_per_s": round((report.messages + report.leases) / seconds),
        "consumer_waited": round(report.consumer_waited_s / seconds, 4),
        "queues": {
            name: {"mean": round(statistics.mean(seen), 1), "most": max(seen)}
            for name, seen in report.queues.items()
        },
        "slow_workers": report.slow_workers,
        "cutoff_ms": round(1000 * min(report.cutoff_s, 1e6), 2),
        "handed_over": report.handed_over,
    }


def words(found: dict[str, Any]) -> str:
    """What `--json` says, for people."""
    parts = found["loader_us_per_sample"]
    rest = ", ".join(f"{part} {us:g}" for part, us in parts.items() if part != "all")
    queues = ", ".join(
        f"{name} {seen['mean']:g} (most {seen['most']})" for name, seen in found["queues"].items()
    )
    stages = found["stages_ms"]
    return "\n".join(
        (
            f"{found['topology']}: {found['workers']} workers here, {found['remote']} elsewhere",
            f"a sample takes  {stages['median']:g} ms (mean {stages['mean']:g}, longest "
            f"{stages['longest']:g}), as measured here",
            f"samples         {found['samples_per_s']:,.0f} a second, "
            f"{found['tokens_per_s']:,} tokens a second; workers busy {found['workers_busy']:.1%}",
            f"trainers        waited {found['consumer_waited']:.1%} of the time",
            f"loader          busy {found['loader_busy']:.1%}; "
            f"{parts['all']:g} us a sample: {rest}",
            f"messages        {found['messages_per_s']:,} a second",
            f"queues          {queues}",
            f"split           {found['slow_workers']} slow workers, cut-off "
            f"{found['cutoff_ms']:g} ms, {found['handed_over']} samples handed over",
        )
    )
