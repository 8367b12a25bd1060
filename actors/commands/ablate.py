"""`run.py ablate`: the same tokens with one technique after the other, and what each is good for.

Every row is a real run of the whole graph in a directory of its own (see actors/ablation/rows.py).
A table is printed; the same figures and the loss curves go to ablation.json, plots beside it.
"""

import datetime
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from actors.commands import Failed, Refused
from protocol.clock import MonotonicClock

if TYPE_CHECKING:
    from actors.ablation.figures import Measured
    from actors.ablation.report import Entry
    from actors.ablation.rows import Row
    from actors.ablation.trials import Plan, Trial

Say = Callable[[str], None]


@click.command()
@click.option("--topology", default="local", show_default=True, metavar="NAME|FILE")
@click.option("--only", default="", metavar="A,B", help="These rows and the baseline [all].")
@click.option("--steps", type=click.IntRange(min=2), default=200, show_default=True)
@click.option(
    "--seeds", type=click.IntRange(min=1), default=1, show_default=True, help="Runs of each row."
)
@click.option(
    "--tune",
    is_flag=True,
    help="Try half and twice the learning rate of AdamW's and Muon's rows too, keep the best.",
)
@click.option("--set", "settings", multiple=True, metavar="A.B=C", help="Change it in all rows.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Where results and runs go [runs/ablate-DATE].",
)
@click.option(
    "--merge",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="An ablation.json made in the same way: the rows it lacks are trained.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
def ablate(
    topology: str,
    only: str,
    steps: int,
    seeds: int,
    tune: bool,
    settings: tuple[str, ...],
    out: Path | None,
    merge: Path | None,
    as_json: bool,
) -> None:
    """Train with each technique alone and with all together, and compare."""
    from actors.ablation import report
    from actors.commands.printing import console

    plan = _plan(topology, steps, settings, out)
    before, chosen = _chosen(plan, seeds, only, merge)
    clock = MonotonicClock()
    began = clock.now()

    def say(text: str) -> None:
        click.echo(text, err=as_json)

    _check(plan, chosen)
    try:
        plan.directory.mkdir(parents=True, exist_ok=out is not None)
    except OSError as error:
        raise Failed(f"{plan.directory} cannot be made: {error.strerror}") from error
    say(f"{len(chosen)} rows, {seeds} seed(s), {steps} steps each, in {plan.directory}")
    entries: list[Entry] = []
    for done, row in enumerate(chosen, start=1):
        entries.append(_row(plan, row, seeds, tune=tune, say=say))
        took = clock.now() - began
        _write(plan, seeds, report.joined(before, entries), took)  # in case there is no next row
        say(f"  {took / 60:.1f} min, about {took / done * (len(chosen) - done) / 60:.1f} to go")
    found, written = _write(plan, seeds, report.joined(before, entries), clock.now() - began)
    if as_json:
        click.echo(json.dumps(found, indent=1))
    else:
        console().print(report.table(found))
    say(f"{written}: took {found['took_s'] / 60:.1f} min")
    _plot(plan.directory, found, say)
    failed = [entry["name"] for entry in entries if "failed" in entry]
    if failed:
        raise Failed(f"rows that could not be trained: {', '.join(failed)}")


def _write(
    plan: "Plan", seeds: int, entries: "list[Entry]", took_s: float
) -> tuple[dict[str, Any], Path]:
    """What is known so far."""
    from actors.ablation import report

    report.compare(entries)
    found = report.document(plan, seeds, entries, took_s)
    return found, report.write(plan.directory, found)


def _plan(topology: str, steps: int, settings: tuple[str, ...], out: Path | None) -> "Plan":
    from actors import hardware
    from actors.ablation.trials import Plan

    stamp = datetime.datetime.now().astimezone().strftime("%Y%m%d-%H%M%S")
    directory = (out or Path("runs") / f"ablate-{stamp}").absolute()
    try:
        found = hardware.probe()
    except hardware.HardwareError as error:
        raise Failed(str(error)) from error
    return Plan(topology, steps, settings, directory, found)


def _chosen(
    plan: "Plan", seeds: int, only: str, merge: Path | None
) -> "tuple[list[Entry], list[Row]]":
    """Rows that are known already, and those to train."""
    from actors.ablation import report, rows

    try:
        before = report.earlier(merge, plan, seeds) if merge else []
        known = {row["name"] for row in before if "failed" not in row}
        return before, rows.chosen(only, known)
    except (rows.UnknownRow, report.OtherAblation) as error:
        raise Refused(str(error)) from error


def _check(plan: "Plan", chosen: "Sequence[Row]") -> None:
    """Refuse what some row's topology cannot be before the first one trains."""
    from actors.ablation.trials import settings_of
    from actors.preparing import prepare
    from actors.topology import TopologyError

    for row in chosen:
        try:
            prepare(plan.topology, plan.hardware, overrides=settings_of(plan, row, 0))
        except TopologyError as error:
            raise Refused(f"row {row.name}: {error}") from error


def _row(plan: "Plan", row: "Row", seeds: int, *, tune: bool, say: Say) -> "Entry":
    from actors.ablation import report
    from actors.ablation.rows import RATES
    from actors.trained import NothingTrained

    try:
        tried = [
            (factor, *_trial(plan, row, 0, factor, say))
            for factor in (RATES if tune and row.tuned else (1.0,))
        ]
        factor, trial, found = min(tried, key=lambda one: one[2].held_out["loss"])
        done = [(trial, found)]
        done += [_trial(plan, row, seed, factor, say) for seed in range(1, seeds)]
        entry = report.entry(row, [trial for trial, _ in done], [found for _, found in done])
    except (_Untrained, NothingTrained) as error:
        say(f"{row.name}: {error}")
        return report.failure(row, str(error))
    if len(tried) > 1:
        entry["rates"] = [{"rate": t.rate, "loss": m.held_out["loss"]} for _, t, m in tried]
    return entry


class _Untrained(Exception):
    """A run that did not come to its end."""


def _trial(
    plan: "Plan", row: "Row", seed: int, factor: float, say: Say
) -> "tuple[Trial, Measured]":
    from actors.ablation import figures  # torch comes with it
    from actors.ablation.trials import train
    from actors.rundir import RunDirError
    from actors.topology import TopologyError

    try:
        trial = train(plan, row, seed, factor)
    except (TopologyError, RunDirError) as error:
        raise Refused(f"row {row.name}: {error}") from error
    except OSError as error:
        raise Failed(f"row {row.name} cannot be started: {error}") from error
    if trial.end == "stopped":
        raise click.Abort
    if trial.end != "done":
        raise _Untrained(trial.reason)
    at = "" if factor == 1.0 else f", learning rate {trial.rate:g}"
    found = figures.measure(trial, row.figures)
    loss = found.held_out["loss"]
    say(f"{row.name:16} seed {seed}{at}: loss {loss:.4f}, {trial.took_s:.0f} s")
    return trial, found


def _plot(directory: Path, found: dict[str, Any], say: Say) -> None:
    from actors.ablation import plots

    try:
        for path in plots.write(directory, found):
            say(str(path))
    except plots.NoPlots as error:
        say(str(error))
