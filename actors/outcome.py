"""`outcome.json`: how a run ended. Written once, by the supervisor, when nothing else is left."""

import json
from typing import Literal

import msgspec

from actors import rundir
from actors.rundir import RunDir


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """The end of a run."""

    end: Literal["done", "failed", "stopped"]
    reason: str  # one line, for people
    step: int = 0  # the last one committed, where the shards said so
    weights_digest: str = ""
    restarts: int = 0  # of all actors together


def write(run: RunDir, outcome: Outcome) -> bool:
    """Record the end. False when the disk does not take it."""
    text = json.dumps(msgspec.to_builtins(outcome), indent=1) + "\n"
    try:
        rundir.write_atomically(run.outcome, text)
    except OSError:
        return False
    return True


def read(run: RunDir) -> Outcome | None:
    """How the run ended; None while it has not, and after a crash of everything."""
    found = rundir.read_json(run.outcome)
    if found is None:
        return None
    try:
        return msgspec.convert(found, Outcome)
    except msgspec.ValidationError:
        return None
