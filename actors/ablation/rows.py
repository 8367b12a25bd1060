"""What an ablation compares: the same tokens, trained with one technique after the other.

Every row is a handful of topology settings on top of the baseline's. The baseline is AdamW for all
parameters, one predicted token, a plain residual, no filter, full precision, dense gradients. The
last row has everything on that works together.

HALF and TENTH in a setting are those of the run's steps.

A row's own figures are named here and measured in figures.py. `--tune` tries the factors in RATES
on the learning rates of AdamW and of Muon and shows what it found. All other rows have the rate of
the one of these two that they stand on, so a technique that wants another looks worse than it is.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

Figure = Literal["gain", "filter", "rounding", "state", "isometry", "drafts"]

# Of a row's learning rate, by --tune.
RATES = (0.5, 1.0, 2.0)

# A step of all rows is that of one trainer, on the same rows of text; nothing else competes for the
# machine.
COMMON = (
    "actors.trainers=1",
    "actors.optimizer_shards=1",
    "actors.rollouts=0",
    "actors.fast_workers=1",
    "actors.slow_workers=1",
)
# Held-out loss is measured so often over a run: more would cost more than the training.
LOOKS = 10

BASELINE = (
    "optimizer.matrices.kind=adamw",
    "optimizer.matrices.lr=0.004",
    "optimizer.matrices.min_lr=0.0004",
    "optimizer.matrices.weight_decay=0.01",
    "optimizer.dense.kind=adamw",
    "optimizer.dense.lr=0.002",
    "optimizer.dense.min_lr=0.0002",
    "optimizer.dense.clip=5.0",
    "optimizer.codec=dense",
    "optimizer.dense_codec=dense",
    "optimizer.dense_updates=dense",
)

MUON = (
    "optimizer.matrices.kind=muon",
    "optimizer.matrices.lr=0.04",
    "optimizer.matrices.min_lr=0.004",
    "optimizer.matrices.momentum=0.8",  # for runs of hundreds of steps; 0.95 for thousands
)
MUON_8BIT = (*MUON, "optimizer.matrices.kind=muon8bit")
GALORE = ("optimizer.matrices.projection=galore", "optimizer.matrices.refresh_every=TENTH")
FIRE = ("optimizer.fire_at=[HALF]",)
FOAM = ("optimizer.dense.kind=foam", "optimizer.dense.level=3")
STREAMS = ("model.streams=4",)
AHEAD = ("model.predict_tokens=2",)
FILTER = ("train.filter=loss",)
FP4 = ("train.precision=nvfp4",)
INT4 = ("optimizer.codec=int4", "optimizer.dense_codec=int4")
DOWN = ("optimizer.dense_updates=int4",)
# What topologies for large machines come with.
CODED = (
    "optimizer.codec=ternary_scaled",
    "optimizer.dense_codec=ternary_scaled",
    "optimizer.dense_updates=two_bit",
)


@dataclass(frozen=True, slots=True)
class Row:
    """One way to train."""

    name: str
    what: str
    settings: tuple[str, ...] = ()
    figures: tuple[Figure, ...] = ()
    tuned: bool = False

    def rate(self) -> float:
        """The learning rate of its matrices."""
        return float(_last(self.all(), "optimizer.matrices.lr"))

    def all(self) -> tuple[str, ...]:
        """Its settings and what they stand on."""
        return (*BASELINE, *self.settings)

    def at_rate(self, factor: float) -> tuple[str, ...]:
        """`all` with the learning rate of its matrices times `factor`."""
        if factor == 1.0:
            return self.all()
        changed = (
            f"{key}={float(_last(self.all(), key)) * factor:g}"
            for key in ("optimizer.matrices.lr", "optimizer.matrices.min_lr")
        )
        return (*self.all(), *changed)


def _last(settings: tuple[str, ...], key: str) -> str:
    return [text.partition("=")[2] for text in settings if text.partition("=")[0] == key][-1]


ROWS = (
    Row("adamw", "AdamW, nothing else: the baseline", (), ("isometry",), tuned=True),
    Row(
        "adamw8bit",
        "AdamW with 8-bit moments",
        ("optimizer.matrices.kind=adamw8bit", "optimizer.dense.kind=adamw8bit"),
    ),
    Row("muon", "Muon for matrices", MUON, tuned=True),
    Row("muon8bit", "Muon with 8-bit momentum", MUON_8BIT, ("state",)),
    Row("muon_coded", "Muon, three values up, four down", (*MUON, *CODED)),
    Row("normuon", "Muon, rows normalised", (*MUON, "optimizer.matrices.neuron_beta2=0.95")),
    Row("galore", "AdamW in a quarter of the directions", GALORE),
    Row("galore_muon8bit", "8-bit Muon in a quarter", (*MUON_8BIT, *GALORE), ("state",)),
    Row(
        "gum",
        "Muon, a quarter or the rest (GUM)",
        (*MUON, "optimizer.matrices.projection=gum", "optimizer.matrices.refresh_every=TENTH"),
    ),
    Row("foam", "FOAM for embedding and norms", FOAM),
    Row("int4", "gradients as 4-bit integers", INT4),
    Row("down_int4", "updates of the embedding as 4-bit integers", DOWN),
    Row(
        "power",
        "gradients as two factors of rank 16, error kept",
        ("optimizer.codec=power", "optimizer.codec_rank=16"),
    ),
    Row("fire", "matrices made isometries half-way", FIRE, ("isometry",)),
    Row("nvfp4", "NVFP4 in all three products", FP4, ("rounding",)),
    Row("mxfp4", "MXFP4 backward", ("train.precision=mxfp4_backward",), ("rounding",)),
    Row(
        "fp8_fp4",
        "FP8 attention, NVFP4 feed-forward, bf16 embedding",
        (
            "train.precision_attention=fp8",
            "train.precision_ffn=nvfp4",
            "train.precision_embedding=bf16",
        ),
        ("rounding",),
    ),
    Row("mtp", "two tokens predicted at a time", AHEAD, ("drafts",)),
    Row("mhc", "four residual streams", STREAMS, ("gain",)),
    Row("collider", "backward pass of 60 % of the tokens", FILTER, ("filter",)),
    Row(
        "loss_only",
        "losses of 60 % of the tokens",
        (*FILTER, "train.filter_backward=loss_only"),
        ("filter",),
    ),
    Row(
        "everything",
        "all of them",
        (*MUON_8BIT, *GALORE, *FOAM, *INT4, *DOWN, *FIRE, *FP4, *AHEAD, *STREAMS, *FILTER),
        ("state", "isometry", "rounding", "drafts", "gain", "filter"),
    ),
)

BASELINE_ROW = ROWS[0]


class UnknownRow(ValueError):
    """A name that is none of the rows'."""


def chosen(only: str, known: Collection[str] = ()) -> list[Row]:
    """The rows named in `only` (`a,b`), the baseline always first; all for "". Of those that are
    `known` by name only the ones that are asked for.

    Raises `UnknownRow`.
    """
    asked = [name.strip() for name in only.split(",") if name.strip()]
    names = [row.name for row in ROWS]
    for name in asked:
        if name not in names:
            raise UnknownRow(f"no row is called {name!r}; accepted: {', '.join(names)}")
    wanted = [row for row in ROWS if not asked or row is BASELINE_ROW or row.name in asked]
    return [row for row in wanted if row.name in asked or row.name not in known]


def in_steps(settings: tuple[str, ...], steps: int) -> tuple[str, ...]:
    """With HALF and TENTH as numbers."""
    numbers = {"HALF": max(1, steps // 2), "TENTH": max(1, steps // 10)}
    out = list(settings)
    for word, number in numbers.items():
        out = [text.replace(word, str(number)) for text in out]
    return tuple(out)


def schedule(steps: int) -> tuple[str, ...]:
    """A twentieth of the steps to warm up, a fifth to decay; checkpoints to look at."""
    warmup, decay = max(1, steps // 20), steps // 5
    stable = max(0, steps - warmup - decay)
    return (
        f"schedule.warmup={warmup}",
        f"schedule.stable={stable}",
        f"schedule.decay={decay}",
        f"checkpoint.every_steps={max(1, steps // LOOKS)}",
        f"checkpoint.keep_last={steps // max(1, steps // LOOKS) + 1}",
    )
