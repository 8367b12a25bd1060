"""Loads the model that `train.filter_reference` names: actors/reference.py says what it may be."""

from pathlib import Path

from actors import checkpoints
from actors import topology as topologies
from actors.checkpoints import CheckpointError
from actors.replica import Replica
from actors.rundir import RunDir
from actors.topology import Topology
from kernels.model.model import LoopLM


def load_reference(topology: Topology, device: str) -> LoopLM | None:
    """The model of `train.filter_reference`, or None without one.

    Raises `CheckpointError` or `TopologyError`.
    """
    path = topology.train.filter_reference
    if not path:
        return None
    run = RunDir(Path(path).parent.parent)
    try:
        text = run.topology.read_text(encoding="utf-8")
        replica = Replica(topologies.decode(text, source=str(run.topology)).model, device)
        replica.load_checkpoint(checkpoints.verify(Path(path)))
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"train.filter_reference: {error}") from error
    return replica.model
