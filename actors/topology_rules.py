"""Combinations of topology keys that cannot work, each with its key and the way out.

What one key accepts is declared beside it (topology.py); here is what keys must agree on. Pure,
except `check_paths`, which asks the file system and is therefore separate.
"""

import glob
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from actors import data_rules, optimizer_rules

if TYPE_CHECKING:
    from actors.topology import (
        ActorCounts,
        ModelSpec,
        RolloutSpec,
        ScheduleSpec,
        Topology,
        TrainSpec,
    )

Rule = tuple[str, str]  # key path, what is wrong and what would be accepted

# Codecs whose gradients stand for themselves.
_WITHOUT_MEMORY = frozenset(("dense", "int8", "int4", "int4_rotated"))
# Ranks fit into a mask of one word of a shard's state.
_MOST_RANKS = 62

# Tensors a layer owns: q, k, v, o, gate, up, down, two SubLNs and four sandwich norms.
_TENSORS_PER_LAYER = 13
# Embedding, final norm, exit gate's weight and bias.
_TENSORS_OUTSIDE = 4
# phi, b and alpha of what joins residual streams: twice in a layer, once at the end.
_TENSORS_PER_CONNECTION = 3
# n! weights per token and sublayer: 24 for four streams, 120 for five.
_MOST_PERMUTED_STREAMS = 4


def broken_rules(topology: "Topology") -> list[Rule]:
    """Every combination in `topology` that cannot work."""
    return [
        *_run(topology, ""),
        *_hardware(topology),
        *data_rules.broken_rules(topology.data, rollouts=topology.actors.rollouts > 0),
        *_supervision(topology),
        *_elastic(topology),
        *_emulation(topology),
    ]


def tensor_count(model: "ModelSpec") -> int:
    """How many parameter tensors the model has: the most optimizer shards that have work."""
    plain = model.layers * _TENSORS_PER_LAYER + _TENSORS_OUTSIDE + (not model.tie_embedding)
    connections = 2 * model.layers + 1 if model.streams > 1 else 0
    predictor = _TENSORS_PER_LAYER + (4 if model.prediction == "sequential" else 1)
    ahead = (model.predict_tokens - 1) * predictor
    return plain + _TENSORS_PER_CONNECTION * connections + ahead


def _run(topology: "Topology", prefix: str) -> Iterator[Rule]:
    """Rules about the tables that [emulation] can replace."""
    yield from _model(topology.model, f"{prefix}model")
    yield from _train(topology.train, topology.model, f"{prefix}train")
    yield from _schedule(topology.schedule, f"{prefix}schedule")
    yield from optimizer_rules.broken_rules(
        topology.optimizer, topology.model, f"{prefix}optimizer"
    )
    yield from _counts(topology.actors, topology.model, f"{prefix}actors")
    yield from _remote(topology, f"{prefix}actors")
    if topology.actors.rollouts:
        yield from _rollout(topology.rollout, topology.model, f"{prefix}rollout")


def _model(model: "ModelSpec", path: str) -> Iterator[Rule]:
    if model.dim % model.heads:
        yield (
            f"{path}.heads",
            f"{model.heads} heads do not divide dim {model.dim}; accepted: a divisor of dim, with "
            "dim / heads even",
        )
    elif (model.dim // model.heads) % 2:
        yield (
            f"{path}.heads",
            f"dim / heads is {model.dim // model.heads}, but rotary embedding turns pairs of "
            "channels; accepted: an even dim / heads",
        )
    if model.stream_mixing == "permutation" and model.streams > _MOST_PERMUTED_STREAMS:
        yield (
            f"{path}.streams",
            f"{model.streams} streams have {math.factorial(model.streams)} permutations, each with "
            f"a weight per token and sublayer; accepted: 1 to {_MOST_PERMUTED_STREAMS}, or "
            'stream_mixing = "sinkhorn"',
        )
    if model.predict_tokens > model.seq_len:
        yield (
            f"{path}.predict_tokens",
            f"{model.predict_tokens} tokens ahead are further than a row of seq_len "
            f"{model.seq_len}; accepted: 1 to seq_len",
        )


def _train(train: "TrainSpec", model: "ModelSpec", path: str) -> Iterator[Rule]:
    for key in ("precision", "precision_attention", "precision_ffn"):
        if model.ternary and getattr(train, key) == "fp4_dge":
            yield (
                f"{path}.{key}",
                '"fp4_dge" multiplies gradients by a slope at the full-precision weight, which a '
                "trainer of ternary layers does not have; accepted: another precision, or "
                "model.ternary = false",
            )
    chosen = {train.precision_attention or train.precision, train.precision_ffn or train.precision}
    if train.precision_high_layers and chosen == {"fp32"}:
        yield (
            f"{path}.precision_high_layers",
            'has no effect where all layers are; accepted: precision = "nvfp4", say',
        )
    beyond = [layer for layer in train.precision_high_layers if layer >= model.layers]
    if beyond:
        yield (
            f"{path}.precision_high_layers",
            f"there is no layer {beyond[0]} in a stack of {model.layers}; accepted: 0 to "
            f"{model.layers - 1}",
        )
    yield from _filter(train, path)


def _filter(train: "TrainSpec", path: str) -> Iterator[Rule]:
    absent = {field.name: field.default for field in msgspec.structs.fields(train)}
    for key in ("filter_keep", "filter_backward"):
        if train.filter == "none" and getattr(train, key) != absent[key]:
            yield f"{path}.{key}", 'has no effect without a filter; accepted: filter = "loss"'
    if train.filter == "excess" and not train.filter_reference:
        yield (
            f"{path}.filter_reference",
            'filter "excess" compares losses with those of another model; accepted: the directory '
            'of a checkpoint with the same tokenizer, or filter = "loss"',
        )
    if train.filter != "excess" and train.filter_reference:
        yield (
            f"{path}.filter_reference",
            f'has no effect on filter "{train.filter}"; accepted: filter = "excess"',
        )


def _schedule(schedule: "ScheduleSpec", path: str) -> Iterator[Rule]:
    if schedule.warmup + schedule.stable + schedule.decay < 1:
        yield path, "warmup + stable + decay is 0; accepted: at least one step in all"


def _counts(actors: "ActorCounts", model: "ModelSpec", path: str) -> Iterator[Rule]:
    tensors = tensor_count(model)
    if actors.optimizer_shards > tensors:
        yield (
            f"{path}.optimizer_shards",
            f"{actors.optimizer_shards} shards for a model of {tensors} parameter tensors; "
            f"accepted: 1 to {tensors}",
        )


def _remote(topology: "Topology", path: str) -> Iterator[Rule]:
    """What a trainer of another host cannot have: files and shared memory of this one."""
    actors, spec = topology.actors, topology.optimizer
    key = f"{path}.remote_trainers"
    if not actors.remote_trainers:
        return
    if actors.remote_trainers >= actors.trainers:
        yield (
            key,
            f"{actors.remote_trainers} of {actors.trainers} trainers; accepted: fewer than "
            "actors.trainers, since one at least runs here",
        )
    remembering = sorted({spec.codec, spec.dense_codec} - _WITHOUT_MEMORY)
    if remembering:
        yield (
            key,
            f"the codec {remembering[0]!r} remembers from step to step, in shared memory of this "
            f"host, which a trainer of another does not have; accepted: "
            f"{', '.join(sorted(_WITHOUT_MEMORY))}",
        )
    if topology.train.filter_reference:
        yield (
            key,
            "train.filter_reference is a directory of this host; accepted: none beside trainers of "
            'other hosts, so filter = "loss"',
        )


def _rollout(rollout: "RolloutSpec", model: "ModelSpec", path: str) -> Iterator[Rule]:
    if rollout.max_new_tokens >= model.seq_len:
        yield (
            f"{path}.max_new_tokens",
            f"{rollout.max_new_tokens} new tokens leave no room for a prompt in seq_len "
            f"{model.seq_len}; accepted: less than seq_len",
        )


def _hardware(topology: "Topology") -> Iterator[Rule]:
    wanted, actors = topology.hardware, topology.actors
    trainers = actors.trainers - actors.remote_trainers
    if topology.emulated:
        return
    if wanted.gpus and trainers > wanted.gpus:
        yield (
            "actors.trainers",
            f"{trainers} trainers for hardware.gpus = {wanted.gpus}; accepted: one per GPU, so 1 "
            f"to {wanted.gpus}",
        )
    if wanted.any and wanted.gpus:
        yield "hardware.any", "contradicts hardware.gpus; accepted: any = false, or gpus = 0"


def _supervision(topology: "Topology") -> Iterator[Rule]:
    spec = topology.supervision
    if spec.silence_s < 2 * spec.heartbeat_s:
        yield (
            "supervision.silence_s",
            f"{spec.silence_s:g} would count one late beat as a death; accepted: at least twice "
            f"heartbeat_s, {2 * spec.heartbeat_s:g}",
        )
    if spec.backoff_max_s < spec.backoff_s:
        yield (
            "supervision.backoff_max_s",
            f"{spec.backoff_max_s:g} is below backoff_s = {spec.backoff_s:g}; accepted: backoff_s "
            "or more",
        )


def _elastic(topology: "Topology") -> Iterator[Rule]:
    """Steps of fewer ranks need gradients that stand for themselves."""
    key = "elastic" if topology.elastic else "attendance_of"
    if not topology.elastic and not topology.attendance_of:
        return
    if topology.elastic and topology.attendance_of:
        yield "attendance_of", "says who takes part; accepted: elastic = false beside it"
    spec = topology.optimizer
    if spec.matrices.projection != "none":
        yield key, 'bases are found by all ranks together; accepted: projection = "none"'
    remembering = {spec.codec, spec.dense_codec} - _WITHOUT_MEMORY
    if remembering:
        yield (
            key,
            f"the codec {sorted(remembering)[0]!r} remembers from step to step what a rank that "
            f"was absent does not know; accepted: {', '.join(sorted(_WITHOUT_MEMORY))}",
        )
    if topology.actors.trainers > _MOST_RANKS:
        yield key, f"{topology.actors.trainers} trainers; accepted: at most {_MOST_RANKS}"


def _emulation(topology: "Topology") -> Iterator[Rule]:
    small = topology.emulation
    if small is None:
        return
    if topology.emulated:
        yield "emulation", "has already been put in place (emulated = true); accepted: none"
        return
    emulated = msgspec.structs.replace(
        topology,
        model=small.model,
        train=small.train,
        schedule=small.schedule,
        actors=small.actors or topology.actors,
        rollout=small.rollout or topology.rollout,
        optimizer=small.optimizer or topology.optimizer,
    )
    for path, what in _run(emulated, "emulation."):
        # An optimizer that is not the emulation's own has been judged above.
        if small.optimizer or not path.startswith("emulation.optimizer."):
            yield path, what


# --- The file system ------------------------------------------------------------------------------


def check_paths(topology: "Topology") -> list[str]:
    """Paths named by `topology` that cannot be used, in words. Touches the file system only."""
    problems: list[str] = []
    for i, source in enumerate(topology.data.sources):
        if source.kind != "python_stdlib":
            what = _path_problem(source.path, directory=source.kind == "directory")
            if what:
                problems.append(f"data.sources.{i}.path: {what}")
    if topology.data.tokenizer:
        what = _path_problem(topology.data.tokenizer, directory=False)
        if what:
            problems.append(f"data.tokenizer: {what}")
    return problems


def _path_problem(text: str, *, directory: bool) -> str:
    """What keeps `text`, a path or a glob, from being read; "" when nothing does."""
    try:
        expanded = str(Path(text).expanduser())
        found = sorted(glob.glob(expanded, recursive=True)) if glob.has_magic(expanded) else []
        if glob.has_magic(expanded) and not found and not Path(expanded).exists():
            return f"no file matches {text}; accepted: a glob that matches, or a path"
        return next(
            (why for path in found or [expanded] if (why := _unusable(Path(path), directory))), ""
        )
    except (OSError, ValueError, RuntimeError) as error:
        return f"{text!r} cannot be used as a path: {error}"


def _unusable(path: Path, directory: bool) -> str:
    if not path.exists():
        return f"{path} does not exist; accepted: a {'directory' if directory else 'file'}"
    if path.is_dir():
        allowed = os.access(path, os.R_OK | os.X_OK)
    elif path.is_file():
        allowed = os.access(path, os.R_OK)
    else:
        return f"{path} is neither a file nor a directory"
    return "" if allowed else f"{path} may not be read by this user; change its permissions"
