"""`run.py plan`: who would run where, with how much memory. Starts nothing."""

import json
from itertools import groupby
from pathlib import Path

import click

from actors import hardware, hwloc, plan_memory, planner, preparing
from actors.commands import printing
from actors.hardware import Hardware, HardwareError, format_cpulist
from actors.planner import Placement, Plan
from actors.topology import TopologyError

_MEMORY = ("weights", "gradients", "optimizer", "activations", "buffers", "total")


@click.command()
@click.option(
    "--topology",
    "name",
    default="local",
    show_default=True,
    metavar="NAME|FILE",
    help="What to run.",
)
@click.option(
    "--hardware",
    "machine",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Plan for this machine instead: hwloc XML (`lstopo FILE.xml`) or a run's hardware.json.",
)
@click.option("--set", "overrides", multiple=True, metavar="A.B=C", help="Change a setting.")
@click.option("--require-hardware", is_flag=True, help="Missing hardware is an error.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
def plan(
    name: str,
    machine: Path | None,
    overrides: tuple[str, ...],
    require_hardware: bool,
    as_json: bool,
) -> None:
    """Show placement, memory and bytes on the wire of a run, without starting it."""
    try:
        found = read_hardware(machine)
        prepared = preparing.prepare(
            name, found, overrides=overrides, require_hardware=require_hardware
        )
    except (TopologyError, HardwareError) as error:
        raise click.UsageError(str(error)) from error
    made = planner.plan(prepared.topology, found)
    if as_json:
        click.echo(json.dumps(planner.document(made), indent=1))
        return
    if prepared.note:
        click.echo(prepared.note)
    _show(made, found)


def read_hardware(path: Path | None) -> Hardware:
    """The machine a file describes, or this one. Raises `HardwareError`."""
    if path is None:
        return hardware.probe()
    if path.suffix != ".json":
        return hwloc.read_file(path)
    try:
        return hardware.from_json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, HardwareError) as error:
        raise HardwareError(f"{path}: {error}") from None


def _show(made: Plan, found: Hardware) -> None:
    from rich.table import Table

    console = printing.console()
    table = Table(title=f"{made.topology} on {_machine(made, found)}", title_justify="left")
    table.add_column("actor", no_wrap=True)
    table.add_column("cpus", overflow="fold")
    for column in ("node", "device", "threads", *_MEMORY, "on GPU"):
        table.add_column(column, justify="right", no_wrap=True)
    for actors in _rows(made.actors):
        table.add_row(*_row(actors))
    console.print(table)
    model, wire = made.model, made.wire
    console.print(
        f"model: {model.unique_parameters:,} unique parameters, {model.applied_parameters:,} "
        "applied per token"
    )
    console.print(
        f"wire: {_size(wire.up_bytes_per_step)} up and {_size(wire.down_bytes_per_step)} down a "
        f"step; a bf16 all-reduce would send {_size(wire.bf16_allreduce_bytes_per_step)}"
    )
    for note in made.notes:
        console.print(f"- {note}", markup=False)


def _machine(made: Plan, found: Hardware) -> str:
    here, gpus = made.found, f"{made.found.gpus} GPU(s)"
    if here.gpu_name:
        gpus += f" {here.gpu_name}"
    return (
        f"{found.source}: {here.cores} cores, {len(found.allowed)} threads, {here.numa_nodes} "
        f"node(s), {here.memory_gb:g} GB, {gpus}"
    )


def _rows(actors: tuple[Placement, ...]) -> list[list[Placement]]:
    """Actors one by one, but runs of data workers that differ only in their core together."""

    def kind(actor: Placement) -> tuple[object, ...]:
        if actor.role != "data_worker":
            return (actor.name,)
        return actor.role, actor.pool, actor.numa_node, actor.cpus if actor.floats else ()

    return [list(group) for _, group in groupby(actors, key=kind)]


def _row(actors: list[Placement]) -> list[str]:
    first, last = actors[0], actors[-1]
    name = first.name if first is last else f"{first.name} .. {last.name.rpartition('/')[2]}"
    if first.pool:
        name += f" {first.pool}"
    if first.nice:
        name += f" (nice {first.nice})"
    cpus = format_cpulist(cpu for actor in actors for cpu in actor.cpus)
    memory = [sum(getattr(actor.memory, part) for actor in actors) for part in _MEMORY]
    memory.append(sum(_on_gpu(actor) for actor in actors))
    return [
        name,
        f"{cpus} shared" if first.floats else cpus,
        str(first.numa_node),
        first.device,
        str(first.threads),
        *(_size(part) if part else "-" for part in memory),
    ]


def _on_gpu(actor: Placement) -> int:
    """The rest of its memory is the host's."""
    return 0 if actor.device == "cpu" else plan_memory.on_device(actor.memory, actor.role)


def _size(count: int) -> str:
    for limit, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= limit:
            return f"{count / limit:.1f} {unit}"
    return f"{count} B"
