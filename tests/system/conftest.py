"""The whole graph in real processes, started as a person starts it."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from tests.harness import Driven, python, python_env

# A model of a few thousand parameters on the standard library's source: seconds, not minutes.
SMALL = (
    "model.dim=32",
    "model.layers=1",
    "model.heads=2",
    "model.loops=2",
    "model.vocab_size=512",
    "model.seq_len=64",
    "train.rows_per_trainer=2",
    "actors.fast_workers=1",
    "rollout.max_new_tokens=8",
    "supervision.heartbeat_s=0.1",
)


STEPS_IN_PEACE = 60


class Run(Driven):
    """`python run.py ...` on a run directory of its own."""

    def __init__(self, command: Sequence[str], path: Path) -> None:
        super().__init__(command, path, python_env())

    def resume(self, *arguments: str) -> "Run":
        """Take the run up again."""
        if self.popen.poll() is None or not self.out:
            self.finish()
        return Run(
            python("run.py", "--resume", "--run", str(self.run.path), *arguments), self.run.path
        )


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Run]]:
    """Starts a run: `start("--steps", "5")`. Whatever is left of it goes with the test.

    `topology`, `settings` and the run directory's `path` may be given.
    """
    started: list[Run] = []

    def begin(
        *arguments: str,
        topology: str = "local",
        settings: tuple[str, ...] = SMALL,
        path: Path = tmp_path / "run",
    ) -> Run:
        sets = [part for setting in settings for part in ("--set", setting)]
        command = python("run.py", "--topology", topology, "--run", str(path), *sets, *arguments)
        run = Run(command, path)
        started.append(run)
        return run

    yield begin
    for run in started:
        run.end()


def digests(run: Run) -> list[str]:
    """The weights' digest after every step, each step once."""
    records = run.metrics()
    assert [record["step"] for record in records] == list(range(1, len(records) + 1))
    return [record["weights_digest"] for record in records]


@pytest.fixture(scope="session")
def in_peace(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What `local`, made small, arrives at when nobody disturbs it. Runs that last as long as
    their trouble does are compared with it as far as it goes.
    """
    path = tmp_path_factory.mktemp("peace") / "run"
    sets = [part for setting in SMALL for part in ("--set", setting)]
    run = Run(python("run.py", "--run", str(path), "--steps", str(STEPS_IN_PEACE), *sets), path)
    assert run.finish(200) == 0, run.story()
    return digests(run)
