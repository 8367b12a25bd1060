"""The channels: which socket kind, how deep, and who may say what.

One table, because it is the whole policy of the wire: a message whose sender's role is not listed
beside its class is counted as forbidden and dropped, whatever it says.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from protocol import messages as m
from protocol.messages import Message, Role

Senders = Mapping[type[Message], frozenset[Role]]

MIB = 1024 * 1024
ROLES: frozenset[Role] = frozenset(get_args(Role))
ACTORS: frozenset[Role] = ROLES - {"supervisor", "operator", "standby"}


@dataclass(frozen=True, slots=True)
class Channel:
    """How one channel behaves. Marks count messages, per peer and direction."""

    name: str
    kind: Literal["router", "pull"]  # what the binding side has; the others: DEALER, PUSH
    binder: Role
    high_water: int
    linger_s: float  # how long a closing process waits for what it still has to send
    max_part_bytes: int  # a peer that sends a longer part is disconnected by libzmq
    senders: Senders
    curve: bool = False  # reachable over tcp: encrypted, and the peer's role comes from its key

    def allows(self, role: Role, message: Message) -> bool:
        """May `role` say this here?"""
        return role in self.senders.get(type(message), frozenset())


def _by(*roles: Role) -> frozenset[Role]:
    return frozenset(roles)


_CONTROL: Senders = {
    m.Hello: ACTORS,
    m.Welcome: _by("supervisor"),
    m.Beat: ACTORS,
    m.PeerUp: _by("supervisor"),
    m.PeerDown: _by("supervisor"),
    m.Stop: _by("supervisor"),
    m.Goodbye: ACTORS,
    m.RunDone: _by("optimizer_shard"),
    m.Guests: _by("loader"),
    m.StatusRequest: _by("operator", "recorder"),
    m.Status: _by("supervisor"),
    m.StopRequest: _by("operator"),
    m.KillRequest: _by("operator"),
    m.InviteRequest: _by("operator", "supervisor"),
    m.Invitation: _by("loader", "trainer", "supervisor"),
    m.Answer: _by("supervisor"),
}
_SAMPLES: Senders = {
    m.JoinPool: _by("data_worker"),
    m.DataPlan: _by("loader"),
    m.LeaseRequest: _by("data_worker"),
    m.Lease: _by("loader"),
    m.SampleHandover: _by("data_worker"),
    m.SampleParked: _by("data_worker"),
    m.SampleReady: _by("data_worker"),
    m.SampleRefused: _by("data_worker"),
    m.WorkerLog: _by("data_worker"),
    # A worker of another host has no supervisor: towards it the loader stands in.
    m.Welcome: _by("loader"),
    m.Stop: _by("loader"),
    m.Goodbye: _by("data_worker"),
}
_BATCHES: Senders = {
    m.BatchRequest: _by("trainer"),
    m.Batch: _by("loader"),
    m.PromptRequest: _by("rollout"),
    m.Prompts: _by("loader"),
}
_EXCHANGE: Senders = {
    m.CodesRequest: _by("trainer", "rollout"),
    m.Codes: _by("optimizer_shard"),
    m.StepFacts: _by("trainer"),
    m.Sketch: _by("trainer"),
    m.SketchRequest: _by("optimizer_shard"),
    m.NewBasis: _by("optimizer_shard"),
    m.Gradient: _by("trainer"),
    m.Update: _by("optimizer_shard"),
    m.StepQuery: _by("trainer"),
    m.StepNeeds: _by("optimizer_shard"),
    m.ShardCommitted: _by("optimizer_shard"),
    m.CheckpointPart: _by("optimizer_shard"),
    m.MetricsRequest: _by("recorder", "rollout"),
    m.Metrics: _by("optimizer_shard"),
}
# A trainer of another host and the process that stands in for it here, which is a trainer to
# everybody else: both have that role, and what they forward is judged once more.
_RANK: Senders = dict.fromkeys(
    (
        *(m.JoinRank, m.RankPlan, m.Forward, m.WorkerLog),
        *(m.Hello, m.Beat, m.Welcome, m.PeerUp, m.Stop, m.Goodbye),
    ),
    _by("trainer"),
)
# A standby asks, and is answered: nothing that it says changes anything.
_STANDBY: Senders = {
    m.FilesRequest: _by("standby"),
    m.Files: _by("loader"),
    m.PieceRequest: _by("standby"),
    m.Piece: _by("loader"),
    m.WorkerLog: _by("standby"),
    m.Stop: _by("loader"),
    m.Goodbye: _by("standby"),
}
_TELEMETRY: Senders = {
    m.LogRecord: ROLES - {"operator", "standby"},
    m.RolloutReport: _by("rollout"),
}

_CHANNELS = (
    Channel("control", "router", "supervisor", 1000, 0.5, 8 * MIB, _CONTROL),
    # Samples are bounded by max_sample_bytes of the topology, so are the states handed over.
    Channel("samples", "router", "loader", 64, 0.2, 64 * MIB, _SAMPLES),
    Channel("remote", "router", "loader", 64, 0.5, 64 * MIB, _SAMPLES, curve=True),
    Channel("batches", "router", "loader", 16, 0.2, 256 * MIB, _BATCHES),
    # One step's messages of a few hundred parameters must fit; bulk travels in segments.
    Channel("exchange", "router", "optimizer_shard", 1024, 0.2, 4096 * MIB, _EXCHANGE),
    Channel("rank", "router", "trainer", 1024, 0.5, 4096 * MIB, _RANK, curve=True),
    Channel("standby", "router", "loader", 16, 0.5, 64 * MIB, _STANDBY, curve=True),
    Channel("telemetry", "pull", "recorder", 4096, 0.2, 8 * MIB, _TELEMETRY),
)
CHANNELS: Mapping[str, Channel] = {channel.name: channel for channel in _CHANNELS}


# Channels of which every binder has its own, by index.
INDEXED = {"exchange": "exchange/K", "rank": "rank/R"}


def channel(name: str) -> Channel:
    """The channel called `name`; "exchange/3" is the exchange of shard 3. Raises `ValueError`."""
    family, slash, index = name.partition("/")
    found = CHANNELS.get(family)
    if found is None or bool(slash) != (family in INDEXED) or (slash and not index.isdigit()):
        known = ", ".join(INDEXED.get(c, c) for c in CHANNELS)
        raise ValueError(f"no channel {name!r}; there are {known}")
    return found


def endpoint(socket_dir: Path | str, name: str) -> str:
    """Where `name` listens on this host: a socket in the run's 0700 directory."""
    channel(name)
    return f"ipc://{Path(socket_dir) / name.replace('/', '.')}"


def role_of(name: str) -> Role | None:
    """Role of the actor called `name` ("trainer/0": trainer); None when there is no such role."""
    role = name.partition("/")[0]
    return role if role in ROLES else None


def address(name: str, incarnation: int) -> bytes:
    """ZeroMQ routing identity of one life of an actor."""
    return f"{name}#{incarnation}".encode()
