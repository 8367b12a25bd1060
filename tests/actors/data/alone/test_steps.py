"""Chance: what steps draw is a function of (seed, epoch, sample, step), whoever calls them."""

import random
from typing import Any

import numpy as np
import pytest

from actors.data.alone.settings import steps_of
from actors.data.alone.steps import Chance


def drawn() -> tuple[float, float]:
    return random.random(), float(np.random.rand())


def test_modules_are_seeded_by_epoch_sample_and_step():
    def draw(seed: int, *where: int) -> tuple[float, float]:
        Chance(seed, modules=True).seed_modules(*where)
        return drawn()

    first = draw(5, 1, 2, 3)
    assert draw(5, 1, 2, 3) == first
    others = [draw(6, 1, 2, 3), draw(5, 0, 2, 3), draw(5, 1, 0, 3), draw(5, 1, 2, 0)]
    assert len({first, *others}) == 5


def test_torch_is_seeded_as_its_own_manual_seed_does_it():
    torch = pytest.importorskip("torch")
    chance = Chance(7, modules=True)
    chance.seed_modules(1, 2, 3)
    found = torch.rand(8)
    torch.manual_seed(int.from_bytes(chance.key(1, 2, 3)[:8], "little") % 2**63)
    assert torch.equal(found, torch.rand(8))


class Drawing(list[int]):
    """Looks like a list, and is none that we know."""


@pytest.mark.parametrize(
    ("dataset", "may_draw"),
    [(range(3), False), ([1], False), (np.zeros(2), False), (Drawing([1]), True)],
)
def test_only_data_sets_that_hold_their_samples_are_known_not_to_draw(dataset: Any, may_draw: bool):
    assert [step.may_draw for step in steps_of(dataset, [drawn])] == [may_draw, True]
