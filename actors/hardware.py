"""What machine this is: cores, caches, NUMA nodes, limits and GPUs, as plain values.

`probe` reads sysfs, procfs, the cgroup and NVML of the machine it runs on; `actors/hwloc.py` reads
the same struct from a file about a machine that is elsewhere. Everything below `probe` takes the
root directory it reads from, so tests lay out small trees of files. Missing files mean "unknown",
never a crash: containers hide much.
"""

import json
import os
import platform
from collections.abc import Iterable
from pathlib import Path

import msgspec

# Linux says -1 for "no node"; so do we.
NO_NODE = -1
# Device interrupts a second, since the machine started, above which a thread is not a quiet one: at
# a few microseconds each, and more where network packets follow, it loses up to a per cent.
_MANY_INTERRUPTS = 100.0
# cgroup v1 spells "no limit" as a huge number of bytes.
_V1_UNLIMITED = 1 << 60


class HardwareError(ValueError):
    """A description of hardware that cannot be read: says which file, and what would be."""


class Cpu(msgspec.Struct, frozen=True):
    """One hardware thread, by the number the kernel gives it."""

    id: int
    core: int  # equal for SMT siblings
    l3: int  # equal for those sharing a level 3 cache
    node: int  # NUMA node
    package: int  # socket


class Node(msgspec.Struct, frozen=True):
    """One NUMA node."""

    id: int
    memory_bytes: int
    distances: tuple[int, ...] = ()  # to each node, in the order of their ids; (): not told


class Gpu(msgspec.Struct, frozen=True):
    """One GPU, with its place in the machine."""

    index: int  # N of "cuda:N" when CUDA_DEVICE_ORDER=PCI_BUS_ID
    name: str
    memory_bytes: int
    pci: str
    node: int = NO_NODE
    cpus: tuple[int, ...] = ()  # local ones; (): not told
    uuid: str = ""


class Hardware(msgspec.Struct, frozen=True):
    """One machine. `hardware.json` in a run directory is this."""

    source: str  # "this machine", or the file that describes it
    cpus: tuple[Cpu, ...]  # online, ordered by id; never empty
    allowed: tuple[int, ...]  # those this process may run on; never empty
    nodes: tuple[Node, ...]
    memory_bytes: int  # that may be used: RAM, or the cgroup's limit where lower
    gpus: tuple[Gpu, ...] = ()
    cpu_quota: float = 0.0  # cores' worth of time the cgroup grants; 0: all
    cpu_model: str = ""
    interrupted: tuple[int, ...] = ()  # threads that serve devices all the time
    notes: tuple[str, ...] = ()  # what a person should know about the above


def to_json(hardware: Hardware) -> str:
    """The text of `hardware.json`."""
    return json.dumps(msgspec.to_builtins(hardware), indent=1)


def from_json(text: str) -> Hardware:
    """Inverse of `to_json`. Raises `HardwareError`."""
    try:
        return msgspec.json.decode(text, type=Hardware)
    except (msgspec.ValidationError, msgspec.DecodeError) as error:
        raise HardwareError(f"not a description of hardware: {error}") from None


def probe(*, gpus: tuple[Gpu, ...] | None = None) -> Hardware:
    """This machine. `gpus` replaces what NVML would say."""
    root = Path("/")
    hardware = read_machine(root, affinity=os.sched_getaffinity(0))
    if gpus is None:
        from actors.nvml import find_gpus

        gpus, notes = find_gpus(root)
        hardware = msgspec.structs.replace(hardware, notes=hardware.notes + notes)
    return msgspec.structs.replace(hardware, gpus=gpus)


def read_machine(root: Path, *, affinity: Iterable[int]) -> Hardware:
    """All but GPUs of the machine whose /sys and /proc lie under `root`."""
    affinity = sorted(affinity)
    cpus = read_cpus(root) or tuple(
        Cpu(id=i, core=n, l3=0, node=0, package=0) for n, i in enumerate(affinity)
    )
    limits = read_cgroup(root)
    online = {cpu.id for cpu in cpus}
    allowed = [i for i in affinity if i in online]
    # A cpuset that leaves nothing belongs to another view of the machine: affinity is the truth.
    inside = [i for i in allowed if i in limits.cpus] if limits.cpus else allowed
    memory = _meminfo_total(root)
    memory = min(memory, limits.memory_bytes) if limits.memory_bytes else memory
    return Hardware(
        source="this machine",
        cpus=cpus,
        allowed=tuple(inside or allowed or sorted(online)),
        nodes=read_nodes(root, memory),
        memory_bytes=memory,
        cpu_quota=limits.cpu_quota,
        cpu_model=_cpu_model(root),
        interrupted=read_interrupted(root),
    )


def read_interrupted(root: Path) -> tuple[int, ...]:
    """Hardware threads that serve many interrupts of devices; () where procfs does not tell.

    Numbered lines of /proc/interrupts are devices. The others are timers and calls between threads,
    which follow whoever works there.
    """
    first, _, rest = _read(root / "proc/interrupts").partition("\n")
    uptime = _read(root / "proc/uptime").split()
    threads = [int(word[3:]) for word in first.split() if word[3:].isdecimal()]
    if not threads or not uptime:
        return ()
    served = dict.fromkeys(threads, 0)
    for line in rest.splitlines():
        number, _, counts = line.partition(":")
        if number.strip().isdecimal():
            for thread, count in zip(threads, counts.split(), strict=False):
                served[thread] += int(count) if count.isdecimal() else 0
    limit = _MANY_INTERRUPTS * float(uptime[0])
    return tuple(thread for thread in threads if served[thread] > limit)


def read_cpus(root: Path) -> tuple[Cpu, ...]:
    """Online hardware threads from sysfs; () where sysfs does not tell."""
    base = root / "sys/devices/system/cpu"
    online = parse_cpulist(_read(base / "online"))
    if not online:
        online = sorted(int(p.name[3:]) for p in base.glob("cpu[0-9]*") if p.name[3:].isdecimal())
    nodes = {
        cpu: int(directory.name[4:])
        for directory in (root / "sys/devices/system/node").glob("node[0-9]*")
        for cpu in parse_cpulist(_read(directory / "cpulist"))
    }
    cores: dict[str, int] = {}
    caches: dict[str, int] = {}
    found: list[Cpu] = []
    for i in sorted(online):
        topology = base / f"cpu{i}" / "topology"
        siblings = _read(topology / "core_cpus_list") or _read(topology / "thread_siblings_list")
        package = max(0, _number(topology / "physical_package_id", 0))
        # Without an L3 of its own (small virtual machines) a package counts as one domain.
        shared = _l3_of(base / f"cpu{i}" / "cache") or f"package {package}"
        found.append(
            Cpu(
                id=i,
                core=cores.setdefault(siblings or str(i), len(cores)),
                l3=caches.setdefault(shared, len(caches)),
                node=nodes.get(i, 0),
                package=package,
            )
        )
    return tuple(found)


def _l3_of(caches: Path) -> str:
    for index in sorted(caches.glob("index[0-9]*")):
        if _read(index / "level") == "3":
            return _read(index / "shared_cpu_list")
    return ""


def read_nodes(root: Path, memory_bytes: int) -> tuple[Node, ...]:
    """NUMA nodes that have cores; one that holds everything where sysfs does not tell."""
    found: list[Node] = []
    directories = (root / "sys/devices/system/node").glob("node[0-9]*")
    for directory in sorted(directories, key=lambda d: int(d.name[4:])):
        if not _read(directory / "cpulist"):
            continue  # memory without cores: nothing can be placed there
        distances = tuple(int(d) for d in _read(directory / "distance").split() if d.isdecimal())
        kib = 0
        for line in _read(directory / "meminfo").splitlines():
            if "MemTotal:" in line:
                kib = int(line.split()[-2])
        found.append(Node(id=int(directory.name[4:]), memory_bytes=kib * 1024, distances=distances))
    return tuple(found) or (Node(id=0, memory_bytes=memory_bytes),)


# --- Limits of containers -------------------------------------------------------------------------


class Limits(msgspec.Struct, frozen=True):
    """What the cgroup allows; empty and 0 mean no limit."""

    cpus: frozenset[int] = frozenset()
    cpu_quota: float = 0.0
    memory_bytes: int = 0


def read_cgroup(root: Path) -> Limits:
    """Limits of this process's cgroup, version 2 or 1, all ancestors included."""
    mount = root / "sys/fs/cgroup"
    cpus: frozenset[int] = frozenset()
    quotas: list[float] = []
    memory: list[int] = []
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        version_2 = controllers == ""
        for directory in _ancestors(mount / controllers if controllers else mount, path):
            names = ("cpuset.cpus.effective",) if version_2 else _V1_CPUSETS
            listed = next((text for name in names if (text := _read(directory / name))), "")
            cpus = cpus or frozenset(parse_cpulist(listed))
            quotas += _quota(directory)
            memory += _memory_limit(directory)
    return Limits(
        cpus=cpus, cpu_quota=min(quotas, default=0.0), memory_bytes=min(memory, default=0)
    )


_V1_CPUSETS = ("cpuset.effective_cpus", "cpuset.cpus")


def _ancestors(mount: Path, path: str) -> list[Path]:
    """Directories of a cgroup from the leaf up to the mount; only those that are visible here."""
    parts = [part for part in path.split("/") if part and part != ".."]
    candidates = [mount.joinpath(*parts[:n]) for n in range(len(parts), -1, -1)]
    return [directory for directory in candidates if directory.is_dir()]


def _quota(directory: Path) -> list[float]:
    words = _read(directory / "cpu.max").split()
    if not words:
        words = [_read(directory / "cpu.cfs_quota_us"), _read(directory / "cpu.cfs_period_us")]
    if len(words) == 2 and all(word.isdecimal() and int(word) > 0 for word in words):
        return [int(words[0]) / int(words[1])]
    return []  # "max" in version 2, "-1" in version 1


def _memory_limit(directory: Path) -> list[int]:
    text = _read(directory / "memory.max") or _read(directory / "memory.limit_in_bytes")
    return [int(text)] if text.isdecimal() and 0 < int(text) < _V1_UNLIMITED else []


# --- Small readers --------------------------------------------------------------------------------


def parse_cpulist(text: str) -> list[int]:
    """`0-3,8,10-11` as numbers, sorted. Anything that is not such a list gives []."""
    found: set[int] = set()
    for part in text.strip().split(","):
        first, _, last = part.strip().partition("-")
        if not first.isdecimal() or (last and not last.isdecimal()):
            continue
        # Kernels count to a few thousand; a longer range is not a CPU list.
        found.update(range(int(first), min(int(last or first), int(first) + 65535) + 1))
    return sorted(found)


def format_cpulist(cpus: Iterable[int]) -> str:
    """Numbers as `0-3,8`: inverse of `parse_cpulist`."""
    runs: list[list[int]] = []
    for cpu in sorted(set(cpus)):
        if runs and cpu == runs[-1][1] + 1:
            runs[-1][1] = cpu
        else:
            runs.append([cpu, cpu])
    return ",".join(f"{a}" if a == b else f"{a}-{b}" for a, b in runs)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""  # absent, or hidden from this container


def _number(path: Path, otherwise: int) -> int:
    text = _read(path)
    return int(text) if text.lstrip("-").isdecimal() else otherwise


def _meminfo_total(root: Path) -> int:
    for line in _read(root / "proc/meminfo").splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * 1024
    return 0


def _cpu_model(root: Path) -> str:
    for line in _read(root / "proc/cpuinfo").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.machine()
