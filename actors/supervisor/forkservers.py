"""The supervisor's side of its forkservers: keep them warm, ask them, do without them.

Every `fork` is answered through `told`, with Forked or NotForked, whatever happens to the
forkserver meanwhile: an unanswered request is asked again of the next one, which is safe because
asking twice for one life makes one process, and because children that a dead forkserver left
without telling are ended by `sweep` before anything is asked again.

A forkserver that cannot be kept alive is given up: its actors are then started by running a new
interpreter each, slower, and it is said once.
"""

import asyncio
import os
import signal
import socket
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from actors import process
from actors.forkserver import (
    MAX_MESSAGE,
    Exited,
    Fork,
    Forked,
    Leave,
    Life,
    NotForked,
    Ready,
    Reply,
    Request,
)
from actors.process import Identity
from actors.roles import Preload
from actors.rundir import RunDir
from actors.supervisor.rationing import Rationing
from protocol.clock import Clock

# From the start of the process to its first word: importing torch on a machine that is busy.
_WARM_S = 90.0
# A warm one answers within milliseconds; one that is stopped or swapped out never does.
_ANSWER_S = 10.0
# No thread pool may exist when it forks; and threads that wait must not burn a core.
_SINGLE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
}


@dataclass(slots=True)
class _Warm:
    """One forkserver, as far as we know."""

    preload: Preload
    path: Path
    rationing: Rationing
    who: Identity | None = None
    ours: bool = False  # our child: we reap it
    peer: socket.socket | None = None
    pidfd: int | None = None
    since: float = 0.0  # when it was started or connected to
    ready: bool = False
    given_up: bool = False
    retry: asyncio.TimerHandle | None = None
    children: tuple[Life, ...] = ()  # as of its last Ready
    open: dict[tuple[str, int], tuple[Fork, float]] = field(
        default_factory=dict[tuple[str, int], tuple[Fork, float]]
    )


class Forkservers:
    """Belongs to the running event loop."""

    def __init__(
        self,
        run: RunDir,
        clock: Clock,
        *,
        preloads: Iterable[Preload],
        cpus: Collection[int],
        orphan_grace_s: float,
        told: Callable[[Reply], None],
        sweep: Callable[[], None],
        note: Callable[[str, str], None],
    ) -> None:
        """`preloads`: which are needed. `cpus`: where they, and whoever is not pinned, may run.

        `told` gets every reply. `sweep` ends strays. `note(level, text)` logs.
        """
        self._run = run
        self._clock = clock
        self._cpus = cpus
        self._grace_s = orphan_grace_s
        self._told = told
        self._sweep = sweep
        self._note = note
        self._closing = False
        self._loop = asyncio.get_running_loop()
        self._warm: dict[Preload, _Warm] = {}
        for preload in sorted(set(preloads)):
            rationing = Rationing(intensity=5, period_s=60.0, backoff_s=0.1, backoff_max_s=2.0)
            path = run.socket_dir / f"fork-{preload}"
            self._warm[preload] = _Warm(preload, path, rationing)

    # --- Asking -----------------------------------------------------------------------------------

    def open(self, known: dict[str, Identity]) -> list[Preload]:
        """Connect to those that live (`known`: by preload), start the others.

        Returns which were there already: their Ready, with their children, comes at once.
        """
        adopted: list[Preload] = []
        for preload, warm in self._warm.items():
            who = known.get(preload)
            if who is not None and process.alive(who) and self._connect(warm, who):
                adopted.append(preload)
            else:
                self._start(warm)
        return adopted

    def fork(self, preload: Preload, request: Fork) -> None:
        """Ask for a life. The answer comes through `told`."""
        warm = self._warm[preload]
        if warm.given_up:
            self._solo(request)
            return
        warm.open[request.seat.name, request.seat.incarnation] = (request, self._clock.now())
        if warm.ready:
            self._say(warm, request)

    def check(self) -> None:
        """End those that do not answer. Called now and then."""
        now = self._clock.now()
        for warm in self._warm.values():
            if warm.who is None or warm.pidfd is None:
                continue
            asked = min((at for _, at in warm.open.values()), default=now)
            late = now - max(asked, warm.since) > _ANSWER_S
            if (warm.ready and late) or (not warm.ready and now - warm.since > _WARM_S):
                self._note("error", f"the {warm.preload} forkserver does not answer; replaced")
                warm.since = now
                process.send_signal(warm.who, signal.SIGKILL)

    def living(self) -> dict[str, Identity]:
        """Forkservers by preload."""
        return {warm.preload: warm.who for warm in self._warm.values() if warm.who is not None}

    def warm(self, preload: Preload) -> bool:
        """Whether it has said Ready since we know it."""
        return self._warm[preload].ready

    def children(self) -> list[Life]:
        """Who they had when they last said Ready."""
        return [life for warm in self._warm.values() for life in warm.children]

    def abandon(self) -> None:
        """Stop talking to them; they go on for whoever comes next."""
        self._closing = True
        for warm in self._warm.values():
            if warm.retry is not None:
                warm.retry.cancel()
            self._hang_up(warm)
            if warm.pidfd is not None:
                self._loop.remove_reader(warm.pidfd)
                os.close(warm.pidfd)
                warm.pidfd = None

    async def close(self, within_s: float) -> None:
        """Tell all to leave and wait for it; end what does not."""
        self._closing = True
        for warm in self._warm.values():
            if warm.retry is not None:
                warm.retry.cancel()
            self._say(warm, Leave())
            if warm.who is not None and not warm.ready:
                process.send_signal(warm.who, signal.SIGKILL)  # still importing
        end = self._clock.now() + within_s
        while any(warm.who is not None for warm in self._warm.values()):
            await asyncio.sleep(0.005)
            if self._clock.now() >= end:
                for who in self.living().values():
                    process.send_signal(who, signal.SIGKILL)
                end += within_s

    # --- Keeping them -----------------------------------------------------------------------------

    def _start(self, warm: _Warm) -> None:
        warm.retry = None
        try:
            warm.path.unlink(missing_ok=True)
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
                listener.bind(os.fspath(warm.path))
                listener.listen(4)
                who = process.start(
                    process.python(
                        "-m",
                        "actors.forkserver",
                        f"--preload={warm.preload}",
                        f"--orphan-grace-s={self._grace_s}",
                        f"--run-dir={self._run.path}",
                    ),
                    output=self._run.stderr_of(f"forkserver-{warm.preload}"),
                    env=process.environment(self._run.run_id, **_SINGLE_THREAD),
                    stdin=listener.fileno(),
                    cpus=self._cpus,
                )
                warm.ours = True
                # It listens already, though nobody accepts yet: no waiting for a path to appear.
                connected = self._connect(warm, who)
        except OSError as error:
            self._note("error", f"the {warm.preload} forkserver cannot be started: {error}")
            connected = False
        if not connected:
            self._lost(warm)

    def _connect(self, warm: _Warm, who: Identity) -> bool:
        peer = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        peer.setblocking(False)
        try:
            peer.connect(os.fspath(warm.path))
            pidfd = process.pidfd(who)
        except OSError:
            pidfd = None
        if pidfd is None:
            peer.close()
            return False
        warm.peer, warm.pidfd, warm.who, warm.since = peer, pidfd, who, self._clock.now()
        self._loop.add_reader(peer.fileno(), self._hear, warm)
        self._loop.add_reader(pidfd, self._ended, warm)
        return True

    def _ended(self, warm: _Warm) -> None:
        """Its process is gone."""
        who, warm.who = warm.who, None
        code = None
        if who is not None and warm.ours:
            code = next((end.code for end in process.reap(who.pid)), None)
        self._hang_up(warm)
        if warm.pidfd is not None:
            self._loop.remove_reader(warm.pidfd)
            code = process.exit_code(warm.pidfd) if code is None else code
            os.close(warm.pidfd)
            warm.pidfd = None
        if not self._closing:
            self._note("warning", f"the {warm.preload} forkserver ended: {process.words(code)}")
            self._sweep()
            self._lost(warm)

    def _lost(self, warm: _Warm) -> None:
        """There is none: start one after the wait that rationing demands, or give it up."""
        if self._closing:
            return
        wait_s = warm.rationing.died(self._clock.now())
        if wait_s is not None:
            warm.retry = self._loop.call_later(wait_s, self._start, warm)
            return
        warm.given_up = True
        stderr = self._run.stderr_of(f"forkserver-{warm.preload}")
        self._note(
            "error",
            f"the {warm.preload} forkserver keeps dying, see {stderr}; "
            f"its actors are started without it, which takes longer",
        )
        waiting = [request for request, _ in warm.open.values()]
        warm.open.clear()
        for request in waiting:
            self._solo(request)

    def _hang_up(self, warm: _Warm) -> None:
        warm.ready = False
        if warm.peer is not None:
            self._loop.remove_reader(warm.peer.fileno())
            warm.peer.close()
            warm.peer = None

    # --- Talking ----------------------------------------------------------------------------------

    def _say(self, warm: _Warm, request: Request) -> None:
        if warm.peer is None or not warm.ready:
            return
        try:
            warm.peer.send(msgspec.json.encode(request))
        except OSError:  # full or gone: `check` or its end decides; the request stays open
            return

    def _hear(self, warm: _Warm) -> None:
        assert warm.peer is not None
        try:
            packet = warm.peer.recv(MAX_MESSAGE)
        except BlockingIOError:
            return
        except OSError:
            packet = b""
        if not packet:
            self._hang_up(warm)
            self._connect_again(warm)
            return
        try:
            reply: Reply = msgspec.json.decode(packet, type=Reply)
        except msgspec.DecodeError as error:
            self._note("error", f"the {warm.preload} forkserver spoke nonsense: {error}")
            return
        match reply:
            case Ready():
                self._ready(warm, reply)
            case Forked(life=life):
                warm.open.pop((life.name, life.incarnation), None)
            case NotForked():
                warm.open.pop((reply.name, reply.incarnation), None)
            case Exited():
                pass
        self._told(reply)

    def _connect_again(self, warm: _Warm) -> None:
        """It dropped us while it lives. (Had it ended, its pidfd would say so.)"""
        who = warm.who
        if who is None or warm.pidfd is None or not process.alive(who):
            return
        self._loop.remove_reader(warm.pidfd)
        os.close(warm.pidfd)
        warm.pidfd = None
        if not self._connect(warm, who):
            process.send_signal(who, signal.SIGKILL)
            warm.who = None
            self._lost(warm)

    def _ready(self, warm: _Warm, reply: Ready) -> None:
        warm.ready, warm.children = True, reply.children
        if reply.threads > 1:
            self._note(
                "warning",
                f"the {warm.preload} forkserver runs {reply.threads} threads; "
                f"some import starts one, and forking with threads is not safe",
            )
        now = self._clock.now()
        for key, (request, _) in list(warm.open.items()):
            warm.open[key] = (request, now)
            self._say(warm, request)

    def _solo(self, request: Fork) -> None:
        """Start an actor as a new interpreter."""
        seat = request.seat
        try:
            who = process.start(
                process.python(
                    "-m", "actors.forkserver", "--solo", msgspec.json.encode(request).decode()
                ),
                output=Path(request.stderr),
                env=process.environment(self._run.run_id, **_SINGLE_THREAD),
                cpus=self._cpus,
            )
        except OSError as error:
            self._told(NotForked(name=seat.name, incarnation=seat.incarnation, reason=str(error)))
            return
        self._told(Forked(life=Life(name=seat.name, incarnation=seat.incarnation, who=who)))
