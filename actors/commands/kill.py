"""`run.py kill`: send a signal to actors, to see what happens. Nothing should be lost."""

import signal
from pathlib import Path

import click

from actors.commands import Failed, Refused
from actors.commands.status import open_run


@click.command()
@click.argument("actor")
@click.option("--signal", "name", default="KILL", show_default=True, help="Name or number.")
@click.option(
    "--run", "run_dir", type=click.Path(path_type=Path), metavar="DIR", help="[runs/latest]"
)
def kill(actor: str, name: str, run_dir: Path | None) -> None:
    """Send a signal to the actors whose name matches ACTOR, a name or a glob ("trainer/*")."""
    from actors import asking
    from protocol.messages import Answer, KillRequest

    run = open_run(run_dir)
    request = KillRequest(pattern=actor, signal=_number(name))
    try:
        answer = asking.ask(run, request)
    except asking.Unanswered as error:
        raise Failed(str(error)) from error
    if not isinstance(answer, Answer):
        raise Failed(f"the supervisor answered with a {type(answer).__name__}")
    if not answer.ok:
        raise Refused(answer.text)
    click.echo(answer.text)


def _number(name: str) -> int:
    """A signal by name ("KILL", "SIGKILL") or number."""
    try:
        if name.isdecimal():
            return signal.Signals(int(name)).value
        return signal.Signals["SIG" + name.upper().removeprefix("SIG")].value
    except (KeyError, ValueError):
        known = ", ".join(one.name.removeprefix("SIG") for one in signal.Signals)
        raise Refused(f"there is no signal {name!r}; there are {known}") from None
