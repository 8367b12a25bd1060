"""A loader's ledger: what it says of batches that were composed before, and of samples lost."""

import contextlib
import sqlite3
import time
from pathlib import Path
from typing import Any

import pytest

from actors.data import Loader, LoaderError
from actors.data.alone.loader import Loader as Made

N = 24


def loader(path: Path, **changes: Any) -> Made:
    wanted: dict[str, Any] = {
        "num_workers": 1, "max_workers": 1, "max_bad_share": 0.5, "ledger": path, **changes
    }  # fmt: skip
    return Loader(range(N), **wanted)


def rows(path: Path, query: str) -> list[Any]:
    with contextlib.closing(sqlite3.connect(path)) as base:
        return base.execute(query).fetchall()


def delivered(path: Path) -> list[list[int]]:
    batches: dict[int, list[int]] = {}
    for step, sample in rows(path, "SELECT step, sample FROM delivered ORDER BY step, offset"):
        batches.setdefault(step, []).append(sample)
    assert list(batches) == list(range(1, len(batches) + 1))
    return list(batches.values())


def losing(lost: set[int]) -> Any:
    def stage(i: int) -> int:
        if i in lost:
            raise OSError(f"{i} is gone")
        return i

    return stage


@pytest.mark.parametrize("order", ["strict", "ready"])
@pytest.mark.parametrize(
    ("batch", "lost"),
    [(1, {4}), (1, {4, 5, 9}), (1, {N - 1, N - 2}), (2, {6, 7}), (2, {7, 8, 9}), (3, {21, 22, 23})],
)
def test_batches_composed_before_may_come_to_nothing(
    tmp_path: Path, order: str, batch: int, lost: set[int]
):
    path = tmp_path / "ledger.sqlite"
    with loader(path, batch_size=batch, order=order, prefetch_batches=N) as made:
        iterator = iter(made)
        seen = [[int(i) for i in next(iterator)] for _ in range(2)]
        state = made.state_dict()
        for _ in iterator:  # composed and recorded, and nobody's in the end
            pass
    for _ in range(2):
        with loader(path, batch_size=batch, order=order, stages=[losing(lost)]) as made:
            made.load_state_dict(state)
            after = [[int(i) for i in found] for found in made]
        assert delivered(path) == seen + after
        found = sorted(i for some in seen + after for i in some)
        assert found == [i for i in range(N) if i not in lost]


def refused(path: Path) -> list[Any]:
    return rows(path, "SELECT sample, epoch, kind FROM refused ORDER BY sample")


def test_what_is_lost_after_the_last_batch_is_kept_with_its_own_epoch(tmp_path: Path):
    path = tmp_path / "ledger.sqlite"
    lost = {N - 2, N - 1}
    with loader(path, batch_size=2, stages=[losing(lost)]) as made:
        assert sum(len(batch) for batch in made) == N - 2
        assert refused(path) == [(i, 0, "OSError") for i in sorted(lost)]
        assert sum(len(batch) for batch in made) == N - 2
    assert refused(path) == [(i, 0, "OSError") for i in sorted(lost)]


def test_what_is_lost_before_closing_is_kept(tmp_path: Path):
    path = tmp_path / "ledger.sqlite"

    def stage(i: int) -> int:
        if i == 3:
            raise OSError("gone")
        time.sleep(0.01 if i == 4 else 60.0 if i == 5 else 0.0)
        return i

    with loader(path, batch_size=N, stages=[stage]) as made:
        iter(made)
        until = time.monotonic() + 20
        while not made.status()["refused"] and time.monotonic() < until:
            time.sleep(0.01)
    assert refused(path) == [(3, 0, "OSError")]


def test_what_made_a_loader_give_up_is_kept_and_named(tmp_path: Path):
    path = tmp_path / "ledger.sqlite"
    everything = set(range(N))
    with (
        loader(path, stages=[losing(everything)]) as made,
        pytest.raises(LoaderError, match=r"OSError; the last: sample \d+: \d+ is gone"),
    ):
        list(made)
    assert len(refused(path)) >= 8
