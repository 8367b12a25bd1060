"""One worker, with the test in the loader's place."""

import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

from actors.data.alone import talk
from actors.data.alone.slots import Arena
from actors.data.alone.steps import step_of
from actors.data.alone.worker import Job, Worker

_COMPUTING = "import time\nwhile time.process_time() < 0.3: pass"


@contextmanager
def worker(*stages: Callable[[Any], Any]) -> Generator[socket.socket]:
    """The loader's end of its link."""
    job = Job(tuple(map(step_of, stages)), 0, False, 1 << 20, 1 << 30)
    arena = Arena(1, 1 << 20)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.settimeout(30)

    def life() -> None:
        Worker(theirs, arena, 0, job, ()).run()

    thread = threading.Thread(target=life, daemon=True)
    thread.start()
    with ours, theirs:
        try:
            yield ours
        finally:
            ours.send(talk.encode(talk.Leave()))
            thread.join(30)
            assert not thread.is_alive()
            arena.close()


def give(link: socket.socket, samples: list[int], cutoff_s: float = 1e9) -> None:
    tasks = [talk.Task(i, 0, i, 0, cutoff_s, None) for i in samples]
    link.send(talk.encode(talk.Work(tasks, [])))


def hear(link: socket.socket) -> talk.Report:
    report = talk.FromWorker.decode(link.recv(2 * talk.PACKET_BYTES))
    assert isinstance(report, talk.Report)
    return report


def test_computing_of_programs_that_it_ran_is_its_own():
    def run(i: int) -> int:
        subprocess.run([sys.executable, "-c", _COMPUTING], check=True)
        return i

    with worker(run) as link:
        give(link, [0])
        report = hear(link)
    assert [done.lease for done in report.done] == [0]
    assert report.cpu_s > 0.3


def test_results_are_sent_while_a_step_takes_long():
    may_go_on = threading.Event()

    def step(i: int) -> int:
        if i == 2:
            may_go_on.wait(30)
        return i

    with worker(step) as link:
        give(link, [0, 1, 2, 3])
        early = [done.lease for done in hear(link).done]
        while len(early) < 2:
            early += [done.lease for done in hear(link).done]
        may_go_on.set()
        late = [done.lease for done in hear(link).done]
        while len(late) < 2:
            late += [done.lease for done in hear(link).done]
    assert (early, late) == ([0, 1], [2, 3])


def test_what_is_handed_over_is_sent_at_once():
    may_go_on = threading.Event()

    def first(i: int) -> int:
        if i == 1:
            may_go_on.wait(30)
        return i

    with worker(first, abs) as link:
        give(link, [0, 1], cutoff_s=0.0)
        assert [over.lease for over in hear(link).over] == [0]
        may_go_on.set()
        assert [over.lease for over in hear(link).over] == [1]
