"""The model whose losses `train.filter = "excess"` compares with: a checkpoint of an earlier run.

It is named by its own directory, not by its run's, because a filter must not change when that run
goes on. It must read the same tokens, so `data.tokenizer` must be that run's `tokenizer.json`.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from actors import checkpoints
from actors.checkpoints import MANIFEST, CheckpointError
from actors.rundir import RunDir

if TYPE_CHECKING:
    from actors.topology import Topology
    from kernels.model.model import LoopLM


def reference_problem(path: str, tokenizer: str) -> str:
    """Why a run with that `data.tokenizer` cannot use the checkpoint at `path`; "" if it can.

    Touches the file system only.
    """
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


def load_reference(topology: "Topology", device: str) -> "LoopLM | None":
    """The model of `train.filter_reference`, or None without one. Imports torch.

    Raises `CheckpointError` or `TopologyError`.
    """
    path = topology.train.filter_reference
    if not path:
        return None
    from actors import topology as topologies
    from actors.replica import Replica

    run = RunDir(Path(path).parent.parent)
    try:
        text = run.topology.read_text(encoding="utf-8")
        replica = Replica(topologies.decode(text, source=str(run.topology)).model, device)
        replica.load_checkpoint(checkpoints.verify(Path(path)))
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"train.filter_reference: {error}") from error
    return replica.model
