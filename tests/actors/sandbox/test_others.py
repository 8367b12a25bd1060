"""Sandboxed programs and everybody else: network, processes, rights."""

import contextlib
import os
import socket
import threading
from pathlib import Path

import pytest

from actors import process
from actors.sandbox.means import require
from actors.sandbox.terms import Limits, Means, TooLittle
from tests.actors.sandbox import attacks
from tests.actors.sandbox.cells import CELLS, marked, needed, python

pytestmark = pytest.mark.system

STARTER = """
import os, threading, time
from actors.sandbox import view
from actors.sandbox.running import run
from actors.sandbox.terms import HOLDS, Means

def begin():
    code = "import ctypes, time; ctypes.CDLL(None).prctl(1, 0, 0, 0, 0); time.sleep(60)"
    argv = [view.interpreter(), "-I", "-S", "-c", code, {mark!r}]  # it wants to outlive its starter
    run(argv, read_only=view.python(), using=Means({kind!r}, {user_namespace!r}, HOLDS))

threading.Thread(target=begin, daemon=True).start()
time.sleep({after_s})
os.kill(os.getpid(), 9)
"""


@pytest.fixture(params=sorted(CELLS))
def using(request: pytest.FixtureRequest) -> Means:
    return needed(request.param)


def needs_processes(using: Means) -> None:
    try:
        require("execute", using, Limits(processes=2))
    except TooLittle as error:
        pytest.skip(str(error))


def test_no_socket_reaches_anybody(using: Means, tmp_path: Path):
    name = f"{tmp_path.name}-{os.getpid()}"
    with contextlib.ExitStack() as stack:
        listening = [stack.enter_context(socket.create_server(("127.0.0.1", 0)))]
        for address in (str(tmp_path / "s"), "\0" + name):
            unix = stack.enter_context(socket.socket(socket.AF_UNIX))
            unix.bind(address)
            unix.listen()
            listening.append(unix)
        port = str(listening[0].getsockname()[1])
        outcome = python(attacks.KNOCK, using, port, str(tmp_path / "s"), name)
        for one in listening:
            one.setblocking(False)
            with pytest.raises(BlockingIOError):
                one.accept()
    assert (outcome.stdout, outcome.status) == (b"ended\n", "ok")


def test_other_processes_are_neither_signalled_nor_looked_into(using: Means, tmp_path: Path):
    bystander = process.start(
        process.python("-c", "import time; time.sleep(60)"),
        output=tmp_path / "out",
        env=process.environment(),
    )
    try:
        outcome = python(attacks.MEDDLE, using, str(bystander.pid))
        assert process.alive(bystander)
    finally:
        process.send_signal(bystander, 9)
        os.waitpid(bystander.pid, 0)
    assert (outcome.stdout, outcome.status) == (b"ended\n", "ok")


def test_a_fork_bomb_is_refused_its_first_fork(using: Means):
    outcome = python("import os\nwhile True: os.fork()", using)
    assert (outcome.status, outcome.code) == ("exit", 1)
    assert b"Operation not permitted" in outcome.stderr


def test_a_fork_bomb_stays_within_its_number_and_is_ended(using: Means):
    needs_processes(using)
    limits = Limits(wall_s=1.0, processes=12, threads=12)
    outcome = python(attacks.FORKS, using, limits=limits)
    assert outcome.status == "timeout"
    assert 2 <= len(outcome.stdout) <= 12


def test_a_daemon_that_forked_twice_dies_with_the_program(using: Means):
    needs_processes(using)
    outcome = python(attacks.DAEMON, using, limits=Limits(wall_s=20.0, processes=4))
    assert (outcome.status, outcome.stdout) == ("ok", b"left it behind\n")


def test_neither_rights_nor_limits_can_be_raised(using: Means):
    outcome = python(attacks.RISE, using)
    assert (outcome.stdout, outcome.status) == (b"ended\n", "ok")


def test_only_the_standard_descriptors_are_inherited(using: Means, tmp_path: Path):
    with (tmp_path / "secret").open("w") as file:
        os.set_inheritable(file.fileno(), True)  # as something that is not Python may have left it
        assert python(attacks.DESCRIPTORS, using).stdout == b"[0, 1, 2]\n"


def test_the_environment_is_bare(using: Means, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TRIREME_SECRET", "key")
    outcome = python("import os\nprint(*sorted(os.environ))", using)
    assert outcome.stdout.split() == b"HOME LANG LD_ORIGIN_PATH PATH TMPDIR".split()


@pytest.mark.parametrize("after_s", [0.0, 0.03, 0.6])
def test_when_its_starter_is_killed_nothing_is_left(using: Means, after_s: float):
    mark = f"orphan-{os.getpid()}-{after_s}"
    program = STARTER.format(
        mark=mark, kind=using.kind, user_namespace=using.user_namespace, after_s=after_s
    )
    code, _, said = process.call(
        process.python("-c", program), timeout_s=30, env=process.environment()
    )
    assert (code, said) == (-9, "")
    pause = threading.Event()
    for _ in range(200):
        if not marked(mark):
            return
        pause.wait(0.05)
    pytest.fail(f"left behind: {marked(mark)}")
