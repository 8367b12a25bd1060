"""The loaders that are compared, each as its own documentation has it set up for such work.

All have two worker processes and the same number of batches made ahead. Where a loader can be told
that a stage waits (SPDL's concurrency, Grain's reader threads, Ray's fractions of a CPU), it is.
Each is a generator that ends its processes when it is closed.
"""

import os
from collections.abc import Callable, Generator
from importlib import import_module
from typing import Any

from tests.benchmarks.loading_work import CORES, LARGE_BYTES, Sample, Whole, Workload

AHEAD = 8
# As many samples as a loader lets wait at a time, where one can say so.
AT_ONCE = 128

Batches = Generator[Any]
Make = Callable[[Workload], Batches]


def _only(samples: list[Any]) -> Any:
    """A batch of one needs no array around it."""
    return samples


def ours(order: Any) -> Make:
    """Trireme's."""

    def make(work: Workload) -> Batches:
        from actors.data import Loader, waiting

        stages: list[Any] = list(work.stages)
        if work.waits >= 0:
            stages[work.waits] = waiting(stages[work.waits], parallel=AT_ONCE)
        with Loader(
            range(work.samples),
            work.batch,
            stages=stages,
            num_workers=CORES,
            prefetch_batches=AHEAD,
            order=order,
            max_bad_share=1.0,
            max_sample_bytes=2 * LARGE_BYTES,
            collate_fn=_only if work.batch == 1 else None,
        ) as loader:
            yield from loader

    return make


def torch_loader(*, in_order: bool, stateful: bool = False) -> Make:
    """torch.utils.data.DataLoader, or torchdata's that remembers where it is."""

    def make(work: Workload) -> Batches:
        from torch.utils import data

        kind: Any = data.DataLoader
        if stateful:
            kind = import_module("torchdata.stateful_dataloader").StatefulDataLoader
        loader = kind(
            Whole(work),
            batch_size=work.batch,
            num_workers=CORES,
            prefetch_factor=AHEAD // CORES,
            in_order=in_order,
            collate_fn=None if work.batch > 1 else _as_tensor,
        )
        yield from loader

    return make


def _as_tensor(samples: list[Any]) -> Any:
    """A batch of one in memory that torch shares between processes."""
    torch: Any = import_module("torch")
    return [(i, torch.from_numpy(array)) for i, array in samples]


class _Source:
    """Grain's random access source: what waits is done in its reader threads."""

    def __init__(self, work: Workload) -> None:
        self._work = work

    def __len__(self) -> int:
        return self._work.samples

    def __getitem__(self, i: int) -> Sample:
        value: Any = int(i)
        for stage in self._work.stages[: self._work.waits + 1]:
            value = stage(value)
        return value


def grain(work: Workload) -> Batches:
    """Google's Grain: fixed order, round robin over processes."""
    pygrain: Any = import_module("grain.python")
    source: Any = Whole(work)
    rest: list[Any] = []
    if work.waits >= 0:
        source, rest = _Source(work), list(work.stages[work.waits + 1 :])
    dataset = pygrain.MapDataset.source(source)
    for stage in rest:
        dataset = dataset.map(stage)
    threads = AT_ONCE if work.waits >= 0 else 1
    reading = pygrain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
    batches = dataset.to_iter_dataset(reading).batch(work.batch)
    options = pygrain.MultiprocessingOptions(CORES, per_worker_buffer_size=AHEAD // CORES)
    iterator: Any = iter(batches.mp_prefetch(options))
    try:
        yield from iterator
    finally:
        iterator.close()


_chain: list[Any] = []


def _begin_chain(stages: list[Any]) -> None:
    _chain[:] = stages


def _run_chain(value: Any) -> Any:
    for stage in _chain:
        value = stage(value)
    return value


def spdl(work: Workload) -> Batches:
    """Meta's SPDL: threads where stages wait, processes where they compute; completion order."""
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

    spdl_pipeline: Any = import_module("spdl.pipeline")
    cut = work.waits + 1
    _begin_chain(list(work.stages[cut:]))
    processes = ProcessPoolExecutor(CORES, mp_context=multiprocessing.get_context("fork"))
    builder = spdl_pipeline.PipelineBuilder().add_source(range(work.samples))
    if cut:
        for stage in work.stages[:cut]:
            builder = builder.pipe(stage, concurrency=AT_ONCE, executor=ThreadPoolExecutor(AT_ONCE))
    builder = builder.pipe(_run_chain, concurrency=CORES, executor=processes)
    pipeline = builder.aggregate(work.batch).add_sink(AHEAD).build(num_threads=4)
    pipeline.start()
    try:
        yield from pipeline.get_iterator()
    finally:
        processes.shutdown(wait=False, cancel_futures=True)
        pipeline.stop()


def ray(work: Workload) -> Batches:
    """Ray Data, on this machine."""
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    library: Any = import_module("ray")
    data: Any = import_module("ray.data")
    if not library.is_initialized():
        library.init(
            num_cpus=CORES, include_dashboard=False, log_to_driver=False, logging_level="ERROR"
        )
    data.DataContext.get_current().enable_progress_bars = False
    rows = data.range(work.samples, override_num_blocks=work.samples // work.batch)

    def whole(row: dict[str, Any]) -> dict[str, Any]:
        value: Any = int(row["id"])
        for stage in work.stages:
            value = stage(value)
        return {"id": value[0], "x": value[1]}

    # In two operators, of which the first asks for less than a processor, it stands still here.
    rows = rows.map(whole, num_cpus=1 if work.waits < 0 else 0.25)
    yield from rows.iter_batches(batch_size=work.batch, prefetch_batches=AHEAD)


LOADERS: dict[str, Make] = {
    "trireme strict": ours("strict"),
    "trireme ready": ours("ready"),
    "torch in order": torch_loader(in_order=True),
    "torch in_order=False": torch_loader(in_order=False),
    "torchdata stateful": torch_loader(in_order=True, stateful=True),
    "grain": grain,
    "spdl": spdl,
    "ray data": ray,
}
NEEDS = {"torchdata stateful": "torchdata", "grain": "grain", "spdl": "spdl", "ray data": "ray"}
