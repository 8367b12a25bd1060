"""How much memory each actor needs and how many bytes a step moves, from shapes alone. Pure.

Estimates for people and for the planner's decisions: exact where a layout is (weights, gradients,
optimizer state), a count of what autograd keeps for activations, and measured constants for what a
process holds by merely existing.
"""

from collections.abc import Sequence
from math import ceil, log, prod, sqrt

import msgspec

from actors import codec_memory, gradient_slots
from actors.optimizer.layout import group_of, state_layout, state_tensors
from actors.parameters import Parameter, parameters, partition
from actors.plan_activations import FP32 as FP32
from actors.plan_activations import activation_bytes as activation_bytes
from actors.plan_activations import logit_bytes as logit_bytes
from actors.subspace import OVERSAMPLE, basis_tensors, core_shape, rank_of
from actors.topology import Topology
from actors.uplink import codec_of, payload_bytes, payload_of, travelling_shape, update_codec_of

# Resident memory of an idle process: with zmq, msgspec and numpy; with torch on top.
LIGHT_PROCESS = 40_000_000
TORCH_PROCESS = 260_000_000
# CUDA's context and cuBLAS's workspaces, on the device.
CUDA_CONTEXT = 600_000_000
# Prompts are cut from functions; few are longer.
_PROMPT_TOKENS = 512

# Tensors of a gradient's size that a codec makes on its way, at most (measured).
ENCODING = 10
# Of so many steps one may hold more of GUM's remainders than is planned.
_RARELY = 10_000
# Optimizers that decode or unfold their state before they use it.
COMPRESSED = ("muon8bit", "adamw8bit", "foam")

# Flips of one step, bits per ternary weight: 1 % of codes flip, as gaps and signs.
FLIP_BITS_PER_WEIGHT = 0.1


class Memory(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes of one actor by purpose, on its device and on the host together."""

    weights: int = 0
    gradients: int = 0
    optimizer: int = 0
    activations: int = 0
    buffers: int = 0  # segments, queues, and the process itself

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.buffers


class Wire(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes of one step, all trainers together."""

    up_bytes_per_step: int
    down_bytes_per_step: int
    bf16_allreduce_bytes_per_step: int  # what a ring all-reduce of bf16 gradients would send


def of_trainer(topology: Topology) -> Memory:
    """A trainer: codes, gradients as far as they exist at the same time, activations of one
    micro-batch, bases of projections, its gradient slots and what its codecs remember.
    """
    model, train = topology.model, topology.train
    activations = activation_bytes(model, train.rows_per_trainer, train)
    return Memory(
        weights=sum(_held(p) for p in parameters(model)),
        gradients=max(gradient_bytes(topology), _last_encoded_bytes(topology) - activations),
        optimizer=_basis_bytes(topology),
        activations=activations,
        buffers=gradient_slots.segment_bytes(model, topology.optimizer)
        + codec_memory.segment_bytes(topology)
        + _batch_bytes(topology)
        + TORCH_PROCESS,
    )


def gradient_bytes(topology: Topology) -> int:
    """Gradients of one trainer that exist at the same time.

    A weight that is used more than once in a step (in every loop and micro-batch) has its gradient
    added up until the last use: all of them together. One that is used once has it for a moment.
    Projected gradients are added up as cores; those in whose bases are sought wait whole.
    """
    params, optimizer = parameters(topology.model), topology.optimizer
    matrices = sorted((p.numel for p in params if p.group == "matrices"), reverse=True)
    dense = sum(p.numel for p in params if p.group == "dense")
    largest, group = max(matrices, default=0), optimizer.matrices
    # What one layer makes at once: gate and up, the largest.
    passing = 2 * largest
    if optimizer.codec != "dense":
        sizes = [prod(travelling_shape(optimizer, p)) for p in params if p.group == "matrices"]
        passing += ENCODING * max(sizes, default=0)
    again = topology.model.loops > 1 or topology.train.accumulation > 1
    if group.projection == "none":
        return FP32 * (dense + passing + (sum(matrices) if again else 2 * largest))
    cores = sum(prod(core_shape(group, p.shape)) for p in params if p.group == "matrices")
    # Without a random basis to begin with, all bases are sought in the first step.
    together = len(matrices) if group.first_basis == "gradient" else _at_once(topology)
    waiting = sum(matrices[:together])
    if group.projection == "gum" and again:
        waiting = min(waiting + most_remainders(matrices, group.remainder), sum(matrices))
    return FP32 * (dense + passing + waiting + (cores if again else 0))


def most_remainders(sizes: Sequence[int], probability: float) -> int:
    """Elements of all gradients of which GUM sends the remainder in the same step, hence wholes.

    Matrices draw for themselves, so the mean would be exceeded in every other step. A bound by
    Bernstein's inequality, which one step in `_RARELY` exceeds at most.
    """
    mean = probability * sum(sizes)
    variance = probability * (1.0 - probability) * sum(size * size for size in sizes)
    nats, third = log(_RARELY), max(sizes, default=0) / 3.0
    beyond = third * nats + sqrt((third * nats) ** 2 + 2.0 * variance * nats)
    return min(ceil(mean + beyond), sum(sizes))


def _last_encoded_bytes(topology: Topology) -> int:
    """What is there while the embedding's gradient is encoded: it is complete when the backward
    pass is over, and nothing of that is left.
    """
    optimizer = topology.optimizer
    dense = [p for p in parameters(topology.model) if p.group == "dense"]
    coded = [p.numel for p in dense if codec_of(optimizer, p) != "dense"]
    return FP32 * (sum(p.numel for p in dense) + ENCODING * max(coded, default=0))


def _up_bytes(topology: Topology, parameter: Parameter) -> int:
    """A gradient in its codec, and its share of the sketches of a new basis."""
    group, size = topology.optimizer.matrices, payload_bytes(topology.optimizer, parameter)
    if group.projection == "none" or parameter.group != "matrices":
        return size
    columns = min(rank_of(group, parameter.shape) + OVERSAMPLE, *parameter.shape)
    sketches = (group.power_iterations + 1) * FP32 * columns * sum(parameter.shape)
    return size + sketches // group.refresh_every


def _down_bytes(topology: Topology, parameter: Parameter) -> int:
    if parameter.kind == "ternary":
        return round(parameter.numel * FLIP_BITS_PER_WEIGHT / 8)
    codec = update_codec_of(topology.optimizer, parameter)
    return sum(spec.nbytes for spec in payload_of(codec, parameter.shape))


def _at_once(topology: Topology) -> int:
    """Matrices that get a new basis in the same step."""
    count = sum(p.group == "matrices" for p in parameters(topology.model))
    return -(-count // topology.optimizer.matrices.refresh_every)


def _basis_bytes(topology: Topology) -> int:
    group = topology.optimizer.matrices
    if group.projection == "none":
        return 0
    return sum(
        spec.nbytes
        for p in parameters(topology.model)
        if p.group == "matrices"
        for spec in basis_tensors(group, p.shape)
    )


def of_shard(topology: Topology, shard: int) -> Memory:
    """Optimizer shard `shard`: its segment by purpose, and room to make one update in."""
    owned = partition(parameters(topology.model), topology.actors.optimizer_shards)[shard]
    state = sum(_state_bytes(topology, p) for p in owned)
    segment = state_layout(topology, shard).total_bytes
    # New master and state, the summed gradient, and Newton-Schulz's X, A, B X: all of one matrix.
    # State that is kept smaller than that is taken apart first, old and new.
    work = max(
        FP32 * (7 if group_of(topology.optimizer, p).kind in COMPRESSED else 5) * p.numel
        + _state_bytes(topology, p)
        for p in owned
    )
    masters = FP32 * sum(p.numel for p in owned)
    return Memory(
        weights=segment - state,
        gradients=FP32 * max(p.numel for p in owned),
        optimizer=state,
        activations=work,
        # A checkpoint in the background copies a parameter before it is updated.
        buffers=masters + state + TORCH_PROCESS,
    )


def of_rollout(topology: Topology) -> Memory:
    """A rollout generator: codes, and keys and values of one group of completions."""
    model, spec = topology.model, topology.rollout
    weights = sum(_held(p) for p in parameters(model))
    positions = min(model.seq_len, _PROMPT_TOKENS + spec.max_new_tokens)
    cache = 2 * model.layers * model.loops * spec.group * positions * model.dim * FP32
    return Memory(weights=weights, activations=cache, buffers=weights // 4 + TORCH_PROCESS)


def of_light(topology: Topology, role: str) -> Memory:
    """Supervisor, recorder, loader or a data worker."""
    extra = {
        "loader": topology.data.lookahead_batches
        * topology.actors.trainers
        * _batch_bytes(topology),
        "data_worker": topology.data.credit * min(topology.data.max_sample_bytes, 1_000_000),
    }
    return Memory(buffers=LIGHT_PROCESS + extra.get(role, 0))


def on_device(memory: Memory, role: str) -> int:
    """The part of `memory` that lies on the GPU when the actor computes on one."""
    if role == "optimizer_shard":  # its state stays in the shared segment, where it survives
        return memory.gradients + memory.activations + CUDA_CONTEXT
    kept = memory.weights + memory.optimizer
    return kept + memory.gradients + memory.activations + CUDA_CONTEXT


def wire(topology: Topology) -> Wire:
    """Bytes of one step: gradients up in their codecs, flips and dense updates down, to every
    trainer.
    """
    params, n = parameters(topology.model), topology.actors.trainers
    unique = sum(p.numel for p in params)
    down = sum(_down_bytes(topology, p) for p in params)
    return Wire(
        up_bytes_per_step=n * sum(_up_bytes(topology, p) for p in params),
        down_bytes_per_step=n * down,
        # Each of n sends 2 (n - 1) / n of the gradient.
        bf16_allreduce_bytes_per_step=2 * unique * 2 * (n - 1),
    )


def _held(parameter: Parameter) -> int:
    """What a trainer holds of a parameter: a code of one byte, or fp32."""
    return parameter.numel * (1 if parameter.kind == "ternary" else FP32)


def _state_bytes(topology: Topology, parameter: Parameter) -> int:
    return sum(spec.nbytes for spec in state_tensors(topology.optimizer, parameter))


def _batch_bytes(topology: Topology) -> int:
    """Tokens and document numbers of one step of one trainer, int32."""
    train = topology.train
    return 2 * 4 * train.rows_per_trainer * train.accumulation * (topology.model.seq_len + 1)
