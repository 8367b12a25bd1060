"""What a copy of a run consists of, by path, and how each file is taken. Pure.

Both hosts use it: nothing else is handed out, and nothing else is written, whatever is asked for.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Literal

from actors import journal
from actors.checkpoints import MANIFEST

# whole      replaced when it has changed, never seen half
# growing    only added to
# saved      belongs to a checkpoint, which counts when all its files are there
Kind = Literal["whole", "growing", "saved"]

SMALL = ("topology.toml", "tokenizer.json")
METRICS = "metrics.jsonl"
_SAVED = re.compile(r"checkpoints/(step-(\d{8,}))/([A-Za-z0-9_-][A-Za-z0-9_.-]*)")


def kind_of(path: str) -> Kind | None:
    """How the file is taken; None: not at all."""
    folder, _, name = path.rpartition("/")
    if path in SMALL:
        return "whole"
    if path == METRICS or (folder == "journal" and journal.part_of(name) is not None):
        return "growing"
    if folder == "journal" and journal.ledger_number(name) is not None:
        return "whole" if name.endswith(".sqlite") else "growing"
    return "saved" if _SAVED.fullmatch(path) else None


def step_of(path: str) -> int:
    """Of a checkpoint that the file belongs to; -1: of none."""
    found = _SAVED.fullmatch(path)
    return -1 if found is None else int(found[2])


def ordered(paths: Iterable[str]) -> list[str]:
    """In the order in which a copy takes them, so that it can be broken off anywhere: nothing tells
    of a step before all is there that the step needs. To be looked at in the opposite order.
    """
    return sorted((path for path in paths if kind_of(path) is not None), key=_place)


def _place(path: str) -> tuple[int, int, str]:
    name = path.rpartition("/")[2]
    if path in SMALL:
        return 0, 0, path
    if journal.ledger_number(name) is not None:
        return 1, 0, path
    part = journal.part_of(name)
    if part is not None:  # shard 0's commit steps for all
        return 2, -part.shard, path
    if path == METRICS:
        return 3, 0, path
    return 4, step_of(path), f"~{path}" if name == MANIFEST else path


def steps_saved(paths: Sequence[str]) -> set[int]:
    """Steps of checkpoints that all of `paths` tell of."""
    return {step for path in paths if (step := step_of(path)) >= 0}
