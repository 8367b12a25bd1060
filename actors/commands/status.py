"""`run.py status`: what a run is doing, as its supervisor sees it.

Of a run that has ended, or whose supervisor does not answer, it says what the run directory says.
"""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from actors.commands import Refused, printing

if TYPE_CHECKING:
    from actors.rundir import RunDir

# A standby that has not asked for so long is mentioned.
_SILENT_S = 5.0


@click.command()
@click.option(
    "--run", "run_dir", type=click.Path(path_type=Path), metavar="DIR", help="[runs/latest]"
)
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
def status(run_dir: Path | None, as_json: bool) -> None:
    """Show what a run is doing."""
    document = _document(open_run(run_dir))
    _look_where(document["actors"])
    if as_json:
        click.echo(json.dumps(document, indent=1))
    else:
        _show(document)


def _look_where(actors: list[dict[str, Any]]) -> None:
    """Add how much of their memory lies on which NUMA node, for those on this host."""
    from actors import numa

    for actor in actors:
        if actor["pid"] and actor["host"] == os.uname().nodename:
            actor["memory_nodes"] = {str(n): size for n, size in numa.where(actor["pid"]).items()}


def open_run(run_dir: Path | None) -> "RunDir":
    """The run that --run names, or the newest."""
    from actors import rundir
    from actors.beginning import LATEST

    try:
        return rundir.open_((run_dir or LATEST).resolve())
    except rundir.RunDirError as error:
        raise Refused(str(error)) from error


def _document(run: "RunDir") -> dict[str, Any]:
    from actors import asking
    from protocol.messages import Status, StatusRequest

    silent = ""
    if asking.lives(run):
        try:
            answer = asking.ask(run, StatusRequest())
        except asking.Unanswered as error:
            silent = str(error)
        else:
            if isinstance(answer, Status):
                return json.loads(answer.document)
    return _from_directory(run, silent)


def _from_directory(run: "RunDir", silent: str) -> dict[str, Any]:
    """Of a run without a supervisor that answers: how it ended, or who still lives.

    `silent`: why a supervisor that lives has not said it itself.
    """
    from actors import leftovers, outcome, rundir
    from actors.supervisor import places, reports, status, table

    found = outcome.read(run)
    rows = table.read(run)
    living = set(leftovers.living(run))
    metrics = status.newest_metrics(reports.tail(run.metrics, 4))
    actors: list[dict[str, Any]] = []
    reason = found.reason if found is not None else silent
    try:
        planned = places.read(run)
    except rundir.RunDirError as error:  # it has hardly begun, or lost a file
        planned, reason = (), reason or str(error)
    for place in planned:
        row = rows.get(place.name, table.Row())
        if row.who not in living:
            continue
        actors.append(
            {
                "name": place.name,
                "role": place.role,
                "pid": row.pid,
                "host": os.uname().nodename,
                "state": "running",
                "incarnation": row.incarnation,
                "restarts": row.restarts,
                "cpus": list(place.cpus),
                "numa_node": place.numa_node,
                "device": place.device,
                "rss_bytes": 0,
                "heartbeat_age_s": None,
                "waiting": {"for": "supervisor", "s": 0.0},
            }
        )
    return {
        "run": str(run.path),
        "state": found.end if found is not None else ("lost" if actors else "dead"),
        "reason": reason,
        **status.figures(metrics),
        "actors": actors,
        "queues": {"fast": 0, "slow": 0, "batches": 0},
    }


def _show(document: dict[str, Any]) -> None:
    from rich.table import Table

    console = printing.console()
    reason = f" ({document['reason']})" if document.get("reason") else ""
    console.print(f"{document['run']}: {document['state']}{reason}", markup=False)
    console.print(_figures(document), markup=False, soft_wrap=True)
    if not document["actors"]:
        return
    data = _data(document["actors"])
    if data:
        console.print(data, markup=False, soft_wrap=True)
    for line in _standbys(document["actors"], document["step"]):
        console.print(line, markup=False, soft_wrap=True)
    shown = Table(box=None, pad_edge=False)
    guests = {actor["host"] for actor in document["actors"]} - {os.uname().nodename}
    columns = (
        "actor",
        *(["host"] if guests else []),
        "state",
        "pid",
        "life",
        "restarts",
        "cpus",
        "device",
        "memory",
        "waiting for",
    )
    for column in columns:
        shown.add_column(column, no_wrap=True)
    for actor in document["actors"]:
        name, *rest = _row(actor)
        shown.add_row(name, *([actor["host"]] if guests else []), *rest)
    console.print(shown)


def _figures(document: dict[str, Any]) -> str:
    parts = [f"step {document['step']}"]
    if document["loss"] is not None:
        parts.append(f"loss {document['loss']:.4f}")
    if document["bits_per_byte"] is not None:
        parts.append(f"{document['bits_per_byte']:.3f} bits/byte")
    if document["tokens_per_s"] is not None:
        parts.append(f"{document['tokens_per_s']:,.0f} tokens/s")
    wire, queues = document["wire"], document["queues"]
    parts.append(f"{wire['up_bytes_per_step']:,} bytes up")
    parts.append(f"{wire['down_bytes_per_step']:,} bytes down")
    parts.append("queues " + ", ".join(f"{name} {count}" for name, count in queues.items()))
    return "  ".join(parts)


def _data(actors: list[dict[str, Any]]) -> str:
    """How good the data is: what the loader counts by kind."""
    gauges: dict[str, float] = {}
    for actor in actors:
        if actor["role"] == "loader":
            gauges = actor.get("gauges", gauges)
    parts = [f"{gauges['compile_rate']:.1%} compile"] if "compile_rate" in gauges else []
    for what in ("left out", "refused", "quarantined"):
        prefix = f"{what}: "
        kinds = [
            f"{count:.0f} {name.removeprefix(prefix)}"
            for name, count in sorted(gauges.items())
            if name.startswith(prefix) and count
        ]
        parts += [f"{what}: {', '.join(kinds)}"] if kinds else []
    return "data " + "; ".join(parts) if parts else ""


def _standbys(actors: list[dict[str, Any]], committed: int) -> list[str]:
    """How far copies on other hosts are, as the loader tells."""
    gauges: dict[str, float] = {}
    for actor in actors:
        if actor["role"] == "loader":
            gauges = actor.get("gauges", gauges)
    found: list[str] = []
    for name in sorted(gauges):
        who, _, what = name.partition(": ")
        if what != "step" or not who.startswith("standby "):
            continue
        step, silent_s = int(gauges[name]), gauges.get(f"{who}: silent_s", 0.0)
        parts = [f"holds step {step}, {max(0, committed - step)} behind"]
        if step < 0:
            parts = ["not complete yet; steps are noted from the next checkpoint on"]
        parts += [f"{gauges.get(f'{who}: lacking_bytes', 0.0) / 1e6:,.1f} MB to come"]
        parts += ["left"] if silent_s < 0 else []
        parts += [f"silent for {silent_s:.0f} s"] if silent_s > _SILENT_S else []
        found.append(f"{who}: {', '.join(parts)}")
    return found


def _row(actor: dict[str, Any]) -> list[str]:
    from actors.hardware import format_cpulist

    waiting = actor.get("waiting")
    name = f"{actor['name']} ({actor['pool']})" if actor.get("pool") else actor["name"]
    return [
        name,
        actor["state"],
        "" if actor["pid"] is None else str(actor["pid"]),
        "" if actor["pid"] is None else str(actor["incarnation"]),  # of a guest: a time stamp
        str(actor["restarts"]),
        format_cpulist(actor["cpus"]),
        actor["device"],
        f"{actor['rss_bytes'] / 1e6:.0f} MB" if actor["rss_bytes"] else "",
        f"{waiting['for']} ({waiting['s']:.1f} s)" if waiting else "",
    ]
