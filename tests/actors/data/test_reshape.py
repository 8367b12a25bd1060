"""Steps composed for other ranks or rows from some step on: nothing is lost or repeated."""

import contextlib
import random
import sqlite3
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from actors.data.batches import Batches
from actors.data.feed import Feed, Recorded, Refusal, Shape
from actors.data.ledger import Ledger
from actors.data.ordering import Key, Order
from actors.data.packing import Document
from tests.actors.data.test_feed import SAMPLES

# How many steps are asked for, how many the next life's trainers have lost of them, and the next
# life's ranks and rows.
lives = st.lists(
    st.tuples(st.integers(1, 5), st.integers(0, 3), st.integers(1, 4), st.integers(1, 3)),
    min_size=1,
    max_size=5,
)


def made(key: Key) -> Document:
    """Many are shorter than a row, some are as long as thirty: they outlive a reshape or two."""
    epoch, sample = key
    length = 3 + sample * sample % 31 * (9 if sample % 3 == 0 else 1)
    return Document((epoch, sample), np.arange(length, dtype=np.int32) + 1000 * sample, 5 * length)


class Run:
    """Batches of one ledger, asked for by trainers that come and go, and workers in any order."""

    def __init__(self, path: Path, order: Order) -> None:
        self.path = path
        self.order: Order = order
        self.chance = random.Random(0)
        self.life = 0

    def live(self, shape: Shape, steps: range, *, restarts: bool) -> list[list[int]]:
        """The rows of these steps, as every rank was given them."""
        found: dict[tuple[int, int], list[list[int]]] = {}
        cuts = [steps.start, *([steps.start + len(steps) // 2] if restarts else ()), steps.stop]
        for begin, end in pairwise(cuts):
            with Ledger(self.path, incarnation=self.life) as ledger:
                batches = Batches(ledger, shape, lambda recorded: self.feed(shape, recorded))
                out: list[Key] = []
                for step in range(begin, end):
                    ranks = list(range(shape.ranks))
                    self.chance.shuffle(ranks)
                    for rank in ranks:
                        batches.request(step, rank, f"trainer/{rank}")
                    found |= self.work(batches, out)
            self.life += 1
        return [row for asked in sorted(found) for row in found[asked]]

    def feed(self, shape: Shape, recorded: Recorded) -> Feed:
        return Feed(shape, SAMPLES, recorded, seed=1, order=self.order)

    def work(self, batches: Batches, out: list[Key]) -> dict[tuple[int, int], list[list[int]]]:
        found: dict[tuple[int, int], list[list[int]]] = {}
        for _ in range(2000):
            if batches.rewound:
                out.clear()
                batches.rewound = False
            out += [key for key, _ in batches.to_lease()]
            for answer in batches.settle():
                found[answer.step, answer.rank] = answer.tokens.tolist()
                batches.sent(answer)
            if not batches.waiting:
                return found
            if out:
                batches.finished(made(out.pop(self.chance.randrange(len(out)))))
        raise AssertionError(f"{batches.waiting} requests are never answered")


def shaped(ranks: int, rows: int) -> Shape:
    return Shape(ranks=ranks, rows=rows, row_tokens=9, steps=1000, lookahead=2)


def course(
    path: Path, order: Order, plan: list[tuple[int, int, int, int]], *, restarts: bool
) -> list[list[int]]:
    """All lives of a run; what its trainers were given."""
    run, shape, step = Run(path, order), shaped(2, 3), 1
    given_rows: list[list[int]] = []
    for steps, lost, ranks, rows in plan:
        given_rows += run.live(shape, range(step, step + steps), restarts=restarts)
        step = max(1, step + steps - lost)
        shape = shaped(ranks, rows)
    given_rows += run.live(shape, range(step, step + 16), restarts=restarts)
    return given_rows


@pytest.mark.parametrize("order", ["strict", "ready"])
@given(plan=lives)
@settings(max_examples=40)
def test_whoever_comes_and_goes_every_token_is_delivered_once(
    tmp_path_factory: pytest.TempPathFactory, order: Order, plan: list[tuple[int, int, int, int]]
):
    path = tmp_path_factory.mktemp("run") / "ledger.sqlite"
    course(path, order, plan, restarts=True)
    with Ledger(path, incarnation=10_000) as ledger:
        lanes_go_on = {carry.key: carry.start for carry in ledger.recorded().carries}
    delivered: dict[Key, int] = {}
    for epoch, sample, start, length in sql(path, "epoch, sample, start, length FROM delivered"):
        assert start == delivered.get((epoch, sample), 0), "a token is lost or repeated"
        delivered[epoch, sample] = start + length
    for epoch, sample, tokens in sql(path, "epoch, sample, tokens FROM documents"):
        end = delivered[epoch, sample]
        assert lanes_go_on.get((epoch, sample), tokens) == end, "a document is given up"


def sql(path: Path, query: str) -> list[tuple[int, ...]]:
    with contextlib.closing(sqlite3.connect(path)) as db:
        return db.execute(f"SELECT {query} ORDER BY 1, 2, 3").fetchall()


# Documents that wait through two reshapes, in lanes with other numbers than at first.
@example(plan=[(4, 0, 1, 2), (1, 0, 1, 1), (5, 1, 1, 2)])
@example(plan=[(5, 0, 1, 2), (5, 0, 4, 2), (2, 1, 1, 1)])
@example(plan=[(4, 2, 1, 2), (4, 2, 1, 1), (5, 1, 1, 1)])
@given(plan=lives)
@settings(max_examples=25)
def test_loaders_that_die_change_nothing(
    tmp_path_factory: pytest.TempPathFactory, plan: list[tuple[int, int, int, int]]
):
    path = tmp_path_factory.mktemp("run")
    calm = course(path / "calm.sqlite", "strict", plan, restarts=False)
    assert course(path / "died.sqlite", "strict", plan, restarts=True) == calm


def test_as_many_rows_in_all_are_the_same_batches_however_many_trainers(tmp_path: Path):
    calm = Run(tmp_path / "calm.sqlite", "strict").live(shaped(2, 3), range(1, 13), restarts=False)
    run = Run(tmp_path / "run.sqlite", "strict")
    found = run.live(shaped(2, 3), range(1, 5), restarts=False)
    found += run.live(shaped(1, 6), range(5, 9), restarts=False)
    found += run.live(shaped(3, 2), range(9, 13), restarts=False)
    assert found == calm


def test_what_is_given_up_stays_so(tmp_path: Path):
    """A document is refused when its rest is to be made again: no later life asks for it."""
    run = Run(tmp_path / "ledger.sqlite", "strict")
    run.live(shaped(2, 3), range(1, 4), restarts=False)
    with Ledger(run.path, incarnation=run.life) as ledger:
        carried = {carry.key for carry in ledger.recorded().carries}
        (lost, *_) = sorted(carried)
        batches = Batches(ledger, shaped(1, 1), lambda found: run.feed(shaped(1, 1), found))
        batches.request(4, 0, "trainer/0")
        assert {key for key, _ in batches.to_lease()} >= carried
        batches.refused(Refusal(lost, "truncated", "it is empty now"))
        for key in carried - {lost}:
            batches.finished(made(key))
        run.work(batches, [])
        assert "left out" in batches.warnings[-1]
    run.life += 1
    with Ledger(run.path, incarnation=run.life) as ledger:
        assert lost not in {carry.key for carry in ledger.recorded().carries}


def test_a_sample_left_out_of_later_epochs_is_delivered_to_its_end(tmp_path: Path):
    run = Run(tmp_path / "ledger.sqlite", "strict")
    run.live(shaped(2, 3), range(1, 4), restarts=False)
    with Ledger(run.path, incarnation=run.life) as ledger:
        carries = ledger.recorded().carries
        ledger._db.execute("INSERT INTO refused VALUES (?, 1, 'other', '')", (carries[0].key[1],))
        assert ledger.recorded().carries == carries
