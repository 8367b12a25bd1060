"""`run.py run`, the default command: launch a run, or take one up again, and see it through."""

import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from actors.commands import Failed, Refused, lead_nowhere

if TYPE_CHECKING:
    from actors.beginning import Begun
    from actors.outcome import Outcome
    from actors.progress import Live, Plain


@click.command()
@click.option("--topology", "name", default="", metavar="NAME|FILE", help="What to run [local].")
@click.option(
    "--run",
    "run_dir",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Where the run keeps everything [runs/NAME-DATE]; with --resume [runs/latest].",
)
@click.option("--steps", type=click.IntRange(min=1), help="Instead of the topology's.")
@click.option("--resume", is_flag=True, help="Go on with an existing run directory.")
@click.option("--fire", is_flag=True, help="With --resume: end the first step with FIRE.")
@click.option("--detach", is_flag=True, help="Leave it running in the background.")
@click.option("--set", "settings", multiple=True, metavar="A.B=C", help="Change a setting.")
@click.option("--require-hardware", is_flag=True, help="Missing hardware is an error.")
@click.option(
    "--hardware",
    "machine",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Place actors as for this machine: hwloc XML or a run's hardware.json.",
)
def run(
    name: str,
    run_dir: Path | None,
    steps: int | None,
    resume: bool,
    fire: bool,
    detach: bool,
    settings: tuple[str, ...],
    require_hardware: bool,
    machine: Path | None,
) -> None:
    """Train: launch a topology and see it through."""
    from actors import beginning
    from actors.commands.plan import read_hardware
    from actors.hardware import HardwareError
    from actors.rundir import RunDirError
    from actors.topology import TopologyError

    if fire and not resume:
        raise Refused(
            "--fire makes matrices isometries again between two stages: use it with --resume, or "
            "name steps in optimizer.fire_at"
        )
    wanted = beginning.Wanted(name, steps or 0, run_dir, settings, require_hardware, fire)
    try:
        found = read_hardware(machine)
        begun = beginning.resume(wanted, found) if resume else beginning.begin(wanted, found)
    except (TopologyError, HardwareError, RunDirError) as error:
        raise Refused(str(error)) from error
    except OSError as error:
        raise Failed(f"the run cannot be prepared: {error}") from error
    for note in begun.notes:
        _tell(note)
    _tell(f"run directory: {_shown(begun.run.path)}")
    if detach:
        _detach(begun)
        return
    _drive(begun)


def _drive(begun: "Begun") -> None:
    """See it through, here."""
    from actors.launcher import Launcher, NotStarted, exit_code

    watcher = _watcher(begun)
    try:
        with Launcher(begun.run, begun.topology.supervision, watcher=watcher) as launcher:
            end = launcher.drive()
    except NotStarted as error:
        raise Failed(str(error)) from error
    finally:
        with contextlib.suppress(OSError):
            watcher.close()
    begun.release()
    if end.end == "failed":
        raise Failed(end.reason)
    _tell(_last_words(begun, end))
    sys.exit(exit_code(end))


def _tell(text: str) -> None:
    """Say it, to whoever still listens: a run does not depend on being read."""
    try:
        click.echo(text)
    except OSError:
        lead_nowhere()


def _watcher(begun: "Begun") -> "Plain | Live":
    from actors.progress import Live, Plain

    shown_before = begun.living or begun.resumed
    if sys.stdout.isatty():
        return Live(begun.run, begun.topology.steps, resumed=shown_before)
    return Plain(begun.run, begun.topology.steps, sys.stdout, resumed=shown_before)


def _last_words(begun: "Begun", end: "Outcome") -> str:
    where = _shown(begun.run.path)
    if end.end == "done":
        digest = f", weights_digest {end.weights_digest}" if end.weights_digest else ""
        restarts = f", {end.restarts} restarts" if end.restarts else ""
        return f"done: {end.step} steps{restarts}{digest}"
    return f"stopped ({end.reason}); go on with: python run.py --resume --run {where}"


def _detach(begun: "Begun") -> None:
    """Leave a launcher in the background and say so once everybody is up."""
    from actors import launcher
    from actors.supervisor import places

    begun.release()
    names = {actor.name for actor in places.read(begun.run)}
    try:
        who = launcher.detach(begun.run, names, begun.topology.supervision.start_s)
    except (OSError, ChildProcessError, TimeoutError) as error:
        raise Failed(str(error)) from error
    _tell(f"running in the background, launcher pid {who.pid}")
    _tell(f"look at it: python run.py status --run {_shown(begun.run.path)}")


def _shown(path: Path) -> str:
    """As short as it can be from here."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
