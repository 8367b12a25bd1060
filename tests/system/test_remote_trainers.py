"""A trainer of another host: attached, cut off, killed, shut out; the bits are as without it."""

import shutil
import signal
import subprocess
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from actors import process
from actors.chaos.links import Cable
from actors.chaos.runs import descendants
from protocol.keys import KeyFile
from tests.harness import ROOT, python
from tests.system.conftest import SMALL, Run, digests
from tests.system.test_graph import Start, command
from tests.system.test_partition import partition as dropped
from tests.system.test_remote_workers import OURS, elsewhere

__all__ = ["elsewhere"]  # a fixture: the other host

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.timeout(300)]

TWO = (
    *SMALL,
    "actors.trainers=2",
    "actors.optimizer_shards=2",
    # Every kind of message there is: sketches, bases, coded gradients and coded updates.
    "optimizer.codec=int4",
    "optimizer.dense_updates=two_bit",
    "optimizer.matrices.projection=galore",
    "optimizer.matrices.rank=8",
    "optimizer.matrices.refresh_every=5",
)
AWAY = (*TWO, "actors.remote_trainers=1", "supervision.silence_s=3.0")
STEPS = 30
WAITS = "waits for a host to attach"


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What the run arrives at when both of its trainers are its own."""
    path = tmp_path_factory.mktemp("together") / "run"
    sets = [part for setting in TWO for part in ("--set", setting)]
    run = Run(python("run.py", "--run", str(path), "--steps", str(STEPS), *sets), path)
    assert run.finish(200) == 0, run.story()
    return digests(run)


class Host:
    """Another host: a network namespace, or, where none is permitted, one behind cables."""

    def __init__(self, prefix: Sequence[str] = ()) -> None:
        self.prefix = prefix
        self._cables: list[Cable] = []

    def reaches(self, endpoint: str) -> str:
        """That endpoint of the run, as this host has to call it."""
        port = int(endpoint.rpartition(":")[2])
        if self.prefix:
            return f"tcp://{OURS}:{port}"
        self._cables.append(Cable(port))
        return f"tcp://127.0.0.1:{self._cables[-1].port}"

    @contextmanager
    def partition(self) -> Generator[None]:
        """Nothing passes, without a word."""
        if self.prefix:
            with dropped():
                yield
            return
        for cable in self._cables:
            cable.mute()
        yield
        for cable in self._cables:
            cable.heal()

    def close(self) -> None:
        for cable in self._cables:
            cable.close()


@pytest.fixture
def host(request: pytest.FixtureRequest) -> Iterator[Host]:
    try:
        found = Host(request.getfixturevalue("elsewhere") if shutil.which("iptables") else ())
    except pytest.skip.Exception:
        found = Host()
    yield found
    found.close()


def invited(run: Run, path: Path, role: str) -> tuple[KeyFile, Path]:
    done = command(run, "invite", "--role", role, "--label", "guest", "--out", str(path))
    assert done.returncode == 0, done.stderr
    return KeyFile.read(path), path


@contextmanager
def attached(host: Host, endpoint: str, key: Path, role: str) -> Generator[subprocess.Popen[str]]:
    """A trainer or worker of another host; gone afterwards, as by power cut."""
    knock = python("run.py", "attach", endpoint, "--key", str(key), "--role", role)
    popen = subprocess.Popen(
        [*host.prefix, *knock],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield popen
    finally:
        who = process.identity(popen.pid)
        for one in [*(descendants(who) if who else ()), *([who] if who else ())]:
            process.send_signal(one, signal.SIGKILL)
        popen.communicate(timeout=30)


def said(run: Run, event: str) -> list[dict[str, Any]]:
    return [record for record in run.log("trainer/1") if record["event"] == event]


def joined(run: Run) -> list[str]:
    """Every visit of an attached trainer, by its name."""
    return [record["trainer"] for record in said(run, "attached trainer joined")]


def goes_on(run: Run, visits: int) -> None:
    """Steps are made by the guest of that many visits so far."""
    run.until(lambda: len(joined(run)) >= visits, 120, f"visit {visits}")
    step = run.step()
    run.until(lambda: run.step() > step + 3, 120, f"steps after step {step}, of visit {visits}")


def lost(run: Run, why: str) -> bool:
    return any(why in record["why"] for record in said(run, "attached trainer lost"))


def test_an_attached_trainer_is_cut_off_killed_and_shut_out_and_the_bits_are_the_same(
    start: Start, tmp_path: Path, host: Host, together: list[str]
):
    run = start("--steps", "100000", settings=AWAY)
    run.until(lambda: said(run, WAITS), 120, "the stand-in")
    key, own = invited(run, tmp_path / "guest.key", "trainer")
    door, workers = invited(run, tmp_path / "worker.key", "data_worker")
    trainers = host.reaches(key.endpoint)

    stolen = msgspec.structs.replace(door, role="trainer", rank=1, label="guest")
    stolen.write(tmp_path / "stolen.key")
    with attached(host, trainers, tmp_path / "stolen.key", "trainer") as thief:
        assert thief.wait(60) == 1

    def named() -> bool:
        return any(stolen.public_key in record["why"] for record in said(run, "input dropped"))

    run.until(named, 30, "the key of a data worker to be named in the log")

    with (
        attached(host, host.reaches(door.endpoint), workers, "data_worker"),
        attached(host, trainers, own, "trainer") as popen,
    ):
        run.until(lambda: run.step() >= 2, 120, "the second step")
        came = "remote worker joined"
        run.until(lambda: came in {r["event"] for r in run.log("loader")}, 60, "the worker")
        with host.partition():
            run.until(lambda: lost(run, "silent"), 60, "the guest to be missed")
        goes_on(run, visits=2)
        assert popen.poll() is None, "it had to be started again"
    # All of that host was killed; it comes again.
    with attached(host, trainers, own, "trainer") as popen:
        goes_on(run, visits=3)
        run.until(lambda: run.step() >= STEPS, 120, "enough steps")
        assert command(run, "revoke", "guest", "--role", "trainer").returncode == 0
        assert popen.wait(60) == 1
    assert command(run, "stop").returncode == 0
    assert run.finish(60) == 130, run.story()
    assert digests(run)[:STEPS] == together
    assert run.leftovers() == []
