"""Stages that note what they do, and do to their worker what the sample says.

A sample that contains POISON kills its worker, HANG never returns, SLOW takes a third of a second.
"""

import os
import signal
import time
from pathlib import Path

from actors.data import stages
from actors.data.stages import Options, Stage, State
from protocol.messages import SampleRef


def arm(notes: str) -> None:
    """Put the mischief into this process."""
    for name, stage in list(stages.STAGES.items()):
        stages.STAGES[name] = _noted(name, stage, Path(notes))


def _noted(name: str, stage: Stage, notes: Path) -> Stage:
    def run(state: State, ref: SampleRef, options: Options) -> State:
        with notes.open("a") as file:
            file.write(f"{Path(ref.path).name} {name} {os.getpid()}\n")
        if name == "verify":
            if b"POISON" in state.text:
                os.kill(os.getpid(), signal.SIGKILL)
            if b"HANG" in state.text:
                signal.pause()
            if b"SLOW" in state.text:
                time.sleep(0.35)
        return stage(state, ref, options)

    return run
