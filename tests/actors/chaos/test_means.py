"""What is done to processes, done to one of our own."""

import os
import random
import select
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest

from actors import process
from actors.chaos import damage, means, threads
from actors.chaos.links import Cable
from actors.rundir import RunDir
from protocol.clock import MonotonicClock
from tests.harness import wait_until

# Computes with the interpreter's lock; another thread wakes ten times a second.
BUSY = """
import threading, select
def beat():
    while True:
        select.select([], [], [], 0.1)
        print("beat", flush=True)
threading.Thread(target=beat, daemon=True).start()
print("begun", flush=True)
while True:
    sum(i * i for i in range(100_000))
    select.select([], [], [], 0.02)
"""


@pytest.fixture
def victim() -> Iterator[subprocess.Popen[bytes]]:
    popen = subprocess.Popen([sys.executable, "-c", BUSY], stdout=subprocess.PIPE)
    assert popen.stdout is not None
    popen.stdout.readline()
    yield popen
    popen.kill()
    popen.wait()
    popen.stdout.close()


def needs_ptrace() -> None:
    why = means.missing(Path.cwd()).get("ptrace", "")
    if why:
        pytest.skip(why)


def beats(popen: subprocess.Popen[bytes], s: float) -> int:
    """How often it is heard in that time."""
    assert popen.stdout is not None
    os.set_blocking(popen.stdout.fileno(), False)
    time.sleep(0.2)
    popen.stdout.read()
    time.sleep(s)
    return len((popen.stdout.read() or b"").split())


@pytest.mark.parametrize("lock", [True, False])
def test_a_thread_stands_still_with_or_without_the_lock(
    victim: subprocess.Popen[bytes], lock: bool
):
    needs_ptrace()
    stopped = threads.stuck(
        victim.pid, lock=lock, watch_s=0.3, within_s=20.0, clock=MonotonicClock()
    )
    assert stopped is not None
    heard = beats(victim, 0.6)
    stopped.release()
    assert (heard == 0) == lock
    assert beats(victim, 0.6) > 0


def test_a_stopped_thread_dies_with_its_process_once_its_tracer_has_looked(
    victim: subprocess.Popen[bytes],
):
    needs_ptrace()
    who = process.identity(victim.pid)
    assert who is not None
    stopped = threads.Stopped(victim.pid)
    assert not stopped.reap()
    victim.kill()
    wait_until(stopped.reap, 5.0, "its end")
    assert not process.alive(who)


def test_whoever_is_held_can_be_killed_at_any_time(victim: subprocess.Popen[bytes]):
    needs_ptrace()
    who = process.identity(victim.pid)
    assert who is not None
    clock = MonotonicClock()
    holder = threads.Holder(victim.pid, lock=True, watch_s=0.3, within_s=20.0, clock=clock)
    wait_until(lambda: holder.caught is not None, 25.0, "its being caught")
    assert holder.caught
    victim.kill()
    wait_until(lambda: not process.alive(who), 5.0, "its end")
    holder.join(5.0)
    assert not holder.is_alive()


def test_a_process_leaves_by_itself_with_the_code_it_is_told(victim: subprocess.Popen[bytes]):
    needs_ptrace()
    threads.Stopped(victim.pid).exit(3)
    assert victim.wait(5.0) == 3


def test_a_process_without_memory_to_spare_cannot_grow():
    code = "print(1, flush=True); input(); bytearray(1 << 26)"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as popen:  # fmt: skip
        assert popen.stdout is not None
        popen.stdout.readline()
        means.starve(popen.pid, 1 << 19)
        _, err = popen.communicate(b"\n", 10.0)
    assert b"MemoryError" in err
    assert popen.returncode == 1


def test_a_process_in_a_small_group_is_killed_when_it_grows():
    group = means.memory_group("trireme-test")
    if group is None:
        pytest.skip("no control group for memory can be made here")
    code = "print(1, flush=True); input(); print(len(b'x' * (1 << 26)))"
    try:
        with subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as popen:
            assert popen.stdout is not None
            popen.stdout.readline()
            group.squeeze(popen.pid, 1 << 19)
            with suppress(BrokenPipeError):
                popen.communicate(b"\n", 20.0)
        assert popen.returncode == -signal.SIGKILL
    finally:
        group.close()


def test_a_full_disk_takes_nothing_until_it_is_emptied(tmp_path: Path):
    disk = tmp_path / "disk"
    why = means.mount(disk, 4 << 20)
    if why:
        pytest.skip(why)
    try:
        damage.fill(disk)
        with pytest.raises(OSError, match="No space"):
            (disk / "more").write_bytes(b"x" * 8192)
        damage.empty(disk)
        (disk / "more").write_bytes(b"x" * 8192)
    finally:
        means.unmount(disk)
    assert not disk.exists()


def test_a_damaged_ledger_is_noticed_and_its_copy_is_whole(tmp_path: Path):
    run = RunDir(tmp_path)
    with closing(sqlite3.connect(run.ledger)) as database:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("CREATE TABLE one (a, b)")
        database.executemany("INSERT INTO one VALUES (?, ?)", [(i, "x" * 50) for i in range(5000)])
        database.commit()
    ledger = damage.Ledger(run, tmp_path / "copies")
    where = ledger.damage(random.Random(3), 7)
    assert where.startswith("page ")
    ledger.outlived(9)  # what was under way
    assert ledger.damaged
    with closing(sqlite3.connect(run.ledger)) as database, suppress(sqlite3.DatabaseError):
        assert database.execute("PRAGMA quick_check").fetchall() != [("ok",)]
    ledger.mend()
    with closing(sqlite3.connect(run.ledger)) as database:
        assert database.execute("SELECT count(*) FROM one").fetchone() == (5000,)
    ledger.damage(random.Random(3), 7)
    ledger.outlived(20)  # another loader has gone on
    assert not ledger.damaged


# --- The cable ------------------------------------------------------------------------------------


class Echo:
    """Says back what it hears."""

    def __init__(self) -> None:
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self.socket.accept()
                threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):
            while data := connection.recv(4096):
                connection.sendall(data)

    def close(self) -> None:
        self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()
        self._thread.join()


@pytest.fixture
def cable() -> Iterator[Cable]:
    echo = Echo()
    cable = Cable(echo.port)
    yield cable
    cable.close()
    echo.close()


def dial(cable: Cable) -> socket.socket:
    return socket.create_connection(("127.0.0.1", cable.port), timeout=5.0)


def answers(connection: socket.socket, s: float = 5.0) -> bytes:
    connection.sendall(b"hello")
    readable, _, _ = select.select([connection], [], [], s)
    return connection.recv(5) if readable else b""


def test_a_cable_carries_is_cut_and_is_healed(cable: Cable):
    with dial(cable) as connection:
        assert answers(connection) == b"hello"
        cable.cut()
        with suppress(ConnectionError):
            assert connection.recv(1) == b""
    with dial(cable) as refused, suppress(ConnectionError):
        assert refused.recv(1) == b""
    cable.heal()
    with dial(cable) as connection:
        assert answers(connection) == b"hello"


def test_a_mute_cable_delays_and_loses_nothing(cable: Cable):
    with dial(cable) as connection:
        assert answers(connection) == b"hello"
        cable.mute()
        assert answers(connection, 0.3) == b""
        cable.heal()
        readable, _, _ = select.select([connection], [], [], 5.0)
        assert readable
        assert connection.recv(5) == b"hello"
