"""Keys of the [data] tables that have to agree, and the way out. Part of topology_rules.py."""

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from actors.data_tables import DataSpec, Source

Rule = tuple[str, str]  # key path, what is wrong and what would be accepted

_FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
# More copies than that of every sample are more likely meant as a share.
_HEAVIEST = 1000.0


def broken_rules(data: "DataSpec", *, rollouts: bool) -> Iterator[Rule]:
    """Every combination in `data` that cannot work. `rollouts`: somebody wants prompts."""
    if not data.sources:
        yield "data.sources", "is empty; accepted: at least one source"
    for i, source in enumerate(data.sources):
        yield from _source(source, f"data.sources.{i}")
    if data.held_out_share >= 1:
        yield "data.held_out_share", "leaves nothing to train on; accepted: 0 to less than 1"
    if rollouts and data.held_out_share == 0:
        yield (
            "data.held_out_share",
            "is 0, but rollouts cut their prompts from held-out files; accepted: more than 0, or "
            "actors.rollouts = 0",
        )
    for i, stage in enumerate(data.stages):
        if not _FUNCTION.fullmatch(stage):
            yield f"data.stages.{i}", f'{stage!r} names no function; accepted: "module:function"'
    if not data.verify and (data.min_compile_rate or data.verify_every_n > 1):
        key = "min_compile_rate" if data.min_compile_rate else "verify_every_n"
        yield f"data.{key}", "has no effect with verify = false; accepted: verify = true"
    if data.licence_field and not data.licences:
        yield "data.licence_field", "has no effect without data.licences; accepted: name some"


def _source(source: "Source", path: str) -> Iterator[Rule]:
    if source.kind == "python_stdlib" and source.path:
        yield f"{path}.path", 'kind "python_stdlib" finds itself; accepted: no path'
    if source.kind != "python_stdlib" and not source.path:
        yield f"{path}.path", f'kind "{source.kind}" needs one; accepted: a path, ~ and globs'
    if source.kind == "directory" and not source.pattern:
        yield f"{path}.pattern", 'is empty; accepted: a glob such as "**/*.py"'
    if source.kind in ("jsonl", "parquet", "huggingface") and not source.field:
        yield f"{path}.field", "is empty; accepted: the key or column that holds the text"
    if source.weight > _HEAVIEST:
        yield (
            f"{path}.weight",
            f"{source.weight:g} is how often each of its samples would come in an epoch; "
            f"accepted: up to {_HEAVIEST:g}",
        )
