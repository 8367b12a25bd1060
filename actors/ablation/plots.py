"""Plots of an ablation. matplotlib is an extra: the base installation does without."""

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Row = Mapping[str, Any]

HINT = "no plots: matplotlib is not installed; pip install '.[bench]' and run it again"


class NoPlots(RuntimeError):
    """matplotlib is missing: says how to get it."""


def write(directory: Path, found: Mapping[str, Any]) -> list[Path]:
    """Draw what `report.document` holds as PNG. Raises `NoPlots`."""
    try:
        importlib.import_module("matplotlib").use("Agg")
        pyplot = importlib.import_module("matplotlib.pyplot")
    except ImportError:
        raise NoPlots(HINT) from None
    rows = [row for row in found["rows"] if "failed" not in row]
    if not rows:
        return []
    return [
        _curves(pyplot, directory / "loss.png", rows),
        _bars(pyplot, directory / "figures.png", rows),
    ]


def _curves(pyplot: Any, path: Path, rows: Sequence[Row]) -> Path:
    """Loss over steps: of the batches trained on, and of held-out text."""
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(14, 6), layout="constrained")
    styles = ("-", "--", ":")
    for number, row in enumerate(rows):
        style = {"linestyle": styles[number // 10 % 3], "label": row["name"], "linewidth": 1.2}
        left.plot(range(1, len(row["curve"]) + 1), row["curve"], **style)
        steps, losses = zip(*row["held_out_curve"], strict=True)
        right.plot(steps, losses, marker=".", **style)
    for axes, what in ((left, "training loss (moving mean)"), (right, "held-out loss")):
        axes.set_xlabel("step")
        axes.set_ylabel(f"{what}, nats per token")
        axes.grid(alpha=0.3)
    right.legend(ncols=2, fontsize="small")
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
    return path


def _bars(pyplot: Any, path: Path, rows: Sequence[Row]) -> Path:
    """Held-out bits per byte, speed, optimizer state and uplink, side by side."""
    names = [row["name"] for row in rows]
    none = {"all": 0.0}
    held: list[float] = [(row["optimizer_bytes_per_parameter"] or none)["all"] for row in rows]
    panels: tuple[tuple[str, list[float]], ...] = (
        ("bits per byte, held out", [row["bits_per_byte"]["mean"] for row in rows]),
        ("tokens per second", [row["tokens_per_s"] for row in rows]),
        ("optimizer bytes per parameter", held),
        ("KB up per step", [row["up_bytes_per_step"] / 1e3 for row in rows]),
    )
    figure, axes = pyplot.subplots(
        1, len(panels), figsize=(14, 0.4 * len(rows) + 1.5), sharey=True, layout="constrained"
    )
    for place, (title, values) in zip(axes, panels, strict=True):
        place.barh(names, values, color="tab:blue")
        place.set_title(title, fontsize="medium")
        place.grid(axis="x", alpha=0.3)
    errors = [row["bits_per_byte"]["std"] for row in rows]
    axes[0].errorbar(panels[0][1], names, xerr=errors, fmt="none", ecolor="black", capsize=2)
    low, high = min(panels[0][1]), max(panels[0][1])
    axes[0].set_xlim(low - 0.3 * (high - low) - 0.01, high + 0.1 * (high - low) + 0.01)
    axes[0].invert_yaxis()
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
    return path
