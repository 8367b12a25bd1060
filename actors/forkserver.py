"""A warm process that becomes any actor in milliseconds.

Importing torch takes more than a second, forking a process that has imported it takes about ten
milliseconds. So the supervisor keeps two of these, one light and one with torch, and asks them for
actors over a unix socket. They are not in the supervisor's way when it dies: a forkserver keeps
its children, goes on reaping them, and tells the next supervisor what happened meanwhile. It
leaves when told to, or when it has neither children nor a supervisor for a while; whoever of a
forsaken run leaves last takes its sockets and shared memory away.

    supervisor -> forkserver   Fork(entry, seat)   Leave()
    forkserver -> supervisor   Ready(children)     Forked(...)     NotForked(...)     Exited(...)

Forking is safe only from a process of one thread without sockets of ZeroMQ or a CUDA context:
what is preloaded must start none of them, and `Ready` says how many threads there are.

    python -m actors.forkserver --preload torch   with the listening socket as its stdin
    python -m actors.forkserver --solo JSON       becomes that one actor, without a fork
"""

import argparse
import contextlib
import faulthandler
import gc
import importlib
import os
import selectors
import signal
import socket
import sys
import traceback
from collections import deque
from pathlib import Path
from typing import NoReturn, cast

import msgspec

from actors import leftovers, numa, process, roles
from actors.process import Identity
from actors.rundir import RunDir
from actors.seat import Seat
from protocol.clock import Clock, MonotonicClock

# A seat is under a kilobyte; this leaves room and still bounds what a peer can make us hold.
MAX_MESSAGE = 65536

# Ends repeated to every new supervisor, which may have been away while they happened.
_REMEMBERED_ENDS = 256


class _Said(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True, kw_only=True):
    """Base of what travels between supervisor and forkserver, as JSON, one object a packet."""


class Fork(_Said, frozen=True):
    """Become this actor. Asking twice for one (name, incarnation) makes one process."""

    entry: str  # "package.module:function"
    seat: Seat
    stderr: str  # file that gets what it prints


class Leave(_Said, frozen=True):
    """End yourself. Children go on."""


class Life(_Said, frozen=True):
    """One child."""

    name: str
    incarnation: int
    who: Identity


class Ready(_Said, frozen=True):
    """First word to each supervisor that connects."""

    preload: str
    who: Identity
    threads: int
    children: tuple[Life, ...]


class Forked(_Said, frozen=True):
    """It lives."""

    life: Life


class NotForked(_Said, frozen=True):
    """It does not, and why."""

    name: str
    incarnation: int
    reason: str


class Exited(_Said, frozen=True):
    """A child has ended. Said again to each new supervisor."""

    life: Life
    code: int  # exit code, or minus the signal
    max_rss_bytes: int
    cpu_s: float


Request = Fork | Leave
Reply = Ready | Forked | NotForked | Exited


class Forkserver:
    """Forks on request, reaps, reports. One thread, one supervisor at a time."""

    def __init__(
        self, listener: socket.socket, preload: str, clock: Clock, *, orphan_grace_s: float
    ) -> None:
        self._listener = listener
        self._preload = preload
        self._clock = clock
        self._grace_s = orphan_grace_s
        self._children: dict[int, Life] = {}
        self._ends: deque[Exited] = deque(maxlen=_REMEMBERED_ENDS)
        self._peer: socket.socket | None = None
        self._alone_since = clock.now()
        self.told_to_leave = False
        self._wake_r, self._wake_w = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._selector = selectors.DefaultSelector()
        self._selector.register(listener, selectors.EVENT_READ, self._accept)
        self._selector.register(self._wake_r, selectors.EVENT_READ, self._woken)

    def serve(self) -> None:
        """Until told to leave, or alone for too long."""
        signal.set_wakeup_fd(self._wake_w, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, self._signalled)
        signal.signal(signal.SIGTERM, self._signalled)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        while not self.told_to_leave and not self._forgotten():
            for key, _ in self._selector.select(timeout=1.0):
                key.data()
            self._reap()

    def _signalled(self, number: int, _frame: object) -> None:
        """The wake-up pipe has told the loop already."""
        self.told_to_leave = self.told_to_leave or number == signal.SIGTERM

    def _forgotten(self) -> bool:
        alone_s = self._clock.now() - self._alone_since
        return self._peer is None and not self._children and alone_s > self._grace_s

    # --- The supervisor ---------------------------------------------------------------------------

    def _accept(self) -> None:
        peer, _ = self._listener.accept()
        peer.setblocking(False)  # one that does not listen is dropped, never waited for
        self._hang_up()  # a new supervisor replaces the old one
        self._peer = peer
        self._selector.register(peer, selectors.EVENT_READ, self._hear)
        self._say(
            Ready(
                preload=self._preload,
                who=process.myself(),
                threads=process.thread_count(),
                children=tuple(self._children.values()),
            )
        )
        for end in list(self._ends):
            self._say(end)

    def _hear(self) -> None:
        assert self._peer is not None
        try:
            packet = self._peer.recv(MAX_MESSAGE)
        except BlockingIOError:
            return
        except OSError:
            packet = b""
        if not packet:
            self._hang_up()
            return
        try:
            request = cast("Request", msgspec.json.decode(packet, type=Request))
        except msgspec.DecodeError as error:
            _note(f"not a request: {error}")
            return
        match request:
            case Fork():
                self._fork(request)
            case Leave():
                self.told_to_leave = True

    def _say(self, reply: Reply) -> None:
        if self._peer is None:
            return
        try:
            self._peer.send(msgspec.json.encode(reply))
        except OSError:  # it is gone; whoever comes next hears the state anew
            self._hang_up()

    def _hang_up(self) -> None:
        if self._peer is not None:
            self._selector.unregister(self._peer)
            self._peer.close()
            self._peer = None
            self._alone_since = self._clock.now()

    # --- Children ---------------------------------------------------------------------------------

    def _fork(self, request: Fork) -> None:
        self._reap()  # the supervisor may have noticed an end before we did
        name, incarnation = request.seat.name, request.seat.incarnation
        for life in self._children.values():
            if (life.name, life.incarnation) == (name, incarnation):
                self._say(Forked(life=life))
                return
            if life.name == name:
                reason = f"incarnation {life.incarnation} still lives as pid {life.who.pid}"
                self._say(NotForked(name=name, incarnation=incarnation, reason=reason))
                return
        try:
            pid = os.fork()
        except OSError as error:  # out of processes or memory
            self._say(NotForked(name=name, incarnation=incarnation, reason=f"fork: {error}"))
            return
        if pid == 0:
            self._forget_everything()
            become(request)
        who = process.identity(pid)  # a zombie at worst, since only we can reap it
        assert who is not None
        life = Life(name=name, incarnation=incarnation, who=who)
        self._children[pid] = life
        self._say(Forked(life=life))

    def _forget_everything(self) -> None:
        """In the child: the parent's signals and descriptors are not ours."""
        signal.set_wakeup_fd(-1)
        self._selector.close()
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        os.closerange(3, max(int(fd) for fd in os.listdir("/proc/self/fd")) + 1)

    def _woken(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake_r, 4096)

    def _reap(self) -> None:
        for end in process.reap():
            life = self._children.pop(end.pid, None)
            if life is None:
                continue  # a grandchild that was handed to us
            self._alone_since = self._clock.now()
            report = Exited(
                life=life, code=end.code, max_rss_bytes=end.max_rss_bytes, cpu_s=end.cpu_s
            )
            self._ends.append(report)
            self._say(report)


def become(request: Fork) -> NoReturn:
    """Turn this process into the actor and end with its exit code."""
    code = 1
    try:
        code = _play(request)
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else 1
    except BaseException:  # noqa: BLE001 - the process's outermost frame: say it, then end
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        # Not sys.exit: threads that hang and finalisers of the parent must not keep us.
        os._exit(code & 0xFF)


def _play(request: Fork) -> int:
    seat = request.seat
    if os.getsid(0) != os.getpid():
        os.setsid()  # a Ctrl-C in the launcher's terminal is the launcher's to handle
    _redirect(Path(request.stderr))
    process.set_name(seat.name)
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR2, all_threads=True)  # the supervisor asks before it kills
    if seat.cpus:
        try:
            os.sched_setaffinity(0, seat.cpus)
        except OSError:  # the machine has changed since the plan was made
            _note(f"none of the CPUs {sorted(seat.cpus)} may be used here; not pinned")
    _stay_near(seat.numa_node)
    if seat.nice:
        process.give_way(seat.nice)
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(max(1, seat.threads))
    module, _, function = request.entry.partition(":")
    main = getattr(importlib.import_module(module), function)
    return int(main(seat))


def _stay_near(node: int) -> None:
    """Memory of one's own node, where there are several."""
    if numa.nodes() < 2 or node < 0:
        return
    why = numa.prefer(node)
    if why:
        _note(f"memory of NUMA node {node} cannot be preferred ({why}): pages lie where they fall")


def _redirect(stderr: Path) -> None:
    """Nothing to read; everything printed goes to the actor's own file."""
    nothing = os.open(os.devnull, os.O_RDONLY)
    try:
        out = os.open(stderr, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    except OSError:  # a full disk or a read-only directory must not cost the actor its life
        out = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 0)
    os.dup2(out, 1)
    os.dup2(out, 2)
    os.close(nothing)
    os.close(out)


def warm_up(preload: roles.Preload) -> None:
    """Import what children need. Our own modules may be missing or broken: their actor will say."""
    for name in roles.PRELOADS[preload]:
        importlib.import_module(name)
    for name in roles.modules(preload):
        try:
            importlib.import_module(name)
        except Exception as error:  # noqa: BLE001 - the actor that needs it reports it in full
            _note(f"{name} cannot be imported: {type(error).__name__}: {error}")
    gc.collect()
    gc.freeze()  # what is here now is never collected, so its pages stay shared with the children


def _note(text: str) -> None:
    print(f"forkserver: {text}", file=sys.stderr, flush=True)  # noqa: T201 - a file under logs/


def main() -> None:
    """Command line of the supervisor; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="actors.forkserver")
    parser.add_argument("--preload", choices=("light", "torch"))
    parser.add_argument("--orphan-grace-s", type=float, default=10.0)
    parser.add_argument("--run-dir", type=Path)
    parser.add_argument("--solo", default="")
    wanted = parser.parse_args()
    if wanted.solo:
        become(msgspec.json.decode(wanted.solo, type=Fork))
    process.set_name(f"fork-{wanted.preload}")
    listener = socket.socket(fileno=os.dup(0))
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    warm_up(wanted.preload)
    server = Forkserver(
        listener, wanted.preload, MonotonicClock(), orphan_grace_s=wanted.orphan_grace_s
    )
    server.serve()
    if not server.told_to_leave:
        leftovers.clear_last(RunDir(wanted.run_dir))


if __name__ == "__main__":
    main()
