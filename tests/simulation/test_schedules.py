"""Whatever goes wrong in a simulated run, no rule of the actors is broken.

`python run.py simulate --schedules 100000` looks further than there is time for here.
"""

import json

import pytest
from click.testing import CliRunner

from actors.commands.simulate import simulate
from actors.simulation.faults import Fault
from actors.simulation.schedules import Verdict, run, shrunk
from actors.simulation.setting import Setting
from tests.simulation.planted import BUGS

SCHEDULES, AT_ONCE = 400, 50


def fine(verdict: Verdict) -> bool:
    assert verdict.violation is None, f"{verdict.replay()}\n{verdict.violation}"
    return True


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, SCHEDULES, AT_ONCE))
def test_no_rule_is_broken_whatever_goes_wrong(first: int):
    assert all(fine(run(seed)) for seed in range(first, first + AT_ONCE))


def test_without_trouble_every_step_is_committed_in_calm_time():
    for seed in range(10):
        verdict = run(seed, faults=())
        assert fine(verdict)
        assert verdict.ends == ["done"]
        assert verdict.simulated_s < 4 * Setting.drawn(seed).calm_s()


def test_a_seed_is_always_the_same_run():
    for seed in (3, 4, 5):
        once, again = run(seed, story=True), run(seed, story=True)
        assert without_paths(once.story) == without_paths(again.story)
        assert once.events == again.events


def without_paths(story: list[str]) -> list[str]:
    return [line.partition("/dev/shm")[0].partition("/tmp")[0] for line in story]


def test_a_failing_schedule_shrinks_to_the_faults_it_needs():
    bug = next(bug for bug in BUGS if "redo record" in bug.name)
    with bug.planted():
        failed = next(v for v in map(run, range(200)) if v.violation is not None)
        small = shrunk(failed)
        assert small.violation is not None
        assert set(small.numbers) <= set(failed.numbers)
        for left_out in small.numbers:
            fewer = tuple(n for n in small.numbers if n != left_out)
            found = run(small.seed, only=fewer).violation
            assert found is None or found.what != small.violation.what


def test_a_failing_schedule_is_replayed_by_the_command_it_names():
    bug = next(bug for bug in BUGS if "redo record" in bug.name)
    with bug.planted():
        said = CliRunner().invoke(simulate, ["--schedules", "200", "--json"])
        assert said.exit_code == 1
        found = json.loads(said.stdout)
        again = CliRunner().invoke(simulate, found["replay"].split()[3:])
        assert again.exit_code == 1
        assert found["violation"].partition(":")[0] in again.stdout
    calm = CliRunner().invoke(simulate, found["replay"].split()[3:])
    assert calm.exit_code == 0, calm.output


@pytest.mark.parametrize("kill_at", [2.0, 4.6, 6.2, 8.2])
def test_a_shard_killed_while_another_leaves_as_an_orphan_comes_back_at_the_same_step(
    kill_at: float,
):
    setting = Setting(seed=1013)
    faults = [
        Fault(1.3, "stupor", s=5.0),
        Fault(kill_at, "kill", "optimizer_shard/1"),
    ]
    assert fine(run(setting.seed, setting=setting, faults=faults))


def test_a_run_whose_actor_keeps_dying_ends_with_its_name_as_the_reason():
    setting = Setting(seed=1, steps=60)
    for target in ("loader", "optimizer_shard/1", "trainer/0", "data_worker/0", "recorder"):
        verdict = run(1, setting=setting, faults=[Fault(0.8, "curse", target, 60.0, 2)])
        assert fine(verdict)
        assert verdict.ends == ["failed"]
