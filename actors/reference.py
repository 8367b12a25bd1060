"""The model whose losses `train.filter = "excess"` compares with: a checkpoint of an earlier run.

It is named by its own directory, not by its run's, because a filter must not change when that run
goes on. It must read the same tokens, so `data.tokenizer` must be that run's `tokenizer.json`.
"""

from pathlib import Path

from actors.checkpoints import MANIFEST
from actors.rundir import RunDir


def reference_problem(path: str, tokenizer: str) -> str:
    """Why a run with that `data.tokenizer` cannot use the checkpoint at `path`; "" if it can."""
    directory = Path(path)
    if not (directory / MANIFEST).is_file():
        return (
            f"{path} is no checkpoint; accepted: a directory such as "
            "runs/NAME/checkpoints/step-00001000"
        )
    run = RunDir(directory.parent.parent)
    missing = [file for file in (run.topology, run.tokenizer) if not file.is_file()]
    if missing:
        return f"{path} does not lie in a run directory: {missing[0]} is missing"
    try:
        same = tokenizer and run.tokenizer.read_bytes() == Path(tokenizer).read_bytes()
    except OSError as error:
        return f"{error.filename}: {error.strerror}"
    if not same:
        return (
            f"{path} belongs to a model that reads other tokens; set data.tokenizer = "
            f'"{run.tokenizer}"'
        )
    return ""
