"""Watching processes end: a pidfd each, in the event loop beside the sockets.

A pidfd says at once *that* a process ended; *how* comes from whoever reaps it, a millisecond
later: its forkserver's report, our own wait, or (since Linux 6.15, and once somebody has reaped)
the pidfd itself. So an end is told as soon as both are known, and after `_HOW_S` in any case.
"""

import asyncio
import os
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from actors import process
from actors.forkserver import Exited
from actors.process import Identity

# A forkserver reports within a millisecond; longer waits would delay the replacement.
_HOW_S = 0.03


@dataclass(frozen=True, slots=True)
class End:
    """One life that is over."""

    name: str
    incarnation: int
    who: Identity
    code: int | None  # exit code, or minus the signal; None: nobody saw it
    max_rss_bytes: int = 0
    cpu_s: float = 0.0
    known_s: float = 0.0  # for how long we had known of it when we learned how


@dataclass(slots=True)
class _Watched:
    name: str
    incarnation: int
    who: Identity
    fd: int
    timer: asyncio.TimerHandle | None = None
    seen_at: float | None = None  # on the loop's clock


class Lives:
    """Belongs to the running event loop. Each watched life is told to have ended exactly once."""

    def __init__(self, ended: Callable[[End], None]) -> None:
        self._ended = ended
        self._loop = asyncio.get_running_loop()
        self._watched: dict[Identity, _Watched] = {}
        # Of lives that nobody watched yet: a forkserver repeats its news to a new supervisor.
        self._reports: deque[Exited] = deque(maxlen=256)

    def watch(self, name: str, incarnation: int, who: Identity) -> None:
        """From now on. A process that has ended already is told of in the next turn of the loop."""
        if who in self._watched:
            return
        fd = process.pidfd(who)
        if fd is None:
            self._loop.call_soon(self._ended, self._late(name, incarnation, who))
            return
        self._watched[who] = _Watched(name, incarnation, who, fd)
        self._loop.add_reader(fd, self._readable, who)

    def reported(self, report: Exited) -> None:
        """A forkserver says how one of its children ended."""
        watched = self._watched.get(report.life.who)
        if watched is not None:
            self._tell(watched, report.code, report.max_rss_bytes, report.cpu_s)
        else:
            self._reports.append(report)

    def close(self) -> None:
        """Watch nobody any more."""
        for watched in list(self._watched.values()):
            self._forget(watched)

    def _late(self, name: str, incarnation: int, who: Identity) -> End:
        """The end of a life that was over before we watched."""
        end = next(process.reap(who.pid), None)
        if end is not None:
            return End(name, incarnation, who, end.code, end.max_rss_bytes, end.cpu_s)
        for report in self._reports:
            if report.life.who == who:
                return End(name, incarnation, who, report.code, report.max_rss_bytes, report.cpu_s)
        return End(name, incarnation, who, None)

    def _readable(self, who: Identity) -> None:
        watched = self._watched[who]
        watched.seen_at = self._loop.time()
        self._loop.remove_reader(watched.fd)
        end = next(process.reap(who.pid), None)
        if end is not None:  # it was our own child
            self._tell(watched, end.code, end.max_rss_bytes, end.cpu_s)
            return
        code = process.exit_code(watched.fd)
        if code is not None:
            self._tell(watched, code, 0, 0.0)
            return
        watched.timer = self._loop.call_later(_HOW_S, self._waited, watched)

    def _waited(self, watched: _Watched) -> None:
        self._tell(watched, process.exit_code(watched.fd), 0, 0.0)

    def _tell(self, watched: _Watched, code: int | None, max_rss_bytes: int, cpu_s: float) -> None:
        self._forget(watched)
        known_s = 0.0 if watched.seen_at is None else self._loop.time() - watched.seen_at
        who = watched.name, watched.incarnation, watched.who
        self._ended(End(*who, code, max_rss_bytes, cpu_s, known_s))

    def _forget(self, watched: _Watched) -> None:
        if watched.timer is not None:
            watched.timer.cancel()
        self._loop.remove_reader(watched.fd)
        os.close(watched.fd)
        del self._watched[watched.who]
