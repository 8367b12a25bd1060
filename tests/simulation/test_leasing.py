"""A run's loader with more workers than this machine could have: its rules' costs and queues."""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from actors.commands import simulate_data
from actors.commands.simulate import simulate
from actors.data.terms import Terms, terms_of
from actors.simulation.leasing import Leasing, Report
from actors.simulation.stage_times import Measured
from actors.topology import Topology, load
from protocol.messages import SampleRef

TOKENS = 2000


def files(tmp_path: Path, *seconds: tuple[float, ...]) -> list[Measured]:
    """Files that take so long, stage by stage."""
    path = tmp_path / "a.py"
    path.write_text("pass\n")
    ref = SampleRef(name="a.py", language="python", path=str(path))
    tokens = np.full(TOKENS, 7, np.int32)
    return [Measured(ref, b"pass\n", tokens, stages) for stages in seconds]


@pytest.fixture(scope="module")
def topology() -> Topology:
    return load("config_c")


@pytest.fixture(scope="module")
def terms(topology: Topology) -> Terms:
    return terms_of(topology, b"a tokenizer")


QUICK = (0.0, 0.02, 0.02)
SLOW = (0.0, 0.6, 0.6)


def ran(topology: Topology, terms: Terms, made: list[Measured], **wanted: float) -> Report:
    seconds = wanted.pop("seconds", 1.5)
    return Leasing(topology, terms, made, **wanted).run(seconds)  # type: ignore[arg-type]


def test_workers_are_kept_busy_and_the_loader_is_not(
    tmp_path: Path, topology: Topology, terms: Terms
):
    report = ran(topology, terms, files(tmp_path, QUICK), workers=4)
    assert report.worker_busy_s > 0.9 * 4 * report.seconds
    assert report.samples == pytest.approx(4 * report.seconds / 0.04, rel=0.1)
    assert sum(report.computed_s.values()) < report.seconds
    assert report.tokens == TOKENS * report.samples


def test_slow_samples_are_handed_over_and_the_queues_stay_bounded(
    tmp_path: Path, topology: Topology, terms: Terms
):
    mixed = files(tmp_path, *[QUICK] * 9, SLOW)
    report = ran(topology, terms, mixed, workers=16, seconds=6.0)
    assert report.handed_over > 0
    assert 1 <= report.slow_workers < 16
    assert report.worker_busy_s > 0.85 * 16 * report.seconds
    for seen in report.queues.values():
        assert max(seen) <= 4096 + 256


def test_trainers_that_take_their_time_do_not_wait(
    tmp_path: Path, topology: Topology, terms: Terms
):
    step = topology.train.rows_per_trainer * topology.train.accumulation * 6145
    pace = step / 2  # a step in two seconds; 16 workers need 3 for what is made ahead
    report = ran(
        *(topology, terms, files(tmp_path, QUICK)), workers=16, tokens_per_s=pace, seconds=12.0
    )
    assert report.consumer_waited_s < 0.01 * report.seconds
    assert max(report.queues["steps ahead"]) <= topology.data.lookahead_batches + 1


def test_workers_elsewhere_get_samples_with_their_text(
    tmp_path: Path, topology: Topology, terms: Terms
):
    report = ran(topology, terms, files(tmp_path, QUICK), workers=2, remote=20, seconds=1.0)
    assert report.samples > 1.5 * 2 * report.seconds / 0.04
    assert report.messages > 0


def test_the_command_measures_stages_and_says_what_came_of_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(simulate_data, "FILES", 8)
    wanted = ["--data", "--workers", "4", "--remote", "4", "--seconds", "0.3"]
    said = CliRunner().invoke(simulate, [*wanted, "--json"])
    assert said.exit_code == 0
    found = json.loads(said.output)
    assert (found["topology"], found["workers"], found["remote"]) == ("config_c", 4, 4)
    assert found["samples_per_s"] > 0
    assert 0 < found["loader_us_per_sample"]["hear"] < found["loader_us_per_sample"]["all"]
    assert "us a sample" in simulate_data.words(found)
