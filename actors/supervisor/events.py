"""What the supervisor's shell tells its decider, and what the decider asks of the shell."""

from dataclasses import dataclass
from typing import Literal

from actors.identity import Identity
from protocol.messages import ActorState, Message

End = Literal["done", "failed", "stopped"]


@dataclass(frozen=True, slots=True)
class Place:
    """An actor the supervisor is to keep alive."""

    name: str
    role: str
    start_order: int  # groups start from the smallest number ...
    stop_order: int  # ... and stop from the smallest of these
    # A stand-in for a process of another host. It is somebody to others once that one has come, and
    # leaves when that one has gone.
    remote: bool = False


@dataclass(frozen=True, slots=True)
class Memory:
    """What an earlier supervisor of this run knew about an actor."""

    incarnation: int  # of its last life; 0: it never had one
    who: Identity | None  # that life, when it still goes on
    restarts: int = 0
    deaths: tuple[float, ...] = ()  # when, on the machine's monotonic clock


# --- Events ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


@dataclass(frozen=True, slots=True)
class Forked:
    """The process of that life exists."""

    name: str
    incarnation: int
    who: Identity


@dataclass(frozen=True, slots=True)
class NotForked:
    """That life could not begin."""

    name: str
    incarnation: int
    reason: str


@dataclass(frozen=True, slots=True)
class Heard:
    """A Hello or a Beat of that life."""

    name: str
    incarnation: int
    host: str = ""
    state: ActorState = "running"
    progress: int = 0
    waiting_for: str = ""
    waiting_s: float = 0.0
    rss_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Ended:
    """The process of that life is gone."""

    name: str
    incarnation: int
    how: str  # "killed by SIGKILL", "exit code 3", ...


@dataclass(frozen=True, slots=True)
class Left:
    """The actor said goodbye. `failed`: why the run cannot go on; "": it leaves in peace."""

    name: str
    incarnation: int
    failed: str


@dataclass(frozen=True, slots=True)
class Committed:
    """Shard 0 says which step it has committed last."""

    step: int


@dataclass(frozen=True, slots=True)
class Completed:
    """The last step is committed and on disk."""

    step: int
    weights_digest: str


@dataclass(frozen=True, slots=True)
class StopWanted:
    """Somebody wants the run to end. `at_once`: without waiting for anybody."""

    reason: str
    at_once: bool = False
    failed: bool = False  # the shell itself cannot go on


@dataclass(frozen=True, slots=True)
class Resumed:
    """An earlier supervisor was ending the run, this way, when it died."""

    end: End
    reason: str


Event = (
    Tick | Forked | NotForked | Heard | Ended | Left | Committed | Completed | StopWanted | Resumed
)


# --- Instructions ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Fork:
    """Begin that life. The shell answers with Forked or NotForked, always."""

    name: str
    incarnation: int


@dataclass(frozen=True, slots=True)
class Kill:
    """Send a signal to that life."""

    name: str
    incarnation: int
    who: Identity
    signal: int
    why: str


@dataclass(frozen=True, slots=True)
class Tell:
    """Send a message to one actor, or, with an empty name, to all that live."""

    name: str
    message: Message


@dataclass(frozen=True, slots=True)
class Bury:
    """That life has ended when it should not have: write the death report."""

    name: str
    incarnation: int
    why: str  # how it ended, and what we had held against it
    restart_in_s: float | None  # None: not again


@dataclass(frozen=True, slots=True)
class Finish:
    """Nothing of the run lives any more: write the outcome and leave."""

    end: End
    reason: str


Instruction = Fork | Kill | Tell | Bury | Finish
