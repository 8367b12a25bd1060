"""Which code plays which role. The one table that knows every actor, and it imports none of them.

Entry points are named by text so that whoever reads the table (supervisor, planner, forkserver)
stays free of torch. Each names a function `main(seat: Seat) -> int`; what it returns is the
process's exit code.
"""

from dataclasses import dataclass
from typing import Literal

Preload = Literal["light", "torch"]


@dataclass(frozen=True, slots=True)
class Entry:
    """How a role is started."""

    entry: str  # "package.module:function"
    preload: Preload  # which warm forkserver it is forked from
    order: int  # roles start from the smallest ...
    stop_order: int  # ... and stop from the smallest of these

    @property
    def needs_torch(self) -> bool:
        """Whether its process holds torch."""
        return self.preload == "torch"


# Whoever writes down what the others say comes first; whoever only asks of others comes last. They
# stop in reverse.
ROLES: dict[str, Entry] = {
    "recorder": Entry("actors.recorder.process:main", "light", 0, 5),
    "loader": Entry("actors.data.loader:main", "light", 1, 4),
    "optimizer_shard": Entry("actors.optimizer.process:main", "torch", 2, 3),
    "trainer": Entry("actors.trainer.process:main", "torch", 3, 2),
    "remote_trainer": Entry("actors.standin.process:main", "light", 3, 2),
    "data_worker": Entry("actors.data.worker:main", "light", 4, 1),
    "rollout": Entry("actors.rollout.process:main", "torch", 5, 0),
}


def stopped_within(stop_s: float) -> float:
    """Seconds that the end of a run may take: each group has `stop_s` to leave, and after them come
    whoever did not and the shared memory. A scheduler that ends runs should grant more.
    """
    return stop_s * len({entry.stop_order for entry in ROLES.values()}) + 60.0


# What each forkserver has imported before it forks. Importing must start no thread, no thread
# pool, no CUDA and no ZeroMQ context: the forkserver checks that it still has one thread.
PRELOADS: dict[Preload, tuple[str, ...]] = {
    "light": ("uvloop", "zmq", "msgpack", "msgspec", "numpy", "actors.logs", "tokenizers"),
    "torch": ("uvloop", "zmq", "msgpack", "msgspec", "numpy", "actors.logs", "tokenizers", "torch"),
}


def modules(preload: Preload) -> tuple[str, ...]:
    """Our own acting modules that a forkserver of this kind holds ready."""
    return tuple(
        sorted(
            entry.entry.partition(":")[0] for entry in ROLES.values() if entry.preload == preload
        )
    )
