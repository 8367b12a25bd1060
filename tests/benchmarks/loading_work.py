"""Workloads for data loaders, modelled on MinatoLoader's: quick samples and some that take long.

    cpu-S    1-5 ms of computing; S % of the samples 100-500 ms more of it, over three stages
    wait-S   the same with 100-500 ms of waiting in place of computing
    code     Python's library and Rust files: read, verified (rustc in the sandbox), tokenized; what
             that costs is measured beforehand, file by file
    small    nothing but an index and 16 numbers: what a loader itself costs
    large    batches of one array of 16 MB, made beforehand: what handing them over costs

Costs are drawn once, by sample, so every loader gets the same work. Computing is counted by the
thread's own clock: a machine that is shared makes samples late, not larger.
"""

import json
import os
import resource
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

CORES = 2
BATCH = 8
# Computing of a cpu-S epoch, on all cores. It is over when its last sample is: nothing that was
# begun early or is begun late goes uncounted. But where half of the samples are slow that would be
# 40 of them, at the end of which one core alone costs 4 %, whoever shares them out.
EPOCH_S, LEAST_SAMPLES = 3.0, 96
LARGE_BYTES = 16 << 20
Sample = tuple[int, "np.ndarray[Any, np.dtype[np.float32]]"]


@dataclass(frozen=True)
class Costs:
    """Seconds, by sample."""

    quick: "np.ndarray[Any, np.dtype[np.float64]]"  # of computing
    slow: "np.ndarray[Any, np.dtype[np.float64]]"  # beyond that; 0 of quick samples


@dataclass(frozen=True)
class Workload:
    """What is done to sample i, stage by stage."""

    name: str
    samples: int
    stages: tuple[Callable[[Any], Any], ...]
    waits: int = -1  # the stage that waits; -1: none
    costs: "np.ndarray[Any, np.dtype[np.float64]] | None" = None  # seconds of computing, by sample
    batch: int = BATCH
    names: tuple[str, ...] = ()  # of code's files


@cache
def costs(share: float, samples: int) -> Costs:
    """Drawn once for all."""
    chance = np.random.default_rng(7)
    quick = chance.uniform(0.001, 0.005, samples)
    is_slow = chance.permutation(samples) < round(share * samples)
    return Costs(quick, np.where(is_slow, chance.uniform(0.1, 0.5, samples), 0.0))


def busy(seconds: float) -> None:
    """Compute for so long."""
    until = time.thread_time() + seconds
    while time.thread_time() < until:
        sum(range(300))


_begun: set[str] = set()


def begin(run: str) -> None:
    """Note in file `run` when the first sample of a run was begun, in whichever process."""
    if run in _begun:
        return
    _begun.add(run)
    try:
        fd = os.open(run, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    except OSError:
        return
    os.write(fd, repr(time.monotonic()).encode())
    os.close(fd)


def synthetic(share: float, run: str, *, waiting: bool, samples: int) -> Workload:
    """cpu-S or wait-S."""
    known = costs(share, samples)

    def read(i: int) -> Sample:
        begin(run)
        busy(0.2 * known.quick[i])
        return i, np.full(256, i, np.float32)

    def wait(sample: Sample) -> Sample:
        if known.slow[sample[0]]:
            time.sleep(known.slow[sample[0]])
        return sample

    def transform(sample: Sample) -> Sample:
        slow = 0.0 if waiting else known.slow[sample[0]]
        busy((0.8 * known.quick[sample[0]] + slow) / 3)
        return sample

    stages = (read, *((wait,) if waiting else ()), transform, transform, transform)
    computing = known.quick if waiting else known.quick + known.slow
    kind = "wait" if waiting else "cpu"
    return Workload(
        f"{kind}-{round(100 * share)}", samples, stages, 1 if waiting else -1, computing
    )


def small(run: str, samples: int = 400_000) -> Workload:
    """Nothing but the way."""

    def read(i: int) -> Sample:
        begin(run)
        return i, np.full(16, i, np.float32)

    return Workload("small", samples, (read,), batch=256)


def large(run: str, samples: int = 20_000) -> Workload:
    """Nothing but the way, for what is large."""
    array = np.ones(LARGE_BYTES // 4, np.float32)

    def read(i: int) -> Sample:
        begin(run)
        return i, array

    return Workload("large", samples, (read,), batch=1)


def code(directory: Path, run: str) -> Workload:
    """Files of `directory` (.py and .rs), as a run treats them, without a memory of verdicts."""
    from actors.data import stages, tokenizer
    from protocol.messages import SampleRef

    paths = sorted(path for path in directory.iterdir() if path.suffix in (".py", ".rs"))
    order = np.random.default_rng(3).permutation(len(paths))
    refs = [
        SampleRef(
            name=paths[i].name,
            language="rust" if paths[i].suffix == ".rs" else "python",
            path=str(paths[i]),
        )
        for i in order
    ]
    document = (directory / "tokenizer.json").read_bytes()
    options: list[stages.Options] = []

    def known() -> stages.Options:
        if not options:  # made in the worker: a tokenizer is no one's but its process's
            encoder = tokenizer.load(document)
            options.append(stages.Options(max_sample_bytes=4_000_000, encoder=encoder))
        return options[0]

    def read(i: int) -> tuple[int, bytes]:
        begin(run)
        return i, stages.read(stages.State(), refs[i], known()).text

    def verify(sample: tuple[int, bytes]) -> tuple[int, bytes]:
        i, text = sample
        if refs[i].language == "rust":
            from actors.data import rustc

            rustc.compile_problem(text)
        else:
            stages.compile_problem(text.decode())
        return sample

    def tokenize(sample: tuple[int, bytes]) -> Sample:
        i, text = sample
        state = stages.tokenize(stages.State(text=text), refs[i], known())
        assert state.tokens is not None
        return i, np.resize(state.tokens, 512).astype(np.float32)

    try:
        known_s = json.loads((directory / _COSTS).read_text())
    except OSError:
        known_s = {}
    computing = np.array([known_s.get(ref.name, 0.0) for ref in refs])
    return Workload(
        "code",
        len(refs),
        (read, verify, tokenize),
        costs=computing,
        names=tuple(ref.name for ref in refs),
    )


NAMES = ("cpu-5", "cpu-20", "cpu-50", "wait-5", "wait-20", "wait-50", "code")
ENDLESS = 20_000
# Whole programs: Rust's tests of what its own compiler makes of them.
RUST = "src/test/ui"
RUST_FILES, PYTHON_FILES = 100, 150
_COSTS = "costs.json"


def workload(name: str, *, run: str = "", corpus: str = "", paced: bool = False) -> Workload:
    """By name. `run`: see `begin`. `corpus`: files of "code". `paced`: for a consumer that takes
    its time, more samples than it will take."""
    kind, _, share = name.partition("-")
    if kind == "code":
        return code(Path(corpus), run)
    if kind in ("small", "large"):
        return {"small": small, "large": large}[kind](run)
    slow = int(share) / 100
    mean = 0.003 + slow * 0.3
    epoch = max(round(CORES * EPOCH_S / mean / BATCH) * BATCH, LEAST_SAMPLES)
    samples = ENDLESS if paced or kind == "wait" else epoch
    return synthetic(slow, run, waiting=kind == "wait", samples=samples)


def gather(directory: Path) -> str:
    """The corpus of "code": Python's library and Rust's tests, a tokenizer, and what they cost."""
    from actors.data import tokenizer
    from actors.data.sources import library
    from tests.rust_sources import NoSources, rust_sources

    found = _spread(sorted(Path(library()).glob("*.py")), PYTHON_FILES)
    try:
        rust = sorted(rust_sources(directory / "rust", RUST).rglob("*.rs"))
    except NoSources as why:
        print(f"code: without Rust: {why}", file=sys.stderr)
    else:
        found += _spread([path for path in rust if path.stat().st_size < 200_000], RUST_FILES)
    for i, path in enumerate(found):
        shutil.copy(path, directory / f"{i:05}_{path.name}")
    texts = (path.read_text(errors="replace") for path in found[::10])
    (directory / "tokenizer.json").write_bytes(tokenizer.train(texts, 2000))
    _measure(directory)
    return str(directory)


def _spread(paths: list[Path], count: int) -> list[Path]:
    """So many of them, at equal distances."""
    return paths[:: max(1, len(paths) // count)][:count]


def _measure(directory: Path) -> None:
    """What every file costs one core, compilers included, when nothing else is done meanwhile."""
    work = Whole(code(directory, str(directory / "begun")))
    work[0]  # what is loaded once counts for nobody
    found = {}
    for i, name in enumerate(work.work.names):
        before = _computed_s()
        work[i]
        found[name] = _computed_s() - before
    (directory / _COSTS).write_text(json.dumps(found))


def _computed_s() -> float:
    """Of this process and of those it has waited for."""
    return sum(
        used.ru_utime + used.ru_stime
        for used in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


class Whole:
    """A workload as torch and its kin take it: all stages behind `dataset[i]`."""

    def __init__(self, work: Workload) -> None:
        self.work = work

    def __len__(self) -> int:
        return self.work.samples

    def __getitem__(self, i: int) -> Sample:
        value: Any = int(i)
        for stage in self.work.stages:
            value = stage(value)
        return value
