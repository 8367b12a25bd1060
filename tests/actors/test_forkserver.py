"""The forkserver, with real processes: what is asked, what is answered, what is left."""

import contextlib
import json
import os
import select
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from actors import forkserver, process
from actors.forkserver import Exited, Fork, Forked, Leave, NotForked, Ready, Reply
from actors.seat import Seat

pytestmark = pytest.mark.system


class Client:
    """A supervisor, as far as a forkserver can tell."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.settimeout(20.0)
        self.socket.connect(os.fspath(path))

    def say(self, request: forkserver.Request) -> None:
        self.socket.send(msgspec.json.encode(request))

    def hear(self) -> Reply:
        packet = self.socket.recv(forkserver.MAX_MESSAGE)
        assert packet, "the forkserver hung up"
        return msgspec.json.decode(packet, type=Reply)

    def quiet(self, s: float) -> bool:
        return not select.select([self.socket], [], [], s)[0]


class Server:
    """One light forkserver and everything it made."""

    def __init__(self, tmp: Path, grace_s: float = 10.0) -> None:
        self.tmp = tmp
        self.run_id = f"test{os.getpid():x}"
        self.path = tmp / "fork.sock"
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            listener.bind(os.fspath(self.path))
            listener.listen(4)
            self.who = process.start(
                process.python(
                    "-m",
                    "actors.forkserver",
                    "--preload=light",
                    f"--orphan-grace-s={grace_s}",
                    f"--run-dir={tmp}",
                ),
                output=tmp / "forkserver.stderr",
                env=process.environment(self.run_id, OMP_NUM_THREADS="1"),
                stdin=listener.fileno(),
            )

    def fork(self, entry: str, name: str = "data_worker/0", incarnation: int = 1, **what) -> Fork:
        seat = Seat(
            run_dir=str(self.tmp),
            run_id=self.run_id,
            socket_dir=str(self.tmp),
            name=name,
            role="data_worker",
            incarnation=incarnation,
            **what,
        )
        return Fork(
            entry=f"tests.actors.children:{entry}", seat=seat, stderr=str(self.tmp / "actor.stderr")
        )

    def printed(self) -> str:
        path = self.tmp / "actor.stderr"
        return path.read_text() if path.exists() else ""

    def gone(self) -> bool:
        list(process.reap(self.who.pid))
        return not process.alive(self.who)

    def end(self) -> None:
        for who in process.of_run(self.run_id):
            process.send_signal(who, signal.SIGKILL)
        wait_until(self.gone)


def wait_until(happened: Callable[[], bool], s: float = 10.0) -> None:
    end = time.monotonic() + s
    while not happened():
        assert time.monotonic() < end, "it did not happen in time"
        select.select([], [], [], 0.005)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path)
    yield server
    server.end()


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    client = Client(server.path)
    assert isinstance(client.hear(), Ready)
    yield client
    client.socket.close()


def test_a_warm_process_has_one_thread_and_no_children(server: Server):
    with contextlib.closing(Client(server.path).socket) as connected:
        client = Client.__new__(Client)
        client.socket = connected
        ready = client.hear()
    assert isinstance(ready, Ready)
    assert (ready.threads, ready.children, ready.who) == (1, (), server.who)


def test_an_actor_is_its_own_session_with_its_own_settings(server: Server, client: Client):
    cpu = max(os.sched_getaffinity(0))
    client.say(server.fork("describe", cpus=(cpu, 4000), nice=3))
    forked = client.hear()
    assert isinstance(forked, Forked)
    ended = client.hear()
    assert isinstance(ended, Exited)
    assert (ended.code, ended.life.who) == (7, forked.life.who)
    said = json.loads(server.printed())
    assert said["sid"] == forked.life.who.pid
    assert (said["cpus"], said["nice"], said["comm"]) == ([cpu], 3, "data_worker/0")
    assert said["group"] == "" or said["group"].endswith(" nice 3\n")
    assert said["fds"] == [0, 1, 2]


def test_a_child_begins_in_a_tenth_of_a_second(server: Server, client: Client):
    took = []
    for life in range(5):
        before = time.monotonic()
        client.say(server.fork("stamp", incarnation=life))
        forked, ended = client.hear(), client.hear()
        assert isinstance(forked, Forked)
        assert isinstance(ended, Exited)
        began = float(server.printed().split()[-1])
        took.append(began - before)
    assert min(took) < 0.1, took  # the machine may be busy with other things


def test_a_killed_child_is_reported_with_its_signal(server: Server, client: Client):
    client.say(server.fork("sleep"))
    forked = client.hear()
    assert isinstance(forked, Forked)
    process.send_signal(forked.life.who, signal.SIGKILL)
    ended = client.hear()
    assert isinstance(ended, Exited)
    assert process.words(ended.code) == "killed by SIGKILL"
    assert ended.max_rss_bytes > 1_000_000


def test_what_a_killed_child_had_started_goes_with_it(server: Server, client: Client):
    client.say(server.fork("have_a_child"))
    forked = client.hear()
    assert isinstance(forked, Forked)
    wait_until(lambda: "\n" in server.printed())
    grandchild = process.identity(int(server.printed().split()[-1]))
    assert grandchild is not None
    process.send_signal(forked.life.who, signal.SIGKILL)
    assert isinstance(client.hear(), Exited)
    wait_until(lambda: not process.alive(grandchild))


def test_asking_twice_makes_one_process(server: Server, client: Client):
    client.say(server.fork("sleep"))
    client.say(server.fork("sleep"))
    assert client.hear() == client.hear()


def test_a_second_life_is_refused_while_the_first_goes_on(server: Server, client: Client):
    client.say(server.fork("sleep", incarnation=1))
    client.say(server.fork("sleep", incarnation=2))
    first, second = client.hear(), client.hear()
    assert isinstance(first, Forked)
    assert isinstance(second, NotForked)
    assert "incarnation 1 still lives" in second.reason


def test_a_crash_leaves_its_traceback_in_the_actors_own_file(server: Server, client: Client):
    client.say(server.fork("crash"))
    assert isinstance(client.hear(), Forked)
    ended = client.hear()
    assert isinstance(ended, Exited)
    assert ended.code == 1
    assert "ValueError: on purpose" in server.printed()


def test_children_outlive_their_supervisor_and_the_next_one_hears_of_them(
    server: Server, client: Client
):
    client.say(server.fork("sleep", name="data_worker/0"))
    client.say(server.fork("sleep", name="data_worker/1"))
    lives = [client.hear().life, client.hear().life]  # type: ignore[union-attr]
    client.socket.close()
    process.send_signal(lives[1].who, signal.SIGKILL)
    wait_until(lambda: not process.alive(lives[1].who))
    second = Client(server.path)
    ready = second.hear()
    assert isinstance(ready, Ready)
    remembered = second.hear()
    assert isinstance(remembered, Exited)
    assert remembered.life == lives[1]
    assert lives[0] in ready.children
    second.socket.close()


def test_nonsense_is_answered_with_nothing_and_does_no_harm(server: Server, client: Client):
    client.socket.send(b"\xff\xfe not json")
    client.socket.send(b'{"type": "Fork", "entry": 3}')
    client.socket.send(b'{"type": "Format", "disk": "/"}')
    assert client.quiet(0.2)
    client.say(server.fork("sleep"))
    assert isinstance(client.hear(), Forked)


def test_it_leaves_when_told_and_its_children_go_on(server: Server, client: Client):
    client.say(server.fork("sleep"))
    forked = client.hear()
    assert isinstance(forked, Forked)
    client.say(Leave())
    wait_until(server.gone)
    assert process.alive(forked.life.who)


def test_it_leaves_when_nobody_needs_it(tmp_path: Path):
    server = Server(tmp_path, grace_s=0.5)
    client = Client(server.path)
    client.hear()
    assert not server.gone()
    client.socket.close()
    wait_until(server.gone)
    server.end()


def test_an_actor_can_be_started_without_a_forkserver(server: Server):
    fork = server.fork("describe")
    who = process.start(
        process.python("-m", "actors.forkserver", "--solo", msgspec.json.encode(fork).decode()),
        output=server.tmp / "solo.stderr",
        env=process.environment(server.run_id),
    )
    wait_until(lambda: not process.alive(who))
    (ended,) = process.reap(who.pid)
    assert ended.code == 7
