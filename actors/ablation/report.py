"""What an ablation found, as one JSON document and as a table for people."""

import datetime
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actors.ablation import measures
from actors.ablation.rows import ROWS, Row
from actors.ablation.trials import Plan, Trial

if TYPE_CHECKING:
    from rich.table import Table

    from actors.ablation.figures import Measured

Entry = dict[str, Any]

RESULTS = "ablation.json"
# Two ablations with the same of these are one.
_SAME = ("topology", "settings", "steps", "seeds")


class OtherAblation(ValueError):
    """Results that those of this plan cannot stand beside: says why."""


def entry(row: Row, trials: Sequence[Trial], measured: Sequence["Measured"]) -> Entry:
    """One row's figures over its seeds, but for what compares it with the baseline."""
    first = trials[0]
    losses = [m.held_out["loss"] for m in measured]
    bits = [m.held_out["bits_per_byte"] for m in measured]
    return {
        "name": row.name,
        "what": row.what,
        "settings": list(row.settings),
        "figures": list(row.figures),
        "rate": first.rate,
        "seeds": [trial.seed for trial in trials],
        "loss": measures.spread(losses),
        "bits_per_byte": measures.spread(bits),
        "training_loss": measures.curve(trials)[-1],
        "curve": measures.curve(trials),
        "held_out_curve": [
            [step, statistics.fmean(loss for _, loss in at)]
            for step, at in (
                (looks[0][0], looks) for looks in zip(*(m.looks for m in measured), strict=True)
            )
        ],
        "tokens_per_s": statistics.median(measures.tokens_per_s(t.records) for t in trials),
        "optimizer_bytes_per_parameter": measures.optimizer_bytes(first),
        "peak_rss_bytes": {
            role: max(trial.peak_bytes.get(role, 0) for trial in trials)
            for role in ("trainer", "optimizer_shard")
        },
        **measures.wire(first),
        "own": {key: statistics.fmean(m.own[key] for m in measured) for key in measured[0].own},
        "took_s": sum(trial.took_s for trial in trials),
        "weights_digests": [trial.records[-1]["weights_digest"] for trial in trials],
        "runs": [str(trial.run.path) for trial in trials],
    }


def failure(row: Row, reason: str) -> Entry:
    """A row that could not be trained."""
    return {
        "name": row.name,
        "what": row.what,
        "settings": list(row.settings),
        "failed": reason,
    }


def compare(entries: Sequence[Entry]) -> None:
    """Add to each row when its held-out loss came down to what the first row's was in the end."""
    if "failed" in entries[0]:
        return
    wanted: float = entries[0]["loss"]["mean"]
    for found in entries:
        if "failed" not in found:
            found["steps_to_baseline"] = measures.steps_to(found["held_out_curve"], wanted)


def earlier(path: Path, plan: Plan, seeds: int) -> list[Entry]:
    """The rows of an `ablation.json` made the same way as `plan` makes them.

    Raises `OtherAblation`.
    """
    try:
        found: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        theirs, rows = [found[key] for key in _SAME], list(found["rows"])
    except OSError as error:
        raise OtherAblation(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError):
        raise OtherAblation(f"{path}: not an {RESULTS}") from None
    ours = [plan.topology, list(plan.settings), plan.steps, seeds]
    for key, this, that in zip(_SAME, ours, theirs, strict=True):
        if this != that:
            raise OtherAblation(f"{path}: its {key} is {that!r}, not {this!r}")
    return rows


def joined(before: Sequence[Entry], after: Sequence[Entry]) -> list[Entry]:
    """`before` with what has been trained again in place of the same rows, in the usual order."""
    rows = {row["name"]: row for row in (*before, *after)}
    known = [row.name for row in ROWS if row.name in rows]
    return [rows[name] for name in (*known, *(rows.keys() - set(known)))]


def document(plan: Plan, seeds: int, entries: Sequence[Entry], took_s: float) -> dict[str, Any]:
    """Everything."""
    cpus = plan.hardware.cpus
    return {
        "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "topology": plan.topology,
        "settings": list(plan.settings),
        "steps": plan.steps,
        "seeds": seeds,
        "machine": {
            "cpu": plan.hardware.cpu_model,
            "cores": len({cpu.core for cpu in cpus}),
            "gpus": [gpu.name for gpu in plan.hardware.gpus],
        },
        "took_s": took_s,
        "rows": list(entries),
    }


def write(directory: Path, found: Mapping[str, Any]) -> Path:
    """`ablation.json` in `directory`."""
    path = directory / RESULTS
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return path


def table(found: Mapping[str, Any]) -> "Table":
    """For people."""
    from rich.table import Table

    title = f"{found['steps']} steps, {found['seeds']} seed(s), topology {found['topology']}"
    out = Table(title=title, title_justify="left")
    out.add_column("row", no_wrap=True)
    for name in (
        "loss",
        "bits/byte",
        "steps to\nbaseline",
        "tokens/s",
        "optimizer B/param\nmatrices  all",
        "peak MB\ntrainer  shard",
        "KB per step\nup  down",
        "less than bf16\nup  down",
    ):
        out.add_column(name, justify="right")
    out.add_column("its own")
    for row in found["rows"]:
        out.add_row(*(cells(row) if "failed" not in row else (row["name"], row["failed"])))
    return out


def cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    """One line of the table."""
    held = row["optimizer_bytes_per_parameter"] or {"matrices": 0.0, "all": 0.0}
    peak = row["peak_rss_bytes"]
    reached = row.get("steps_to_baseline")
    hidden = () if "isometry" in row["figures"] else ("isometry_defect",)
    own = {key: value for key, value in row["own"].items() if key not in hidden}
    return (
        row["name"],
        _with_spread(row["loss"], 4),
        _with_spread(row["bits_per_byte"], 4),
        "-" if reached is None else str(reached),
        f"{row['tokens_per_s']:,.0f}",
        f"{held['matrices']:.2f}  {held['all']:.2f}",
        f"{peak['trainer'] / 1e6:.0f}  {peak['optimizer_shard'] / 1e6:.0f}",
        f"{row['up_bytes_per_step'] / 1e3:,.0f}  {row['down_bytes_per_step'] / 1e3:,.0f}",
        f"{row['up_times_fewer_than_bf16']:.1f}x  {row['down_times_fewer_than_bf16']:.1f}x",
        ", ".join(f"{key.replace('_', ' ')} {value:.3g}" for key, value in own.items()),
    )


def _with_spread(figure: Mapping[str, Any], digits: int) -> str:
    text = f"{figure['mean']:.{digits}f}"
    return text if len(figure["each"]) == 1 else f"{text} ± {figure['std']:.{digits}f}"
