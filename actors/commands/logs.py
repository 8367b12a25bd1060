"""`run.py logs`: what the actors of a run have said, in order of time.

Looks at the files the recorder writes and asks nobody, so it works on a run that has ended, hangs
or lies on another machine.
"""

import datetime
import sys
import threading
from collections.abc import Iterable
from pathlib import Path

import click

from actors import process
from actors.commands import Failed, Refused
from actors.commands.status import open_run
from actors.logfiles import Follower, actors_in
from actors.logview import LEVELS, Line, Wanted, parse_since, show
from actors.rundir import RunDir

# How often -f looks for news, and, while there is none, whether the run still lives. A look costs
# one directory listing; the recorder writes about five times a second.
LOOK_S = 0.25
ALIVE_S = 2.0
# A run that is being started has no processes for a moment, nor has one whose launcher restarts it.
ABSENT_LOOKS = 3


@click.command()
@click.option(
    "--run", "run_dir", type=click.Path(path_type=Path), metavar="DIR", help="[runs/latest]"
)
@click.option("-f", "--follow", is_flag=True, help="Go on with what comes, until the run ends.")
@click.option(
    "--actor", default="*", metavar="GLOB", help="Only these actors: 'trainer/*', loader."
)
@click.option(
    "--level",
    default="debug",
    type=click.Choice(LEVELS, case_sensitive=False),
    help="Only this level and graver ones.",
)
@click.option("--since", default="", metavar="T", help="Only later lines: 90s, 5m, 2h, 14:05, ISO.")
@click.option("--json", "as_json", is_flag=True, help="The lines as they lie in the files.")
def logs(
    run_dir: Path | None, follow: bool, actor: str, level: str, since: str, as_json: bool
) -> None:
    """Show what the actors of a run have logged, in order of time."""
    now = datetime.datetime.now().astimezone()
    run = open_run(run_dir)
    try:
        after = parse_since(since, now) if since else 0.0
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="'--since'") from error
    if not actor.strip():
        raise click.BadParameter(
            "an empty glob matches nobody; '*' matches everybody", param_hint="'--actor'"
        )
    wanted = Wanted(actor.strip(), level.lower(), after)
    try:
        _check_actor(run, wanted, follow=follow)
        _show_all(run, wanted, follow=follow, as_json=as_json)
    except BrokenPipeError:
        raise  # the reader of our output, `head` for example, has seen enough
    except OSError as error:
        why = error.strerror or str(error)
        raise Failed(f"{run.logs} cannot be read: {why}") from error


def _check_actor(run: RunDir, wanted: Wanted, *, follow: bool) -> None:
    """Refuse a glob that fits nobody; while following, somebody may still come."""
    if not run.logs.is_dir():
        raise Refused(f"{run.path} has no logs directory: it is not a run's, or damaged")
    known = actors_in(run.logs)
    if any(map(wanted.takes_actor, known)):
        return
    there = f"there are {', '.join(known)}" if known else "nobody has logged anything yet"
    words = f"no actor fits {wanted.actor!r}: {there}"
    if not follow and (known or wanted.actor != "*"):
        raise click.BadParameter(words, param_hint="'--actor'")
    click.echo(words, err=True)


def _show_all(run: RunDir, wanted: Wanted, *, follow: bool, as_json: bool) -> None:
    follower = Follower(run.logs, wanted)
    _print(follower.begin(), as_json=as_json)
    if follow:
        _follow(run, follower, as_json=as_json)
    if follower.torn:
        click.echo(f"{follower.torn} torn lines were left out", err=True)


def _follow(run: RunDir, follower: Follower, *, as_json: bool) -> None:
    """Print what comes until the run is over and all it said is shown."""
    pause = threading.Event()  # never set: its wait is a sleep that Ctrl-C ends
    quiet_s, absent = 0.0, 0
    while True:
        over = run.outcome.exists()
        news = follower.news()
        _print(news, as_json=as_json)
        if over and not news:
            return
        quiet_s = 0.0 if news else quiet_s + LOOK_S
        if quiet_s >= ALIVE_S:
            quiet_s = 0.0
            absent = 0 if process.of_run(run.run_id) else absent + 1
            if absent >= ABSENT_LOOKS:
                click.echo("none of this run's processes is left", err=True)
                return
        pause.wait(LOOK_S)


def _print(lines: Iterable[Line], *, as_json: bool) -> None:
    zone = datetime.datetime.now().astimezone().tzinfo
    colour = not as_json and sys.stdout.isatty()
    for line in lines:
        click.echo(line.raw if as_json else show(line, zone, colour=colour))
