"""A loader's processes and thread, from its first batch until it is closed or forgotten."""

import os
import weakref
from typing import Any

from actors.data.alone.deciding import Deciding, Rules
from actors.data.alone.engine import Batch, Engine, LoaderError, Means, Ready
from actors.data.alone.record import Record
from actors.data.alone.seats import Made, Seats
from actors.data.alone.settings import Setup, available_bytes
from actors.data.alone.state import Position
from actors.data.alone.worker import Job
from actors.data.crowd import Crowd
from protocol.clock import MonotonicClock

# Of what is available, for one worker, unless somebody says how much.
_SHARE = 0.5
# The consumer looks this often whether the engine is still there.
_PATIENCE_S = 1.0


class Running:
    """A loader at work."""

    def __init__(self, setup: Setup) -> None:
        """Begins all of it. Raises OSError, `LedgerError`."""
        self._setup = setup
        self._process = os.getpid()
        wanted = setup.wanted
        self._record = _record(setup)
        job = Job(
            steps=setup.steps,
            seed=wanted.seed,
            seed_modules=wanted.seed_modules,
            max_sample_bytes=wanted.max_sample_bytes,
            memory_bytes=wanted.worker_memory_bytes or int(_SHARE * available_bytes()),
        )
        region_bytes = max(wanted.memory_bytes // wanted.most_workers, 1)
        seats = Seats(wanted.most_workers, region_bytes, job)
        self._ready = Ready()
        self._deciding = Deciding[Made](_rules(setup), setup.plan.samples, features=setup.features)
        means = Means(
            seats=seats,
            deciding=self._deciding,
            crowd=Crowd(wanted.workers, wanted.most_workers, float(wanted.workers)),
            clock=MonotonicClock(),
            collate=setup.collate,
            record=self._record,
            name=setup.name,
        )
        self._engine = Engine(means, self._ready)
        self._end = weakref.finalize(self, _end, self._engine, self._record, self._process)

    def begin(self, position: Position) -> None:
        """Deliver the rest of an epoch. Raises `LedgerError`, `LoaderError`."""
        self._check_process()
        recorded: list[tuple[int, ...]] = []
        if self._record is not None:
            recorded = self._record.recorded(position.epoch, position.batches)
        share = self._setup.plan.share(
            position.epoch, position.settled, position.left_out, recorded, position.over
        )
        self._engine.begin(share, position.batches, position.left_out)

    def take(self) -> Batch | None:
        """The next batch; None when the epoch is over. Raises what stopped the engine."""
        self._check_process()
        ready, waited = self._ready, False
        with ready.changed:
            while not ready.batches:
                if ready.problem is not None:
                    raise ready.problem
                if not self._engine.lives:
                    raise LoaderError("the loader's thread has ended; make another loader")
                if ready.over:
                    ready.wanting = False
                    return None
                ready.waited = True
                if not waited:
                    ready.wanting = waited = True
                    self._engine.wanted()
                ready.changed.wait(_PATIENCE_S)
            ready.wanting = False
            batch = ready.batches.popleft()
        self._engine.consumed(waited=waited)
        return batch

    def _check_process(self) -> None:
        """A fork of the program has a copy of all this, but for the thread."""
        if os.getpid() != self._process:
            raise LoaderError(
                f"this loader works for process {self._process}, and process {os.getpid()} was "
                "forked from that; make a loader in each process"
            )

    def left_out(self) -> dict[int, str]:
        """Samples that are not to be tried again, and why."""
        return dict(self._deciding.left_out)

    def status(self) -> dict[str, Any]:
        """See `Loader.status`."""
        return self._engine.status()

    def close(self) -> None:
        """End all of it."""
        self._end()


def _end(engine: Engine, record: Record | None, process: int) -> None:
    if os.getpid() != process:
        return  # a fork: none of it is ours to end
    engine.close()
    if record is not None:
        record.close()


def _rules(setup: Setup) -> Rules:
    wanted = setup.wanted
    return Rules(
        batch_size=wanted.batch_size,
        order=wanted.order,
        drop_last=wanted.drop_last,
        batches_ahead=wanted.prefetch_batches,
        most_ahead=wanted.most_ahead,
        timeout_s=wanted.timeout_s,
        max_deaths=wanted.max_deaths,
        max_bad_share=wanted.max_bad_share,
    )


def _record(setup: Setup) -> Record | None:
    if setup.ledger is None:
        return None
    wanted, plan = setup.wanted, setup.plan
    facts = {
        "samples": str(plan.samples),
        "seed": str(plan.seed),
        "shuffle": str(plan.shuffle),
        "order": wanted.order,
        "batch_size": str(wanted.batch_size),
        "rank": f"{plan.rank} of {plan.ranks}",
    }
    return Record(
        setup.ledger,
        plan.rank,
        facts,
        max_deaths=wanted.max_deaths,
        durable=wanted.order == "ready",
    )
