"""Data workers in a network namespace of their own: another host, as far as TCP can tell."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from protocol.keys import KeyFile
from protocol.transport import new_keypair
from tests.harness import ROOT, python
from tests.system.conftest import Run

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.timeout(300)]

Start = Callable[..., Run]
NAME = f"tri{os.getpid() % 10_000}"
OURS, THEIRS = "10.77.41.1", "10.77.41.2"


def ip(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["ip", *arguments], check=False, capture_output=True, text=True)


def laid() -> str:
    """Lay a cable to a new namespace; why that cannot be done, else ""."""
    if shutil.which("ip") is None:
        return "there is no ip command (iproute2)"
    for arguments in (
        ("netns", "add", NAME),
        ("link", "add", f"{NAME}a", "type", "veth", "peer", "name", f"{NAME}b"),
        ("link", "set", f"{NAME}b", "netns", NAME),
        ("addr", "add", f"{OURS}/24", "dev", f"{NAME}a"),
        ("link", "set", f"{NAME}a", "up"),
        ("-n", NAME, "addr", "add", f"{THEIRS}/24", "dev", f"{NAME}b"),
        ("-n", NAME, "link", "set", f"{NAME}b", "up"),
    ):
        done = ip(*arguments)
        if done.returncode:
            return f"no network namespaces here: {done.stderr.strip()}"
    return ""


@pytest.fixture
def elsewhere() -> Iterator[list[str]]:
    """How a command line begins that runs on the other host."""
    problem = laid()
    try:
        if problem:
            pytest.skip(problem)
        yield ["ip", "netns", "exec", NAME]
    finally:
        if shutil.which("ip"):
            ip("netns", "del", NAME)
            ip("link", "del", f"{NAME}a")


def call(*command: str, s: float = 60.0) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True, timeout=s)


def guests(run: Run) -> list[dict[str, Any]]:
    done = call(*python("run.py", "status", "--json", "--run", str(run.run.path)))
    assert done.returncode == 0, done.stderr
    actors = json.loads(done.stdout)["actors"]
    return [actor for actor in actors if actor["name"].startswith("data_worker/guest-")]


def invited(run: Run, path: Path) -> tuple[str, KeyFile]:
    """Where to knock from the other host, and the key to do it with."""
    arguments = ("--role", "data_worker", "--label", "guest", "--out", str(path))
    done = call(*python("run.py", "invite", "--run", str(run.run.path), *arguments))
    assert done.returncode == 0, done.stderr
    key = KeyFile.read(path)
    return f"tcp://{OURS}:{key.endpoint.rpartition(':')[2]}", key


def test_workers_elsewhere_deliver_samples_and_a_wrong_key_opens_nothing(
    start: Start, tmp_path: Path, elsewhere: list[str]
):
    run = start("--steps", "100000")
    run.until(lambda: run.step() >= 2, 120, "the second step")
    endpoint, key = invited(run, tmp_path / "guest.key")

    public, secret = new_keypair()
    msgspec.structs.replace(key, public_key=public, secret_key=secret).write(tmp_path / "wrong.key")
    knock = python("run.py", "attach", endpoint, "--key")
    refused = call(*elsewhere, *knock, str(tmp_path / "wrong.key"))
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "refuse" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert guests(run) == []

    attached = subprocess.Popen(
        [*elsewhere, *knock, str(tmp_path / "guest.key"), "--count", "2"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        run.until(
            lambda: [guest["gauges"]["delivered"] > 0 for guest in guests(run)] == [True, True],
            60,
            "samples of two guests",
        )
    finally:
        attached.terminate()
        said, _ = attached.communicate(timeout=30)
    assert attached.returncode == 0, said
    run.until(lambda: not guests(run), 20, "the guests to be gone")
    events = [record["event"] for record in run.log("loader")]
    assert events.count("remote worker joined") == events.count("remote worker left") == 2
