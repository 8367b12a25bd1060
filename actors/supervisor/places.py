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


class _Planned(msgspec.Struct, frozen=True):
    actors: tuple[Seated, ...]


def read(run: RunDir) -> tuple[Seated, ...]:
    """All actors of the plan, the supervisor among them. Raises `RunDirError`."""
    try:
        return msgspec.json.decode(run.plan.read_bytes(), type=_Planned).actors
    except (OSError, msgspec.DecodeError) as error:
        raise RunDirError(f"{run.plan} cannot be read: {error}; start a new run") from error


def places(seated: tuple[Seated, ...], roles: dict[str, Entry]) -> list[Place]:
    """What the decider is to keep alive, and in which order."""
    found: list[Place] = []
    for actor in seated:
        entry = roles.get(actor.role)
        if entry is not None:
            found.append(Place(actor.name, actor.role, entry.order, entry.stop_order))
    return found


def preloads(seated: tuple[Seated, ...], roles: dict[str, Entry]) -> set[Preload]:
    """Which forkservers these actors need."""
    return {roles[actor.role].preload for actor in seated if actor.role in roles}


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
