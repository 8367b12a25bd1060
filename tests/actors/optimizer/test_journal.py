"""A run whose memory is lost goes on behind its last checkpoint, from what its shards noted."""

import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from actors import journal
from actors.journal import Found
from actors.optimizer import notes
from tests.actors.exchange import Exchange, Letter, PostOffice, tiny
from tests.actors.optimizer.test_codecs_in_exchange import plain
from tests.actors.optimizer.test_elastic import elastic, lose
from tests.actors.optimizer.test_everything import EVERY, disturb, lossy

Noting = Callable[..., Exchange]


@pytest.fixture
def noting(tmp_path: Path) -> Iterator[Noting]:
    """A run with these settings; all that it keeps on disk lies in `tmp_path`."""
    made: list[Exchange] = []

    def begin(
        *settings: str, tamper: Callable[[Letter], list[Letter]] | None = None, **more: Any
    ) -> Exchange:
        office = PostOffice() if tamper is None else PostOffice(tamper=tamper)
        places = {"directory": tmp_path / "saved", "journal": tmp_path / "journal"}
        made.append(Exchange(tiny(*settings), office, **places, **more))
        return made[-1]

    yield begin
    for exchange in made:
        exchange.close()


def until(exchange: Exchange, step: int) -> None:
    """Go on until that step is committed."""
    for _ in exchange.turns():
        if exchange.shards[0].rounds.committed >= step:
            return


def files(tmp_path: Path) -> list[Path]:
    directory = tmp_path / "journal"
    parts = journal.parts_of(path.name for path in directory.iterdir())
    return [directory / part.name for part in parts]


@EVERY
def test_a_host_is_lost_and_no_step_is(tmp_path: Path, noting: Noting, settings: tuple[str, ...]):
    """Again and again, at any moment of a step, with deaths before, and with other shards behind.

    The first checkpoint is that of step 3, so the journal begins there.
    """
    (tmp_path / "journal").mkdir()
    draw, reached = random.Random(1), 0
    found: dict[int, str] = {}
    for further, shards in ((3, 2), (4, 2), (5, 1), (6, 2)):
        exchange = noting(*settings, f"actors.optimizer_shards={shards}", tamper=lossy(draw))
        assert [shard.rounds.committed for shard in exchange.shards] == [reached] * shards
        disturb(exchange, draw, further)
        if further == 3:
            exchange.office.tamper = lambda letter: [letter]
            exchange.settle()
        for record in exchange.records():
            step, digest = record["step"], record["weights_digest"]
            assert found.setdefault(step, digest) == digest
        assert "another kind of host" not in str(exchange.events)
        reached = exchange.shards[0].rounds.committed
    assert [found[step] for step in sorted(found)] == plain(*settings)


def test_a_step_needs_all_moves_and_its_commit():
    index = notes.Index()
    somewhere = Found(Path("j"), b"", 0, 0, 0)
    index.commits |= dict.fromkeys((10, 11, 12), somewhere)
    index.whole |= {10, 11, 12}
    index.moves |= dict.fromkeys(((11, "a"), (11, "b"), (12, "a")), somewhere)
    assert index.reached({"a": 10, "b": 10}, 10) == 11
    # A checkpoint that a stop has made: all of step 10, not committed, and some of step 11.
    assert index.reached({"a": 10, "b": 11}, 9) == 11
    assert index.reached({"a": 11, "b": 12}, 10) == 12
    assert index.reached({"a": 8, "b": 8}, 8) == 8


def test_what_codecs_remember_may_be_noted_less_often(tmp_path: Path, noting: Noting):
    """Then only some steps can be gone on from, and the bits are the same."""
    (tmp_path / "journal").mkdir()
    settings = ("steps=9", "checkpoint.every_steps=3", "optimizer.codec=int4_feedback")
    exchange = noting(*settings, "checkpoint.memory_every=2")
    until(exchange, 3)
    exchange.settle()
    until(exchange, 5)
    again = noting(*settings, "checkpoint.memory_every=2")
    assert again.shards[0].rounds.committed == 4
    assert again.run() == plain(*settings)[-1]


def test_who_was_missing_is_missing_again(tmp_path: Path, noting: Noting):
    """Steps that went on without a trainer are made again without it, and say so."""
    (tmp_path / "journal").mkdir()
    settings = ("actors.trainers=2", "checkpoint.every_steps=3", "steps=9", "elastic=true")
    exchange = noting(*settings, "supervision.gone_s=0.1", attendance=elastic)
    until(exchange, 3)
    exchange.settle()
    until(exchange, 4)
    lose(exchange, 1)
    for _ in range(200):
        exchange.turn()
        if exchange.shards[0].rounds.committed >= 7:
            break
    records = exchange.records()
    assert records[-1]["step"] >= 7
    assert "absent" in records[-1]
    again = noting(*settings, attendance=elastic)
    assert again.records() == records
    assert "another kind of host" not in str(again.events)


def test_without_an_invitation_nothing_is_noted(tmp_path: Path, noting: Noting):
    exchange = noting("steps=3", "checkpoint.every_steps=1")
    exchange.run()
    exchange.settle()
    assert not (tmp_path / "journal").exists()


def test_notes_older_than_a_whole_checkpoint_go(tmp_path: Path, noting: Noting):
    (tmp_path / "journal").mkdir()
    exchange = noting("steps=6", "checkpoint.every_steps=2")
    for step in (2, 4, 6):
        until(exchange, step)
        exchange.settle()
    assert {path.name[8:16] for path in files(tmp_path)} == {"00000004", "00000006"}


def test_a_hole_ends_what_can_be_made_again(tmp_path: Path, noting: Noting):
    """Whatever is missing, all shards go on with the step before it."""
    (tmp_path / "journal").mkdir()
    settings = ("steps=9", "checkpoint.every_steps=3", "actors.optimizer_shards=2")
    exchange = noting(*settings)
    until(exchange, 3)
    exchange.settle()
    until(exchange, 6)
    exchange.shards[1] = exchange.new_shard(1)
    until(exchange, 8)
    for newer in (tmp_path / "saved").glob("step-00000006*"):
        shutil.rmtree(newer)

    def reached() -> set[int]:
        return {shard.rounds.committed for shard in noting(*settings).shards}

    def lose(beginning: str) -> None:
        for path in files(tmp_path):
            if path.name.startswith(beginning):
                path.unlink()

    assert reached() == {8}
    lose("shard-1-00000006")
    assert reached() == {6}
    lose("shard-0-00000003")
    assert reached() == {3}


def test_what_was_noted_of_steps_that_never_were_is_cut_off(tmp_path: Path, noting: Noting):
    """The run goes on from the middle; a third life must not take the first for the second."""
    (tmp_path / "journal").mkdir()
    settings = ("steps=20", "checkpoint.every_steps=10", "actors.optimizer_shards=2")
    exchange = noting(*settings)
    until(exchange, 10)
    exchange.settle()
    until(exchange, 18)
    path = next(path for path in files(tmp_path) if path.name.startswith("shard-1-00000010"))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    second = noting(*settings)
    middle = second.shards[0].rounds.committed
    assert 10 < middle < 17
    until(second, middle + 1)
    third = noting(*settings)
    assert [shard.rounds.committed for shard in third.shards] == [middle + 1] * 2


@pytest.mark.parametrize("damage", ["cut", "flip"])
def test_a_damaged_end_is_left_out_by_name(tmp_path: Path, noting: Noting, damage: str):
    (tmp_path / "journal").mkdir()
    settings = ("steps=9", "checkpoint.every_steps=3")
    exchange = noting(*settings)
    until(exchange, 3)
    exchange.settle()
    until(exchange, 5)
    path = files(tmp_path)[-1]
    raw = bytearray(path.read_bytes())
    if damage == "cut":
        del raw[-3:]
    else:
        raw[len(raw) // 4] ^= 1
    path.write_bytes(raw)
    after = noting(*settings)
    assert after.shards[0].rounds.committed == (4 if damage == "cut" else 3)
    assert any(path.name in str(fields) for _, fields in after.events)
