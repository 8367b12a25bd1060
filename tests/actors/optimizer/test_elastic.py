"""Steps go on without trainers that are gone; a record of who was missing makes the same bits."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from actors import topology as topologies
from actors.optimizer.attendance import (
    Elastic,
    Everybody,
    described,
    mask_of,
    recorded,
)
from actors.optimizer.process import attendance_for
from actors.optimizer.state import StateError
from actors.topology import Topology, TopologyError
from actors.trainer.trainer import Trainer
from protocol import messages as m
from tests.actors.exchange import Exchange, tiny

SETTING = ("actors.trainers=2", "actors.optimizer_shards=2", "checkpoint.every_steps=4", "steps=12")
ELASTIC = (*SETTING, "elastic=true", "supervision.gone_s=1.0")


# --- Attendance -----------------------------------------------------------------------------------


@pytest.fixture
def two() -> Elastic:
    found = Elastic(2, after_s=2.0, start_s=30.0, now=0.0)
    found.peers(["trainer/0", "trainer/1", "loader"], 0.0)
    return found


def test_who_is_replaced_in_time_is_waited_for(two: Elastic):
    two.down("trainer/1", 10.0)
    assert not two.tick(11.9, 5)
    two.up("trainer/1")
    assert not two.tick(100.0, 5)
    assert two.silent(5) == frozenset()


def test_who_is_gone_is_excused_until_the_step_after_next_of_what_it_asks_for(two: Elastic):
    two.down("trainer/1", 10.0)
    assert two.tick(12.1, 5)
    assert not two.tick(12.2, 5)
    assert two.silent(5) == two.excused(6, "any") == {1}
    two.up("trainer/1")
    two.asks("trainer/1", 7)
    assert two.silent(8) == {1}
    assert two.silent(9) == frozenset()
    assert not two.tick(13.0, 9)
    two.asks("trainer/1", 20)  # it is back; this is about something else
    assert two.silent(9) == two.silent(21) == frozenset()


def test_who_goes_again_before_it_is_back_stays_gone(two: Elastic):
    two.down("trainer/1", 10.0)
    two.tick(12.1, 5)
    two.up("trainer/1")
    two.asks("trainer/1", 7)
    two.down("trainer/1", 13.0)
    two.tick(13.1, 9)
    assert two.silent(9) == {1}


def test_who_never_came_is_given_the_time_to_start():
    found = Elastic(2, after_s=2.0, start_s=30.0, now=0.0)
    found.peers(["trainer/0"], 1.0)
    assert not found.tick(29.0, 1)
    assert found.tick(30.1, 1)
    assert found.silent(1) == {1}


def test_strangers_are_nobody(two: Elastic):
    for name in ("trainer/7", "trainer/x", "loader", "rollout/0"):
        two.down(name, 1.0)
        two.asks(name, 1)
        two.up(name)
    assert not two.tick(100.0, 1)


def test_a_record_says_runs_of_parameters_by_rank():
    masks = [mask_of([1]), mask_of([1]), 0, mask_of([0, 1]), mask_of([0])]
    assert described([0, 0], []) == {}
    said = described(masks, [1])
    assert said == {"absent": {"0": [[3, 4]], "1": [[0, 1], [3, 3]]}, "silent": [1]}
    names = ["a", "b", "c", "d", "e"]
    found = recorded([{"step": 3, **json.loads(json.dumps(said))}, {"step": 4}], names)
    left_out = [{rank for rank in (0, 1) if not found.counts(3, rank, name)} for name in names]
    assert left_out == [{1}, {1}, set(), {0, 1}, {0}]
    assert [found.counts_facts(3, rank) for rank in (0, 1)] == [True, False]
    assert found.counts(4, 0, "a")
    assert found.counts_facts(4, 1)
    with pytest.raises(ValueError, match="knows a parameter"):
        recorded([{"step": 3, "absent": {"0": [[0, 5]]}}], names)


# --- With shards and trainers ---------------------------------------------------------------------


def elastic(topology: Topology, now: float) -> Everybody:
    found = attendance_for(topology, now)
    found.peers([f"trainer/{rank}" for rank in range(topology.actors.trainers)], now)
    return found


class Sluggish:
    """A trainer that seldom computes."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer, self._asked = trainer, 0

    @property
    def may_compute(self) -> bool:
        if not self._trainer.may_compute:
            return False
        self._asked += 1
        return self._asked % 9 == 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._trainer, name)


class Nobody:
    """In place of a trainer that is dead."""

    may_compute = False

    def tick(self) -> None:
        pass

    def hear(self, *_: Any) -> None:
        pass


def tell(exchange: Exchange, message: m.Message) -> None:
    for shard in exchange.shards:
        shard.hear("supervisor", message)


def lose(exchange: Exchange, rank: int) -> None:
    exchange.trainers[rank] = Nobody()  # pyright: ignore[reportArgumentType, reportCallIssue]
    tell(exchange, m.PeerDown(name=f"trainer/{rank}", incarnation=1, reason="killed"))


def find(exchange: Exchange, rank: int) -> Trainer:
    exchange.trainers[rank] = found = exchange.new_trainer(rank)
    tell(exchange, m.PeerUp(name=f"trainer/{rank}", incarnation=2))
    return found


def digests(exchange: Exchange) -> list[str]:
    return [record["weights_digest"] for record in exchange.records()]


@pytest.fixture(scope="module")
def peace() -> list[str]:
    exchange = Exchange(tiny(*SETTING))
    exchange.run()
    return digests(exchange)


def disturbed(between: Callable[[Exchange, int], None], *more: str) -> Exchange:
    """An elastic run in which something happens after each turn."""
    exchange = Exchange(tiny(*ELASTIC, *more), attendance=elastic)
    for turn in exchange.turns():
        between(exchange, turn)
        for shard in exchange.shards:
            shard.rounds.check()
    return exchange


def test_with_everybody_there_it_is_the_same_run(peace: list[str]):
    exchange = disturbed(lambda _exchange, _turn: None)
    assert digests(exchange) == peace
    assert all("absent" not in record for record in exchange.records())


def leave_and_come_back(exchange: Exchange, turn: int) -> None:
    if turn == 4:
        lose(exchange, 1)
    if turn == 18:
        find(exchange, 1)


def test_a_step_goes_on_without_a_trainer_and_the_record_says_so(peace: list[str]):
    exchange = disturbed(leave_and_come_back)
    records = exchange.records()
    missing = [record["step"] for record in records if "absent" in record]
    assert missing
    assert {rank for r in records for rank in r.get("absent", {})} == {"1"}
    assert missing == list(range(missing[0], missing[-1] + 1)), "it came and went"
    assert missing[-1] < 12, "it never came back"
    full = max(record["tokens"] for record in records)
    short = [record["tokens"] for record in records if record.get("silent")]
    assert short
    assert max(short) < full
    assert digests(exchange)[: missing[0] - 1] == peace[: missing[0] - 1]
    assert digests(exchange) != peace


def test_a_replay_of_the_record_arrives_at_the_same_bits(tmp_path: Path):
    exchange = disturbed(leave_and_come_back)
    lines = "".join(json.dumps(record) + "\n" for record in exchange.records())
    (tmp_path / "metrics.jsonl").write_text(lines)
    topology = tiny(*SETTING, f'attendance_of="{tmp_path}"')
    again = Exchange(topology, attendance=attendance_for)
    again.run()
    assert digests(again) == digests(exchange)
    assert [r.get("absent") for r in again.records()] == [
        r.get("absent") for r in exchange.records()
    ]


def test_nobody_falls_behind_in_a_replay(tmp_path: Path):
    exchange = disturbed(leave_and_come_back)
    lines = "".join(json.dumps(record) + "\n" for record in exchange.records())
    (tmp_path / "metrics.jsonl").write_text(lines)
    topology = tiny(*SETTING, f'attendance_of="{tmp_path}"')
    again = Exchange(topology, attendance=attendance_for)
    again.trainers[1] = cast("Trainer", Sluggish(again.trainers[1]))
    again.run()
    assert digests(again) == digests(exchange)


@pytest.mark.parametrize("shard", [0, 1])
def test_a_shard_that_dies_meanwhile_remembers_who_was_missing(shard: int, tmp_path: Path):
    def happens(exchange: Exchange, turn: int) -> None:
        leave_and_come_back(exchange, turn)
        if turn in (16, 17, 20):
            exchange.shards[shard] = exchange.new_shard(shard)
            living = {"trainer/0": 1} | ({"trainer/1": 2} if turn > 18 else {})
            exchange.shards[shard].hear("supervisor", m.Welcome(peers=living))

    exchange = disturbed(happens, "supervision.start_s=1.0")
    lines = "".join(json.dumps(record) + "\n" for record in exchange.records())
    (tmp_path / "metrics.jsonl").write_text(lines)
    again = Exchange(tiny(*SETTING, f'attendance_of="{tmp_path}"'), attendance=attendance_for)
    again.run()
    assert digests(again) == digests(exchange)


def without(exchange: Exchange, *ranks: int) -> None:
    """Some leave for good."""
    for turn in exchange.turns(most=60):
        if turn == 4:
            for rank in ranks:
                lose(exchange, rank)


def test_without_elastic_everybody_is_waited_for():
    exchange = Exchange(tiny(*SETTING), attendance=attendance_for)
    with pytest.raises(AssertionError, match="trainer/1"):
        without(exchange, 1)
    assert exchange.shards[0].rounds.committed < 6


def test_when_all_are_gone_everything_waits():
    exchange = Exchange(tiny(*ELASTIC), attendance=elastic)
    with pytest.raises(AssertionError, match="gradients of step"):
        without(exchange, 0, 1)
    for rank in (0, 1):
        find(exchange, rank)
    exchange.run()


# --- What cannot be -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "setting",
    [
        "optimizer.codec=int4_feedback",
        "optimizer.dense_codec=sign",
        "optimizer.matrices.projection=galore",
        'attendance_of="/somewhere"',
    ],
)
def test_what_elastic_runs_cannot_do_is_refused(setting: str):
    with pytest.raises(TopologyError, match=r"elastic|attendance_of"):
        tiny(*ELASTIC, setting)


def test_paths_of_records_are_made_absolute():
    topology = topologies.absolute_paths(tiny(*SETTING, "attendance_of=a"), Path("/base"))
    assert topology.attendance_of == "/base/a"


def test_a_record_that_is_none_ends_the_run_with_its_name(tmp_path: Path):
    topology = tiny(*SETTING, f'attendance_of="{tmp_path}"')
    with pytest.raises(StateError, match=r"attendance_of: .*metrics\.jsonl"):
        attendance_for(topology, 0.0)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "absent": 7}\n')
    with pytest.raises(StateError, match="does not say who took part"):
        attendance_for(topology, 0.0)
