"""The whole graph trains, is killed, stopped and resumed, and always ends with the same bits."""

import json
import signal
import subprocess
from collections.abc import Callable
from typing import Any

import pytest

from actors import process
from tests.harness import ROOT, python
from tests.system.conftest import SMALL, Run, digests

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.timeout(300)]

# Enough for a dozen deaths, one after the other.
STEPS = 150
TWO = (*SMALL, "actors.trainers=2", "actors.optimizer_shards=2", "checkpoint.every_steps=20")
Start = Callable[..., Run]


def command(run: Run, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        python("run.py", *arguments, "--run", str(run.run.path)),
        check=False,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What nobody disturbed ends with."""
    path = tmp_path_factory.mktemp("undisturbed") / "run"
    sets = [part for setting in TWO for part in ("--set", setting)]
    arguments = python("run.py", "--topology", "local", "--run", str(path), *sets)
    run = Run([*arguments, "--steps", str(STEPS)], path)
    assert run.finish(200) == 0, run.story()
    assert run.leftovers() == []
    return digests(run)


def test_config_b_runs_with_every_actor_in_its_place(start: Start):
    run = start("--steps", "8", topology="config_b", settings=())
    run.until(lambda: run.step() >= 2, 120, "the second step")
    document: dict[str, Any] = json.loads(command(run, "status", "--json").stdout)
    assert document["state"] == "running"
    actors = document["actors"]
    roles = [actor["role"] for actor in actors]
    assert roles.count("trainer") == 2
    assert {"supervisor", "loader", "recorder", "rollout", "optimizer_shard"} <= set(roles)
    assert {actor.get("pool") for actor in actors} >= {"fast", "slow"}
    assert len({actor["pid"] for actor in actors}) == len(actors)
    assert all(actor["cpus"] for actor in actors)
    light = [actor for actor in actors if actor["role"] in ("data_worker", "loader", "recorder")]
    assert all(0 < actor["rss_bytes"] < 60e6 for actor in light), light
    assert run.finish(120) == 0, run.story()
    assert run.out.splitlines()[-1].startswith("done: 8 steps")
    assert "config_b emulated" in run.out
    assert len(digests(run)) == 8
    assert run.leftovers() == []


def test_every_process_killed_in_turn_changes_no_bit(start: Start, undisturbed: list[str]):
    run = start("--steps", str(STEPS), settings=TWO)
    run.until(lambda: run.step() >= 1, 120, "the first step")
    for name in (
        "trainer/0",
        "optimizer_shard/0",
        "loader",
        "data_worker/0",
        "supervisor",
        "trainer/1",
        "recorder",
        "optimizer_shard/1",
        "rollout/0",
        "forkserver/light",
        "forkserver/torch",
    ):
        step = run.step()
        assert step < STEPS - 1, "the run is too short for this test"
        who = run.kill(name)
        run.wait_for_another(name, who, 60.0)
        run.until(lambda step=step: run.step() > step, 60.0, f"a step after the death of {name}")
    assert run.finish(200) == 0, run.story()
    assert digests(run) == undisturbed
    assert run.leftovers() == []


def test_a_stopped_run_goes_on_as_if_it_had_not_stopped(start: Start, undisturbed: list[str]):
    run = start("--steps", str(STEPS), settings=TWO)
    run.until(lambda: run.step() >= 7, 120, "the seventh step")
    run.interrupt()
    assert run.finish(60) == 130, run.story()
    assert "go on with: python run.py --resume" in run.out
    assert run.leftovers() == []
    stopped_at = run.step()
    resumed = run.resume()
    assert resumed.finish(200) == 0, resumed.story()
    assert stopped_at < STEPS
    assert digests(resumed) == undisturbed
    assert resumed.leftovers() == []


def test_steps_may_be_added_to_a_finished_run(start: Start, undisturbed: list[str]):
    run = start("--steps", "30", settings=TWO)
    assert run.finish(120) == 0, run.story()
    more = run.resume("--steps", str(STEPS))
    assert more.finish(200) == 0, more.story()
    assert digests(more) == undisturbed


def test_a_run_survives_its_launcher_and_its_supervisor(start: Start, undisturbed: list[str]):
    run = start("--steps", str(STEPS), settings=TWO)
    run.until(lambda: run.step() >= 3, 120, "the third step")
    before = run.rows()
    run.kill_launcher()
    run.kill("supervisor")
    again = run.resume()
    again.wait_for_another("supervisor", before["supervisor"].who)
    assert again.rows()["trainer/0"].who == before["trainer/0"].who
    assert again.finish(200) == 0, again.story()
    assert digests(again) == undisturbed
    assert again.leftovers() == []


def test_a_run_survives_the_loss_of_everything(start: Start, undisturbed: list[str]):
    """As after a power cut, but for the files."""
    run = start("--steps", str(STEPS), settings=TWO)
    run.until(lambda: any(run.run.checkpoints.glob("step-*/manifest.json")), 120, "a checkpoint")
    run.end()
    resumed = run.resume()
    assert resumed.finish(200) == 0, resumed.story()
    assert digests(resumed) == undisturbed


def test_a_run_that_loses_everything_before_its_first_checkpoint_begins_again(
    start: Start, undisturbed: list[str]
):
    run = start("--steps", str(STEPS), settings=(*TWO, "checkpoint.every_steps=1000"))
    run.until(lambda: run.step() >= 3, 120, "the third step")
    run.end()
    assert not any(run.run.checkpoints.glob("step-*/manifest.json"))
    resumed = run.resume()
    assert resumed.finish(200) == 0, resumed.story()
    assert "begins again with step 1" in resumed.out
    assert digests(resumed) == undisturbed


def test_a_run_in_the_background_is_stopped_by_name(start: Start):
    run = start("--steps", "500", "--detach")
    assert run.finish(120) == 0, run.story()
    assert "running in the background" in run.out
    run.until(lambda: run.step() >= 1, 120, "the first step")
    done = command(run, "stop")
    assert done.returncode == 0, done.stderr
    assert run.leftovers() == []
    assert json.loads(command(run, "status", "--json").stdout)["state"] == "stopped"


def test_a_frozen_trainer_does_not_hold_the_run_up(start: Start, undisturbed: list[str]):
    run = start("--steps", str(STEPS), settings=(*TWO, "supervision.silence_s=1.0"))
    run.until(lambda: run.step() >= 2, 120, "the second step")
    run.kill("trainer/0", signal.SIGSTOP)
    assert run.finish(200) == 0, run.story()
    assert digests(run) == undisturbed


def test_everybody_told_to_stop_at_once_loses_nothing(start: Start, undisturbed: list[str]):
    """As schedulers do to all processes of a job: data workers must not be gone before the
    trainers have their last step."""
    run = start("--steps", str(STEPS), settings=TWO)
    run.until(lambda: run.step() >= 7, 120, "the seventh step")
    everybody = run.processes()
    assert run.who("supervisor") in everybody
    for who in everybody:
        process.send_signal(who, signal.SIGTERM)
    if run.popen.pid not in [who.pid for who in everybody]:
        run.popen.send_signal(signal.SIGTERM)
    assert run.finish(60) == 130, run.story()
    assert run.leftovers() == []
    assert run.step() < STEPS
    resumed = run.resume()
    assert resumed.finish(200) == 0, resumed.story()
    assert digests(resumed) == undisturbed
