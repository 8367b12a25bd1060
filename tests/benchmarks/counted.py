"""Counts the processor time of a run's protections, in every process that a forkserver makes.

Imported by the forkservers of a run under `protections.py`, before they import anything of ours.
Each function that protects is replaced by itself and two looks at the clock of its thread. A
function that does other things as well counts in full: the sums are upper bounds.
"""

import functools
import json
import os
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from actors import published
from actors.data.ledger import Ledger
from actors.membership import Membership
from actors.optimizer.state import State
from actors.optimizer.writer import ShardWriter
from protocol.gate import Gate

DIRECTORY = "TRIREME_COUNTED"
_EVERY_S = 0.1
PROTECTIONS: dict[str, tuple[tuple[Any, str], ...]] = {
    "digests of weights, made and compared": ((published, "digest"),),
    "redo records, and the update behind them": ((State, "update"),),
    "facts and commits": ((State, "put_facts"), (State, "commit")),
    "the ledger, before a batch is shown": ((Ledger, "commit"),),
    "checkpoints": ((ShardWriter, "preserve"), (ShardWriter, "_write")),
    "beats and the watch for a supervisor": ((Membership, "hear"), (Membership, "tick")),
    "who may say what, and zombies": ((Gate, "judge"),),
}

_spent: dict[tuple[int, str], float] = defaultdict(float)
_dumped = [0.0]


def install() -> None:
    """From now on."""
    for what, places in PROTECTIONS.items():
        for owner, name in places:
            setattr(owner, name, _counted(what, getattr(owner, name)))


def _counted(what: str, real: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(real)
    def counted(*arguments: Any, **named: Any) -> Any:
        began = time.thread_time()
        try:
            return real(*arguments, **named)
        finally:
            _spent[threading.get_ident(), what] += time.thread_time() - began
            if time.monotonic() - _dumped[0] > _EVERY_S:
                _dumped[0] = time.monotonic()
                _dump()

    return counted


def _dump() -> None:
    sums: dict[str, float] = defaultdict(float)
    for (_, what), spent_s in list(_spent.items()):
        sums[what] += spent_s
    path = Path(os.environ[DIRECTORY]) / f"{os.getpid()}.json"
    fresh = path.with_suffix(f".{threading.get_ident()}")
    fresh.write_text(json.dumps(sums))
    fresh.replace(path)


if DIRECTORY in os.environ:
    install()
