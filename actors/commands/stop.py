"""`run.py stop`: end a run cleanly, with a checkpoint, and wait until it has ended."""

import select
from pathlib import Path

import click

from actors.commands import Failed
from actors.commands.status import open_run


@click.command()
@click.option(
    "--run", "run_dir", type=click.Path(path_type=Path), metavar="DIR", help="[runs/latest]"
)
def stop(run_dir: Path | None) -> None:
    """End a run cleanly, with a checkpoint."""
    from actors import asking, leftovers, outcome
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
    # The supervisor bounds every group of actors, and the launcher what is left after it.
    within = Deadline.after(MonotonicClock(), 120.0, "the end of the run")
    while outcome.read(run) is None or leftovers.living(run):
        if within.passed():
            raise Failed(f"{run.path} has not ended within 120 s; see run.py status")
        select.select([], [], [], 0.05)
    found = outcome.read(run)
    click.echo(f"{run.path} has ended" + (f": {found.reason}" if found else ""))
