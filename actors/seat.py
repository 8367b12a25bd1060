"""A seat: everything a process must be told to be one life of one actor."""

from functools import lru_cache
from pathlib import Path

import msgspec

from actors import topology
from actors.topology import Topology
from protocol.messages import Role


class Seat(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who an actor is and where it sits. Plain data: it travels to the forkserver as JSON."""

    run_dir: str
    run_id: str  # names the run's segments and its socket directory
    socket_dir: str
    name: str  # "trainer/0"
    role: Role
    index: int = 0  # among the actors of its role
    incarnation: int = 0
    cpus: tuple[int, ...] = ()  # empty: not pinned
    numa_node: int = 0
    device: str = "cpu"  # or "cuda:0"
    threads: int = 1  # of torch
    pool: str = ""  # of a data worker: "fast" or "slow"
    nice: int = 0

    def topology(self) -> Topology:
        """The run's resolved topology. Raises `TopologyError`, or `OSError` when it is absent."""
        return _topology(Path(self.run_dir) / "topology.toml")


@lru_cache(maxsize=1)
def _topology(path: Path) -> Topology:
    """It is written once, before anybody has a seat; parsing takes milliseconds."""
    return topology.decode(path.read_text(encoding="utf-8"), source=str(path))
