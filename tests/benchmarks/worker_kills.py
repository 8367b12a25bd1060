"""Data workers killed in the middle of samples, again and again: does the ledger stay exact?

    python -m tests.benchmarks.worker_kills [--kills 200] [--json]

A loader and three workers as real processes, in both orders. Before every kill the victim has just
begun a stage. Then the ledger is asked, in SQL: every document tiled by its spans without gap or
overlap, every row full, every sample of a finished epoch there once, nobody given up. In strict
order the batches must be those of a run that nobody disturbed; in ready order those that another
run, without kills, makes again from the ledger alone.
"""

import argparse
import contextlib
import hashlib
import json
import random
import shutil
import sqlite3
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec

from actors.topology import DataSpec, Source, Topology
from tests.actors.data.small_graph import Batch, Graph, graph, small

Order = Literal["strict", "ready"]
ORDERS: tuple[Order, ...] = ("strict", "ready")
_ROWS, _ROW_TOKENS = 4, 33
# Workers, and the file's samples. Every sixth takes a third of a second in one stage.
_WORKERS, _FILES, _SLOW_EVERY = 3, 48, 6
_PATIENCE_S = 60.0
_TEXT = """def function_{i}(argument):
    total = {i} + argument
    return total * {j}
"""
# Each must find nothing. Rows end with a step; only what a lane was at last may be cut short.
_LAST = (
    "SELECT epoch, sample FROM (SELECT epoch, sample, row_number() OVER "
    "(PARTITION BY rank, row ORDER BY step DESC, offset DESC) AS n FROM delivered) WHERE n = 1"
)
CHECKS = {
    "spans with a gap or an overlap": (
        "SELECT count(*) FROM (SELECT start, lag(start + length, 1, 0) OVER "
        "(PARTITION BY epoch, sample ORDER BY start) AS upto FROM delivered) WHERE start != upto"
    ),
    "rows that are not full": (
        "SELECT count(*) FROM (SELECT sum(length) AS tokens FROM delivered "
        f"GROUP BY step, rank, row) WHERE tokens != {_ROW_TOKENS}"
    ),
    "documents cut short": (
        "SELECT count(*) FROM (SELECT epoch, sample, tokens, sum(length) AS given FROM delivered "
        "JOIN documents USING (epoch, sample) GROUP BY epoch, sample) WHERE given != tokens "
        f"AND (epoch, sample) NOT IN ({_LAST})"
    ),
    "samples missing from epochs that are over": (
        "SELECT count(*) FROM samples CROSS JOIN (SELECT DISTINCT epoch FROM documents WHERE "
        "epoch < (SELECT CAST(value AS INTEGER) FROM facts WHERE key = 'open_epoch')) AS over "
        "LEFT JOIN documents USING (epoch, sample) WHERE documents.tokens IS NULL"
    ),
    "samples given up": (
        "SELECT (SELECT count(*) FROM refused) + (SELECT count(*) FROM quarantined)"
    ),
}


class Result(NamedTuple):
    """What one order came through."""

    order: Order
    kills: int
    within_a_stage: int  # kills that found the victim in the middle of one
    steps: int
    epochs: int
    spans: int
    seconds: float
    same_batches: bool
    found: dict[str, int]  # by the checks; all must be 0

    @property
    def exact(self) -> bool:
        """Whether nothing was lost, repeated or changed."""
        return self.same_batches and not any(self.found.values())


def trial(folder: Path, order: Order, kills: int, *, steps_after: int = 30) -> Result:
    """Kill so often, a step or more apart, and go on for some steps. `folder` must be new."""
    began = time.monotonic()
    wanted = _topology(_corpus(folder / "code"), order)
    with graph(folder / "rough", wanted, workers=_WORKERS - 1, mischief=True) as rough:
        batches, within = _killed(rough, kills)
        steps = kills + steps_after
        batches += rough.batches(range(kills + 1, steps + 1))
    ledger = rough.run.ledger
    if order == "ready":  # what was recorded, and nothing else, decides
        _recorded_only(rough, folder / "calm")
    with graph(folder / "calm", wanted) as calm:
        expected = calm.batches(range(1, steps + 1))
    with contextlib.closing(sqlite3.connect(ledger)) as db:
        found = {what: int(db.execute(query).fetchone()[0]) for what, query in CHECKS.items()}
        (spans,) = db.execute("SELECT count(*) FROM delivered").fetchone()
        (epochs,) = db.execute("SELECT max(epoch) FROM documents").fetchone()
    return Result(
        order=order,
        kills=kills,
        within_a_stage=within,
        steps=steps,
        epochs=int(epochs),
        spans=int(spans),
        seconds=time.monotonic() - began,
        same_batches=_digest(batches) == _digest(expected),
        found=found,
    )


def _corpus(code: Path) -> Path:
    code.mkdir(parents=True)
    for i in range(_FILES):
        text = _TEXT.format(i=i, j=7 * i) + "slow = 'SLOW'\n" * (i % _SLOW_EVERY == 0)
        (code / f"module_{i:02}.py").write_text(text)
    return code


def _topology(code: Path, order: Order) -> Topology:
    source = Source(kind="directory", path=str(code))
    # So many kills hit the same slow sample again and again, which is not to blame for them.
    data = DataSpec(
        sources=(source,), held_out_share=0.0, order=order, max_deaths_per_sample=100_000
    )
    wanted = small(data)
    train = msgspec.structs.replace(wanted.train, rows_per_trainer=_ROWS)
    return small(data, train=train, steps=1_000_000)


def _killed(rough: Graph, kills: int) -> tuple[list[Batch], int]:
    """Kill whoever is at work, and take a step's batches, so often."""
    chance = random.Random("kills")
    batches: list[Batch] = []
    within = 0
    for step in range(1, kills + 1):
        name, stage = _at_work(rough, chance)
        rough.kill(name)
        within += rough.last_note(name) == stage
        rough.start(name, pool=rough.pools[name])
        batches += rough.batches(range(step, step + 1))
    return batches, within


def _at_work(rough: Graph, chance: random.Random) -> tuple[str, tuple[str, str]]:
    """Somebody who has begun a stage since we last looked, and which; anybody after a while."""
    names = sorted(name for name in rough.processes if name != "loader")
    before = {name: rough.last_note(name) for name in names}
    deadline = time.monotonic() + chance.uniform(0.1, 0.4)
    while time.monotonic() < deadline:
        rough.pump(0.001)
        for name in chance.sample(names, len(names)):
            note = rough.last_note(name)
            if note != before[name] and note[1] != "tokenize":
                return name, note
    name = chance.choice(names)
    return name, rough.last_note(name)


def _recorded_only(rough: Graph, path: Path) -> None:
    """A run directory with nothing but the ledger's composition, and the tokenizer."""
    made = Graph(path, rough.wanted)
    made.close()
    shutil.copyfile(rough.run.tokenizer, made.run.tokenizer)
    with (
        contextlib.closing(sqlite3.connect(rough.run.ledger)) as ours,
        contextlib.closing(sqlite3.connect(made.run.ledger)) as theirs,
    ):
        ours.backup(theirs)
        theirs.execute("DELETE FROM spool")
        theirs.commit()


def _digest(batches: list[Batch]) -> str:
    return hashlib.sha256(json.dumps(batches).encode()).hexdigest()


def _results(kills: int) -> Iterator[Result]:
    for order in ORDERS:
        with tempfile.TemporaryDirectory(prefix="trireme-kills-") as folder:
            yield trial(Path(folder), order, kills)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description="Kill data workers over samples.")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    results: list[Result] = []
    for result in _results(asked.kills):
        results.append(result)
        if not asked.json:
            wrong = {what: count for what, count in result.found.items() if count}
            sys.stdout.write(
                f"{result.order}: {result.kills} kills, {result.within_a_stage} of them within a "
                f"stage; {result.steps} steps, {result.epochs} epochs, {result.spans} spans, "
                f"{result.seconds:.0f} s; {'exact' if result.exact else f'NOT exact: {wrong}'}; "
                f"{'the same' if result.same_batches else 'OTHER'} batches\n"
            )
            sys.stdout.flush()
    if asked.json:
        sys.stdout.write(
            json.dumps([{**r._asdict(), "exact": r.exact} for r in results], indent=1) + "\n"
        )
    return 0 if all(result.exact for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
