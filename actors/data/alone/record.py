"""A loader's ledger on disk: which samples went into which batch, before anybody has it.

The tables are those of a run's ledger.sqlite (ledger.py), with each sample a piece of length one:

    delivered    (epoch, sample, start, length, step, rank, row, offset)
    quarantined  samples that ended too many workers
    refused      samples that could not be used

`step` counts an epoch's batches from 1. A program that goes on from an older state gets the
batches after it again exactly as they were, in either order.
"""

import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from actors.data.alone.batching import Composed
from actors.data.alone.deciding import QUARANTINED, Loss
from actors.data.database import Database, LedgerError, newest_life

_SCHEMA = """
CREATE TABLE delivered (
    epoch INTEGER NOT NULL, sample INTEGER NOT NULL,
    start INTEGER NOT NULL, length INTEGER NOT NULL,
    step INTEGER NOT NULL, rank INTEGER NOT NULL, row INTEGER NOT NULL, offset INTEGER NOT NULL,
    UNIQUE (epoch, step, rank, offset), UNIQUE (epoch, sample, start)
);
CREATE TABLE quarantined (
    sample INTEGER PRIMARY KEY, reason TEXT NOT NULL, deaths INTEGER NOT NULL
);
CREATE TABLE refused (
    sample INTEGER PRIMARY KEY, epoch INTEGER NOT NULL, kind TEXT NOT NULL, detail TEXT NOT NULL
);
CREATE TABLE facts (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
"""
# Of a step; from one on; and of a sample, beyond one.
_FREE_PLACE = "DELETE FROM delivered WHERE epoch = ? AND rank = ? AND step = ?"
_FREE_FROM = "DELETE FROM delivered WHERE epoch = ? AND rank = ? AND step >= ?"
_MOVE_UP = "DELETE FROM delivered WHERE epoch = ? AND rank = ? AND step > ? AND sample = ?"


class Record:
    """One life's hold on the file. Any thread may use it."""

    def __init__(
        self, path: Path, rank: int, facts: dict[str, str], *, max_deaths: int, durable: bool
    ) -> None:
        """Opens or makes it. `durable`: a power cut takes nothing that was recorded.

        Raises `LedgerError`, also when the file is about something else.
        """
        self._rank, self._max_deaths = rank, max_deaths
        self._lock = threading.Lock()
        life = newest_life(path) + 1
        self._base = Database(path, _SCHEMA, incarnation=life, durable=durable, one_thread=False)
        with self._base.transaction():
            for key, value in facts.items():
                known = self._base.fact(key)
                if known is None:
                    self._base.set_fact(key, value)
                elif known != value:
                    raise LedgerError(
                        f"{path} was begun with {key} = {known}, now it is {value}; put it back, "
                        "or name another file"
                    )

    def recorded(self, epoch: int, after: int) -> list[tuple[int, ...]]:
        """Batches of an epoch beyond its first `after`, in order."""
        query = (
            "SELECT step, sample FROM delivered WHERE epoch = ? AND rank = ? AND step > ? "
            "ORDER BY step, offset"
        )
        batches: dict[int, list[int]] = {}
        with self._lock, self._base.clear_errors():
            rows = self._base.connection.execute(query, (epoch, self._rank, after))
            for step, sample in rows.fetchall():
                batches.setdefault(step, []).append(sample)
        return [tuple(batch) for batch in batches.values()]

    def composed(self, epoch: int, step: int, batch: Composed[Any], losses: Iterable[Loss]) -> None:
        """A batch, and the samples that turned out to be of no use since the one before.

        Where nothing came of a batch composed before, those after it move up: each takes the next
        place, and is gone from the one it had. After the last of them nothing is left beyond.
        """
        samples, rank = batch.samples, self._rank
        rows = ((epoch, sample, 0, 1, step, rank, 0, i) for i, sample in enumerate(samples))
        with self._lock, self._base.transaction():
            if batch.replays:
                places = [(epoch, rank, step, sample) for sample in samples]
                self._base.connection.execute(_FREE_PLACE, (epoch, rank, step))
                self._base.connection.executemany(_MOVE_UP, places)
            else:
                self._base.connection.execute(_FREE_FROM, (epoch, rank, step))
            self._base.connection.executemany(
                "INSERT INTO delivered VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows
            )
            self._keep(losses)

    def ended(self, epoch: int, steps: int) -> None:
        """An epoch is over, after so many batches: of what was composed before nothing is left."""
        with self._lock, self._base.transaction():
            self._base.connection.execute(_FREE_FROM, (epoch, self._rank, steps + 1))

    def lost(self, losses: Iterable[Loss]) -> None:
        """Samples that are of no use, when no batch will come to say so with."""
        with self._lock, self._base.transaction():
            self._keep(losses)

    def _keep(self, losses: Iterable[Loss]) -> None:
        for loss in losses:
            if loss.kind == QUARANTINED:
                self._base.connection.execute(
                    "INSERT OR REPLACE INTO quarantined VALUES (?, ?, ?)",
                    (loss.sample, loss.detail, self._max_deaths),
                )
            else:
                self._base.connection.execute(
                    "INSERT OR IGNORE INTO refused VALUES (?, ?, ?, ?)",
                    (loss.sample, loss.epoch, loss.kind, loss.detail),
                )

    def close(self) -> None:
        """Let go of the file."""
        self._base.close()
