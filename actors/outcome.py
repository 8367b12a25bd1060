"""`outcome.json`: how a run ended. Written once, by the supervisor, when nothing else is left."""

import json
from pathlib import Path

import msgspec

from actors import rundir
from actors.rundir import RunDir
from actors.supervisor.events import End as End


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """The end of a run."""

    end: End
    reason: str  # one line, for people
    step: int = 0  # the last one committed, where the shards said so
    weights_digest: str = ""
    restarts: int = 0  # of all actors together


def write(run: RunDir, outcome: Outcome) -> bool:
    """Record the end; False when not even beside the sockets there is room for it.

    A run that ended because its disk is full must not be taken for one that crashed, so what the
    run directory does not take goes to the socket directory, which lies elsewhere. The launcher
    reads it there before it removes that.
    """
    text = json.dumps(msgspec.to_builtins(outcome), indent=1) + "\n"
    for path in (run.outcome, _elsewhere(run)):
        try:
            rundir.write_atomically(path, text)
        except OSError:
            continue
        return True
    return False


def read(run: RunDir) -> Outcome | None:
    """How the run ended; None while it has not, and after a crash of everything."""
    found = rundir.read_json(run.outcome) or rundir.read_json(_elsewhere(run))
    if found is None:
        return None
    try:
        return msgspec.convert(found, Outcome)
    except msgspec.ValidationError:
        return None


def _elsewhere(run: RunDir) -> Path:
    return run.socket_dir / "outcome.json"
