"""What a loader is asked for, checked in words, and what follows from it."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from actors.data.alone.batching import Plan
from actors.data.alone.steps import Step, StepLike, step_of
from actors.data.foresight import FARTHEST, Features
from actors.data.ordering import Order
from actors.hardware import read_cgroup

# Workers for samples that wait, each some 5 MB of its own, beside one a core.
_WAITING_FOR_EACH = 4
# Data sets whose samples lie there already.
_PLAIN = (range, list, tuple, np.ndarray)
# Below this a region holds next to nothing, and every array takes the socket.
_SMALLEST_MEMORY = 1 << 20


@dataclass(frozen=True, slots=True)
class Settings:
    """The arguments of a loader; see there."""

    batch_size: int
    order: Order
    drop_last: bool
    prefetch_batches: int
    num_workers: int | None
    max_workers: int | None
    rank: int
    ranks: int
    timeout_s: float
    max_deaths: int
    max_bad_share: float
    max_sample_bytes: int
    memory_bytes: int
    worker_memory_bytes: int
    seed: int
    seed_modules: bool

    @property
    def workers(self) -> int:
        """Processes that compute."""
        return self.num_workers or processors()

    @property
    def most_workers(self) -> int:
        """Processes when samples wait."""
        return max(self.workers, self.max_workers or _WAITING_FOR_EACH * self.workers)

    @property
    def most_ahead(self) -> int:
        """Samples looked ahead at most."""
        return max(FARTHEST, self.prefetch_batches * self.batch_size)


@dataclass(frozen=True, slots=True)
class Setup:
    """Everything that running a loader takes."""

    wanted: Settings
    plan: Plan
    steps: tuple[Step, ...]
    name: Callable[[int], str]
    collate: Callable[[list[Any]], Any]
    features: Callable[[int], Features] | None
    ledger: Path | None


def checked(wanted: Settings, samples: int) -> Settings:
    """`wanted`, when it can be had. Raises ValueError naming the argument and what it accepts."""
    _check_counts(wanted)
    if samples < 1:
        raise ValueError("the data set is empty; accepted: at least one sample")
    if wanted.order not in ("strict", "ready"):
        raise ValueError(f'order is {wanted.order!r}; accepted: "strict" or "ready"')
    if not 0 <= wanted.rank < wanted.ranks:
        raise ValueError(f"rank is {wanted.rank} of {wanted.ranks}; accepted: 0 to ranks - 1")
    if wanted.timeout_s <= 0:
        raise ValueError(f"timeout_s is {wanted.timeout_s}; accepted: more than 0")
    if not 0 <= wanted.max_bad_share <= 1:
        raise ValueError(f"max_bad_share is {wanted.max_bad_share}; accepted: 0 to 1")
    if wanted.memory_bytes < _SMALLEST_MEMORY:
        raise ValueError(
            f"memory_bytes is {wanted.memory_bytes:,}; accepted: {_SMALLEST_MEMORY:,} or more"
        )
    return wanted


def _check_counts(wanted: Settings) -> None:
    at_least_one = ("batch_size", "prefetch_batches", "ranks", "max_deaths", "max_sample_bytes")
    for name in at_least_one:
        if getattr(wanted, name) < 1:
            raise ValueError(f"{name} is {getattr(wanted, name)}; accepted: 1 or more")
    for name in ("num_workers", "max_workers"):
        number = getattr(wanted, name)
        if number is not None and number < 1:
            raise ValueError(
                f"{name} is {number}; accepted: 1 or more, or None. Samples are always made by "
                "processes of their own: that is what keeps one from stopping all"
            )


def steps_of(dataset: Any, stages: Sequence[StepLike]) -> tuple[Step, ...]:
    """All steps, `dataset[i]` first. Raises ValueError, TypeError."""
    first = Step(
        "dataset",
        dataset.__getitem__,
        takes_rng=False,
        parallel=0,
        is_async=False,
        may_draw=type(dataset) not in _PLAIN,
    )
    return (first, *(step_of(stage) for stage in stages))


def namer(dataset: Any) -> Callable[[int], str]:
    """What people call sample i: what the data set's own `name` says, or its place."""
    own = getattr(dataset, "name", None)
    return (lambda i: f"sample {i} ({own(i)})") if callable(own) else (lambda i: f"sample {i}")


def processors() -> int:
    """How many this process may use: affinity and the container's quota honoured."""
    allowed = len(os.sched_getaffinity(0))
    quota = read_cgroup(Path("/")).cpu_quota
    return allowed if quota <= 0 else max(1, min(allowed, round(quota)))


def available_bytes() -> int:
    """Memory that is free for the asking; that of a container where it is less."""
    with open("/proc/meminfo", encoding="ascii") as file:
        lines = dict(line.split(":") for line in file)
    free = int(lines["MemAvailable"].split()[0]) * 1024
    limit = read_cgroup(Path("/")).memory_bytes
    return min(free, limit) if limit else free
