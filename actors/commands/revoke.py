"""`run.py revoke`: shut an invited host out again.

Takes the key off the run's allow-list, which is asked at every handshake and, for those who are
in, every second. It works whether the run goes on or not; the label may then be invited anew.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from actors.commands import Failed, Refused
from actors.commands.status import open_run
from protocol.keys import INVITED

if TYPE_CHECKING:
    from protocol.messages import Role


@click.command()
@click.argument("label")
@click.option(
    "--role",
    default="data_worker",
    show_default=True,
    type=click.Choice(INVITED),
    help="As what it was invited.",
)
@click.option(
    "--run", "run_dir", type=click.Path(path_type=Path), metavar="DIR", help="[runs/latest]"
)
def revoke(label: str, role: "Role", run_dir: Path | None) -> None:
    """Let the host that was invited as LABEL in no more.

    Connections it has are not listened to from the next second on; what it was working on goes
    to others.
    """
    from protocol.keys import AllowList

    run = open_run(run_dir)
    allowed = AllowList(run.keys / "allowed")
    try:
        revoked = allowed.revoke(role, label)
    except OSError as error:
        raise Failed(f"{run.keys} cannot be changed: {error.strerror or error}") from error
    if not revoked:
        there = ", ".join(allowed.labels(role)) or "nobody"
        raise Refused(f"{label!r} was never invited to {run.path}; there is: {there}")
    click.echo(f"{label} is invited no more")
