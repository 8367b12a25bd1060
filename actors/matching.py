"""A topology against the hardware found: what is missing, and what runs instead. Pure.

Only missing GPUs change what runs (the [emulation] tables take over); fewer cores or less memory
than wanted are said in a note, because the graph runs all the same. `--require-hardware` makes
every difference an error.
"""

import msgspec

from actors.hardware import Hardware
from actors.parameters import unique_count
from actors.placement import usable_cores
from actors.strict_toml import TopologyError
from actors.topology import ActorCounts, HardwareWanted, Topology, emulate
from actors.topology_rules import tensor_count

# A card sold as 24 GB shows a little less than 24e9 bytes once the driver has taken its part.
_TOLERANCE = 0.9
# More workers than this feed no small model faster.
_MOST_WORKERS_HERE = 8


def resolve(
    topology: Topology, hardware: Hardware, require_hardware: bool = False
) -> tuple[Topology, str | None]:
    """The topology that runs on `hardware`, and a line about it when it is not the one asked for.

    Raises `TopologyError` when hardware is missing and nothing may or can take its place. What has
    been resolved stays as it is: resolving twice changes nothing.
    """
    if topology.emulated and not require_hardware:
        return topology, None
    if topology.hardware.any and not topology.emulated:
        return _whatever_is_here(topology, hardware), None
    missing = deficits(topology.hardware, hardware)
    if require_hardware and (missing or topology.emulated):
        lacks = "; ".join(missing.values()) or "this is an emulated copy"
        raise TopologyError(
            f"topology {topology.name}: --require-hardware, but {lacks}. Run it where that is, or "
            "leave --require-hardware away"
        )
    gpus = missing.get("gpus") or missing.get("gpu_memory_gb")
    if not gpus:
        return topology, None
    if topology.emulation is None:
        raise TopologyError(
            f"topology {topology.name}: {gpus}, and the topology has no [emulation] to run "
            "instead. Add one, or run it where the GPUs are"
        )
    small = emulate(topology)
    return small, (
        f"{topology.name} emulated: {gpus}; {small.actors.trainers} CPU trainer(s) run its "
        f"[emulation] model of {unique_count(small.model) / 1e6:.2f} M parameters instead"
    )


def deficits(wanted: HardwareWanted, hardware: Hardware) -> dict[str, str]:
    """What `wanted` asks for and `hardware` lacks: key of [hardware] to words."""
    found = found_as_wanted(hardware)
    kind = f" ({wanted.gpu_name})" if wanted.gpu_name else ""
    missing: dict[str, str] = {}
    if found.gpus < wanted.gpus:
        missing["gpus"] = f"{wanted.gpus} GPU(s){kind} wanted, {found.gpus} found"
    elif wanted.gpus and found.gpu_memory_gb < _TOLERANCE * wanted.gpu_memory_gb:
        missing["gpu_memory_gb"] = (
            f"GPUs of {wanted.gpu_memory_gb:g} GB wanted, {found.gpu_memory_gb:.0f} GB found"
        )
    elif wanted.gpus and wanted.gpu_name.lower() not in found.gpu_name.lower():
        missing["gpu_name"] = f"{wanted.gpu_name} wanted, {found.gpu_name} found"
    if found.cores < wanted.cores:
        missing["cores"] = f"{wanted.cores} cores wanted, {found.cores} found"
    if found.numa_nodes < wanted.numa_nodes:
        missing["numa_nodes"] = f"{wanted.numa_nodes} NUMA nodes wanted, {found.numa_nodes} found"
    if found.memory_gb < _TOLERANCE * wanted.memory_gb:
        missing["memory_gb"] = (
            f"{wanted.memory_gb:g} GB of memory wanted, {found.memory_gb:.0f} GB found"
        )
    return missing


def found_as_wanted(hardware: Hardware) -> HardwareWanted:
    """The hardware found, in the words of a topology's [hardware]: only what may be used."""
    allowed = set(hardware.allowed)
    usable = [cpu for cpu in hardware.cpus if cpu.id in allowed]
    gpus = hardware.gpus
    return HardwareWanted(
        gpus=len(gpus),
        gpu_memory_gb=round(min((gpu.memory_bytes for gpu in gpus), default=0) / 1e9, 1),
        gpu_name=gpus[0].name if gpus else "",
        cores=len(usable_cores(hardware)),  # a quota pays for fewer than may be used
        numa_nodes=len({cpu.node for cpu in usable}),
        memory_gb=round(hardware.memory_bytes / 1e9, 1),
    )


def _whatever_is_here(topology: Topology, hardware: Hardware) -> Topology:
    """Counts for `hardware.any`: a trainer and a shard per GPU, workers for the cores left over."""
    asked, cores, gpus = topology.actors, found_as_wanted(hardware).cores, len(hardware.gpus)
    trainers = max(asked.trainers - asked.remote_trainers, gpus)
    shards = min(max(asked.optimizer_shards, gpus), tensor_count(topology.model))
    left = cores - trainers - shards - 1 - asked.slow_workers
    actors = ActorCounts(
        trainers=trainers + asked.remote_trainers,
        remote_trainers=asked.remote_trainers,
        optimizer_shards=shards,
        rollouts=asked.rollouts,
        fast_workers=max(asked.fast_workers, min(left, _MOST_WORKERS_HERE)),
        slow_workers=asked.slow_workers,
    )
    wanted = msgspec.structs.replace(topology.hardware, any=False)
    return msgspec.structs.replace(topology, actors=actors, hardware=wanted)
