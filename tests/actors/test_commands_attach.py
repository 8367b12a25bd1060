"""`run.py attach` against a supervisor and a loader played by bare Nodes."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner, Result

from actors import rundir
from actors.commands import attach as attach_module
from actors.commands.attach import attach
from actors.commands.revoke import revoke
from actors.data.tokenizer import digest_of, train
from protocol import messages as m
from protocol import tensors
from protocol.clock import Deadline, MonotonicClock
from protocol.keys import AllowList, KeyFile, ServerCurve
from protocol.transport import Node, new_keypair

CLOCK = MonotonicClock()
ROOT = Path(__file__).parents[2]
TOKENIZER = train(["def f():\n    return 1\n"] * 20, 280)


class House(threading.Thread):
    """A loader that leases one sample after the other to whoever asks over tcp."""

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self.allow = AllowList(directory / "allowed")
        self.finished: dict[str, int] = {}
        self.left: list[str] = []
        self.say_stop = threading.Event()
        self.over = threading.Event()
        self.node = Node("loader", "loader", 0, CLOCK)
        public, secret = new_keypair()
        self.server_key = public
        curve = ServerCurve(public, secret, self.allow)
        self.endpoint = self.node.bind("remote", "tcp://127.0.0.1:0", curve)
        self._lease = 0

    def run(self) -> None:
        with self.node:
            while not self.over.is_set():
                for received in self.node.poll(0.02):
                    self._answer(received.sender, received.message)
                    if isinstance(received.message, m.SampleReady):
                        tensors.read(received.message.tokens, received.frames)

    def _answer(self, who: str, message: m.Message) -> None:
        match message:
            case m.JoinPool():
                plan = m.DataPlan(
                    tokenizer_digest=digest_of(TOKENIZER),
                    stages=("read", "verify", "tokenize"),
                    cutoff_s=1e9,
                    max_sample_bytes=1000,
                    heartbeat_s=0.05,
                    options={"credit": 1},
                )
                self.node.send("remote", plan, to=who, frames=[TOKENIZER])
            case m.LeaseRequest(credit=credit):
                self.node.send("remote", m.Welcome(peers={}), to=who)
                if self.say_stop.is_set():
                    self.node.send("remote", m.Stop(reason="done", within_s=1.0), to=who)
                elif credit:
                    self._lease += 1
                    ref = m.SampleRef(name="a.py", language="python", path="/absent")
                    lease = m.Lease(
                        lease=self._lease,
                        epoch=0,
                        sample=0,
                        attempt=1,
                        ref=ref,
                        stage=1,
                        expires_s=9.0,
                    )
                    self.node.send("remote", lease, to=who, frames=[b"x = 1\n"])
            case m.SampleReady():
                self.finished[who] = self.finished.get(who, 0) + 1
            case m.Goodbye():
                self.left.append(who)
            case _:
                pass


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    made = House(tmp_path)
    made.start()
    yield made
    made.over.set()
    made.join()


def key_for(house: House, path: Path, *, invited: bool = True) -> Path:
    public, secret = new_keypair()
    if invited:
        house.allow.admit("data_worker", "attic", public)
    key = KeyFile(
        role="data_worker",
        label="attic",
        endpoint=house.endpoint,
        server_key=house.server_key,
        public_key=public,
        secret_key=secret,
    )
    key.write(path / "attic.key")
    return path / "attic.key"


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = Deadline.after(CLOCK, 30.0, what)
    while not condition():
        deadline.check()
        time.sleep(0.02)


@contextmanager
def attached(house: House, key: Path, *options: str) -> "Generator[subprocess.Popen[str]]":
    """The command in a process of its own, as a terminal would run it."""
    command = [sys.executable, "run.py", "attach", house.endpoint, "--key", str(key), *options]
    process = subprocess.Popen(
        command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def children_of(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in text.split()]


def call(*arguments: str) -> Result:
    return CliRunner().invoke(attach, list(arguments))


# --- attach ---------------------------------------------------------------------------------------


@pytest.mark.system
def test_workers_join_deliver_and_leave_politely(house: House, tmp_path: Path):
    with attached(house, key_for(house, tmp_path), "--count", "2") as process:
        until(lambda: len(house.finished) == 2 and min(house.finished.values()) > 3, "samples")
        assert sorted(house.finished) == ["data_worker/attic-0", "data_worker/attic-1"]
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=20)
    assert process.returncode == 130
    assert out.endswith("left the run\n")
    until(lambda: sorted(house.left) == sorted(house.finished), "goodbyes")


@pytest.mark.system
def test_a_worker_that_is_killed_is_replaced(house: House, tmp_path: Path):
    with attached(house, key_for(house, tmp_path)) as process:
        until(lambda: bool(house.finished), "a sample")
        (worker,) = children_of(process.pid)
        os.kill(worker, signal.SIGKILL)
        until(lambda: children_of(process.pid) not in ([], [worker]), "another worker")
        before = sum(house.finished.values())
        until(lambda: sum(house.finished.values()) > before + 3, "its samples")


@pytest.mark.system
def test_the_end_of_the_run_ends_the_attachment(house: House, tmp_path: Path):
    with attached(house, key_for(house, tmp_path)) as process:
        until(lambda: bool(house.finished), "a sample")
        house.say_stop.set()
        out, _ = process.communicate(timeout=20)
    assert process.returncode == 0
    assert out.endswith("the run has ended\n")


@pytest.mark.system
def test_a_host_that_is_revoked_is_out_within_seconds(tmp_path: Path):
    run = rundir.create(tmp_path / "run")
    house = House(run.keys)
    house.start()
    try:
        path = key_for(house, tmp_path)
        with attached(house, path) as process:
            until(lambda: bool(house.finished), "a sample")
            asked = CliRunner().invoke(revoke, ["attic", "--run", str(run.path)])
            assert (asked.exit_code, asked.output) == (0, "attic is invited no more\n")
            time.sleep(1.2)
            before = dict(house.finished)
            time.sleep(0.5)
            assert house.finished == before
            process.kill()
        again = call(house.endpoint, "--key", str(path))
        assert again.exit_code == 1
        assert "never invited, or revoked" in again.output.splitlines()[-1]
        assert house.node.counters()["forbidden"] > 0
    finally:
        house.over.set()
        house.join()


def test_revoking_a_stranger_names_those_who_are_in(tmp_path: Path):
    run = rundir.create(tmp_path / "run")
    asked = CliRunner().invoke(revoke, ["attic", "--run", str(run.path)])
    assert (asked.exit_code, "there is: nobody" in asked.output) == (2, True)
    AllowList(run.keys / "allowed").admit("data_worker", "cellar", new_keypair()[0])
    asked = CliRunner().invoke(revoke, ["attic", "--run", str(run.path)])
    assert (asked.exit_code, "there is: cellar" in asked.output) == (2, True)
    run.remove_socket_dir()


@pytest.mark.system
def test_workers_do_not_outlive_the_command(house: House, tmp_path: Path):
    with attached(house, key_for(house, tmp_path)) as process:
        until(lambda: bool(house.finished), "a sample")
        (worker,) = children_of(process.pid)
        process.kill()
        until(lambda: bool(house.left), "a goodbye")
        until(lambda: not Path(f"/proc/{worker}/exe").exists(), "its end")


def test_a_key_that_was_not_invited_is_refused_in_seconds(house: House, tmp_path: Path):
    started = time.monotonic()
    result = call(house.endpoint, "--key", str(key_for(house, tmp_path, invited=False)))
    assert result.exit_code == 1
    assert "never invited, or revoked" in result.output.splitlines()[-1]
    assert time.monotonic() - started < 5.0
    assert house.finished == {}


def test_a_key_of_another_run_is_refused_in_seconds(house: House, tmp_path: Path):
    path = key_for(house, tmp_path)
    stranger = msgspec.structs.replace(KeyFile.read(path), server_key=new_keypair()[0])
    path.unlink()
    stranger.write(path)
    result = call(house.endpoint, "--key", str(path))
    assert result.exit_code == 1
    assert "not the server this key file was made for" in result.output.splitlines()[-1]


def test_silence_ends_in_words(house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(attach_module, "PATIENCE_S", 0.3)
    result = call("tcp://127.0.0.1:1", "--key", str(key_for(house, tmp_path)))
    assert result.exit_code == 1
    assert "nobody listens at tcp://127.0.0.1:1" in result.output.splitlines()[-1]


@pytest.mark.parametrize(
    "where",
    ["", "192.0.2.7:40000", "tcp://192.0.2.7", "tcp://h:0", "tcp://h:99999", "ipc:///tmp/x", "x"],
)
def test_an_endpoint_that_is_none_is_wrong_usage(house: House, tmp_path: Path, where: str):
    result = call(where, "--key", str(key_for(house, tmp_path)))
    assert result.exit_code == 2
    assert "looks like tcp://" in result.output


def test_unusable_key_files_are_wrong_usage(house: House, tmp_path: Path):
    path = key_for(house, tmp_path)
    for options, complaint in (
        (["--key", str(tmp_path / "absent")], "No such file"),
        (["--key", str(path), "--count", "0"], "--count"),
        (["--key", str(path), "--role", "trainer"], "--role"),
        ([], "--key"),
    ):
        result = call(house.endpoint, *options)
        assert (result.exit_code, complaint in result.output) == (2, True), result.output
    path.chmod(0o640)
    result = call(house.endpoint, "--key", str(path))
    assert (result.exit_code, "chmod 600" in result.output) == (2, True)


def test_a_trainers_key_is_for_one_trainer_on_a_device_there_may_be(house: House, tmp_path: Path):
    key = KeyFile.read(key_for(house, tmp_path))
    path = tmp_path / "trainer.key"
    msgspec.structs.replace(key, role="trainer", rank=1).write(path)
    for options, complaint in (
        ([], "is a key for the role trainer"),
        (["--role", "trainer", "--count", "2"], "lets one trainer in"),
        (["--role", "trainer", "--device", "tpu"], "cpu, or cuda:0"),
    ):
        result = call(house.endpoint, "--key", str(path), *options)
        assert (result.exit_code, complaint in result.output) == (2, True), result.output


def test_one_key_serves_one_attachment(house: House, tmp_path: Path):
    from actors import process

    path = key_for(house, tmp_path)
    lock = process.try_lock(path)
    assert lock is not None
    try:
        result = call(house.endpoint, "--key", str(path))
    finally:
        os.close(lock)
    assert (result.exit_code, "in use by another attach" in result.output) == (2, True)
