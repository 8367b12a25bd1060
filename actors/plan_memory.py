"""How much memory each actor needs and how many bytes a step moves, from shapes alone. Pure.

Estimates for people and for the planner's decisions: exact where a layout is (weights, gradients,
optimizer state), a count of what autograd keeps for activations, and measured constants for what a
process holds by merely existing.
"""

import msgspec

from actors import codec_memory, gradient_slots
from actors.optimizer.layout import group_of, state_layout, state_tensors
from actors.parameters import Parameter, ffn_dim, parameters, partition
from actors.topology import ModelSpec, Topology
from actors.uplink import payload_bytes

FP32 = 4
# Resident memory of an idle process: with zmq, msgspec and numpy; with torch on top.
LIGHT_PROCESS = 40_000_000
TORCH_PROCESS = 260_000_000
# CUDA's context and cuBLAS's workspaces, on the device.
CUDA_CONTEXT = 600_000_000
# The objective makes logits in pieces of this many elements and holds about three at a time.
_LOGIT_BYTES = 3 * FP32 * (1 << 20)
# Prompts are cut from functions; few are longer.
_PROMPT_TOKENS = 512

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
    """A trainer: codes, one fp32 gradient, activations of one micro-batch, its gradient slots."""
    model, train = topology.model, topology.train
    unique = sum(p.numel for p in parameters(model))
    return Memory(
        weights=sum(_held(p) for p in parameters(model)),
        gradients=FP32 * unique,
        activations=activation_bytes(model, train.rows_per_trainer),
        buffers=gradient_slots.segment_bytes(model, topology.optimizer)
        + codec_memory.segment_bytes(topology)
        + _batch_bytes(topology)
        + TORCH_PROCESS,
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
    return memory.weights + memory.gradients + memory.activations + CUDA_CONTEXT


def wire(topology: Topology) -> Wire:
    """Bytes of one step: gradients up in their codecs, flips and dense updates down, to every
    trainer.
    """
    params, n = parameters(topology.model), topology.actors.trainers
    unique = sum(p.numel for p in params)
    ternary = sum(p.numel for p in params if p.kind == "ternary")
    down = round(ternary * FLIP_BITS_PER_WEIGHT / 8) + FP32 * (unique - ternary)
    return Wire(
        up_bytes_per_step=n * sum(payload_bytes(topology.optimizer, p) for p in params),
        down_bytes_per_step=n * down,
        # Each of n sends 2 (n - 1) / n of the gradient.
        bf16_allreduce_bytes_per_step=2 * unique * 2 * (n - 1),
    )


def activation_bytes(model: ModelSpec, rows: int) -> int:
    """What the forward pass of `rows` rows keeps for the backward pass."""
    tokens, calls = rows * model.seq_len, model.layers * model.loops
    layer = tokens * _layer_bytes_per_token(model)
    kept = (
        calls * tokens * FP32 * model.dim + layer
        if model.activation_checkpointing
        else calls * layer
    )
    # States after every loop with their gradients, and the head's gradient.
    head = 2 * model.loops * tokens * FP32 * model.dim + FP32 * model.vocab_size * model.dim
    return kept + head + logit_bytes(model, rows)


def logit_bytes(model: ModelSpec, rows: int) -> int:
    """What the objective holds while it makes logits piece by piece."""
    return min(_LOGIT_BYTES, 3 * FP32 * rows * model.seq_len * model.vocab_size)


def _layer_bytes_per_token(model: ModelSpec) -> int:
    """Saved by one layer call for one token, counted in kernels/model/layers.py.

    fp32: the inputs of four norms, q, k, v, attention's result and the input of its SubLN (9 C),
    gate, up and the input of the second SubLN (3 F). int8: the inputs of o, qkv, gate-up and down.
    """
    C, F = model.dim, ffn_dim(model)
    quantised = 3 * C + F if model.ternary else FP32 * (3 * C + F)
    return FP32 * (9 * C + 3 * F) + quantised


def _held(parameter: Parameter) -> int:
    """What a trainer holds of a parameter: a code of one byte, or fp32."""
    return parameter.numel * (1 if parameter.kind == "ternary" else FP32)


def _state_bytes(topology: Topology, parameter: Parameter) -> int:
    return sum(spec.nbytes for spec in state_tensors(topology.optimizer, parameter))


def _batch_bytes(topology: Topology) -> int:
    """Tokens and document numbers of one step of one trainer, int32."""
    train = topology.train
    return 2 * 4 * train.rows_per_trainer * train.accumulation * (topology.model.seq_len + 1)
