"""Which checkpoint a shard's empty state is filled from, and how, whoever and how many wrote it."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from actors import checkpoints
from actors.checkpoints import Checkpoint, CheckpointError, Manifest, TensorFile, memory_name
from actors.codec_memory import CodecMemory
from actors.optimizer.layout import kept_tensors
from actors.optimizer.state import Counts, Facts, State
from actors.parameters import Parameter
from actors.topology import Topology
from actors.uplink import memory_tensors

if TYPE_CHECKING:
    from actors.published import Array


def to_go_on_from(directory: Path, on_damaged: Callable[[str], object]) -> Checkpoint | None:
    """The newest whole checkpoint; None when there has never been any. Damaged ones that are newer
    lose their names, for the run comes to their steps again.

    Raises `CheckpointError` when every one there is has been damaged: to lose all that was learned
    is for a person to decide.
    """
    found = checkpoints.newest(directory, on_damaged)
    if found is None and (damaged := checkpoints.listing(directory)):
        raise CheckpointError(
            f"{directory} holds no whole checkpoint, {damaged[0].name} and all before it are "
            "damaged; restore one from a copy, or move them away to begin again with step 1"
        )
    stuck = checkpoints.put_aside(directory, -1 if found is None else found.step)
    if stuck:
        raise CheckpointError(f"damaged checkpoints cannot be renamed: {stuck[0]}; remove it")
    return found


def restore(
    state: State,
    checkpoint: Checkpoint,
    topology: Topology,
    shard: int,
    memories: Sequence[CodecMemory] = (),
    filled: Callable[[], object] = lambda: None,
    replay: Callable[[State, Mapping[str, int], int], int] = lambda _s, _v, committed: committed,
) -> None:
    """Fill `state` and make it ready; `memories` of all ranks too, as far as they are this shard's.

    `filled` is called after each parameter. `replay` takes the state on from there, given where all
    shards' parameters are and the committed step; it returns the step that is committed then.
    A rank that the checkpoint does not know begins with an empty memory. Raises `CheckpointError`
    when the checkpoint does not fit.
    """
    manifest = checkpoint.manifest
    if manifest.seed != topology.seed:
        raise CheckpointError(
            f"{checkpoint.path} was made with seed {manifest.seed}, this topology has seed "
            f"{topology.seed}: resume with the run's own topology"
        )
    wanted = {place.parameter.name: index for index, place in enumerate(state.layout.places)}
    versions: dict[str, int] = {}
    for file in checkpoint.tensor_files():
        for name, about in file.parameters.items():
            versions[name] = about.version
            if name in wanted:
                index = wanted.pop(name)
                _fill(state, index, file, topology)
                _remember(memories, state.layout.places[index].parameter, file, manifest, topology)
                filled()
    if wanted:
        raise CheckpointError(
            f"{checkpoint.path} holds no {sorted(wanted)[0]}: it was made with another model"
        )
    between = max(versions.values()) > manifest.step or manifest.committed < manifest.step
    if between and manifest.trainers != topology.actors.trainers:
        raise CheckpointError(
            f"{checkpoint.path} was made in the middle of a step of {manifest.trainers} trainers, "
            f"this topology has {topology.actors.trainers}: resume with "
            f"actors.trainers = {manifest.trainers}"
        )
    if shard == 0:
        _fill_steps(state, checkpoint)
    state.set_ready(replay(state, versions, manifest.committed))


def _fill(state: State, index: int, file: TensorFile, topology: Topology) -> None:
    parameter = state.layout.places[index].parameter
    about = file.parameters[parameter.name]
    kept = {
        spec.name: file.tensor(parameter.name, spec)
        for spec in kept_tensors(topology.optimizer, parameter)
    }
    state.fill(index, about.version, kept)
    for version, (digest, *counts) in about.published.items():
        tensors = file.published(parameter, int(version))
        raw, absent = bytes.fromhex(digest), about.absent.get(version, 0)
        state.publish(index, int(version), tensors, raw, Counts(*counts), absent)


def _remember(
    memories: Sequence[CodecMemory],
    parameter: Parameter,
    file: TensorFile,
    manifest: Manifest,
    topology: Topology,
) -> None:
    specs = memory_tensors(topology.optimizer, parameter)
    version = file.parameters[parameter.name].version
    for rank, memory in enumerate(memories if specs else ()):
        known = rank < manifest.trainers
        tensors: dict[str, Array] = {}
        for spec in specs:
            wanted = spec._replace(name=memory_name(rank, spec.name))
            empty = np.zeros(spec.shape, spec.dtype)
            tensors[spec.name] = file.tensor(parameter.name, wanted) if known else empty
        memory.fill(parameter.name, version, tensors)


def _fill_steps(state: State, checkpoint: Checkpoint) -> None:
    for record in checkpoint.metrics():
        state.put_record(record["step"], record)
    ranks = range(state.layout.ranks)
    for step, said in checkpoint.manifest.facts.items():
        for rank, values in said.items():
            if int(rank) in ranks:
                state.put_facts(int(step), int(rank), _facts(values))


def _facts(values: dict[str, float]) -> Facts:
    whole = {"tokens", "text_bytes", "up_bytes"}
    return Facts(**{k: int(v) if k in whole else v for k, v in values.items()})  # pyright: ignore[reportArgumentType]
