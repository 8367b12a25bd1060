"""The ledger: which sample went where, on disk before anyone is told.

    delivered    which tokens of which sample lie in which row of which step's batch
    quarantined  samples that ended too many workers, left out for the rest of the run
    refused      samples that could not be used, left out likewise
    documents    what each delivered sample amounted to, to know it again
    spool        token rows of the steps around the present one, so that serving a batch again
                 needs no worker
    files, places, samples (a view with their names), facts

A step is one transaction. In WAL mode a killed process loses none that was committed. What a power
cut may take is the difference between synchronous NORMAL and FULL: strict order composes the same
rows again from the seed, so NORMAL is enough; ready order has nothing but this record, and pays
for FULL (one fsync a step).

A loader that was declared dead may still run for a moment. Each life writes its incarnation first
and every transaction checks that it is still there, so the older one can change nothing.
"""

import json
from array import array
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from actors.data.copying import Copying
from actors.data.corpus import Corpus, SourceFile
from actors.data.database import Database, LedgerError
from actors.data.feed import Carry, Composition, Fact, Recorded, Shape
from actors.data.ordering import Key
from actors.data.packing import Packed, Span, Tokens

# Facts: what lanes were in the middle of whenever steps were reshaped, and documents whose rest is
# not to be delivered.
_RESHAPED, _GIVEN_UP = "reshaped", "given up"

_SCHEMA = """
CREATE TABLE delivered (
    epoch INTEGER NOT NULL, sample INTEGER NOT NULL,
    start INTEGER NOT NULL, length INTEGER NOT NULL,
    step INTEGER NOT NULL, rank INTEGER NOT NULL, row INTEGER NOT NULL, offset INTEGER NOT NULL,
    UNIQUE (step, rank, row, offset), UNIQUE (epoch, sample, start)
);
CREATE TABLE quarantined (
    sample INTEGER PRIMARY KEY, reason TEXT NOT NULL, deaths INTEGER NOT NULL
);
CREATE TABLE refused (
    sample INTEGER PRIMARY KEY, epoch INTEGER NOT NULL, kind TEXT NOT NULL, detail TEXT NOT NULL
);
CREATE TABLE documents (
    epoch INTEGER NOT NULL, sample INTEGER NOT NULL,
    tokens INTEGER NOT NULL, text_bytes INTEGER NOT NULL, crc INTEGER NOT NULL,
    PRIMARY KEY (epoch, sample)
) WITHOUT ROWID;
CREATE TABLE spool (
    step INTEGER NOT NULL, rank INTEGER NOT NULL, epoch INTEGER NOT NULL,
    text_bytes INTEGER NOT NULL, tokens BLOB NOT NULL,
    PRIMARY KEY (step, rank)
);
CREATE TABLE files (
    file INTEGER PRIMARY KEY, name TEXT NOT NULL, path TEXT NOT NULL, language TEXT NOT NULL,
    kind TEXT NOT NULL, field TEXT NOT NULL, size INTEGER NOT NULL,
    source INTEGER NOT NULL, weight REAL NOT NULL
);
CREATE TABLE places (
    sample INTEGER PRIMARY KEY, file INTEGER NOT NULL,
    offset INTEGER NOT NULL, length INTEGER NOT NULL, position INTEGER NOT NULL,
    copy INTEGER NOT NULL
);
CREATE VIEW samples (sample, name, path) AS
    SELECT sample, name || CASE kind WHEN 'jsonl' THEN ':' || position
                                     WHEN 'packed' THEN ':' || position
                                     WHEN 'parquet' THEN '[' || position || ']' ELSE '' END, path
    FROM places JOIN files USING (file);
CREATE TABLE facts (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
"""


class Ledger:
    """One life's hold on a run's ledger.sqlite."""

    def __init__(self, path: Path, *, incarnation: int = 0, durable: bool = False) -> None:
        """Opens or makes it. `durable`: steps survive a power cut. Raises `LedgerError`."""
        self._path = path
        self._base = Database(path, _SCHEMA, incarnation=incarnation, durable=durable)
        self._db = self._base.connection

    def close(self) -> None:
        """Let go of the file."""
        self._base.close()

    def note_in(self, directory: Path) -> Copying:
        """See `Database.note_in`."""
        return self._base.note_in(directory)

    def __enter__(self) -> "Ledger":
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    # --- what the run is about --------------------------------------------------------------------

    def bind_to(self, facts: Mapping[str, str]) -> None:
        """State what batches depend on. A ledger that began under other facts is refused."""
        with self._base.transaction():
            for key, value in facts.items():
                known = self._base.fact(key)
                if known is None:
                    self._base.set_fact(key, value)
                elif known != value:
                    raise LedgerError(
                        f"{self._path} was begun with {key} = {known}, now it is {value}; "
                        "put it back, or start a new run with --run"
                    )

    def store_corpus(
        self,
        corpus: Corpus,
        repeats: Mapping[int, int] | None = None,
        left_out: Mapping[str, int] | None = None,
    ) -> None:
        """Remember every sample. Ids never change afterwards, whatever happens to the files.

        `repeats`: samples to leave out, and which others they nearly repeat. `left_out`: how many
        files are no samples, by kind.
        """
        with self._base.transaction():
            for table in ("files", "places"):
                self._db.execute(f"DELETE FROM {table}")  # noqa: S608 - two words of ours
            self._db.executemany(
                "INSERT INTO files VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    (
                        *(i, file.name, file.path, file.language, file.kind, file.field, file.size),
                        *(file.source, file.weight),
                    )
                    for i, file in enumerate(corpus.files)
                ),
            )
            columns = (
                *(corpus.file_ids, corpus.offsets, corpus.lengths, corpus.positions),
                corpus.copies,
            )
            self._db.executemany(
                "INSERT INTO places VALUES (?, ?, ?, ?, ?, ?)",
                ((i, *map(int, place)) for i, place in enumerate(zip(*columns, strict=True))),
            )
            self._base.set_fact("left out", json.dumps(dict(left_out or {})))
            self._db.executemany(
                "INSERT OR IGNORE INTO refused VALUES (?, 0, 'near-duplicate', ?)",
                ((i, f"of {corpus.name(other)}") for i, other in (repeats or {}).items()),
            )
            self._base.set_fact("corpus", corpus.digest)

    def has_corpus(self) -> bool:
        """Has `store_corpus` been called?"""
        with self._base.clear_errors():
            return self._base.fact("corpus") is not None

    def corpus(self) -> Corpus | None:
        """What `store_corpus` stored; None before."""
        with self._base.clear_errors():
            digest = self._base.fact("corpus")
            if digest is None:
                return None
            files = tuple(
                SourceFile(*row)
                for row in self._db.execute(
                    "SELECT name, path, language, kind, field, size, source, weight FROM files "
                    "ORDER BY file"
                )
            )
            columns = tuple(array("q") for _ in range(5))
            query = "SELECT file, offset, length, position, copy FROM places ORDER BY sample"
            for row in self._db.execute(query):
                for column, value in zip(columns, row, strict=True):
                    column.append(value)
        file_ids, *places, copies = (np.array(column, np.int64) for column in columns)
        copy = copies.astype(np.int16)
        return Corpus(files, file_ids.astype(np.int32), *places, copies=copy, digest=digest)

    # --- what has been composed -------------------------------------------------------------------

    def commit(self, composition: Composition, shape: Shape, *, forget_before: int = 0) -> None:
        """Record a step, its batches included, in one transaction.

        `forget_before`: batches of earlier steps leave the spool.
        """
        with self._base.transaction():
            self._base.change(
                "deliver",
                (
                    (
                        *(span.epoch, span.sample, span.start, span.length),
                        *(composition.step, *divmod(span.row, shape.rows), span.offset),
                    )
                    for span in composition.packed.spans
                ),
            )
            self._base.change(
                "describe",
                ((*key, fact.tokens, fact.text_bytes, fact.crc) for key, fact in composition.began),
            )
            self._base.change(
                "refuse",
                ((r.key[1], r.key[0], r.kind, r.detail) for r in composition.refused),
            )
            self._base.set_fact("open_epoch", str(composition.open_epoch))
            if composition.given_up:
                given_up = [*self._list(_GIVEN_UP), *composition.given_up]
                self._base.set_fact(_GIVEN_UP, json.dumps(given_up))
            self._spool(composition.step, composition.packed, shape)
            self._db.execute("DELETE FROM spool WHERE step < ?", (forget_before,))

    def respool(self, step: int, packed: Packed, shape: Shape) -> None:
        """Keep the batches of a step that was made again."""
        with self._base.transaction():
            self._spool(step, packed, shape)

    def _spool(self, step: int, packed: Packed, shape: Shape) -> None:
        epochs = [0] * shape.ranks
        for span in reversed(packed.spans):
            epochs[span.row // shape.rows] = span.epoch
        for rank in range(shape.ranks):
            rows = slice(rank * shape.rows, (rank + 1) * shape.rows)
            self._db.execute(
                "INSERT OR REPLACE INTO spool VALUES (?, ?, ?, ?, ?)",
                (
                    *(step, rank, epochs[rank], sum(packed.text_bytes[rows])),
                    packed.tokens[rows].astype("<i4").tobytes(),
                ),
            )

    def batch(self, step: int, rank: int) -> tuple[bytes, int, int] | None:
        """Token bytes (little-endian int32), epoch and text bytes of a spooled batch."""
        with self._base.clear_errors():
            return self._db.execute(
                "SELECT tokens, epoch, text_bytes FROM spool WHERE step = ? AND rank = ?",
                (step, rank),
            ).fetchone()

    def spans(self, step: int, shape: Shape) -> tuple[Span, ...]:
        """What `step` consists of, rows counted over all ranks."""
        with self._base.clear_errors():
            rows = self._db.execute(
                "SELECT epoch, sample, start, length, rank * ? + row, offset FROM delivered "
                "WHERE step = ? ORDER BY rank, row, offset",
                (shape.rows, step),
            )
            return tuple(Span(*row) for row in rows)

    def known(self, keys: Iterable[Key]) -> dict[Key, Fact]:
        """What the documents with these keys amounted to when they were delivered."""
        query = "SELECT tokens, text_bytes, crc FROM documents WHERE epoch = ? AND sample = ?"
        with self._base.clear_errors():
            rows = {key: self._db.execute(query, key).fetchone() for key in keys}
        missing = [key for key, row in rows.items() if row is None]
        if missing:
            raise LedgerError(self._base.damaged(f"document {missing[0]} is not described"))
        return {key: Fact(*row) for key, row in rows.items()}

    def recorded(self) -> Recorded:
        """Where the run stands, whatever the shape of its steps was."""
        with self._base.clear_errors():
            left_out = {
                sample
                for (sample,) in self._db.execute(
                    "SELECT sample FROM refused UNION SELECT sample FROM quarantined"
                )
            }
            step = self._base.one("SELECT max(step) FROM delivered")
            if step is None:
                return Recorded(left_out=left_out)
            open_epoch = int(self._base.fact("open_epoch") or 0)
            settled: dict[int, set[int]] = {}
            query = "SELECT epoch, sample FROM documents WHERE epoch >= ?"
            for epoch, sample in self._db.execute(query, (open_epoch,)):
                settled.setdefault(epoch, set()).add(sample)
            carries = tuple(self._carries(step))
        return Recorded(step + 1, carries, open_epoch, settled, left_out)

    def _carries(self, step: int) -> Iterator[Carry]:
        """What every lane was in the middle of when `step` was full, and what waited behind it.

        A document in the middle of which a lane is has the lane's number. One that waits behind it,
        since its own lane is no more, has the number it had then: it comes after those with smaller
        ones in lane `number` modulo the lanes of now, whether or not there was a restart.
        """
        under_way: dict[Key, int] = {}
        since, waiting = self._newest_reshape(step)
        if since <= step:
            query = (
                "SELECT rank * (SELECT max(row) + 1 FROM delivered WHERE step = ?1) + row AS lane, "
                "epoch, sample, max(offset) FROM delivered WHERE step = ?1 GROUP BY lane"
            )
            rows = self._db.execute(query, (step,)).fetchall()
            under_way = {(epoch, sample): lane for lane, epoch, sample, _ in rows}
        for lane, epoch, sample in waiting:
            under_way.setdefault((epoch, sample), lane)
        given_up = {(epoch, sample) for epoch, sample in self._list(_GIVEN_UP)}
        facts = self.known(under_way)
        for key, lane in under_way.items():
            query = "SELECT sum(length) FROM delivered WHERE epoch = ? AND sample = ?"
            start = self._base.one(query, key)
            if start < facts[key].tokens and key not in given_up:
                yield Carry(lane, key, start, facts[key])

    def _newest_reshape(self, step: int) -> tuple[int, list[tuple[int, int, int]]]:
        """The last reshape that counts when `step` is full: its first step, and what was under way
        then (lane, epoch, sample). 0 and nothing when there was none."""
        known = [reshape for reshape in self._list(_RESHAPED) if reshape[0] <= step + 1]
        return known[-1] if known else (0, [])

    def _list(self, fact: str) -> list[Any]:
        return json.loads(self._base.fact(fact) or "[]")

    # --- forgetting -------------------------------------------------------------------------------

    def shape_of(self, step: int) -> tuple[int, int] | None:
        """Ranks and rows of each that `step` was composed for; None before it is composed."""
        with self._base.clear_errors():
            query = "SELECT max(rank) + 1, max(row) + 1 FROM delivered WHERE step = ?"
            ranks, rows = self._db.execute(query, (step,)).fetchone()
        return None if ranks is None else (ranks, rows)

    def reshape(self, step: int) -> None:
        """Forget `step` and all later ones, to compose them anew for other ranks or rows.

        What lanes were in the middle of is remembered, since some of them may be no more.
        """
        with self._base.transaction():
            self._forget(step)
            under_way = [(carry.lane, *carry.key) for carry in self._carries(step - 1)]
            earlier = [reshape for reshape in self._list(_RESHAPED) if reshape[0] < step]
            self._base.set_fact(_RESHAPED, json.dumps([*earlier, (step, under_way)]))

    def truncate(self, step: int, sample: int, kind: str, detail: str) -> None:
        """Forget `step` and all later ones, because `sample` is not what it was; leave it out."""
        with self._base.transaction():
            self._forget(step)
            self._base.change("refuse", [(sample, 0, kind, detail)])

    def _forget(self, step: int) -> None:
        """`step` and all later ones were never composed."""
        kept = [reshape for reshape in self._list(_RESHAPED) if reshape[0] <= step]
        self._base.set_fact(_RESHAPED, json.dumps(kept))
        began = "SELECT epoch, sample FROM delivered WHERE step >= ? AND start = 0"
        lowest = self._base.one(f"SELECT min(epoch) FROM ({began})", (step,))  # noqa: S608 - above
        for what in ("forget documents", "forget steps", "forget batches"):
            self._base.change(what, [(step,)])
        if lowest is not None:
            self._base.set_fact(
                "open_epoch", str(min(lowest, int(self._base.fact("open_epoch") or 0)))
            )

    # --- samples left out -------------------------------------------------------------------------

    def quarantine(self, sample: int, reason: str, deaths: int) -> None:
        """Leave a sample out for the rest of the run."""
        with self._base.transaction():
            self._base.change("quarantine", [(sample, reason, deaths)])

    def refused_by_kind(self) -> dict[str, int]:
        """How many samples were refused, by kind."""
        with self._base.clear_errors():
            query = "SELECT kind, count(*) FROM refused GROUP BY kind ORDER BY kind"
            return dict(self._db.execute(query).fetchall())

    def quarantined_by_kind(self) -> dict[str, int]:
        """How many samples are quarantined, by what their reasons begin with."""
        with self._base.clear_errors():
            query = (
                "SELECT substr(reason, 1, instr(reason, ':') - 1) AS kind, count(*) "
                "FROM quarantined GROUP BY kind ORDER BY kind"
            )
            return dict(self._db.execute(query).fetchall())

    def left_out(self) -> dict[str, int]:
        """How many files were found to be no samples when the corpus was listed, by kind."""
        with self._base.clear_errors():
            kinds: dict[str, int] = dict(json.loads(self._base.fact("left out") or "{}"))
            return {str(kind): int(count) for kind, count in kinds.items()}


def tokens_of(blob: bytes, shape: Shape) -> Tokens:
    """The token rows of a spooled batch: (rows, row_tokens)."""
    return np.frombuffer(blob, "<i4").reshape(shape.rows, shape.row_tokens).astype(np.int32)
