"""`run.py chaos`: kill anything, lose nothing, and see the proof.

Does the same run twice, once in peace and once under random faults, and compares what both leave.
"""

import datetime
import json
import sys
from pathlib import Path
from typing import Any

import click

from actors.commands import Failed, Refused

# The topology that is meant where none is named: two of everything that may be two, and steps
# long enough to be disturbed.
_DOUBLE = ("actors.trainers=2", "actors.optimizer_shards=2", "train.accumulation=2")


@click.command()
@click.option("--topology", default="", metavar="NAME|FILE", help="What to run [local, doubled].")
@click.option("--seed", default=1, show_default=True, help="Of the faults; the same, the same.")
@click.option("--kills", default=40, show_default=True, type=click.IntRange(min=1), help="Faults.")
@click.option("--steps", default=60, show_default=True, type=click.IntRange(min=10))
@click.option("--actors", default="*", metavar="GLOB", help="Whom to strike.")
@click.option("--kind", "only", multiple=True, metavar="KIND", help="What to do; may be repeated.")
@click.option("--every", "every_s", default=0.0, help="Seconds from fault to fault, at least.")
@click.option("--set", "settings", multiple=True, metavar="A.B=C", help="Change a setting.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Where both runs and the report go [runs/chaos-SEED-DATE].",
)
@click.option("--torchrun/--no-torchrun", default=True, help="Measure torchrun as well.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document: the report.")
def chaos(
    topology: str,
    seed: int,
    kills: int,
    steps: int,
    actors: str,
    only: tuple[str, ...],
    every_s: float,
    settings: tuple[str, ...],
    out: Path | None,
    torchrun: bool,
    as_json: bool,
) -> None:
    """Run a topology twice, in peace and under faults, and compare everything.

    Exits with 1 when anything differs. The report is report.json and report.html in --out.
    """
    from actors.chaos.kinds import BY_NAME
    from actors.chaos.trial import Asked, Trial
    from actors.topology import TopologyError

    unknown = [kind for kind in only if kind not in BY_NAME]
    if unknown:
        raise Refused(f"--kind {unknown[0]!r}: there are {', '.join(BY_NAME)}")
    doubled = () if topology else _DOUBLE
    asked = Asked(
        topology=topology or "local",
        seed=seed,
        kills=kills,
        steps=steps,
        actors=actors,
        only_kinds=only,
        every_s=every_s,
        settings=(*doubled, *settings),
    )
    directory = (out or _directory(seed)).absolute()
    if directory.exists():
        raise Refused(f"--out {directory} is there already; name a new directory")
    try:
        trial = Trial(asked, directory, lambda text: click.echo(text, err=True))
        if not trial.schedule():
            directory.rmdir()
            raise Refused(
                f"nothing can be struck: there is no actor {actors!r} that a fault of these kinds "
                f"is for; there are {', '.join(trial.names)}"
            )
        report = trial.run(torchrun=torchrun)
    except TopologyError as error:
        raise Refused(str(error)) from error
    except OSError as error:
        raise Failed(f"the trial cannot be held: {error}") from error
    if as_json:
        click.echo(json.dumps(report, indent=1))
    else:
        _show(report, directory)
    if not report["passed"]:
        sys.exit(1)


def _directory(seed: int) -> Path:
    stamp = datetime.datetime.now().astimezone().strftime("%Y%m%d-%H%M%S")
    return Path("runs") / f"chaos-{seed}-{stamp}"


def _show(report: dict[str, Any], directory: Path) -> None:
    for finding in report["findings"]:
        mark = "yes" if finding["ok"] else "NO "
        click.echo(
            f"{mark}  {finding['name']}" + (f": {finding['detail']}" * bool(finding["detail"]))
        )
    found = report["figures"]
    for name, spread in found["detection"].items():
        click.echo(f"noticed, {name.replace('_', ' ')}: {_words(spread)}")
    for name, spread in found["first_message_after_death"].items():
        click.echo(f"first message after a death, {name.replace('_', ' ')}: {_words(spread)}")
    if report.get("torchrun", {}).get("recovery"):
        click.echo(f"torchrun, work goes on after: {_words(report['torchrun']['recovery'])}")
    kept = found["throughput_kept"]
    if kept is not None:
        click.echo(f"throughput kept: {100 * kept:.0f} %")
    for kind, why in report["not_possible"].items():
        click.echo(f"not done here: {kind}: {why}")
    click.echo(f"report: {directory / 'report.html'}")


def _words(spread: dict[str, Any] | None) -> str:
    if spread is None:
        return "never seen"
    return (
        f"{spread['median_s']:.3f} s median, {spread['max_s']:.3f} s at most, {spread['count']} x"
    )
