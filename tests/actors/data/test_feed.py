"""The feed and its ledger: whatever is lost in between, the same rows."""

import random
import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.data.feed import Feed, Recorded, Refusal, Shape
from actors.data.ledger import Ledger, tokens_of
from actors.data.ordering import Draw, Key, Order
from actors.data.packing import Document
from actors.data.replay import Diverged, Replays

SHAPE = Shape(ranks=2, rows=3, row_tokens=9, steps=1000, lookahead=3)
SAMPLES = np.arange(12)


def made(key: Key, *, bad: Iterable[int] = ()) -> Document | Refusal:
    """What a worker makes of a sample: a pure function of its name."""
    epoch, sample = key
    if sample in bad:
        return Refusal(key, "does not compile", "line 1")
    length = 3 + sample * sample % 31
    return Document((epoch, sample), np.arange(length, dtype=np.int32) + 100 * sample, 5 * length)


@dataclass
class World:
    """A feed, its ledger, and workers that finish in any order."""

    path: Path
    order: Order = "strict"
    seed: int = 1
    bad: frozenset[int] = frozenset()
    shape: Shape = SHAPE
    chance: random.Random = field(default_factory=lambda: random.Random(0))
    out: list[Draw] = field(default_factory=list[Draw])
    turns: list[int] = field(default_factory=list[int])
    incarnation: int = 0
    slow: frozenset[int] = frozenset()  # samples foreseen to take 20 s
    now: float = 0.0

    def __post_init__(self) -> None:
        self.start()

    def start(self) -> None:
        self.ledger = Ledger(self.path, incarnation=self.incarnation)
        self.feed = self.new_feed(self.ledger.recorded())
        self.out.clear()
        self.turns.clear()  # made in this life

    def new_feed(self, recorded: Recorded) -> Feed:
        expect = dict.fromkeys(self.slow, 20.0)
        return Feed(
            self.shape, SAMPLES, recorded,
            seed=self.seed, order=self.order, expect=lambda sample: expect.get(sample, 0.0),
        )  # fmt: skip

    def restart(self) -> None:
        """The loader dies: all that was on its way is gone."""
        self.ledger.close()
        self.incarnation += 1
        self.start()

    def work(self) -> None:
        """One sample is finished, whichever."""
        self.now += 1.0
        self.feed.foresee(self.now, 20.0 if self.slow else 0.0)
        drawn = self.feed.draw()
        self.turns += [draw.turn for draw in drawn if draw.turn >= 0]
        self.out += drawn
        if self.out:
            draw = self.out.pop(self.chance.randrange(len(self.out)))
            result = made(draw.key, bad=self.bad)
            if isinstance(result, Refusal):
                self.feed.refuse(result)
            else:
                self.feed.finished(result)
        while (composition := self.feed.compose()) is not None:
            self.ledger.commit(composition, self.shape)

    def run_to(self, step: int) -> None:
        for rank in range(self.shape.ranks):
            self.feed.requested(step, rank)
        for _ in range(10_000):
            if self.feed.next_step > step:
                return
            self.work()
        raise AssertionError(f"step {step} is never composed")

    def batch(self, step: int, rank: int) -> tuple[list[list[int]], int, int]:
        found = self.ledger.batch(step, rank)
        assert found is not None
        blob, epoch, text_bytes = found
        return tokens_of(blob, self.shape).tolist(), epoch, text_bytes

    def batches(self, steps: range) -> list[tuple[list[list[int]], int, int]]:
        return [self.batch(step, rank) for step in steps for rank in range(self.shape.ranks)]

    def rows(self, query: str) -> list[tuple[int, ...]]:
        self.ledger.close()
        with sqlite3.connect(self.path) as db:
            found = db.execute(query).fetchall()
        db.close()
        return found


EVERYTHING = "SELECT * FROM delivered ORDER BY step, rank, row, offset"


def assert_exactly_once(rows: list[tuple[int, ...]], lengths: dict[Key, int]) -> None:
    """Spans tile their documents from 0 on; only the last one of each lane may be cut short."""
    spans: dict[Key, list[tuple[int, int]]] = {}
    for epoch, sample, start, length, *_ in rows:
        spans.setdefault((epoch, sample), []).append((start, length))
    last = {(epoch, sample) for epoch, sample, _, _, step, *_ in rows if step == rows[-1][4]}
    for key, found in spans.items():
        at = 0
        for start, length in sorted(found):
            assert start == at, f"{key}: token {at} is lost or repeated"
            at += length
        assert at == lengths[key] or key in last


def lengths_of(path: Path) -> dict[Key, int]:
    with sqlite3.connect(path) as db:
        found = {(e, s): n for e, s, n in db.execute("SELECT epoch, sample, tokens FROM documents")}
    db.close()
    return found


@pytest.mark.parametrize("order", ["strict", "ready"])
def test_every_span_is_delivered_exactly_once(tmp_path: Path, order: Order):
    world = World(tmp_path / "ledger.sqlite", order=order)
    world.run_to(20)
    rows = world.rows(EVERYTHING)
    assert_exactly_once(rows, lengths_of(world.path))
    assert len({row[0] for row in rows}) > 3  # several epochs


@pytest.mark.parametrize("order", ["strict", "ready"])
def test_foresight_changes_when_samples_begin_and_nothing_else(tmp_path: Path, order: Order):
    blind = World(tmp_path / "blind.sqlite", order=order, bad=frozenset({3}))
    seeing = World(
        tmp_path / "seeing.sqlite", order=order, bad=frozenset({3}), slow=frozenset({3, 5, 7})
    )
    for world in (blind, seeing):
        world.run_to(8)
        world.restart()
        world.run_to(16)
    assert blind.turns == sorted(blind.turns)
    assert seeing.turns != sorted(seeing.turns)
    assert_exactly_once(seeing.rows(EVERYTHING), lengths_of(seeing.path))
    if order == "strict":
        assert blind.rows(EVERYTHING) == seeing.rows(EVERYTHING)


def test_strict_order_does_not_depend_on_who_finishes_when(tmp_path: Path):
    worlds = [
        World(tmp_path / f"{i}.sqlite", chance=random.Random(i), bad=frozenset({3, 8}))
        for i in range(4)
    ]
    for world in worlds:
        world.run_to(15)
    first, *others = [world.batches(range(1, 16)) for world in worlds]
    assert all(other == first for other in others)
    for world in worlds:
        world.ledger.close()


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 10_000), st.sets(st.integers(1, 14), max_size=5))
def test_a_loader_that_dies_composes_what_it_would_have(
    tmp_path_factory: pytest.TempPathFactory, seed: int, deaths: set[int]
):
    folder = tmp_path_factory.mktemp("worlds")
    calm = World(folder / "calm.sqlite", bad=frozenset({4}))
    calm.run_to(15)
    rough = World(folder / "rough.sqlite", bad=frozenset({4}), chance=random.Random(seed))
    for step in range(1, 16):
        rough.run_to(step)
        if step in deaths:
            for _ in range(rough.chance.randrange(20)):
                rough.work()
            rough.restart()
    assert rough.batches(range(1, 16)) == calm.batches(range(1, 16))
    first_15 = EVERYTHING.replace("ORDER", "WHERE step <= 15 ORDER")
    assert rough.rows(first_15) == calm.rows(first_15)


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 10_000), st.sets(st.integers(1, 14), max_size=5))
def test_ready_order_loses_and_repeats_nothing_over_deaths(
    tmp_path_factory: pytest.TempPathFactory, seed: int, deaths: set[int]
):
    path = tmp_path_factory.mktemp("worlds") / "ledger.sqlite"
    world = World(path, order="ready", chance=random.Random(seed), bad=frozenset({4}))
    for step in range(1, 16):
        world.run_to(step)
        if step in deaths:
            world.restart()
    rows = world.rows(EVERYTHING)
    lengths = lengths_of(path)
    assert_exactly_once(rows, lengths)
    # A sample may take its time: others of later epochs overtake it, it is not forgotten.
    waiting = set(world.feed._turns) | {document.key for document in world.feed._packer._queue}
    for epoch in range(max(epoch for epoch, _ in lengths)):
        assert {s for e, s in {*lengths, *waiting} if e == epoch} == set(range(12)) - {4}


def test_nothing_is_composed_far_ahead_of_the_slowest_rank(tmp_path: Path):
    world = World(tmp_path / "ledger.sqlite")
    for _ in range(500):
        world.work()
    assert world.feed.next_step == SHAPE.lookahead + 1
    world.feed.requested(1, 0)
    world.feed.requested(2, 1)
    for _ in range(500):
        world.work()
    assert world.feed.next_step == 1 + SHAPE.lookahead + 1
    assert world.feed.outstanding <= 12
    assert world.feed.buffered_tokens < 5 * SHAPE.step_rows * SHAPE.row_tokens
    world.ledger.close()


def test_nothing_is_composed_beyond_the_last_step(tmp_path: Path):
    world = World(tmp_path / "ledger.sqlite", shape=replace(SHAPE, steps=2))
    for rank in (0, 1):
        world.feed.requested(2, rank)
    for _ in range(300):
        world.work()
    assert world.feed.next_step == 3
    world.ledger.close()


def test_a_corpus_smaller_than_a_row_goes_round_and_round(tmp_path: Path):
    bad = frozenset(range(1, 12))
    world = World(tmp_path / "ledger.sqlite", bad=bad)
    world.run_to(3)
    tokens = [token for batch in world.batches(range(1, 4)) for row in batch[0] for token in row]
    assert tokens == [0, 1, 2] * (len(tokens) // 3)
    world.ledger.close()


def test_when_every_sample_is_refused_the_feed_says_so(tmp_path: Path):
    world = World(tmp_path / "ledger.sqlite", bad=frozenset(range(12)))
    assert not world.feed.exhausted
    for _ in range(50):
        world.work()
    assert world.feed.exhausted
    assert world.feed.refused == 12
    world.ledger.close()


def test_refused_samples_stay_refused_after_a_restart(tmp_path: Path):
    world = World(tmp_path / "ledger.sqlite", bad=frozenset({0, 5}))
    world.run_to(10)
    assert world.ledger.refused_by_kind() == {"does not compile": 2}
    world.bad = frozenset()  # they would be fine now
    world.restart()
    world.run_to(20)
    assert {0, 5}.isdisjoint(row[0] for row in world.rows("SELECT sample FROM delivered"))


def test_quarantined_samples_are_passed_over_for_good(tmp_path: Path):
    world = World(tmp_path / "ledger.sqlite")
    world.out += world.feed.draw()
    victim = world.out.pop(0)
    world.ledger.quarantine(victim.sample, "3 workers", 3)
    world.feed.quarantine(victim.key)
    world.run_to(10)
    world.restart()
    world.run_to(20)
    rows = world.rows("SELECT DISTINCT sample FROM delivered")
    assert {sample for (sample,) in rows} == set(range(12)) - {victim.sample}


# --- replay ---------------------------------------------------------------------------------------


def replay(world: World, step: int, *, bad: Iterable[int] = ()) -> Replays | Diverged:
    replays = Replays(SHAPE.row_tokens)
    spans = world.ledger.spans(step, SHAPE)
    facts = world.ledger.known({span.key for span in spans})
    for key in replays.want(step, spans, facts):
        result = made(key, bad=bad)
        failed = replays.refuse(result) if isinstance(result, Refusal) else replays.finished(result)
        if failed is not None:
            return failed
    return replays


@pytest.mark.parametrize("order", ["strict", "ready"])
def test_old_steps_are_made_again_from_the_ledger(tmp_path: Path, order: Order):
    world = World(tmp_path / "ledger.sqlite", order=order)
    world.run_to(12)
    original = world.batches(range(1, 13))
    world.ledger._db.execute("DELETE FROM spool")
    assert world.ledger.batch(5, 0) is None
    for step in range(1, 13):
        replays = replay(world, step)
        assert isinstance(replays, Replays)
        (again,) = replays.done()
        world.ledger.respool(again.step, again.packed, SHAPE)
    assert world.batches(range(1, 13)) == original
    world.ledger.close()


def test_a_sample_that_changed_is_noticed_and_the_steps_composed_anew(tmp_path: Path):
    world = World(tmp_path / "ledger.sqlite")
    world.run_to(12)
    before = world.batches(range(1, 7))
    changed = world.ledger.spans(7, SHAPE)[-1].sample
    failed = replay(world, 7, bad={changed})
    assert isinstance(failed, Diverged)
    assert failed.step == 7
    world.ledger.truncate(7, changed, failed.refusal.kind, failed.refusal.detail)
    world.bad = frozenset({changed})  # its rest may be asked for once more
    world.restart()
    assert world.feed.next_step == 7
    world.run_to(12)
    assert world.batches(range(1, 7)) == before
    rows = world.rows(EVERYTHING)
    later = [row for row in rows if row[4] >= 7]
    assert changed not in {row[1] for row in later}
    assert len({(row[0], row[1], row[2]) for row in rows}) == len(rows)


def test_other_tokens_under_the_same_name_are_noticed(tmp_path: Path):
    world = World(tmp_path / "ledger.sqlite")
    world.run_to(3)
    replays = Replays(SHAPE.row_tokens)
    spans = world.ledger.spans(2, SHAPE)
    key, *_ = replays.want(2, spans, world.ledger.known({span.key for span in spans}))
    original = made(key)
    assert isinstance(original, Document)
    tokens = original.tokens.copy()
    tokens[-1] += 1
    assert isinstance(replays.finished(replace(original, tokens=tokens)), Diverged)
    world.ledger.close()


def test_a_carried_document_that_changed_loses_only_its_rest(tmp_path: Path):
    world = World(tmp_path / "ledger.sqlite")
    world.run_to(3)
    recorded = world.ledger.recorded()
    assert len(recorded.carries) > 1  # documents are longer than a row: most lanes are inside one
    feed = world.new_feed(recorded)
    feed.requested(4, 0)
    drawn = feed.draw()
    assert [draw.key for draw in drawn[: len(recorded.carries)]] == [
        carry.key for carry in recorded.carries
    ]
    for i, draw in enumerate(drawn):
        assert (
            i >= len(recorded.carries) or feed.compose() is None
        )  # not before every lane has the rest of its document
        result = made(draw.key)
        assert isinstance(result, Document)
        if draw.key == recorded.carries[0].key:
            feed.refuse(Refusal(draw.key, "vanished", "gone"))
        else:
            feed.finished(result)
    assert "its last" in feed.warnings[0]
    composed = feed.compose()
    assert composed is not None
    starts = {span.row: span for span in composed.packed.spans if span.offset == 0}
    assert starts[recorded.carries[0].lane].start == 0
    assert all(starts[c.lane].start == c.start for c in recorded.carries[1:])
    world.ledger.close()
