"""Faults at random, several at once, as fast as the machine recovers: no name ever lives twice."""

import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from actors import process
from tests.actors.supervisor.conftest import ACTORS, Crew

# Long enough for some forty faults on two cores.
SOAK_S = 12.0
EVERYBODY = ("supervisor", "forkserver/light", *ACTORS)
SIGNALS = (signal.SIGKILL,) * 5 + (signal.SIGSTOP, signal.SIGTERM, signal.SIGSEGV)


def names_alive(crew: Crew) -> Counter[str]:
    """How many processes call themselves so; a fork still has its parent's name."""
    found: Counter[str] = Counter()
    for who in crew.processes():
        try:
            found[Path(f"/proc/{who.pid}/comm").read_text().strip()] += 1
        except OSError:
            continue
    return found


@pytest.mark.system
@pytest.mark.slow
def test_random_faults_leave_one_life_per_name(make_crew: Callable[..., Crew]):
    crew = make_crew(
        ACTORS,
        "supervision.intensity=1000",
        "supervision.period_s=10.0",
        "supervision.backoff_max_s=0.2",
    )
    crew.wait_for(*EVERYBODY)
    chance = random.Random(4)
    end = time.monotonic() + SOAK_S
    faults = 0
    while time.monotonic() < end:
        time.sleep(chance.choice((0.01, 0.05, 0.3, 1.0)))
        for name in chance.sample(EVERYBODY, chance.choice((1, 1, 1, 2, 3, len(EVERYBODY)))):
            number = chance.choice(SIGNALS)
            who = crew.who(name)
            if who is None or (name == "supervisor" and number == signal.SIGTERM):
                continue  # gone already; and SIGTERM to a supervisor is the end of the run
            faults += process.send_signal(who, number)
        alive = names_alive(crew)
        assert all(alive[name] <= 1 for name in ACTORS), alive
        assert crew.popen.poll() is None, crew.story()
    crew.wait_for("supervisor", *ACTORS, s=30.0)
    crew.interrupt()
    assert crew.finish() == 130, crew.story()
    assert crew.leftovers() == []
    assert faults > 10
