"""Where an optimizer shard should compute: a cost model small enough to print. Pure.

Newton-Schulz of an m x n matrix (m <= n) takes about 4 m^2 n operations an iteration, 20 m^2 n for
the usual five. On a CPU that is fine as long as it hides behind the trainers' step; where it would
not, the shard sits on a GPU beside its trainer.
"""

from dataclasses import dataclass

from actors.hardware import Gpu
from actors.parameters import applied_count, parameters, partition
from actors.subspace import core_shape
from actors.topology import Topology

# Measured fp32 matrix products, operations per second and core (Zen 4; Zen 2 and 3 are close).
CPU_CORE = 80e9
# Sustained, not peak: about half of a card's dense bf16 rate.
GPU_RATES = (
    ("H200", 400e12),
    ("H100", 400e12),
    ("RTX PRO 6000", 120e12),
    ("A100", 140e12),
    ("RTX 5090", 100e12),
    ("RTX 4090", 80e12),
)
GPU_OTHER = 30e12
# Small models on a GPU are bound by launching: seconds per kernel, kernels per layer and pass.
LAUNCH_S = 5e-6
LAUNCHES_PER_LAYER = 150

# A shard's work overlaps only with the end of the last backward pass: gradients are complete no
# sooner. Up to this share of a trainer's step it counts as hidden.
HIDDEN_SHARE = 0.25

_FORWARD_BACKWARD = 6  # operations per parameter and token
_RECOMPUTED_TOO = 8  # with activation checkpointing


@dataclass(frozen=True, slots=True)
class ShardCost:
    """Seconds per step of one shard here and there, and the trainers' step they compare with."""

    flops: float
    cores: int
    cpu_s: float
    gpu_s: float | None  # None: there is no GPU
    step_s: float
    on_gpu: bool

    def explain(self) -> str:
        """One line for people."""
        where = "GPU" if self.on_gpu else "CPU"
        gpu = f", {_seconds(self.gpu_s)} on a GPU" if self.gpu_s is not None else ""
        if self.gpu_s is None:
            why = "there is no GPU to use"
        elif self.on_gpu:
            why = f"on the CPU it would be more than {HIDDEN_SHARE:.0%} of that"
        else:
            why = f"on the CPU it is at most {HIDDEN_SHARE:.0%} of that, so it hides"
        return (
            f"optimizer shards on the {where}: Newton-Schulz takes {_si(self.flops)}FLOP per step "
            f"and shard, about {_seconds(self.cpu_s)} on {self.cores} core(s){gpu}; a trainer's "
            f"step takes about {_seconds(self.step_s)}; {why}"
        )


def shard_cost(topology: Topology, gpu: Gpu | None, cores: int) -> ShardCost:
    """Cost of the busiest shard with `cores` cores, against a trainer on `gpu` (None: CPU)."""
    flops = max(newton_schulz_flops(topology, k) for k in range(topology.actors.optimizer_shards))
    model, train = topology.model, topology.train
    step_s = trainer_flops(topology) / (gpu_rate(gpu.name) if gpu else CPU_CORE * train.threads)
    gpu_s: float | None = None
    if gpu:
        step_s += LAUNCH_S * LAUNCHES_PER_LAYER * model.layers * model.loops * train.accumulation
        gpu_s = flops / gpu_rate(gpu.name) + LAUNCH_S * LAUNCHES_PER_LAYER * model.layers
    cpu_s = flops / (CPU_CORE * cores)
    return ShardCost(
        flops=flops,
        cores=cores,
        cpu_s=cpu_s,
        gpu_s=gpu_s,
        step_s=step_s,
        on_gpu=gpu is not None and cpu_s > HIDDEN_SHARE * step_s,
    )


def newton_schulz_flops(topology: Topology, shard: int) -> float:
    """Operations a step of `shard`'s orthogonalised matrices, in the space they are kept in."""
    group = topology.optimizer.matrices
    if group.kind not in ("muon", "muon8bit"):
        return 0.0
    owned = partition(parameters(topology.model), topology.actors.optimizer_shards)[shard]
    small = group.projection == "galore"
    shapes = [
        core_shape(group, p.shape) if small else p.shape for p in owned if p.group == "matrices"
    ]
    sizes = [sorted(shape) for shape in shapes]
    return float(sum(4 * group.iterations * m * m * n for m, n in sizes))


def trainer_flops(topology: Topology) -> float:
    """Operations of one trainer's step: parameters, and causal attention."""
    model, train = topology.model, topology.train
    tokens = train.rows_per_trainer * train.accumulation * model.seq_len
    passes = _RECOMPUTED_TOO if model.activation_checkpointing else _FORWARD_BACKWARD
    attention = model.layers * model.loops * model.seq_len * model.dim
    return float(passes * tokens * (applied_count(model) + attention))


def gpu_rate(name: str) -> float:
    """Sustained operations per second of a GPU by its name."""
    return next((rate for known, rate in GPU_RATES if known.lower() in name.lower()), GPU_OTHER)


def _seconds(value: float | None) -> str:
    amount = value or 0.0
    if amount >= 10:
        return f"{amount:.0f} s"
    return f"{amount:.2g} s" if amount >= 0.1 else f"{amount * 1000:.2g} ms"


def _si(value: float) -> str:
    for limit, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if value >= limit:
            return f"{value / limit:.3g} {prefix}"
    return f"{value:.3g} "
