"""The host of a run is lost, with everything on it; a copy on another one goes on where it was."""

import json
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from actors import asking, process
from actors.chaos.runs import descendants
from protocol.keys import KeyFile
from protocol.messages import Status, StatusRequest
from tests.harness import ROOT, python, wait_until
from tests.system.conftest import SMALL, Run, digests
from tests.system.test_graph import Start, command

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.timeout(200)]

EVERY = 12
SETTINGS = (
    *SMALL,
    f"checkpoint.every_steps={EVERY}",
    "actors.trainers=2",
    "actors.optimizer_shards=2",
    "optimizer.matrices.kind=muon8bit",
    "optimizer.codec=int4_feedback",
    "optimizer.dense_updates=two_bit",
    "supervision.silence_s=60.0",  # trainers are made to stand still
)

Attach = Callable[[KeyFile, Path, Path], "subprocess.Popen[str]"]


@pytest.fixture
def attach() -> Iterator[Attach]:
    """Another host keeps a copy; it is gone afterwards, as by power cut."""
    started: list[subprocess.Popen[str]] = []

    def begin(key: KeyFile, path: Path, copy: Path) -> "subprocess.Popen[str]":
        started.append(
            subprocess.Popen(
                python(
                    *("run.py", "attach", key.endpoint, "--key", str(path)),
                    *("--role", "standby", "--run", str(copy)),
                ),
                cwd=ROOT,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
        return started[-1]

    yield begin
    for popen in started:
        lose(popen)


def lose(popen: "subprocess.Popen[str]") -> None:
    who = process.identity(popen.pid)
    for one in [*(descendants(who) if who else ()), *([who] if who else ())]:
        process.send_signal(one, signal.SIGKILL)
    popen.communicate(timeout=30)


def figures(run: Run) -> dict[str, float]:
    """What `status` knows of the standby, and the committed step."""
    answer = asking.ask(run.run, StatusRequest(), timeout_s=10.0)
    assert isinstance(answer, Status)
    document: dict[str, Any] = json.loads(answer.document)
    gauges = next((a["gauges"] for a in document["actors"] if a["role"] == "loader"), {})
    found = {
        name.partition(": ")[2]: value
        for name, value in gauges.items()
        if name.startswith("standby vault")
    }
    return {**found, "committed": document["step"]} if found else {}


def stand_still(run: Run) -> None:
    """Nothing moves any more, between two checkpoints, and the copy has all that there is."""

    def up_to_date() -> bool:
        found = figures(run)
        return bool(found) and found["step"] == found["committed"] == run.step()

    while True:
        for rank in range(2):
            run.kill(f"trainer/{rank}", signal.SIGSTOP)
        run.until(up_to_date, 60, "a copy of the last committed step")
        if 0 < run.step() % EVERY < EVERY - 1:
            return
        step = run.step()
        for rank in range(2):
            run.kill(f"trainer/{rank}", signal.SIGCONT)
        run.until(lambda: run.step() > step + 1, 60, "further steps")  # noqa: B023 - called here


def test_the_host_of_a_run_is_lost_and_no_step_is(start: Start, attach: Attach, tmp_path: Path):
    run = start("--steps", "100000", settings=SETTINGS)
    run.until(lambda: run.step() > 0, 120, "the first step")
    key = tmp_path / "vault.key"
    done = command(run, "invite", "--role", "standby", "--label", "vault", "--out", str(key))
    assert done.returncode == 0, done.stderr
    copy = tmp_path / "elsewhere"
    standby = attach(KeyFile.read(key), key, copy)

    def covered() -> bool:
        found = figures(run)
        return bool(found) and found["step"] % EVERY > EVERY // 4

    run.until(covered, 120, "a copy beyond a checkpoint")
    # The standby may die as well, and comes back by itself.
    for who in descendants(process.identity(standby.pid) or pytest.fail("no standby")):
        process.send_signal(who, signal.SIGKILL)
    stand_still(run)
    seen, before = run.step(), digests(run)
    run.end()
    shutil.rmtree(run.run.path)

    standby.send_signal(signal.SIGTERM)
    said, _ = standby.communicate(timeout=30)
    assert standby.returncode == 0, said
    found = re.search(r"left; this copy goes on from step (\d+)", said)
    assert found, said
    last = int(found[1])
    assert last in {seen, seen + 1}  # what was under way may still have been committed

    steps = str(last + 4)
    resumed = Run(python("run.py", "--resume", "--run", str(copy), "--steps", steps), copy)
    assert resumed.finish(120) == 0, resumed.story()
    made_again = [r for r in resumed.log("optimizer_shard/1") if "made again" in r["event"]]
    assert [record["upto"] for record in made_again] == [last]
    arrived = digests(resumed)
    assert arrived[:seen] == before
    undisturbed = start("--steps", steps, settings=SETTINGS, path=tmp_path / "undisturbed")
    assert undisturbed.finish(120) == 0, undisturbed.story()
    assert arrived == digests(undisturbed)
    wait_until(lambda: not resumed.leftovers(), 10, "the end of everything")
