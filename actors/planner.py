"""From a topology and a machine to a plan: who runs where, with how much memory. Pure.

`resolve` (matching.py) has decided what runs; here everyone gets threads, node and device
(placement.py), the shards' device with its reason (plan_costs.py), and a memory and wire estimate
(plan_memory.py). `plan` computes, `document` is what `run.py plan --json` prints.
"""

from collections import Counter
from typing import Any

import msgspec

from actors import plan_costs, plan_memory
from actors.hardware import Gpu, Hardware, format_cpulist
from actors.matching import deficits, found_as_wanted
from actors.matching import resolve as resolve
from actors.parameters import applied_count, unique_count
from actors.placement import Counts, Seating, place, usable_cores
from actors.plan_memory import Memory, Wire
from actors.supervisor import segments
from actors.topology import HardwareWanted, Topology


class Placement(msgspec.Struct, frozen=True, kw_only=True):
    """One actor's place."""

    name: str
    role: str
    cpus: tuple[int, ...]  # never empty
    numa_node: int
    device: str  # "cpu" or "cuda:N"
    threads: int  # of torch; 1 for actors without it
    pool: str  # of a data worker: "fast" or "slow"
    nice: int
    floats: bool  # shares its threads with others that found none of their own
    memory: Memory


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """The model's two sizes."""

    unique_parameters: int
    applied_parameters: int  # that one token meets: loops count


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """Everything about a run that is decided before it starts."""

    topology: str
    found: HardwareWanted
    wanted: HardwareWanted
    emulated: bool
    model: Model
    actors: tuple[Placement, ...]
    wire: Wire
    notes: tuple[str, ...]  # for people: why, and what does not fit

    def placement(self, name: str) -> Placement:
        """The place of actor `name`. Raises `KeyError` for a name the plan does not have."""
        for actor in self.actors:
            if actor.name == name:
                return actor
        raise KeyError(name)


def plan(topology: Topology, hardware: Hardware) -> Plan:
    """Where everybody of a resolved `topology` runs on `hardware`. The same for the same input."""
    gpus = () if topology.emulated else hardware.gpus
    trainer_gpus = tuple(
        gpus[i % len(gpus)] if gpus else None for i in range(_trainers_here(topology))
    )
    cost = plan_costs.shard_cost(topology, trainer_gpus[0], _shard_cores(topology, hardware))
    shards = range(topology.actors.optimizer_shards)
    counts = Counts(
        trainer_gpus=trainer_gpus,
        shard_gpus=tuple(
            trainer_gpus[k % len(trainer_gpus)] if cost.on_gpu else None for k in shards
        ),
        trainer_threads=topology.train.threads,
        shard_threads=topology.optimizer.threads,
        fast_workers=topology.actors.fast_workers,
        slow_workers=topology.actors.slow_workers,
        rollouts=topology.actors.rollouts,
        remote_trainers=topology.actors.remote_trainers,
    )
    actors = tuple(_placement(seat, topology, counts) for seat in place(counts, hardware))
    found = Plan(
        topology=topology.name,
        found=found_as_wanted(hardware),
        wanted=topology.hardware,
        emulated=topology.emulated,
        model=Model(
            unique_parameters=unique_count(topology.model),
            applied_parameters=applied_count(topology.model),
        ),
        actors=actors,
        wire=plan_memory.wire(topology),
        notes=(cost.explain(),),
    )
    return _with_notes(found, topology, hardware)


def document(plan: Plan) -> dict[str, Any]:
    """The JSON document of `run.py plan --json`."""
    return {
        "topology": plan.topology,
        "hardware": {
            "found": _words(plan.found),
            "wanted": _words(plan.wanted),
            "emulated": plan.emulated,
        },
        "model": msgspec.to_builtins(plan.model),
        "actors": [
            {
                "name": actor.name,
                "role": actor.role,
                "cpus": list(actor.cpus),
                "numa_node": actor.numa_node,
                "device": actor.device,
                "memory_bytes": {**msgspec.to_builtins(actor.memory), "total": actor.memory.total},
            }
            for actor in plan.actors
        ],
        "wire": msgspec.to_builtins(plan.wire),
    }


def _words(hardware: HardwareWanted) -> dict[str, Any]:
    """[hardware] without the flag that only topology files use."""
    return {k: v for k, v in msgspec.to_builtins(hardware).items() if k != "any"}


def _shard_cores(topology: Topology, hardware: Hardware) -> int:
    """Cores one shard could have on the CPU once trainers and loader have theirs."""
    cores = len(usable_cores(hardware))
    free = (cores - _trainers_here(topology) - 1) // topology.actors.optimizer_shards
    return max(1, min(topology.optimizer.threads, free))


def _trainers_here(topology: Topology) -> int:
    return topology.actors.trainers - topology.actors.remote_trainers


def _placement(seat: Seating, topology: Topology, counts: Counts) -> Placement:
    index = int(seat.name.partition("/")[2] or 0)
    gpu: Gpu | None = None
    threads = 1
    memory = plan_memory.of_light(topology, seat.role)
    match seat.role:
        case "trainer" if index < len(counts.trainer_gpus):  # the others have a stand-in here
            gpu, threads = counts.trainer_gpus[index], counts.trainer_threads
            memory = plan_memory.of_trainer(topology)
        case "optimizer_shard":
            gpu, threads = counts.shard_gpus[index], counts.shard_threads
            memory = plan_memory.of_shard(topology, index)
        case "rollout":
            # Those that float take turns with others: one thread each.
            threads = 1 if seat.floats else len(seat.cpus)
            memory = plan_memory.of_rollout(topology)
        case _:
            pass
    return Placement(
        name=seat.name,
        role=seat.role,
        cpus=seat.cpus,
        numa_node=seat.numa_node,
        device=f"cuda:{gpu.index}" if gpu else "cpu",
        threads=max(1, min(threads, len(seat.cpus))),
        pool=seat.pool,
        nice=seat.nice,
        floats=seat.floats,
        memory=memory,
    )


# --- What does not fit ----------------------------------------------------------------------------


def gpu_excess(plan: Plan, hardware: Hardware, bound_gb: float = 0.0) -> dict[int, int]:
    """Bytes by which each GPU is too small for what sits on it; only those that are.

    `bound_gb`: what may be used of each; 0: all of it.
    """
    excess: dict[int, int] = {}
    for gpu in hardware.gpus:
        needed = sum(plan_memory.on_device(a.memory, a.role) for a in _actors_on(plan, gpu))
        usable = gpu.memory_bytes
        if bound_gb:
            usable = min(usable, round(bound_gb * 1e9))
        if needed > usable > 0:
            excess[gpu.index] = needed - usable
    return excess


def smaller_batch(topology: Topology, excess: int) -> tuple[int, int] | None:
    """Rows and accumulation that save `excess` bytes and make the same step; None: no such."""
    rows, each = topology.train.rows_per_trainer, topology.train.accumulation
    now = plan_memory.activation_bytes(topology.model, rows, topology.train)
    for fewer in range(rows - 1, 0, -1):
        saved = now - plan_memory.activation_bytes(topology.model, fewer, topology.train)
        if excess > 0 and (rows * each) % fewer == 0 and saved >= excess:
            return fewer, rows * each // fewer
    return None


def _actors_on(plan: Plan, gpu: Gpu) -> list[Placement]:
    return [actor for actor in plan.actors if actor.device == f"cuda:{gpu.index}"]


def _with_notes(plan: Plan, topology: Topology, hardware: Hardware) -> Plan:
    notes = list(plan.notes + hardware.notes)
    if not topology.emulated:
        notes += deficits(topology.hardware, hardware).values()
    threads = sum(len(core.threads) for core in usable_cores(hardware))
    if hardware.cpu_quota and threads < len(hardware.allowed):
        notes.append(f"the cgroup grants {hardware.cpu_quota:g} cores: {threads} threads are used")
    for cpus in dict.fromkeys(actor.cpus for actor in plan.actors if actor.floats):
        names = _roles([actor for actor in plan.actors if actor.floats and actor.cpus == cpus])
        notes.append(f"without a thread of their own, sharing cpus {format_cpulist(cpus)}: {names}")
    if hardware.interrupted:
        listed = format_cpulist(hardware.interrupted)
        notes.append(f"serving interrupts of devices, given away last: cpus {listed}")
    schedule = topology.schedule
    length = schedule.warmup + schedule.stable + schedule.decay
    if topology.steps > length:
        notes.append(
            f"steps = {topology.steps} goes on for {topology.steps - length} steps after the "
            "schedule has ended, at its last learning rate"
        )
    notes += _gpu_memory(plan, topology, hardware)
    notes += _host_memory(plan, hardware)
    shared = sum(segments.wanted("plan", topology).values())
    notes.append(f"shared memory: {_size(shared)} in /dev/shm (containers: --shm-size)")
    return msgspec.structs.replace(plan, notes=tuple(notes))


def _roles(actors: list[Placement]) -> str:
    """`loader, 3 data_worker`."""
    counts = Counter(actor.role for actor in actors)
    return ", ".join(role if n == 1 else f"{n} {role}" for role, n in counts.items())


def _gpu_memory(plan: Plan, topology: Topology, hardware: Hardware) -> list[str]:
    """What sits on every GPU; where it is too much, settings that would fit."""
    notes: list[str] = []
    full = gpu_excess(plan, hardware)
    for gpu in hardware.gpus:
        sitting = _actors_on(plan, gpu)
        if sitting and gpu.index not in full:
            size = sum(plan_memory.on_device(a.memory, a.role) for a in sitting)
            names = " and ".join(actor.name for actor in sitting)
            notes.append(
                f"cuda:{gpu.index} ({gpu.name}): {_gb(size)} of {_gb(gpu.memory_bytes)} for {names}"
            )
    for index, excess in full.items():
        gpu = next(gpu for gpu in hardware.gpus if gpu.index == index)
        names = " and ".join(actor.name for actor in _actors_on(plan, gpu))
        if smaller := smaller_batch(topology, excess):
            way_out = (
                f"--set train.rows_per_trainer={smaller[0]} --set train.accumulation={smaller[1]} "
                "fits and makes the same step"
            )
        elif not topology.model.activation_checkpointing:
            way_out = "--set model.activation_checkpointing=true keeps less"
        else:
            way_out = "even one row at a time does not fit; choose a smaller model or seq_len"
        notes.append(
            f"cuda:{index} ({gpu.name}) has {_gb(gpu.memory_bytes)}, not the "
            f"{_gb(gpu.memory_bytes + excess)} for {names}: {way_out}"
        )
    return notes


def _host_memory(plan: Plan, hardware: Hardware) -> list[str]:
    needed = 0
    for actor in plan.actors:
        needed += actor.memory.total
        if actor.device != "cpu":
            needed -= plan_memory.on_device(actor.memory, actor.role) - plan_memory.CUDA_CONTEXT
    if needed > hardware.memory_bytes > 0:
        return [
            f"the machine has {_gb(hardware.memory_bytes)} of memory to use, but all actors "
            f"together need about {_gb(needed)}"
        ]
    return []


def _size(size: int) -> str:
    return _gb(size) if size >= 1e9 else f"{size / 1e6:.0f} MB"


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB"
