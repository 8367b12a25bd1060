"""Rows of an ablation: each can be trained, and changes only what it is about."""

import msgspec
import pytest

from actors import topology
from actors.ablation.rows import (
    BASELINE,
    BASELINE_ROW,
    COMMON,
    ROWS,
    UnknownRow,
    chosen,
    in_steps,
    schedule,
)
from actors.topology import Topology

LOCAL = topology.TOPOLOGIES / "local.toml"


def decoded(*settings: str) -> Topology:
    everything = (*COMMON, *schedule(200), "steps=200", *settings)
    return topology.decode(LOCAL.read_text(), source=str(LOCAL), overrides=everything)


def changed(before: Topology, after: Topology) -> set[str]:
    """Tables that differ."""
    names = [field.name for field in msgspec.structs.fields(Topology)]
    return {name for name in names if getattr(before, name) != getattr(after, name)}


def test_every_row_is_a_topology_that_can_be():
    for row in ROWS:
        for factor in (0.5, 1.0, 2.0):
            made = decoded(*in_steps(row.at_rate(factor), 200))
            assert made.optimizer.matrices.lr == pytest.approx(row.rate() * factor)


@pytest.mark.parametrize(
    ("name", "tables"),
    [
        ("muon", {"optimizer"}),
        ("foam", {"optimizer"}),
        ("int4", {"optimizer"}),
        ("muon_coded", {"optimizer"}),
        ("nvfp4", {"train"}),
        ("galore", {"optimizer"}),
        ("fire", {"optimizer"}),
        ("mtp", {"model"}),
        ("mhc", {"model"}),
        ("collider", {"train"}),
        ("everything", {"optimizer", "train", "model"}),
    ],
)
def test_a_row_changes_what_it_is_about_and_nothing_else(name: str, tables: set[str]):
    (row,) = (row for row in ROWS if row.name == name)
    assert changed(decoded(*BASELINE), decoded(*in_steps(row.all(), 200))) == tables


def test_the_baseline_has_every_technique_off():
    made = decoded(*BASELINE_ROW.all())
    assert (made.optimizer.matrices.kind, made.optimizer.dense.kind) == ("adamw", "adamw")
    assert (made.model.streams, made.model.predict_tokens) == (1, 1)
    assert (made.train.filter, made.train.precision) == ("none", "fp32")
    assert made.optimizer.codec == made.optimizer.dense_codec == "dense"
    assert (made.optimizer.matrices.projection, made.optimizer.fire_at) == ("none", ())


def test_steps_of_a_row_are_shares_of_the_runs():
    assert in_steps(("a=[HALF]", "b=TENTH", "c=1"), 41) == ("a=[20]", "b=4", "c=1")
    assert in_steps(("b=TENTH",), 3) == ("b=1",)


def test_rows_are_chosen_by_name_and_come_with_the_baseline():
    assert [row.name for row in chosen("mhc, muon")] == ["adamw", "muon", "mhc"]
    assert chosen("") == list(ROWS)
    known = [row.name for row in ROWS if row.name not in ("fire", "mhc")]
    assert [row.name for row in chosen("", known)] == ["fire", "mhc"]
    assert [row.name for row in chosen("muon", known)] == ["muon"]
    assert [row.name for row in chosen("muon", ["muon"])] == ["adamw", "muon"]
    assert len({row.name for row in ROWS}) == len(ROWS)
    with pytest.raises(UnknownRow, match="no row is called 'sophia'; accepted: adamw, adamw8bit"):
        chosen("muon,sophia")


@pytest.mark.parametrize("steps", [2, 3, 10, 200])
def test_a_schedule_has_as_many_steps_as_the_run_and_looks_at_it_ten_times(steps: int):
    numbers = [int(text.partition("=")[2]) for text in schedule(steps)]
    assert sum(numbers[:3]) == steps
    every, kept = numbers[3:]
    assert every * kept > steps >= every * min(10, steps)
