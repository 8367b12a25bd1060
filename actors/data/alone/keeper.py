"""Keeps the workers of a loader: forks them, notices their end, goes when the loader goes.

It is forked once, before the loader has threads or the program has a GPU, and stands aside from
then on: a replacement for a dead worker is forked from it and not from a program in the middle of
training. It has the data set and the functions from the program it was forked from, so any will
do. Keeper and workers have a session of their own and do not heed SIGINT and SIGTERM: a scheduler
that signals the whole job stops the program, which may still want its batches for a checkpoint;
when the program has gone, they go.
"""

import contextlib
import gc
import os
import select
import signal
import socket
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn

from actors import process
from actors.data.alone import talk, worker
from actors.data.alone.slots import Arena
from actors.data.alone.worker import Job
from actors.ourselves import die_with_parent, set_name

_HEEDLESS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# A keeper that was told to go takes a moment, whatever the machine has to do besides.
_PATIENCE_S = 5.0


@dataclass(frozen=True, slots=True)
class Kept:
    """The loader's hold on its keeper."""

    pid: int
    pidfd: int
    link: socket.socket

    def fork(self, request: talk.Fork, theirs: socket.socket) -> None:
        """Ask for a worker, with its end of a socket. Raises OSError when the keeper is gone."""
        socket.send_fds(self.link, [talk.encode(request)], [theirs.fileno()])

    def kill(self, seat: int, life: int) -> None:
        """Ask for a worker's end. Raises OSError when the keeper is gone."""
        self.link.send(talk.encode(talk.Kill(seat, life)))

    def hear(self) -> talk.Ended | None:
        """An end, if there is news. Raises `EOFError` when the keeper is gone."""
        try:
            packet = self.link.recv(talk.PACKET_BYTES, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return None
        except ConnectionError:
            packet = b""
        if not packet:
            raise EOFError("the keeper of the workers is gone")
        return talk.FromKeeper.decode(packet)

    def close(self) -> None:
        """End it and all workers, and wait for it."""
        # Whoever was forked since, the keeper of another loader for one, has a copy of the link:
        # to close ours alone would tell nobody.
        with contextlib.suppress(OSError):  # it has gone before us
            self.link.shutdown(socket.SHUT_RDWR)
        self.link.close()
        end = select.poll()
        end.register(self.pidfd, select.POLLIN)
        if not end.poll(_PATIENCE_S * 1000):
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)  # its workers go with it
        with contextlib.suppress(ChildProcessError):  # a program that reaps everybody's children
            os.waitpid(self.pid, 0)
        os.close(self.pidfd)


def start(arena: Arena, job: Job) -> Kept:
    """Fork a keeper. Raises OSError."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    loader = os.getpid()
    pid = os.fork()
    if pid:
        theirs.close()
        return Kept(pid, os.pidfd_open(pid), ours)
    ours.close()
    return _child(lambda: _keep(theirs, loader, arena, job))


def _child(live: Callable[[], object]) -> NoReturn:
    """In a forked process: live, and end without the program's own endings."""
    code = 1
    try:
        live()
        code = 0
    except BaseException:  # noqa: BLE001 - the process's outermost frame: say it, then end
        traceback.print_exc()
    finally:
        os._exit(code)


def _keep(link: socket.socket, loader: int, arena: Arena, job: Job) -> None:
    if os.getppid() != loader:
        return
    watched = os.pidfd_open(loader)  # the link may have copies in programs that it forks
    _stand_aside("trireme-keeper")
    gc.collect()
    gc.freeze()  # what is here now is never collected, so its pages stay shared with the workers
    Keeper(link, watched, arena, job).run()


def _stand_aside(name: str) -> None:
    """Whoever signals the program does not mean us."""
    signal.set_wakeup_fd(-1)
    for number in _HEEDLESS:
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()
    set_name(name)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)


class Keeper:
    """The loop of the keeper's process."""

    def __init__(self, link: socket.socket, loader: int, arena: Arena, job: Job) -> None:
        """`loader`: a pidfd of it."""
        self._link, self._loader, self._arena, self._job = link, loader, arena, job
        self._seats: dict[int, tuple[int, int, int]] = {}  # pid -> seat, life, pidfd
        link.setblocking(False)  # recv_fds of Python 3.11 does not hand its flags on
        self._poll = select.poll()
        for fd in (link.fileno(), loader):
            self._poll.register(fd, select.POLLIN)

    def run(self) -> None:
        """Until the loader is gone; then everybody ends."""
        while self._hear():
            if self._loader in dict(self._poll.poll()):
                break
            self._reap()
        for pid in self._seats:
            os.kill(pid, signal.SIGKILL)

    def _hear(self) -> bool:
        while True:
            try:
                packet, fds, _, _ = socket.recv_fds(self._link, talk.PACKET_BYTES, 4)
            except BlockingIOError:
                return True
            except ConnectionError:
                return False
            if not packet:
                return False
            match talk.ToKeeper.decode(packet):
                case talk.Fork() as request:
                    self._fork(request, socket.socket(fileno=fds[0]))
                case talk.Kill(seat, life):
                    for pid, (its_seat, its_life, _) in self._seats.items():
                        if (its_seat, its_life) == (seat, life):
                            os.kill(pid, signal.SIGKILL)  # ours and not reaped: it is that one

    def _fork(self, request: talk.Fork, theirs: socket.socket) -> None:
        keeper = os.getpid()
        pid = os.fork()
        if not pid:
            _child(lambda: self._become(request, theirs, keeper))
        theirs.close()
        fd = os.pidfd_open(pid)
        self._seats[pid] = request.seat, request.life, fd
        self._poll.register(fd, select.POLLIN)

    def _become(self, request: talk.Fork, link: socket.socket, keeper: int) -> None:
        die_with_parent()  # a keeper has but one thread, so it is the process that is meant
        if os.getppid() != keeper:
            return
        self._link.close()
        for fd in (self._loader, *(fd for _, _, fd in self._seats.values())):
            os.close(fd)
        _stand_aside(f"trireme-data-{request.seat}")
        worker.main(link, self._arena, request.seat, self._job, request.taken)

    def _reap(self) -> None:
        for end in process.reap():
            known = self._seats.pop(end.pid, None)
            if known is None:
                continue
            seat, life, fd = known
            self._poll.unregister(fd)
            os.close(fd)
            with contextlib.suppress(OSError):  # the loader is gone: `_hear` notices
                self._link.send(talk.encode(talk.Ended(seat, life, end.code, end.max_rss_bytes)))
