"""What a run has learned so far: its newest good checkpoint as a model that computes.

For commands that look at a run from outside (`generate`, `eval`). Imports torch: commands import
this module when they need it, not before.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from actors import checkpoints
from actors.checkpoints import CheckpointError
from actors.data.tokenizer import TokenizerError
from actors.parameters import parameters
from actors.rollout.weights import load
from actors.rollout.writing import Pen
from actors.rundir import RunDir
from actors.topology import Topology, TopologyError, decode, to_dict
from kernels.model.config import ModelConfig
from kernels.model.model import LoopLM


class NothingTrained(Exception):
    """The run has nothing to offer yet, or nothing that can be used: says why."""


@dataclass(frozen=True, slots=True)
class Trained:
    """A model and how to talk to it."""

    topology: Topology
    model: LoopLM  # of mode "codes", on the CPU
    pen: Pen
    step: int
    weights_digest: str


def newest(run: RunDir, on_damaged: Callable[[str], object]) -> Trained:
    """The newest whole checkpoint of a run. Raises `NothingTrained`, and `TopologyError` when the
    run's topology is none.

    `on_damaged` hears of checkpoints that were skipped.
    """
    try:
        text = run.topology.read_text(encoding="utf-8")
        topology = decode(text, source=str(run.topology))
        pen = Pen(run.tokenizer.read_bytes())
    except UnicodeDecodeError as error:
        raise TopologyError(f"{run.topology} cannot be read: {error}") from error
    except TokenizerError as error:
        raise NothingTrained(str(error)) from error
    except OSError as error:
        raise NothingTrained(
            f"{error.filename}: {error.strerror}: this run has not come far enough"
        ) from error
    checkpoint = checkpoints.newest(run.checkpoints, on_damaged)
    if checkpoint is None:
        every = topology.checkpoint.every_steps
        raise NothingTrained(
            f"{run.checkpoints} holds no usable checkpoint; this run writes one every {every} "
            "steps, at its last step and when it is stopped"
        )
    torch.set_num_threads(topology.train.threads)
    model = LoopLM(ModelConfig.of(to_dict(topology)["model"]), "codes")
    params = parameters(topology.model)
    try:
        load(model, params, checkpoints.published_parameters(checkpoint, params))
    except (CheckpointError, ValueError) as error:
        raise NothingTrained(str(error)) from error
    digest = checkpoint.manifest.weights_digest
    return Trained(topology, model, pen, checkpoint.step, digest)
