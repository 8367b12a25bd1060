"""A run directory with a checkpoint in it, as a run of a tiny model would have left it."""

import hashlib
import json
from pathlib import Path

import msgspec
import numpy as np

from actors import checkpoints, rundir, topology
from actors.checkpoints import Manifest, ParameterFacts, published_name, tensor_name
from actors.data.tokenizer import train
from actors.parameters import parameters
from actors.published import Array, TensorSpec, digest, published_tensors, weights_digest
from actors.rundir import RunDir
from actors.topology import Topology, to_dict
from kernels.model.config import ModelConfig
from kernels.model.model import LoopLM
from kernels.precision.packing import pack_array

LOCAL = topology.TOPOLOGIES / "local.toml"
TINY = (
    "model.dim=32",
    "model.layers=1",
    "model.heads=2",
    "model.loops=2",
    "model.vocab_size=300",
    "model.seq_len=64",
    "rollout.group=2",
    "rollout.max_new_tokens=8",
)
TEXT = "def total(items):\n    return sum(items)\n"


def make(path: Path, *overrides: str, step: int = 7) -> RunDir:
    """A run that has come to `step`."""
    run = rundir.create(path)
    spec = topology.decode(LOCAL.read_text(), source=str(LOCAL), overrides=(*TINY, *overrides))
    run.topology.write_text(topology.to_toml(spec))
    run.tokenizer.write_bytes(train([TEXT * 20], spec.model.vocab_size))
    add_checkpoint(run, spec, step)
    return run


def weights(spec: Topology, seed: int) -> dict[str, dict[str, Array]]:
    """Published tensors of a freshly initialised model."""
    model = LoopLM(ModelConfig.of(to_dict(spec)["model"]), "codes")
    model.initialise(seed)
    layers = model.ternary_layers()
    found: dict[str, dict[str, Array]] = {}
    for parameter in parameters(spec.model):
        if parameter.kind == "ternary":
            layer = layers[parameter.name]
            scale = np.array(float(layer.scale), np.float32)
            found[parameter.name] = {"packed": pack_array(layer.codes.numpy()), "scale": scale}
        else:
            dense = model.get_parameter(parameter.name).detach().numpy().copy()
            found[parameter.name] = {"dense": dense}
    return found


def add_checkpoint(run: RunDir, spec: Topology, step: int) -> Path:
    """Write a checkpoint of one file; where it is."""
    tensors = weights(spec, seed=step)
    specs: list[TensorSpec] = []
    arrays: list[Array] = []
    facts: dict[str, ParameterFacts] = {}
    digests: list[bytes] = []
    for parameter in parameters(spec.model):
        own = tensors[parameter.name]
        digests.append(digest(parameter, own))
        facts[parameter.name] = ParameterFacts(step, {str(step): (digests[-1].hex(), 0, 0, 0)})
        for tensor in published_tensors(parameter):
            name = tensor_name(parameter.name, published_name(step, tensor.name))
            specs.append(tensor._replace(name=name))
            arrays.append(own[tensor.name])
    unfinished = checkpoints.unfinished_path(run.checkpoints, step)
    unfinished.mkdir()
    metadata = {"parameters": json.dumps(msgspec.to_builtins(facts))}
    file = "all-0.safetensors"
    sha = checkpoints.write_tensors(unfinished / file, specs, arrays, metadata)
    manifest = Manifest(
        format=checkpoints.FORMAT,
        step=step,
        committed=step,
        seed=spec.seed,
        trainers=1,
        weights_digest=weights_digest(digests),
        topology_digest=hashlib.sha256(run.topology.read_bytes()).hexdigest(),
        ledger={},
        facts={},
        files={file: sha},
    )
    return checkpoints.complete(unfinished, manifest)
