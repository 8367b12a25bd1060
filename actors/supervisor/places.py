"""Who is to live, and where: the plan as the supervisor reads it."""

import msgspec

from actors.roles import Entry, Preload
from actors.rundir import RunDir, RunDirError
from actors.seat import Seat
from actors.supervisor.events import Place
from protocol.messages import Role


class Seated(msgspec.Struct, frozen=True, kw_only=True):
    """An actor of plan.json; what the plan says besides is for people."""

    name: str
    role: Role
    cpus: tuple[int, ...] = ()
    numa_node: int = 0
    device: str = "cpu"
    threads: int = 1
    pool: str = ""
    nice: int = 0
    remote: bool = False  # stands in for one of another host

    @property
    def entry(self) -> str:
        """What to look up in roles.py."""
        return f"remote_{self.role}" if self.remote else self.role


class _Planned(msgspec.Struct, frozen=True):
    actors: tuple[Seated, ...]


def read(run: RunDir, remote_ranks: range = range(0)) -> tuple[Seated, ...]:
    """All actors of the plan, the supervisor among them. Raises `RunDirError`."""
    try:
        actors = msgspec.json.decode(run.plan.read_bytes(), type=_Planned).actors
    except (OSError, msgspec.DecodeError) as error:
        raise RunDirError(f"{run.plan} cannot be read: {error}; start a new run") from error
    elsewhere = {f"trainer/{rank}" for rank in remote_ranks}
    return tuple(msgspec.structs.replace(a, remote=a.name in elsewhere) for a in actors)


def places(seated: tuple[Seated, ...], roles: dict[str, Entry]) -> list[Place]:
    """What the decider is to keep alive, and in which order."""
    found: list[Place] = []
    for actor in seated:
        entry = roles.get(actor.entry)
        if entry is not None:
            order = entry.order, entry.stop_order
            found.append(Place(actor.name, actor.role, *order, remote=actor.remote))
    return found


def preloads(seated: tuple[Seated, ...], roles: dict[str, Entry]) -> set[Preload]:
    """Which forkservers these actors need."""
    return {roles[actor.entry].preload for actor in seated if actor.entry in roles}


def seat(run: RunDir, seated: Seated, incarnation: int) -> Seat:
    """What one life of the actor is told."""
    return Seat(
        run_dir=str(run.path),
        run_id=run.run_id,
        socket_dir=str(run.socket_dir),
        name=seated.name,
        role=seated.role,
        index=_index(seated.name),
        incarnation=incarnation,
        cpus=seated.cpus,
        numa_node=seated.numa_node,
        device=seated.device,
        threads=seated.threads,
        pool=seated.pool,
        nice=seated.nice,
    )


def _index(name: str) -> int:
    tail = name.rpartition("/")[2]
    return int(tail) if tail.isdecimal() else 0
