"""Schedules of faults, and what this machine allows."""

from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest

from actors.chaos import means
from actors.chaos.kinds import BY_NAME, KINDS, Terms, draw

NAMES = (
    *("supervisor", "loader", "recorder", "trainer/0", "trainer/1", "optimizer_shard/0"),
    *("optimizer_shard/1", "rollout/0", "data_worker/0", "data_worker/1"),
    *("forkserver/light", "forkserver/torch"),
)


def terms(**change: object) -> Terms:
    values: dict[str, object] = {
        "seed": 1,
        "kills": 40,
        "steps": 60,
        "names": NAMES,
        "silence_s": 2.0,
        "possible": frozenset(BY_NAME),
        **change,
    }
    return Terms(**values)  # pyright: ignore[reportArgumentType]


def test_a_seed_is_a_schedule():
    assert draw(terms()) == draw(terms())
    assert draw(terms()) != draw(terms(seed=2))


@pytest.mark.parametrize("seed", range(20))
def test_every_kind_that_is_possible_happens(seed: int):
    faults = draw(terms(seed=seed))
    assert len(faults) == 40
    assert {fault.kind for fault in faults} == set(BY_NAME)
    without = draw(terms(seed=seed, possible=frozenset(BY_NAME) - {"gil", "disk"}))
    assert not {"gil", "disk"} & {fault.kind for fault in without}


@pytest.mark.parametrize("seed", range(20))
def test_faults_strike_whom_they_can_in_the_course_of_the_run(seed: int):
    faults = draw(terms(seed=seed))
    for fault in faults:
        kind = BY_NAME[fault.kind]
        assert bool(fault.targets) == bool(kind.targets)
        assert set(fault.targets) <= set(NAMES)
        assert 1 <= fault.after_step < 58
        if kind.effect in ("resumed", "failed"):
            assert fault.after_step >= 20
        assert len(set(fault.targets)) == len(fault.targets)


def test_only_those_that_are_meant_are_struck():
    faults = draw(terms(only="trainer/*"))
    assert len(faults) == 40
    assert {target for fault in faults for target in fault.targets} == {"trainer/0", "trainer/1"}


def test_a_soak_keeps_its_distance():
    faults = draw(terms(kills=100, every_s=15.0))
    times = [fault.at_s for fault in faults]
    assert times == sorted(times)
    assert min(b - a for a, b in pairwise(times)) >= 15.0 * 0.5
    assert times[-1] > 99 * 15.0


def test_roles_are_struck_alike_however_many_they_have():
    names = (*NAMES, *(f"data_worker/{i}" for i in range(2, 100)))
    kinds = frozenset({"kill"})
    struck = Counter(
        fault.targets[0].partition("/")[0]
        for fault in draw(terms(kills=800, names=names, possible=kinds))
    )
    assert struck["data_worker"] < 200
    assert min(struck.values()) > 50


def test_what_is_missing_is_said_in_words(tmp_path: Path):
    needs = {kind.needs for kind in KINDS if kind.needs} - {"guests"}
    missing = means.missing(tmp_path)
    assert set(missing) <= needs
    assert all(why and why[-1] != "." for why in missing.values())
    assert list(tmp_path.iterdir()) == []
