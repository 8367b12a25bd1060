"""When processes that were killed have really ended, by the kernel's word.

A signal is not yet an end: who is killed has to be given a core once more, thread by thread, and
hands its memory back first. Nobody can know of a death before that.
"""

import os
import queue
import select
import threading
from collections.abc import Iterator

from actors import process
from actors.process import Identity
from protocol.clock import Clock

_LONGEST_S = 10.0


class Endings:
    """Looks on in threads, one for each of those who are about to be killed."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._found: queue.SimpleQueue[tuple[int, float]] = queue.SimpleQueue()

    def expect(self, who: Identity) -> None:
        """Its end is to be noted. To be said before the signal is sent."""
        try:
            fd = process.pidfd(who)
        except OSError:
            return  # it is measured, not needed
        if fd is not None:
            threading.Thread(target=self._wait, args=(who.pid, fd), daemon=True).start()

    def _wait(self, pid: int, fd: int) -> None:
        try:
            poll = select.poll()
            poll.register(fd, select.POLLIN)
            if poll.poll(1000 * _LONGEST_S):
                self._found.put((pid, self._clock.now()))
        finally:
            os.close(fd)

    def found(self) -> Iterator[tuple[int, float]]:
        """Pids that have ended since the last time, and when, by the clock."""
        while not self._found.empty():
            yield self._found.get_nowait()
