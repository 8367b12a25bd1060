"""Who sits on which hardware threads. Pure: counts and hardware in, CPU sets out.

The order in which seats are given is the policy:

    1. trainers          whole cores on their GPU's node (CPU trainers: spread over the nodes)
    2. loader            one core beside the first trainer
    3. optimizer shards  whole cores on their trainers' node, whole L3 domains first, then onwards
                         to the nearest nodes
    4. data workers      one per core: free cores first, those of nodes without trainer or shard
                         before the others, near before far; then the SMT siblings of cores that
                         have no worker yet (trainers' last); then second siblings
    5. rollouts, recorder, supervisor: what is left, in that order

Between cores that are as good, those come last that serve the interrupts of devices all the time.
When cores run out, siblings are given; when those run out too, actors float: they share the
threads on which neither trainer nor shard sits, else those without a trainer, else all. So on two
cores with two trainers every trainer has its own core and everybody else floats over both.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from actors.hardware import NO_NODE, Gpu, Hardware

# A trainer on a GPU: one core launches the work, one runs autograd's backward thread.
GPU_TRAINER_CORES = 2
# A shard on a GPU only launches.
GPU_SHARD_CORES = 1
# More threads help neither sampling token by token nor whoever shares the core's other half.
ROLLOUT_THREADS = 4
# Of actors that share threads with trainers or shards, so that these come first.
SHARED_NICE = 5
ROLLOUT_NICE = 10

# Distances as firmware tables give them (10 is local), for machines that give none.
_SAME_NODE, _SAME_PACKAGE, _OTHER_PACKAGE = 10, 12, 32

_HEAVY = ("trainer", "optimizer_shard")


@dataclass(frozen=True, slots=True)
class Counts:
    """What has to be seated. `*_gpus` has the GPU of each, or None on the CPU."""

    trainer_gpus: tuple[Gpu | None, ...]
    shard_gpus: tuple[Gpu | None, ...]
    trainer_threads: int
    shard_threads: int
    fast_workers: int
    slow_workers: int
    rollouts: int
    remote_trainers: int = 0


@dataclass(frozen=True, slots=True)
class Seating:
    """One actor's threads."""

    name: str
    role: str
    cpus: tuple[int, ...]
    numa_node: int
    nice: int = 0
    pool: str = ""
    floats: bool = False  # shares its threads with whoever else floats


@dataclass(frozen=True, slots=True)
class Core:
    """A physical core; `threads` are the allowed ones, never empty."""

    id: int
    l3: int
    node: int
    package: int
    threads: tuple[int, ...]
    interrupted: bool = False  # by devices, all the time


def usable_cores(hardware: Hardware) -> tuple[Core, ...]:
    """Cores this process may use. A quota of q cores' worth leaves the first threads of q cores."""
    allowed, busy = set(hardware.allowed), set(hardware.interrupted)
    cores: dict[int, Core] = {}
    for cpu in hardware.cpus:
        if cpu.id in allowed:
            before = cores[cpu.core].threads if cpu.core in cores else ()
            threads = (*before, cpu.id)
            loud = not busy.isdisjoint(threads)
            cores[cpu.core] = Core(cpu.core, cpu.l3, cpu.node, cpu.package, threads, loud)
    found = sorted(cores.values(), key=lambda core: core.threads)
    limit = math.ceil(hardware.cpu_quota)
    if not limit or limit >= sum(len(core.threads) for core in found):
        return tuple(found)
    home = next((gpu.node for gpu in hardware.gpus if gpu.node != NO_NODE), found[0].node)
    far = Distances(hardware)
    found.sort(key=lambda core: (far.between(home, core.node), core.interrupted, core.threads))
    kept = [replace(core, threads=core.threads[:1]) for core in found[:limit]]
    return tuple(sorted(kept, key=lambda core: core.threads))


class Distances:
    """How far NUMA nodes are from one another."""

    def __init__(self, hardware: Hardware) -> None:
        ids = sorted(node.id for node in hardware.nodes)
        self._package = {cpu.node: cpu.package for cpu in hardware.cpus}
        self._told = {
            (node.id, other): distance
            for node in hardware.nodes
            if len(node.distances) == len(ids)
            for other, distance in zip(ids, node.distances, strict=True)
        }

    def between(self, a: int, b: int) -> int:
        """10 within a node, more beyond it."""
        if a == b:
            return _SAME_NODE
        same = self._package.get(a, 0) == self._package.get(b, 0)
        return self._told.get((a, b), _SAME_PACKAGE if same else _OTHER_PACKAGE)


class Board:
    """The hardware threads, and which role holds each."""

    def __init__(self, hardware: Hardware) -> None:
        self.cores = usable_cores(hardware)
        self.far = Distances(hardware)
        self._core_of = {thread: core for core in self.cores for thread in core.threads}
        self._role: dict[int, str] = {}

    def roles_on(self, core: Core) -> set[str]:
        """Roles of those who hold a thread of `core`."""
        return {self._role[thread] for thread in core.threads if thread in self._role}

    def free_cores(self) -> list[Core]:
        """Cores of which no thread is held."""
        return [core for core in self.cores if not self.roles_on(core)]

    def free_threads(self) -> list[int]:
        """Threads nobody holds, siblings of held ones included."""
        return [t for core in self.cores for t in core.threads if t not in self._role]

    def core_of(self, thread: int) -> Core:
        """The core a thread belongs to."""
        return self._core_of[thread]

    def hold(self, threads: Iterable[int], role: str) -> tuple[int, ...]:
        """Give `threads` to an actor of `role`."""
        taken = tuple(sorted(threads))
        self._role.update(dict.fromkeys(taken, role))
        return taken

    def take_cores(self, count: int, home: int, role: str, *, whole_l3: bool) -> tuple[int, ...]:
        """First threads of up to `count` free cores near `home`; siblings, then (), when none."""
        free = self.free_cores()
        if not free:
            siblings = sorted(self.free_threads(), key=lambda t: self._near(home, t))
            return self.hold(siblings[:1], role)
        started = (
            {core.l3 for core in self.cores if self.roles_on(core)} if whole_l3 else set[int]()
        )

        def rank(core: Core) -> tuple[object, ...]:
            distance = self.far.between(home, core.node)
            return distance, core.l3 in started, core.l3, core.interrupted, core.threads

        free.sort(key=rank)
        return self.hold((core.threads[0] for core in free[:count]), role)

    def _near(self, home: int, thread: int) -> tuple[object, ...]:
        core = self._core_of[thread]
        busy = "trainer" in self.roles_on(core)
        return busy, self.far.between(home, core.node), core.l3, core.threads, thread

    def take_worker_thread(self, home: int) -> tuple[int, ...]:
        """The best free thread for a data worker, or ()."""
        heavy = {c.node for c in self.cores if self.roles_on(c) & set(_HEAVY)}

        def rank(thread: int) -> tuple[object, ...]:
            core = self._core_of[thread]
            on = self.roles_on(core)
            distance = self.far.between(home, core.node)
            near = (core.node in heavy, distance, core.interrupted)
            spare = (*near, core.l3, core.threads, thread)
            return (bool(on), "data_worker" in on, "trainer" in on, *spare)

        best = min(self.free_threads(), key=rank, default=None)
        return self.hold([best], "data_worker") if best is not None else ()

    def take_spare(self, count: int, home: int, role: str) -> tuple[int, ...]:
        """Up to `count` free threads of one L3 domain, away from trainers and shards, or ()."""
        domains: dict[tuple[bool, int], list[tuple[bool, int, int]]] = {}
        for thread in self.free_threads():
            core = self._core_of[thread]
            on, distance = self.roles_on(core), self.far.between(home, core.node)
            domain = domains.setdefault((bool(on & set(_HEAVY)), core.l3), [])
            domain.append((bool(on), distance, thread))
        if not domains:
            return ()
        # Quiet cores first, then a domain with room for all, then the nearest.
        _, best = min(
            domains.items(), key=lambda d: (d[0][0], -min(count, len(d[1])), min(d[1]), d[0][1])
        )
        return self.hold([thread for _, _, thread in sorted(best)[:count]], role)

    def shared(self) -> tuple[int, ...]:
        """Where actors float that found no thread of their own; see the top of this file."""
        everywhere = [t for core in self.cores for t in core.threads]
        for avoided in (_HEAVY, ("trainer",)):
            quiet = [
                t for c in self.cores if not self.roles_on(c) & set(avoided) for t in c.threads
            ]
            calm = [t for t in everywhere if self._role.get(t) not in avoided]
            if quiet or calm:
                return tuple(sorted(quiet or calm))
        return tuple(sorted(everywhere))

    def presses(self, threads: Iterable[int]) -> bool:
        """Whether any of `threads` is held by a trainer or a shard."""
        return any(self._role.get(thread) in _HEAVY for thread in threads)

    def node_of(self, threads: Sequence[int], home: int = NO_NODE) -> int:
        """`home` where any of `threads` lie on it, else the node most of them lie on."""
        nodes = Counter(self._core_of[thread].node for thread in threads)
        if home in nodes:
            return home
        return min(nodes, key=lambda node: (-nodes[node], node))


def place(counts: Counts, hardware: Hardware) -> tuple[Seating, ...]:
    """Everybody's threads, in the order: supervisor, recorder, loader, shards, trainers, workers,
    rollouts. Every set is non-empty and within what the process may use.
    """
    board = Board(hardware)
    trainers = _trainers(board, counts)
    homes = [board.node_of(cpus) for cpus in trainers]
    loader = _loader(board, counts, homes[0])
    shards = _shards(board, counts, homes)
    workers = [
        board.take_worker_thread(homes[0]) for _ in range(counts.fast_workers + counts.slow_workers)
    ]
    threads = max(1, min(ROLLOUT_THREADS, len(board.free_threads()) - 2))
    rollouts = [board.take_spare(threads, homes[0], "rollout") for _ in range(counts.rollouts)]
    recorder = board.take_spare(1, homes[0], "recorder")
    supervisor = board.take_spare(1, homes[0], "supervisor")

    seats = [
        _seat(board, "supervisor", "supervisor", supervisor),
        _seat(board, "recorder", "recorder", recorder),
        _seat(board, "loader", "loader", loader),
    ]
    for k, own in enumerate(shards):
        home = homes[k % len(homes)]
        seats.append(_seat(board, f"optimizer_shard/{k}", "optimizer_shard", own, home=home))
    # Those of other hosts have a stand-in here, which carries messages.
    absent: list[tuple[int, ...]] = [()] * counts.remote_trainers
    trainers += absent
    seats += [_seat(board, f"trainer/{i}", "trainer", t) for i, t in enumerate(trainers)]
    for i, own in enumerate(workers):
        pool = "fast" if i < counts.fast_workers else "slow"
        seats.append(_seat(board, f"data_worker/{i}", "data_worker", own, pool=pool))
    seats += [_seat(board, f"rollout/{j}", "rollout", r) for j, r in enumerate(rollouts)]
    return tuple(seats)


def _seat(
    board: Board,
    name: str,
    role: str,
    own: tuple[int, ...],
    *,
    pool: str = "",
    home: int = NO_NODE,
) -> Seating:
    """`own` threads, or the shared ones when there are none."""
    everywhere = tuple(sorted(t for core in board.cores for t in core.threads))
    # A shard without a thread of its own works while trainers wait for it: it may go anywhere.
    shared = everywhere if role == "optimizer_shard" else board.shared()
    cpus = own or shared
    nice = 0
    if role == "rollout":
        nice = ROLLOUT_NICE
    elif role in ("data_worker", "recorder") and not own and board.presses(cpus):
        nice = SHARED_NICE
    return Seating(name, role, cpus, board.node_of(cpus, home), nice, pool, floats=not own)


def _trainers(board: Board, counts: Counts) -> list[tuple[int, ...]]:
    each = _cores_per_trainer(counts, len(board.cores))
    seats: list[tuple[int, ...]] = []
    for gpu in counts.trainer_gpus:
        home = _home(board, gpu)
        cpus = board.take_cores(each, home, "trainer", whole_l3=True)
        # More trainers than threads: they double up, evenly.
        seats.append(cpus or seats[len(seats) % _distinct(seats)])
    return seats


def _distinct(seats: list[tuple[int, ...]]) -> int:
    return len(set(seats))


def _home(board: Board, gpu: Gpu | None) -> int:
    """Node of the GPU; for a CPU trainer the node with the most free cores."""
    if gpu is not None and gpu.node != NO_NODE:
        return gpu.node
    local = set(gpu.cpus) if gpu else set[int]()
    near = [core.node for core in board.cores if local & set(core.threads)]
    free = Counter(core.node for core in board.free_cores())
    nodes = sorted(set(near) or set(free) or {core.node for core in board.cores})
    return min(nodes, key=lambda node: (-free[node], node))


def _cores_per_trainer(counts: Counts, cores: int) -> int:
    """What a trainer asks for, less where shards and loader would be left without a core."""
    trainers, shards = len(counts.trainer_gpus), len(counts.shard_gpus)
    on_gpu = any(gpu is not None for gpu in counts.trainer_gpus)
    wanted = GPU_TRAINER_CORES if on_gpu else counts.trainer_threads
    return max(1, min(wanted, (cores - shards - 1) // trainers))


def _loader(board: Board, counts: Counts, home: int) -> tuple[int, ...]:
    """A core beside the first trainer, unless the shards need the last ones."""
    if len(board.free_cores()) <= len(counts.shard_gpus):
        return ()
    return board.take_cores(1, home, "loader", whole_l3=False)


def _shards(board: Board, counts: Counts, homes: list[int]) -> list[tuple[int, ...]]:
    free = len(board.free_cores())
    share = max(1, free // len(counts.shard_gpus))
    seats: list[tuple[int, ...]] = []
    for k, gpu in enumerate(counts.shard_gpus):
        wanted = GPU_SHARD_CORES if gpu is not None else counts.shard_threads
        home = homes[k % len(homes)]
        seats.append(board.take_cores(min(wanted, share), home, "optimizer_shard", whole_l3=True))
    return seats
