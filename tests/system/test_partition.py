"""The network between a run and the host of its attached workers goes away and comes back."""

import json
import shutil
import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.harness import ROOT, python
from tests.system.conftest import STEPS_IN_PEACE, Run, digests
from tests.system.test_graph import Start, command
from tests.system.test_remote_workers import NAME, elsewhere, invited

__all__ = ["elsewhere"]  # a fixture: the other host

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.timeout(300)]

LINK = f"{NAME}a"


def guests(run: Run) -> list[dict[str, Any]]:
    done = command(run, "status", "--json")
    assert done.returncode == 0, done.stderr
    actors = json.loads(done.stdout)["actors"]
    return [actor for actor in actors if actor["name"].startswith("data_worker/guest-")]


def delivered(run: Run) -> float:
    return sum(guest["gauges"]["delivered"] for guest in guests(run))


@contextmanager
def partition() -> Generator[None]:
    """Every packet of that link is dropped, both ways, without a word."""
    rules = [
        (chain, side, LINK, "-j", "DROP") for chain, side in (("INPUT", "-i"), ("OUTPUT", "-o"))
    ]
    for rule in rules:
        done = subprocess.run(
            ["iptables", "-I", *rule], check=False, capture_output=True, text=True
        )
        if done.returncode:
            pytest.skip(f"no packet can be dropped here: {done.stderr.strip()}")
    try:
        yield
    finally:
        for rule in rules:
            subprocess.run(["iptables", "-D", *rule], check=True, capture_output=True)


def test_attached_workers_are_lost_and_found_with_the_network(
    start: Start, tmp_path: Path, elsewhere: list[str], in_peace: list[str]
):
    if shutil.which("iptables") is None:
        pytest.skip("there is no iptables command")
    run = start("--steps", "100000")
    run.until(lambda: run.step() >= 2, 120, "the second step")
    endpoint, _ = invited(run, tmp_path / "guest.key")
    knock = python("run.py", "attach", endpoint, "--key", str(tmp_path / "guest.key"))
    attached = subprocess.Popen(
        [*elsewhere, *knock, "--count", "2"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        run.until(lambda: len(guests(run)) == 2 and delivered(run) > 0, 60, "samples of guests")
        with partition():
            run.until(lambda: not guests(run), 60, "the guests to be missed")
            step = run.step()
            run.until(lambda: run.step() > step + 2, 60, "steps without them")
        run.until(lambda: len(guests(run)) == 2 and delivered(run) > 0, 90, "them, again")
        assert attached.poll() is None, "they had to be started again"
        run.until(lambda: run.step() >= STEPS_IN_PEACE, 120, "enough steps")
        assert command(run, "stop").returncode == 0
        assert run.finish(60) == 130, run.story()
    finally:
        attached.kill()
        attached.communicate(timeout=30)
    assert digests(run)[:STEPS_IN_PEACE] == in_peace
    assert run.leftovers() == []
    lost = [record for record in run.log("loader") if record["event"] == "remote worker lost"]
    assert {record["worker"] for record in lost} == {"data_worker/guest-0", "data_worker/guest-1"}
    assert all("silent" in record["why"] for record in lost)
