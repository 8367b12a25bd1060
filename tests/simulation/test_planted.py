"""The simulator finds mistakes in the rules: each planted bug, within seconds."""

import pytest

from actors.simulation.schedules import run
from tests.simulation.planted import BUGS, Bug

# Each is found within a few hundred schedules; what a change of the rules may move it to.
SCHEDULES = 2000


@pytest.mark.slow
@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name.replace(" ", "-"))
def test_a_planted_bug_is_found(bug: Bug):
    with bug.planted():
        broken = next((v for v in map(run, range(SCHEDULES)) if v.violation is not None), None)
    assert broken is not None, f"{SCHEDULES} schedules and nobody noticed: {bug.name}"
    assert run(broken.seed).violation is None, "fails without the planted bug as well"
