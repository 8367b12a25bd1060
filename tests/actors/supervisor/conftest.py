"""A run of dummy actors: real launcher, supervisor and forkserver, no training."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from actors import rundir, topology
from actors.rundir import RunDir
from actors.supervisor.events import Place
from actors.topology import SupervisionSpec
from tests.harness import Driven, python, python_env

ACTORS = ("recorder", "loader", "trainer/0", "trainer/1", "data_worker/0")

# Short enough for a test, long enough for a busy machine.
SUPERVISION = (
    "supervision.heartbeat_s=0.1",
    "supervision.silence_s=1.5",
    "supervision.start_s=20.0",
    "supervision.hang_s=60.0",
    "supervision.intensity=3",
    "supervision.period_s=30.0",
    "supervision.stop_s=2.0",
    "supervision.orphan_grace_s=15.0",
)


# --- For the decider alone

SPEC = SupervisionSpec(
    silence_s=5.0,
    hang_s=60.0,
    start_s=30.0,
    intensity=3,
    period_s=60.0,
    backoff_s=0.05,
    backoff_max_s=5.0,
    stop_s=10.0,
    stall_s=900.0,
)
PLACES = (
    Place("recorder", "recorder", 0, 9),
    Place("trainer/0", "trainer", 3, 6),
    Place("trainer/1", "trainer", 3, 6),
    Place("data_worker/0", "data_worker", 4, 5),
)


# --- For real processes


class Crew(Driven):
    """A launcher with dummy actors."""

    def tell(self, name: str, word: str) -> None:
        """Give an actor an order; see tests/actors/dummies.py."""
        path = self.run.path / f"do-{rundir.file_name(name)}"
        rundir.write_atomically(path, word)

    def stopped(self) -> list[str]:
        """Who left politely, in that order."""
        path = self.run.path / "stopped"
        return path.read_text().splitlines() if path.exists() else []


@pytest.fixture
def make_crew(tmp_path: Path) -> Iterator[Callable[..., Crew]]:
    made: list[Crew] = []

    def make(
        actors: tuple[str, ...] = ACTORS,
        *settings: str,
        before: Callable[[RunDir], object] = lambda run: None,
    ) -> Crew:
        run = rundir.create(tmp_path / f"run{len(made)}")
        spec = topology.load("local", (*SUPERVISION, *settings))
        run.topology.write_text(topology.to_toml(spec))
        seated = [{"name": name, "role": name.partition("/")[0]} for name in actors]
        run.plan.write_text(
            json.dumps({"actors": [{"name": "supervisor", "role": "supervisor"}, *seated]})
        )
        before(run)
        command = python("-m", "tests.actors.dummies", "launch", str(run.path))
        crew = Crew(command, run.path, python_env())
        made.append(crew)
        return crew

    yield make
    for crew in made:
        crew.end()


@pytest.fixture
def crew(make_crew: Callable[..., Crew]) -> Crew:
    """All of them up."""
    crew = make_crew()
    crew.wait_for(*ACTORS)
    return crew
