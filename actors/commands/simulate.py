"""`run.py simulate`: the actors' rules under simulated trouble, thousands of schedules a minute.

Every seed is one small run with its own size, delays and faults; the same seed is always the same
run. What must never happen is looked for after every event (see actors/simulation/truth.py). A
schedule that fails is cut down to the faults it needs, and shown with the command that replays it.

With `--data` it is about figures instead: a loader and as many workers as one likes.
"""

import json
import sys
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from protocol.clock import MonotonicClock

if TYPE_CHECKING:
    from actors.simulation.schedules import Verdict

_BY_DEFAULT = ParameterSource.DEFAULT


@click.command()
@click.option("--seed", default=0, show_default=True, help="The first schedule.")
@click.option(
    "--schedules", default=200, show_default=True, type=click.IntRange(min=1), help="How many."
)
@click.option("--only", default="", metavar="N,N", help="Of its faults, only those numbers.")
@click.option("--story", is_flag=True, help="Everything that happened; for one schedule.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
@click.option("--data", is_flag=True, help="How a loader fares with many workers, in figures.")
@click.option("--topology", default="config_c", show_default=True, help="With --data: of this run.")
@click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="With --data: another value."
)
@click.option(
    "--workers",
    default=0,
    type=click.IntRange(min=0),
    help="With --data: data workers here; 0: as it says there.",
)
@click.option(
    "--remote",
    default=0,
    type=click.IntRange(min=0),
    help="With --data: data workers of other hosts.",
)
@click.option(
    "--tokens-per-s",
    default=0.0,
    type=click.FloatRange(min=0.0),
    help="With --data: what trainers use up; 0: all there is.",
)
@click.option(
    "--seconds",
    default=6.0,
    show_default=True,
    type=click.FloatRange(min=0.0, min_open=True),
    help="With --data: to simulate.",
)
@click.pass_context
def simulate(
    context: click.Context,
    seed: int,
    schedules: int,
    only: str,
    story: bool,
    as_json: bool,
    data: bool,
    **wanted: Any,
) -> None:
    """Run the actors' rules under simulated trouble. Exits with 1 when a rule is broken."""
    if data:
        from actors.commands.simulate_data import simulate_data
        from actors.topology import TopologyError, load

        try:
            made = load(wanted.pop("topology"), tuple(wanted.pop("overrides")))
        except TopologyError as error:
            raise click.BadParameter(str(error), param_hint="--topology, --set") from error
        simulate_data(made, **wanted, as_json=as_json)
        return
    given = [name for name in wanted if context.get_parameter_source(name) != _BY_DEFAULT]
    if given:
        option = "set" if given[0] == "overrides" else given[0].replace("_", "-")
        raise click.UsageError(f"--{option} says what to simulate with --data; add it")
    from actors.simulation.schedules import run, shrunk

    clock = MonotonicClock()
    began, events, verdict = clock.now(), 0, None
    count = 1 if story or only else schedules
    done = 0
    for number in range(seed, seed + count):
        verdict = run(number, only=_numbers(only), story=story)
        events += verdict.events
        done += 1
        if verdict.violation is not None:
            break
    assert verdict is not None
    took_s = clock.now() - began
    if verdict.violation is not None and not only:
        verdict = shrunk(verdict, story=story)
    if as_json:
        click.echo(json.dumps({"schedules": done, "events": events, **document(verdict)}, indent=1))
    else:
        _show(verdict, story=story)
        click.echo(f"{done} schedules, {events} events in {took_s:.1f} s")
    if verdict.violation is not None:
        sys.exit(1)


def document(verdict: "Verdict") -> dict[str, Any]:
    """What `--json` says about the last schedule."""
    return {
        "seed": verdict.seed,
        "violation": None if verdict.violation is None else str(verdict.violation),
        "faults": [str(fault).strip() for fault in verdict.faults],
        "ends": verdict.ends,
        "replay": verdict.replay(),
        "story": verdict.story,
    }


def _show(verdict: "Verdict", *, story: bool) -> None:
    if story:
        click.echo("\n".join(verdict.story))
    if verdict.violation is None:
        return
    click.echo(f"seed {verdict.seed}: {verdict.violation}")
    for fault in verdict.faults:
        click.echo(f"  {fault}")
    click.echo(f"replay: {verdict.replay()}")


def _numbers(text: str) -> tuple[int, ...] | None:
    if not text:
        return None
    try:
        return tuple(int(word) for word in text.split(","))
    except ValueError as error:
        raise click.BadParameter("expected numbers, as in 0,3,4", param_hint="--only") from error
