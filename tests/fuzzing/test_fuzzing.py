"""Whatever readers are given, they read it or refuse it in their own words.

Short; `python -m tests.fuzzing` looks for as long as one likes.
"""

import random
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzzing.mutations import mutated
from tests.fuzzing.targets import CUT, Target, targets

NAMES = (
    "messages",
    "flips",
    "topologies",
    "manifests",
    "tensor files",
    "ledgers",
    "key files",
)
INPUTS = {"ledgers": 150, "topologies": 400}


@pytest.fixture(scope="module")
def readers() -> Iterator[dict[str, Target]]:
    with targets() as known:
        yield {target.name: target for target in known}


def test_every_reader_is_fuzzed(readers: dict[str, Target]):
    assert tuple(readers) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_nothing_but_its_own_errors(readers: dict[str, Target], name: str):
    target, chance = readers[name], random.Random(name)
    assert all(target.survives(seed) for seed in target.seeds)
    survived = sum(
        target.survives(mutated(chance, chance.choice(target.seeds), target.seeds))
        for _ in range(INPUTS.get(name, 1500))
    )
    assert survived < INPUTS.get(name, 1500), "it reads everything"


QUIET = settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@QUIET
@given(parts=st.lists(st.binary(max_size=200), max_size=6))
def test_no_bytes_at_all_break_the_decoder(readers: dict[str, Target], parts: list[bytes]):
    readers["messages"].survives(CUT.join(parts))


@QUIET
@given(data=st.binary(max_size=300))
def test_no_bytes_at_all_break_a_reader_of_files(readers: dict[str, Target], data: bytes):
    for name in ("flips", "manifests", "tensor files", "key files"):
        readers[name].survives(data)


@QUIET
@given(text=st.text(max_size=200))
def test_no_text_at_all_breaks_the_loader_of_topologies(readers: dict[str, Target], text: str):
    readers["topologies"].survives(text.encode())
