"""A topology: what hardware is wanted, how many of each actor, what they train and how.

Topologies are TOML, decoded strictly: an unknown key, a wrong type or an impossible combination
ends in `TopologyError`, which names the key, the file and what would be accepted. The resolved
copy in the run directory restarts the run by itself.
"""

from typing import Any, Literal

import msgspec


class Table(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of every table of a topology file."""


class HardwareWanted(Table):
    """The machine this topology was written for."""

    gpus: int = 0
    gpu_memory_gb: float = 0.0
    gpu_name: str = ""
    cores: int = 1
    numa_nodes: int = 1
    memory_gb: float = 1.0


class ActorCounts(Table):
    """How many of each actor. Supervisor, loader and recorder are always one."""

    trainers: int = 1
    optimizer_shards: int = 1
    rollouts: int = 1
    fast_workers: int = 1
    slow_workers: int = 1


class ModelSpec(Table):
    """A LoopLM (Ouro) of ternary layers (BitNet b1.58)."""

    dim: int
    layers: int
    heads: int
    loops: int
    ffn_dim: int = 0  # 0: 8/3 of dim, rounded up to a multiple of 64
    vocab_size: int = 50257
    seq_len: int = 1024
    rope_base: float = 10000.0
    norm_eps: float = 1e-5
    init_std: float = 0.02
    tie_embedding: bool = False
    ternary: bool = True  # False: full-precision linear layers, for comparison
    activation_checkpointing: bool = False


class Source(Table):
    """One place samples come from. Paths may hold ~ and globs."""

    kind: Literal["python_stdlib", "directory", "jsonl", "parquet"]
    path: str = ""
    pattern: str = "**/*.py"  # of a directory
    field: str = "text"  # JSON key or column
    language: Literal["python", "rust", "text"] = "python"


class DataSpec(Table):
    """Where samples come from and what happens to them."""

    sources: tuple[Source, ...] = (Source(kind="python_stdlib"),)
    order: Literal["strict", "ready"] = "strict"
    verify: bool = True
    cutoff_ms: float = 50.0  # a fast worker hands a sample over when a stage ends after this
    lease_s: float = 30.0
    credit: int = 4  # samples a worker may hold
    lookahead_batches: int = 4  # steps composed ahead of the trainers
    held_out_share: float = 0.02  # of the files; prompts for rollouts are cut from these
    max_sample_bytes: int = 4_000_000
    max_deaths_per_sample: int = 3
    tokenizer: str = ""  # path of a tokenizer.json; "": trained on the corpus at first use


class TrainSpec(Table):
    """What one step consists of."""

    rows_per_trainer: int = 4  # rows of seq_len + 1 tokens in one micro-batch
    accumulation: int = 1  # micro-batches per step
    threads: int = 1  # torch threads of a CPU trainer
    exit_entropy_weight: float = 0.05  # beta of the exit gate's objective (Ouro, stage I)


class OptimizerGroup(Table):
    """The optimizer of one group of parameters."""

    kind: Literal["muon", "adamw"]
    lr: float
    min_lr: float = 0.0
    momentum: float = 0.95  # muon
    beta1: float = 0.9  # adamw
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip: float = 0.0  # bound on the Frobenius norm of each parameter's gradient; 0: none
    coefficients: Literal["jordan", "polar_express"] = "jordan"
    iterations: int = 5


class OptimizerSpec(Table):
    """Hidden matrices and everything else are optimised differently."""

    matrices: OptimizerGroup
    dense: OptimizerGroup
    codec: Literal["dense"] = "dense"  # of gradients on their way up
    threads: int = 1


class ScheduleSpec(Table):
    """Warm-up, stable, decay: steps of each."""

    warmup: int = 0
    stable: int = 1
    decay: int = 0


class RolloutSpec(Table):
    """Groups of completions from recent weights, scored."""

    group: int = 4
    prompts: int = 2  # per request
    max_new_tokens: int = 48
    temperature: float = 0.8
    max_version_lag: int = 20  # steps; older weights are replaced before the next group
    share: float = 0.15  # of one core, as a bound on its duty cycle


class SupervisionSpec(Table):
    """Beats, deadlines and rationing of restarts."""

    heartbeat_s: float = 0.25
    silence_s: float = 5.0  # without a beat an actor counts as lost
    hang_s: float = 120.0  # working, yet its progress counter stands still
    start_s: float = 60.0  # from fork to the first beat
    intensity: int = 10  # more deaths of one actor than this ...
    period_s: float = 60.0  # ... within this end the run
    backoff_s: float = 0.05  # before the second restart within the period; doubles each time
    backoff_max_s: float = 5.0
    stop_s: float = 10.0  # polite part of a stop
    orphan_grace_s: float = 10.0  # an actor without supervisor leaves after this


class CheckpointSpec(Table):
    """When state is written to disk."""

    every_steps: int = 100
    keep_last: int = 2


class RecorderSpec(Table):
    """Where figures go besides the run directory."""

    prometheus_port: int = 0  # on 127.0.0.1; 0: off


class RemoteSpec(Table):
    """Where invited remote hosts knock. Nothing listens before the first invitation."""

    host: str = "0.0.0.0"  # noqa: S104 - CURVE with an allow-list stands behind it
    port: int = 0  # 0: any free one, then kept for the run


class Emulation(Table):
    """What runs in place of the real thing where the wanted hardware is missing."""

    model: ModelSpec
    train: TrainSpec
    schedule: ScheduleSpec
    actors: ActorCounts | None = None
    optimizer: OptimizerSpec | None = None
    rollout: RolloutSpec | None = None


class Topology(Table):
    """One run, complete."""

    name: str
    hardware: HardwareWanted
    actors: ActorCounts
    model: ModelSpec
    train: TrainSpec
    optimizer: OptimizerSpec
    schedule: ScheduleSpec
    steps: int
    seed: int = 0
    exchange: Literal["shard"] = "shard"
    data: DataSpec = DataSpec()
    rollout: RolloutSpec = RolloutSpec()
    supervision: SupervisionSpec = SupervisionSpec()
    checkpoint: CheckpointSpec = CheckpointSpec()
    recorder: RecorderSpec = RecorderSpec()
    remote: RemoteSpec = RemoteSpec()
    emulation: Emulation | None = None
    emulated: bool = False  # set in resolved copies: [emulation] has replaced the real tables


class TopologyError(ValueError):
    """A topology that cannot be used: says which key of which file, and what would be accepted."""


def decode(text: str, *, source: str, overrides: tuple[str, ...] = ()) -> Topology:
    """Topology from TOML text. `overrides` are `a.b=c` settings. Raises `TopologyError`."""
    raise NotImplementedError


def emulate(topology: Topology) -> Topology:
    """The topology with its [emulation] tables put in place. Raises `TopologyError` without one."""
    raise NotImplementedError


def to_toml(topology: Topology) -> str:
    """Text that `decode` turns into an equal topology."""
    raise NotImplementedError


def to_dict(topology: Topology) -> dict[str, Any]:
    """Plain tables."""
    return msgspec.to_builtins(topology)
