"""A run that goes on with other trainers, shards and workers: no token is lost or repeated."""

import contextlib
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.actors.data.small_graph import exactly_once
from tests.system.conftest import SMALL, Run, digests

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.timeout(400)]

TWO = (*SMALL, "actors.trainers=2", "train.rows_per_trainer=3", "checkpoint.every_steps=4")


def rows(run: Run) -> list[tuple[int, ...]]:
    """What every step's rows consist of, counted over all trainers."""
    with contextlib.closing(sqlite3.connect(run.run.ledger)) as db:
        return db.execute(
            "SELECT step, rank * (SELECT max(row) + 1 FROM delivered AS d WHERE d.step = e.step) "
            "+ row AS lane, offset, epoch, sample, start, length FROM delivered AS e "
            "WHERE step <= 24 ORDER BY step, lane, offset"
        ).fetchall()


def setting(*settings: str) -> list[str]:
    return [part for one in settings for part in ("--set", one)]


def test_trainers_shards_and_workers_may_be_others_after_a_resume(
    start: Callable[..., Run], tmp_path: Path
):
    run = start("--steps", "8", settings=TWO)
    assert run.finish(200) == 0, run.story()
    # As many rows in all, in other hands.
    hands = "actors.trainers=1", "train.rows_per_trainer=6", "actors.optimizer_shards=2"
    one = run.resume("--steps", "16", *setting(*hands, "actors.fast_workers=2"))
    assert one.finish(200) == 0, one.story()
    assert "a step is 1 x 6 rows from here on (before: 2 x 3)" in one.out
    three = one.resume("--steps", "24", *setting("actors.trainers=3", "train.rows_per_trainer=2"))
    assert three.finish(200) == 0, three.story()
    assert len(set(digests(three))) == 24
    calm = start("--steps", "24", settings=TWO, path=tmp_path / "calm")
    assert calm.finish(200) == 0, calm.story()
    assert rows(three) == rows(calm)  # the same step, whoever makes it
    assert digests(three)[:8] == digests(calm)[:8]
    # Fewer rows: what the lanes that are no more were in the middle of is not given up.
    fewer = three.resume("--steps", "40", *setting("actors.trainers=1", "actors.fast_workers=1"))
    assert fewer.finish(200) == 0, fewer.story()
    exactly_once(fewer.run.ledger)
    assert fewer.leftovers() == []
