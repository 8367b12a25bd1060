"""Figures of a row that need no model: from its metrics, its checkpoint's files, its processes."""

import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from actors import checkpoints
from actors.ablation.trials import Trial
from actors.parameters import parameters

Record = dict[str, Any]

# A training loss is that of one batch, so curves are shown as means over this share of the run.
WINDOW_SHARE = 0.05
_BF16 = 2


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Of one figure over seeds."""
    return {
        "mean": statistics.fmean(values),
        "std": statistics.stdev(values) if len(values) > 1 else 0.0,
        "each": list(values),
    }


def smoothed(losses: Sequence[float], window: int) -> list[float]:
    """Means over the last `window` steps, fewer at the beginning."""
    return [
        statistics.fmean(losses[max(0, end - window) : end]) for end in range(1, len(losses) + 1)
    ]


def curve(trials: Sequence[Trial]) -> list[float]:
    """Training loss per step: smoothed, mean over seeds."""
    steps = min(len(trial.records) for trial in trials)
    window = max(1, round(WINDOW_SHARE * steps))
    each = [smoothed([r["loss"] for r in trial.records[:steps]], window) for trial in trials]
    return [statistics.fmean(at) for at in zip(*each, strict=True)]


def steps_to(looks: Sequence[tuple[int, float]], wanted: float) -> int | None:
    """When a loss seen at some steps comes down to `wanted`: linear in between, rounded up."""
    before: tuple[int, float] | None = None
    for step, loss in looks:
        if loss <= wanted:
            if before is None or before[1] <= loss:
                return step
            share = (before[1] - wanted) / (before[1] - loss)
            return math.ceil(before[0] + share * (step - before[0]))
        before = (step, loss)
    return None


def tokens_per_s(records: Sequence[Record]) -> float:
    """Of an ordinary step: the median, without the first tenth. 0 when there is none."""
    later = records[len(records) // 10 + 1 :]
    return statistics.median([r["tokens"] / r["step_s"] for r in later if r["step_s"]] or [0.0])


def bytes_per_step(records: Sequence[Record], key: str) -> float:
    """`up_bytes` or `down_bytes`: the mean, without the first step."""
    return statistics.fmean([r[key] for r in records[1:]] or [0.0])


def wire(trial: Trial) -> dict[str, float]:
    """Bytes per step, and how many times fewer than bf16 gradients or weights."""
    bf16 = _BF16 * sum(p.numel for p in parameters(trial.topology.model))
    up, down = (bytes_per_step(trial.records, key) for key in ("up_bytes", "down_bytes"))
    return {
        "up_bytes_per_step": up,
        "down_bytes_per_step": down,
        "up_times_fewer_than_bf16": bf16 / up if up else 0.0,
        "down_times_fewer_than_bf16": bf16 / down if down else 0.0,
    }


def optimizer_bytes(trial: Trial) -> dict[str, float] | None:
    """Bytes of optimizer state per parameter, by group and in all, as the checkpoint holds them.

    Masters and published weights are not optimizer state. None without a checkpoint.
    """
    listing = checkpoints.listing(trial.run.checkpoints)
    if not listing:
        return None
    groups = {p.name: p.group for p in parameters(trial.topology.model)}
    counts: dict[str, int] = {"matrices": 0, "dense": 0, "all": 0}
    held = dict.fromkeys(counts, 0)
    for p in parameters(trial.topology.model):
        for key in (p.group, "all"):
            counts[key] += p.numel
    for file in sorted(listing[0].glob("*.safetensors")):
        for name, nbytes in tensor_bytes(file).items():
            parameter, _, tensor = name.rpartition(":")
            if parameter in groups and not tensor.startswith(("master", "published", "memory")):
                for key in (groups[parameter], "all"):
                    held[key] += nbytes
    return {key: held[key] / max(1, counts[key]) for key in counts}


def tensor_bytes(path: Path) -> dict[str, int]:
    """Size of every tensor of a safetensors file, from its header."""
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return {
        name: entry["data_offsets"][1] - entry["data_offsets"][0]
        for name, entry in header.items()
        if name != "__metadata__"
    }
