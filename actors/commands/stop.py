"""`run.py stop`: end a run cleanly, with a checkpoint, and wait until it has ended."""

import select
from pathlib import Path
from typing import TYPE_CHECKING

import click

from actors.commands import Failed
from actors.commands.status import open_run

if TYPE_CHECKING:
    from actors.rundir import RunDir


@click.command()
@click.option(
    "--run", "run_dir", type=click.Path(path_type=Path), metavar="DIR", help="[runs/latest]"
)
def stop(run_dir: Path | None) -> None:
    """End a run cleanly, with a checkpoint."""
    from actors import asking, leftovers, outcome, roles
    from protocol.clock import Deadline, MonotonicClock
    from protocol.messages import StopRequest

    run = open_run(run_dir)
    if not leftovers.living(run):
        found = outcome.read(run)
        click.echo(f"{run.path} is not running" + (f": {found.reason}" if found else ""))
        return
    try:
        asking.ask(run, StopRequest(reason="stopped by run.py stop"))
    except asking.Unanswered as error:
        raise Failed(str(error)) from error
    limit_s = roles.stopped_within(_stop_s(run))
    within = Deadline.after(MonotonicClock(), limit_s, "the end of the run")
    while outcome.read(run) is None or leftovers.living(run):
        if within.passed():
            raise Failed(f"{run.path} has not ended within {limit_s:g} s; see run.py status")
        select.select([], [], [], 0.05)
    found = outcome.read(run)
    click.echo(f"{run.path} has ended" + (f": {found.reason}" if found else ""))


def _stop_s(run: "RunDir") -> float:
    """What the run grants each group of its actors."""
    from actors import topology

    try:
        text = run.topology.read_text(encoding="utf-8")
        return topology.decode(text, source=str(run.topology)).supervision.stop_s
    except (OSError, UnicodeDecodeError, topology.TopologyError):  # its supervisor read it before
        return topology.SupervisionSpec().stop_s
