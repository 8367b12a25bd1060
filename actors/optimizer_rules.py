"""Combinations of [optimizer] keys that cannot work, each with its key and the way out. Pure."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import msgspec

from actors.optimizer_tables import OptimizerGroup, OptimizerSpec

if TYPE_CHECKING:
    from actors.topology import ModelSpec

Rule = tuple[str, str]  # key path, what is wrong and what would be accepted

# Keys of an optimizer that would be ignored by any other kind. What they are when not given stands
# in optimizer_tables.py.
_KINDS_OF_KEY = {
    "neuron_beta2": ("muon", "muon8bit"),
    "map": ("muon8bit",),
    "block": ("muon8bit", "adamw8bit"),
    "level": ("foam",),
    "second": ("foam",),
    "residual": ("foam",),
    "alpha": ("foam",),
}
# Smaller blocks cost more for scales than codes save; bitsandbytes begins there too.
_SMALLEST_BLOCK = 64
# Codecs that may follow a projection.
_WITHOUT_MEMORY = ("dense", "int8", "int4", "int4_rotated")
# Keys that mean nothing without a projection, and those of one kind of projection only.
_KEYS_OF_PROJECTION = {
    "rank": ("galore", "gum"),
    "refresh_every": ("galore", "gum"),
    "first_basis": ("galore", "gum"),
    "power_iterations": ("galore", "gum"),
    "basis": ("galore", "gum"),
    "moments": ("galore",),
    "galore_scale": ("galore",),
    "remainder": ("gum",),
}


def broken_rules(optimizer: OptimizerSpec, model: "ModelSpec", path: str) -> Iterator[Rule]:
    """Every combination in `optimizer`, the table at `path`, that cannot work."""
    yield from _codec(optimizer, path)
    yield from _projection(optimizer, path)
    if optimizer.fire_exclude and not optimizer.fire_at:
        yield f"{path}.fire_exclude", "has no effect without fire_at; accepted: steps in fire_at"
    if optimizer.fire_method != "newton_schulz" and not optimizer.fire_at:
        yield f"{path}.fire_method", "has no effect without fire_at; accepted: steps in fire_at"
    narrow = min(model.dim, model.ffn_dim or model.dim)
    if optimizer.matrices.projection == "gum" and optimizer.matrices.rank >= narrow:
        yield (
            f"{path}.matrices.rank",
            f"{optimizer.matrices.rank} directions span all of a matrix with {narrow} rows or "
            f"columns, and nothing remains; accepted: 1 to {narrow - 1}, or 0 for a quarter",
        )
    if optimizer.dense.kind in ("muon", "muon8bit"):
        yield (
            f"{path}.dense.kind",
            "Muon orthogonalises matrices, and this group holds vectors and the embedding; "
            'accepted: "adamw", "adamw8bit" or "foam"',
        )
    for name, group in (("matrices", optimizer.matrices), ("dense", optimizer.dense)):
        yield from _keys_of_kind(group, f"{path}.{name}")
        if group.min_lr > group.lr:
            yield (
                f"{path}.{name}.min_lr",
                f"{group.min_lr:g} is above lr = {group.lr:g}; accepted: 0 to lr",
            )


def _codec(optimizer: OptimizerSpec, path: str) -> Iterator[Rule]:
    power = optimizer.codec.startswith("power")
    if power and not optimizer.codec_rank:
        yield (
            f"{path}.codec_rank",
            f'codec "{optimizer.codec}" sends two factors of that many columns; accepted: 1 or '
            "more, an eighth of model.dim for a start",
        )
    if optimizer.codec_rank and not power:
        yield (
            f"{path}.codec_rank",
            f'has no effect on codec "{optimizer.codec}"; accepted: codec = "power", "power_int8" '
            'or "power_int4"',
        )


def _projection(optimizer: OptimizerSpec, path: str) -> Iterator[Rule]:
    group = optimizer.matrices
    if optimizer.dense.projection != "none":
        yield (
            f"{path}.dense.projection",
            "this group holds vectors and the embedding, whose rows have no directions in common; "
            'accepted: "none"',
        )
    if group.projection == "galore":
        yield from _galore(group, f"{path}.matrices")
    if group.projection == "gum":
        yield from _gum(group, f"{path}.matrices")
    if group.projection != "none" and optimizer.codec not in _WITHOUT_MEMORY:
        known = ", ".join(f'"{name}"' for name in _WITHOUT_MEMORY)
        yield (
            f"{path}.codec",
            f'"{optimizer.codec}" remembers errors in directions that a new basis replaces; '
            f"accepted: {known}",
        )


def _galore(group: OptimizerGroup, path: str) -> Iterator[Rule]:
    if group.kind == "foam":
        yield (
            f"{path}.kind",
            '"foam" shares moments among neighbours, which a projection mixes; accepted: '
            'projection "galore": "muon", "muon8bit", "adamw" or "adamw8bit"',
        )
    if group.neuron_beta2:
        yield (
            f"{path}.neuron_beta2",
            'a projected neuron has no row of its own; accepted: 0, or projection = "gum"',
        )
    if group.map != "linear":
        yield (
            f"{path}.map",
            'projected momentum is kept in linear codes; accepted: "linear", or projection = "gum"',
        )


def _gum(group: OptimizerGroup, path: str) -> Iterator[Rule]:
    if group.kind not in ("muon", "muon8bit"):
        yield (
            f"{path}.kind",
            f'"{group.kind}" cannot follow GUM, whose two parts add up for an update that turns as '
            'the gradient does; accepted: "muon" or "muon8bit"',
        )
    if not 0 < group.remainder < 1:
        yield (
            f"{path}.remainder",
            f"{group.remainder:g} would never send one of the two parts, and the gradient would be "
            "biased; accepted: between 0 and 1, both excluded",
        )
    if group.clip:
        yield (
            f"{path}.clip",
            "each of GUM's two parts is divided by its probability, so a bound would "
            'bias the gradient; accepted: 0, or projection = "galore" or "none"',
        )


def _keys_of_kind(group: OptimizerGroup, path: str) -> Iterator[Rule]:
    absent = {field.name: field.default for field in msgspec.structs.fields(group)}
    for key, kinds in _KINDS_OF_KEY.items():
        if group.kind not in kinds and getattr(group, key) != absent[key]:
            meant = " or ".join(f'kind = "{kind}"' for kind in kinds)
            yield f"{path}.{key}", f'has no effect on kind "{group.kind}"; accepted: {meant}'
    for key, projections in _KEYS_OF_PROJECTION.items():
        if group.projection not in projections and getattr(group, key) != absent[key]:
            meant = " or ".join(f'projection = "{projection}"' for projection in projections)
            yield (
                f"{path}.{key}",
                f'has no effect on projection "{group.projection}"; accepted: {meant}',
            )
    if 0 < group.block < _SMALLEST_BLOCK:
        yield (
            f"{path}.block",
            f"{group.block} codes to a scale; accepted: 0 for the kind's own, or "
            f"{_SMALLEST_BLOCK} to 65536",
        )
