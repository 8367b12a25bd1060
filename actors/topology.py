"""A topology: what hardware is wanted, how many of each actor, what they train and how.

Topologies are TOML, decoded strictly: an unknown key, a wrong type or an impossible combination
ends in `TopologyError`, which names the key, the file and what would be accepted. The resolved
copy in the run directory restarts the run by itself.
"""

import difflib
import os
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import msgspec
import tomli_w
from msgspec import Meta

from actors import strict_toml, topology_rules
from actors.data_tables import DataSpec as DataSpec
from actors.data_tables import Source as Source
from actors.optimizer_tables import OptimizerGroup as OptimizerGroup
from actors.optimizer_tables import OptimizerSpec as OptimizerSpec
from actors.strict_toml import TopologyError as TopologyError
from actors.table import (
    Count,
    CountOrNone,
    Name,
    NotNegative,
    Port,
    Positive,
    Seconds,
    Steps,
    Table,
    Width,
)

Precision = Literal["fp32", "fp8", "nvfp4", "mxfp4_backward", "fp4_dge"]

TOPOLOGIES = Path(__file__).resolve().parent.parent / "deploy" / "topologies"
# A topology is a page or two; anything larger is some other file.
_MAX_BYTES = 1_000_000


class HardwareWanted(Table, frozen=True):
    """The machine this topology was written for."""

    gpus: CountOrNone = 0
    gpu_memory_gb: NotNegative = 0.0
    gpu_name: str = ""
    cores: Count = 1
    numa_nodes: Count = 1
    memory_gb: Positive = 1.0
    any: bool = False  # True: whatever is here; a trainer per GPU, workers for the cores left over


class ActorCounts(Table, frozen=True):
    """How many of each actor. Supervisor, loader and recorder are always one."""

    trainers: Count = 1
    # The last so many of them run on other hosts, which are invited (run.py invite --role trainer).
    remote_trainers: CountOrNone = 0
    optimizer_shards: Count = 1
    rollouts: CountOrNone = 1
    fast_workers: Count = 1
    slow_workers: CountOrNone = 1

    @property
    def remote_ranks(self) -> range:
        """Ranks of trainers that nobody starts here."""
        return range(self.trainers - self.remote_trainers, self.trainers)


class ModelSpec(Table, frozen=True):
    """A LoopLM (Ouro) of ternary layers (BitNet b1.58)."""

    dim: Width
    layers: Count
    heads: Count
    loops: Count
    ffn_dim: Annotated[int, Meta(ge=0, le=1_000_000)] = (
        0  # 0: 8/3 of dim, rounded up to a multiple of 64
    )
    vocab_size: Annotated[int, Meta(ge=260, le=1_000_000)] = 50257
    seq_len: Annotated[int, Meta(ge=2, le=1_000_000)] = 1024
    rope_base: Positive = 10000.0
    norm_eps: Positive = 1e-5
    init_std: Positive = 0.02
    tie_embedding: bool = True
    ternary: bool = True  # False: full-precision linear layers, for comparison
    activation_checkpointing: bool = False
    streams: Annotated[int, Meta(ge=1, le=8)] = 1  # residual streams (mHC); 1: a plain residual
    stream_mixing: Literal["sinkhorn", "permutation"] = "sinkhorn"
    predict_tokens: Annotated[int, Meta(ge=1, le=16)] = 1  # at every position; 1: the next one only
    prediction: Literal["parallel", "sequential"] = "parallel"  # Gloeckle's or DeepSeek-V3's form


class TrainSpec(Table, frozen=True):
    """What one step consists of."""

    rows_per_trainer: Count = 4  # rows of seq_len + 1 tokens in one micro-batch
    accumulation: Count = 1  # micro-batches per step
    # What a run may take of each GPU; micro-batches are cut to it. 0: all there is.
    gpu_memory_gb: NotNegative = 0.0
    threads: Count = 1  # torch threads of a CPU trainer
    exit_entropy_weight: NotNegative = 0.05  # beta of the exit gate's objective (Ouro, stage I)
    prediction_weight: NotNegative = 0.3  # lambda of all predictions beyond the next token together
    precision: Precision = "fp32"  # of the products in the stack's linear maps
    precision_attention: Literal["", Precision] = ""  # of attention's; "": as precision
    precision_ffn: Literal["", Precision] = ""
    precision_embedding: Literal["fp32", "bf16"] = "fp32"  # of embedding and head
    precision_high_layers: tuple[CountOrNone, ...] = ()  # layers (from 0) that stay in fp32
    # Collider: tokens that score low, by their loss or by its excess over that of the model in
    # filter_reference (the directory of a checkpoint), take no part in the backward pass.
    filter: Literal["none", "loss", "excess"] = "none"
    filter_keep: Annotated[float, Meta(gt=0, le=1)] = 0.6  # share of each row's tokens
    filter_backward: Literal["gathered", "masked", "loss_only"] = "gathered"
    filter_reference: str = ""


class ScheduleSpec(Table, frozen=True):
    """Warm-up, stable, decay: steps of each."""

    warmup: Steps = 0
    stable: Steps = 1
    decay: Steps = 0


class RolloutSpec(Table, frozen=True):
    """Groups of completions from recent weights, scored."""

    group: Count = 4
    prompts: Count = 2  # per request
    max_new_tokens: Count = 48
    temperature: NotNegative = 0.8
    max_version_lag: CountOrNone = 20  # steps; older weights are replaced before the next group
    share: Annotated[float, Meta(gt=0, le=1)] = 0.15  # of one core, as a bound on its duty cycle


class SupervisionSpec(Table, frozen=True):
    """Beats, deadlines and rationing of restarts."""

    heartbeat_s: Seconds = 0.5
    silence_s: Seconds = 5.0  # without a beat an actor counts as lost
    hang_s: Seconds = 120.0  # working, yet its progress counter stands still
    start_s: Seconds = 60.0  # from fork to the first beat
    intensity: CountOrNone = 10  # more deaths of one actor than this ...
    period_s: Seconds = 60.0  # ... within this end the run
    backoff_s: NotNegative = 0.05  # before the second restart within the period; doubles each time
    backoff_max_s: NotNegative = 5.0
    stop_s: Seconds = 10.0  # polite part of a stop
    orphan_grace_s: Seconds = 10.0  # an actor without supervisor leaves after this
    gone_s: Seconds = 10.0  # elastic: a trainer that is down for longer is gone
    stall_s: Seconds = 3600.0  # no step for so long: the run is stopped, with everybody's stacks


class CheckpointSpec(Table, frozen=True):
    """When state is written to disk."""

    every_steps: Count = 100
    keep_last: Count = 2
    keep_every: Steps = 0  # those of steps divisible by this stay as well; 0: none do
    memory_every: Count = 1  # a standby resumes at every nth step, where codecs remember something


class RecorderSpec(Table, frozen=True):
    """Where figures go besides the run directory."""

    prometheus_port: Port = 0  # on 127.0.0.1; 0: off


class RemoteSpec(Table, frozen=True):
    """Where invited remote hosts knock. Nothing listens before the first invitation.

    Data workers at `port`, trainers at those after it, one for each rank of another host.
    """

    host: str = "0.0.0.0"  # noqa: S104 - CURVE with an allow-list stands behind it
    port: Port = 0  # 0: any free one, then kept for the run


class Emulation(Table, frozen=True):
    """What runs in place of the real thing where the wanted hardware is missing."""

    model: ModelSpec
    train: TrainSpec
    schedule: ScheduleSpec
    actors: ActorCounts | None = None
    optimizer: OptimizerSpec | None = None
    rollout: RolloutSpec | None = None


class Topology(Table, frozen=True):
    """One run, complete."""

    name: Name
    hardware: HardwareWanted
    actors: ActorCounts
    model: ModelSpec
    train: TrainSpec
    optimizer: OptimizerSpec
    schedule: ScheduleSpec
    steps: Annotated[int, Meta(ge=1, le=1_000_000_000)]
    seed: Annotated[int, Meta(ge=0, lt=2**62)] = 0
    exchange: Literal["shard"] = "shard"
    # True: steps go on without trainers that are gone (supervision.gone_s), who join again later,
    # and metrics.jsonl says who was missing where. False: everybody is waited for.
    elastic: bool = False
    attendance_of: str = ""  # a run whose metrics.jsonl says that: it is followed to the letter
    data: DataSpec = DataSpec()
    rollout: RolloutSpec = RolloutSpec()
    supervision: SupervisionSpec = SupervisionSpec()
    checkpoint: CheckpointSpec = CheckpointSpec()
    recorder: RecorderSpec = RecorderSpec()
    remote: RemoteSpec = RemoteSpec()
    emulation: Emulation | None = None
    emulated: bool = False  # set in resolved copies: [emulation] has replaced the real tables


def decode(text: str, *, source: str, overrides: tuple[str, ...] = ()) -> Topology:
    """Topology from TOML text. `overrides` are `a.b=c` settings. Raises `TopologyError`."""
    return _checked(*strict_toml.decode_struct(text, Topology, source=source, overrides=overrides))


def override(topology: Topology, overrides: tuple[str, ...], *, source: str) -> Topology:
    """`topology` with `a.b=c` settings put on top. Raises `TopologyError`."""
    problems = strict_toml.Problems(source, "", overrides)
    tables = _without_nones(to_dict(topology))
    return _checked(*strict_toml.decode_tables(tables, Topology, problems, overrides))


def _checked(topology: Topology, problems: strict_toml.Problems) -> Topology:
    for path, what in topology_rules.broken_rules(topology):
        problems.add(path, what)
    problems.raise_any()
    return topology


def emulate(topology: Topology) -> Topology:
    """The topology with its [emulation] tables put in place. Raises `TopologyError` without one.

    It runs no longer than the emulation's own schedule; applying it twice changes nothing.
    """
    if topology.emulated:
        return topology
    small = topology.emulation
    if small is None:
        raise TopologyError(
            f"topology {topology.name}: has no [emulation] table, so it needs the hardware it "
            "names; add [emulation.model], [emulation.train] and [emulation.schedule]"
        )
    length = small.schedule.warmup + small.schedule.stable + small.schedule.decay
    return msgspec.structs.replace(
        topology,
        model=small.model,
        train=small.train,
        schedule=small.schedule,
        steps=min(topology.steps, length),
        actors=small.actors or topology.actors,
        optimizer=small.optimizer or topology.optimizer,
        rollout=small.rollout or topology.rollout,
        emulation=None,
        emulated=True,
    )


def to_toml(topology: Topology) -> str:
    """Text that `decode` turns into an equal topology."""
    return tomli_w.dumps(_without_nones(to_dict(topology)))


def to_dict(topology: Topology) -> dict[str, Any]:
    """Plain tables."""
    return msgspec.to_builtins(topology)


def names() -> list[str]:
    """The topologies that come with the code."""
    return sorted(path.stem for path in TOPOLOGIES.glob("*.toml"))


def find_topology(name_or_path: str) -> tuple[str, str]:
    """Text of a topology and where it was found. Raises `TopologyError`, naming what there is."""
    is_path = name_or_path.endswith(".toml") or os.sep in name_or_path
    path = Path(name_or_path).expanduser() if is_path else TOPOLOGIES / f"{name_or_path}.toml"
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError):
        raise TopologyError(_not_found(name_or_path, is_path)) from None
    except (OSError, ValueError) as error:
        raise TopologyError(f"{name_or_path}: cannot be read: {error}") from None
    if len(data) > _MAX_BYTES:
        raise TopologyError(f"{path}: larger than {_MAX_BYTES} bytes, so not a topology file")
    try:
        return data.decode("utf-8"), str(path)
    except UnicodeDecodeError as error:
        raise TopologyError(f"{path}: not UTF-8 text: byte {error.start} is wrong") from None


def load(name_or_path: str, overrides: tuple[str, ...] = ()) -> Topology:
    """Topology by name (`local`) or file. Raises `TopologyError`.

    Relative paths in it count from the working directory and come back absolute, so that the
    resolved copy in a run directory can be used from anywhere.
    """
    text, source = find_topology(name_or_path)
    return absolute_paths(decode(text, source=source, overrides=overrides))


def absolute_paths(topology: Topology, base: Path | None = None) -> Topology:
    """The topology with `~` expanded and relative data paths counted from `base`, or from here."""
    base = base or Path.cwd()

    def absolute(path: str) -> str:
        if not path:
            return ""
        try:
            return str(base / Path(path).expanduser())
        except RuntimeError:  # ~somebody who is not here: `check_paths` says so
            return path

    data, train = topology.data, topology.train
    train = msgspec.structs.replace(train, filter_reference=absolute(train.filter_reference))
    sources = tuple(msgspec.structs.replace(s, path=absolute(s.path)) for s in data.sources)
    data = msgspec.structs.replace(data, sources=sources, tokenizer=absolute(data.tokenizer))
    followed = absolute(topology.attendance_of)
    return msgspec.structs.replace(topology, data=data, train=train, attendance_of=followed)


def _not_found(name_or_path: str, is_path: bool) -> str:
    known = names()
    near = difflib.get_close_matches(name_or_path, known, n=1)
    hint = f" did you mean `{near[0]}`?" if near else ""
    what = "no such file" if is_path else "no topology of that name"
    return (
        f"{name_or_path}: {what};{hint} accepted: {', '.join(known)}, or the path of a .toml file"
    )


def _without_nones(value: Any) -> Any:
    if isinstance(value, dict):
        table = cast("dict[str, Any]", value)
        return {k: _without_nones(v) for k, v in table.items() if v is not None}
    if isinstance(value, tuple):  # TOML has arrays, and settings change their entries
        return [_without_nones(entry) for entry in cast("tuple[Any, ...]", value)]
    return value
