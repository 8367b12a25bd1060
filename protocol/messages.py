"""Every message Trireme's processes exchange, in the order data flows.

A message travels as `[envelope][body][frame...]` (see codec.py). The envelope says who speaks and
about which step; the body is one of the structs below, encoded as a msgpack map; frames are raw
tensor bytes. `TensorRef` fields point either at a frame of the same message or into a shared
memory segment; receivers cannot tell the difference (tensors.py).

Every message may be delivered twice: each carries enough identity for the receiver to notice.
Steps are counted from 1; `version` v means "the weights after step v committed", so version 0 is
the initialisation and the gradients of step s are computed from version s - 1.
"""

from typing import Any, Literal, dataclass_transform

import msgspec

# Bump whenever any struct below, or the envelope, changes. Peers of another version are refused.
WIRE_VERSION = 2

Role = Literal[
    "supervisor",
    "loader",
    "data_worker",
    "trainer",
    "optimizer_shard",
    "rollout",
    "recorder",
    "standby",  # a copy of the run's newest state on another host
    "operator",  # a person's command line: status, stop, kill, invite
]
ActorState = Literal["starting", "running", "stopping", "lost"]
Pool = Literal["fast", "slow"]


class Envelope(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Who says something, and which one of their sayings it is. Encoded as a msgpack array."""

    wire: int  # WIRE_VERSION of the sender
    kind: str  # name of the message's class below
    sender: str  # actor name, e.g. "trainer/0"
    incarnation: int  # counts the lives of that name; an older one than known is refused
    seq: int  # per sender, incarnation and channel, from 0
    step: int  # what the sender was working on; 0 outside of steps


class TensorRef(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where a tensor's bytes are: frame number `frame` of this message, or a shared segment."""

    dtype: str  # numpy name: "float32", "int32", "uint8", ...
    shape: tuple[int, ...]
    frame: int = -1  # index among this message's frames; -1: look in the segment
    segment: str = ""
    offset: int = 0  # bytes from the segment's start


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(msgspec.field,))
class Message(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of every body."""


# --- Joining and living: every actor <-> supervisor, channel "control" ---------------------------


class Hello(Message):
    """Actor -> supervisor: I live. Sent at start and again whenever a new supervisor appears."""

    role: Role
    pid: int
    started_ticks: int  # field 22 of /proc/PID/stat: pid and start time together are unique
    host: str


class Welcome(Message):
    """Supervisor -> actor: you are known. `peers` maps every living actor to its incarnation."""

    peers: dict[str, int]


class Beat(Message):
    """Actor -> supervisor, every heartbeat: what I am doing."""

    role: Role
    pid: int
    started_ticks: int
    host: str
    state: ActorState
    progress: int  # counted by the computing thread: a socket thread alone cannot move it
    waiting_for: str  # who or what is waited for, in words; "" when working
    waiting_s: float
    rss_bytes: int
    gauges: dict[str, float]  # what `status` shows: queue lengths, step, loss, ...


class PeerUp(Message):
    """Supervisor -> actors: `name` lives as `incarnation`; anything older is dead."""

    name: str
    incarnation: int


class PeerDown(Message):
    """Supervisor -> actors: that life of `name` has ended; what it held is free."""

    name: str
    incarnation: int
    reason: str


class Stop(Message):
    """Supervisor -> actor, loader -> remote worker: finish what you own, leave in `within_s`."""

    reason: str
    within_s: float


class Goodbye(Message):
    """Actor -> supervisor: I leave on purpose. `failed` is empty, or why the run cannot go on.

    Also worker -> loader: what I hold is free, and no sample is to blame.
    """

    failed: str


class RunDone(Message):
    """Optimizer shard 0 -> supervisor: the last step is committed and its checkpoint is on disk."""

    step: int
    weights_digest: str


# --- Samples: loader <-> data workers, channel "samples" ------------------------------------------


class SampleRef(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where a sample's text lies. Never changes within a run."""

    name: str  # for people: a path, or path:line, or path[row]
    language: str  # "python", "rust", "text"
    path: str
    offset: int = 0  # bytes, for .jsonl
    length: int = -1  # bytes; -1: to the end
    row: int = -1  # parquet row
    field: str = ""  # column or JSON key that holds the text


class JoinPool(Message):
    """Worker -> loader: I want to work. Asked again until DataPlan comes."""

    pool: Pool
    host: str
    shares_files: bool  # False: the loader must read samples for me


class DataPlan(Message):
    """Loader -> worker: how samples are treated. The tokenizer's JSON is frame 0."""

    tokenizer_digest: str
    stages: tuple[str, ...]  # in order: "read", "verify", "augment", "tokenize"
    cutoff_s: float  # a fast worker hands a sample over when a stage ends after this
    max_sample_bytes: int
    heartbeat_s: float  # a remote worker that is silent for several of these loses its leases
    options: dict[str, Any]


class LeaseRequest(Message):
    """Worker -> loader: I have room for `credit` more samples. Every heartbeat, and only then.

    A result or a hand-over frees its place by itself. The loader answers remote workers with
    Welcome: they have no supervisor to tell them that somebody is there.
    """

    pool: Pool
    credit: int
    host: str = ""  # of a remote worker: a new loader has not heard its JoinPool


class Lease(Message):
    """Loader -> worker: this sample is yours until `expires_s` from now.

    `stage` is the first stage still to be done; frame 0 holds what the stages before it made
    (absent when stage is 0).
    """

    lease: int  # never reused within a run
    epoch: int
    sample: int
    attempt: int
    ref: SampleRef
    stage: int
    expires_s: float
    cutoff_s: float = 0.0  # in place of the plan's, which loaders learn to be wrong; 0: the plan's


class SampleHandover(Message):
    """Fast worker -> loader: over the cut-off; `stage` comes next. Frame 0 is the state reached."""

    lease: int
    epoch: int
    sample: int
    stage: int
    elapsed_s: float


class SampleParked(Message):
    """Worker -> loader: another program works on this sample, and I have room for one more.

    The lease stays mine: SampleReady, SampleHandover or SampleRefused follow.
    """

    lease: int
    epoch: int
    sample: int


class SampleReady(Message):
    """Worker -> loader: the finished sample."""

    lease: int
    epoch: int
    sample: int
    tokens: TensorRef  # int32
    text_bytes: int  # of UTF-8 these tokens stand for: bits per byte needs it
    stage_s: tuple[float, ...]  # how long each stage took here; 0 for those done elsewhere
    waited_s: float = 0.0  # of that, while the sample was parked


class SampleRefused(Message):
    """Worker -> loader: this sample cannot be used, whoever tries. It is counted and left out."""

    lease: int
    epoch: int
    sample: int
    kind: str  # "unreadable", "not utf-8", "too large", "does not compile", "empty", ...
    detail: str


class WorkerLog(Message):
    """Remote worker -> loader: log lines, since it cannot reach the recorder."""

    records: tuple[dict[str, Any], ...]


class Guest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A worker of another host, as the loader sees it."""

    name: str
    host: str
    pool: Pool
    incarnation: int
    leased: int
    delivered: int  # samples it finished, in this life of the loader
    silent_s: float


class Guests(Message):
    """Loader -> supervisor: all workers of other hosts, every second while there are any, and once
    more when the last has gone. They have no supervisor of their own that `status` could ask."""

    guests: tuple[Guest, ...]


# --- Batches and prompts: loader <-> trainers and rollouts, channel "batches" ---------------------


class BatchRequest(Message):
    """Trainer -> loader: the batch of (step, rank). Asking again gives the same batch."""

    step: int
    rank: int


class Batch(Message):
    """Loader -> trainer: rows of exactly seq_len + 1 tokens.

    `tokens` is int32 (rows, seq_len + 1). `documents` is int32 of the same shape: which document
    of its row a token belongs to, so that no loss and no shift crosses documents.
    `text_bytes` counts the UTF-8 bytes behind the tokens, for bits per byte.
    """

    step: int
    rank: int
    epoch: int
    tokens: TensorRef
    documents: TensorRef
    text_bytes: int


class PromptRequest(Message):
    """Rollout -> loader: `count` prompts cut from held-out functions."""

    count: int
    draw: int  # which draw: the answer is a pure function of (seed, draw)


class Prompts(Message):
    """Loader -> rollout: prompts as text. The tokenizer's JSON is frame 0."""

    draw: int
    texts: tuple[str, ...]
    names: tuple[str, ...]


# --- Exchange: trainers and rollouts <-> optimizer shards, channel "exchange/K" -------------------


class BasisRef(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The basis that a parameter's gradients are projected on, as the shard keeps it."""

    version: int  # the step whose gradients it was found in; 0: random
    digest: str  # SHA-256 of the bytes of all tensors
    tensors: tuple[TensorRef, ...]


class CodesRequest(Message):
    """Trainer or rollout -> shard: all your parameters at `version` (-1: the newest committed)."""

    version: int


class Codes(Message):
    """Shard -> whoever asked: one whole parameter. Ternary ones packed, 2 bits a weight.

    `index` of `count` of this shard's parameters. When the version asked for is gone (only the two
    newest are kept) the answer carries the newest version instead: see `version`.
    """

    version: int
    param: str
    index: int
    count: int
    codec: str  # "ternary2" | "dense"
    digest: str  # SHA-256 of the parameter at that version
    tensors: tuple[TensorRef, ...]
    basis: BasisRef | None = None  # for trainers, where gradients travel projected


class StepFacts(Message):
    """Trainer -> shard 0: what the forward passes of (step, rank) amounted to."""

    step: int
    rank: int
    tokens: int  # targets counted in the loss
    text_bytes: int
    loss_sum: float  # nats, over those targets, of the last loop's prediction
    objective_sum: float  # what was minimised, same normalisation
    step_s: float  # seconds of the previous step, wall clock of this trainer
    data_wait_s: float
    up_bytes: int


class Sketch(Message):
    """Trainer -> shard: one product of its gradient, from which all ranks together find a basis.

    In round 0 the other factor is random signs that both sides can make; later it is the operand
    of the SketchRequest.
    """

    step: int
    rank: int
    param: str
    round: int
    tokens: int
    tensors: tuple[TensorRef, ...]  # one


class SketchRequest(Message):
    """Shard -> trainers: all sketches of the round before are here; multiply by this one next."""

    step: int
    param: str
    round: int  # from 1
    tensors: tuple[TensorRef, ...]  # one


class NewBasis(Message):
    """Shard -> trainers: project the gradient of `step` on this, and those of the steps to come."""

    step: int
    param: str
    basis: BasisRef


class Gradient(Message):
    """Trainer -> the shard that owns `param`: its gradient, mean over this rank's `tokens`."""

    step: int
    rank: int
    param: str
    codec: str
    basis: int  # version of the basis it was projected with; 0: a random one, or none
    tokens: int
    tensors: tuple[TensorRef, ...]


class Update(Message):
    """Shard -> trainers: `param` moved from version - 1 to `version`."""

    version: int
    param: str
    codec: str  # "flips", "dense", or a step of a dense one: "int8", ..., "sign"
    digest: str  # of the parameter after the update
    tensors: tuple[TensorRef, ...]
    basis: BasisRef | None = None  # when the step found a new one


class StepQuery(Message):
    """Trainer -> shard: I wait for updates to `version`; these are the ones I lack.

    Sent when a wait grows long or the shard has been replaced. The shard sends again what it has
    and answers with what it still needs.
    """

    version: int
    rank: int
    lacking: tuple[str, ...]


class StepNeeds(Message):
    """Shard -> trainer: gradients of `step` I have not got from your rank."""

    step: int
    params: tuple[str, ...]
    facts: bool  # StepFacts too
    sketches: tuple[str, ...] = ()  # parameters of which the sketch of round 0 is wanted


class ShardCommitted(Message):
    """Shard k -> shard 0: my part of `version` is durable. Digests in my parameters' order."""

    version: int
    shard: int
    digests: tuple[str, ...]
    flips: int
    up_bytes: int
    down_bytes: int
    # Per parameter, the ranks whose gradients are not in it, as bits; empty when all are in all.
    absent: tuple[int, ...] = ()


class CheckpointPart(Message):
    """Shard k -> shard 0: my files of this checkpoint are on disk. Maps file name to SHA-256."""

    version: int
    shard: int
    files: dict[str, str]  # empty when there is nothing newer than the last checkpoint
    closing: bool = False  # made because of a stop, perhaps in the middle of a step
    failed: str = ""  # why there will be no such files, when there will not


class MetricsRequest(Message):
    """Recorder or rollout -> shard 0: the committed steps after `after`."""

    after: int


class Metrics(Message):
    """Shard 0 -> whoever asked: one record per committed step, in order, without gaps."""

    records: tuple[dict[str, Any], ...]


# --- Trainers of other hosts <-> the stand-in of their rank, channel "rank/R" ---------------------
# Besides these: Hello and Beat up, Welcome, PeerUp and Stop down, as between actors and supervisor.


class JoinRank(Message):
    """Attached trainer -> stand-in: I want to be this rank. Asked again until RankPlan comes."""

    host: str


class RankPlan(Message):
    """Stand-in -> attached trainer: the rank is yours, in the run of this topology."""

    topology: str  # TOML, complete
    rank: int


class Forward(Message):
    """Attached trainer <-> stand-in: a message of `channel`, for whoever it concerns there.

    Frame 0 is its body; the frames after that are its own. What it may be is for the table of that
    channel to say (channels.py), here as there.
    """

    channel: str  # "batches", "exchange/K"
    kind: str
    sender: str = ""  # who said it; "": the attached trainer


# --- A standby on another host <-> loader, channel "standby" --------------------------------------


class FilesRequest(Message):
    """Standby -> loader: what is there to copy? Asked again and again; says how far the copy is."""

    host: str
    step: int  # the last step that the copy could go on from; -1: none yet
    lacking_bytes: int  # of what was there when it was last told


class FileFacts(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A file of the run directory."""

    path: str  # below the run directory: "topology.toml", "journal/...", "checkpoints/step-.../..."
    size: int
    modified_ns: int


class Files(Message):
    """Loader -> standby: all that a copy consists of now, in the order in which to take it."""

    files: tuple[FileFacts, ...]


class PieceRequest(Message):
    """Standby -> loader: the bytes of a file from `offset` on, up to `size`."""

    path: str
    offset: int
    size: int


class Piece(Message):
    """Loader -> standby: they are frame 0. Empty: there is no more, or no such file any more."""

    path: str
    offset: int


# --- Telemetry: anyone -> recorder, channel "telemetry"; may be lost, losses are counted ----------


class LogRecord(Message):
    """One structlog event."""

    record: dict[str, Any]


class RolloutReport(Message):
    """Rollout -> recorder: how the completions of one group scored."""

    version: int
    draw: int
    prompt: str
    rewards: tuple[float, ...]
    compiled: int
    completions: int
    tokens: int
    seconds: float


# --- Operators: command line <-> supervisor, channel "control" ------------------------------------


class StatusRequest(Message):
    """Operator or recorder -> supervisor."""


class Status(Message):
    """Supervisor -> whoever asked: the document `status --json` prints, as JSON text."""

    document: str


class StopRequest(Message):
    """Operator -> supervisor: end the run cleanly."""

    reason: str


class KillRequest(Message):
    """Operator -> supervisor: send `signal` to actors whose name matches the glob."""

    pattern: str
    signal: int


class InviteRequest(Message):
    """Operator -> supervisor -> loader, or a rank's stand-in: admit the holder of this CURVE key in
    this role."""

    role: Role
    public_key: str  # Z85
    label: str


class Invitation(Message):
    """Whoever admits -> supervisor -> operator: where to knock, and whom to expect there."""

    public_key: str  # of the request: who asked gets the answer, and nobody else
    endpoint: str
    server_key: str  # Z85
    refused: str = ""  # why not, when not
    rank: int = -1  # of a trainer


class Answer(Message):
    """Supervisor -> operator: done, or why not."""

    ok: bool
    text: str
