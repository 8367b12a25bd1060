"""A program that stays in the sandbox and answers lines: the sandbox is paid for once.

Limits of time, processor and output count anew with every request. A program that breaks one, ends
or falls silent is ended with all it started, and the request that did it hears how (`Gone`).
"""

import os
import select
from collections.abc import Mapping, Sequence

from actors import process
from actors.sandbox import box, means
from actors.sandbox.box import Box
from actors.sandbox.command import Wanted
from actors.sandbox.terms import Level, Limits, Means, NotStarted, SandboxError
from protocol.clock import Clock, Deadline, MonotonicClock

_PIECE = 1 << 16
_NO_LIMITS = Limits()
# Of what it says on stderr, the end is kept: it tells why it ended.
_LAST_WORDS = 2000
_CHECK_S = 0.1


class Gone(SandboxError):
    """The program has ended, by itself or for breaking a limit: says how. Start another."""


class Served:
    """One program, started at once. Not thread-safe: one thread asks and waits. Close it."""

    def __init__(
        self,
        argv: Sequence[str],
        *,
        limits: Limits = _NO_LIMITS,
        read_only: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        level: Level = "execute",
        using: Means | None = None,
        run_id: str = "",
        clock: Clock | None = None,
    ) -> None:
        """As `running.run`. Returns once the program is executed.

        Raises `TooLittle`, `NotStarted`, ValueError.
        """
        self._limits = limits
        self._clock = clock or MonotonicClock()
        self._received = bytearray()
        self._stderr = bytearray()
        self._closed = False
        wanted = Wanted(
            argv=tuple(argv),
            limits=limits,
            read_only=tuple(read_only),
            env=dict(env or {}),
            served=True,
        )
        self._box = Box(wanted, means.require(level, using, limits), self._clock, run_id=run_id)
        self._poller = select.poll()
        for fd in (self._box.stdout, self._box.stderr, self._box.ended):
            self._poller.register(fd, select.POLLIN)
        try:
            self._await_start()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "Served":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """Of the program."""
        return self._box.program

    @property
    def last_words(self) -> str:
        """The end of what it has said on stderr."""
        return self._stderr.decode(errors="replace").strip()

    def ask(self, line: bytes, *, within_s: float | None = None) -> bytes:
        """Send `line`, which ends with a line end, and return the line that comes back, without.

        With nothing to send, wait for a line. `within_s` replaces `limits.wall_s`. Raises `Gone`.
        """
        if self._closed:
            raise Gone("it has been closed")
        limit_s = self._limits.wall_s if within_s is None else within_s
        deadline = Deadline.after(self._clock, limit_s, "a sandboxed program's answer")
        enough_cpu_s = process.cpu_s(self.pid) + self._limits.cpu_s
        # Sooner it cannot have used up its share.
        check = Deadline.after(self._clock, self._limits.cpu_s / self._limits.tasks, "a look at it")
        rest = memoryview(line)
        if rest:
            self._poller.register(self._box.stdin, select.POLLOUT)
        while (end := self._received.find(b"\n")) < 0:
            ready = dict(self._poller.poll(min(deadline.left(), check.left()) * 1000))
            if self._box.stdin in ready:
                rest = self._send(rest)
            self._take(ready)
            if deadline.passed():
                raise self._gone(f"no answer within {limit_s:g} s")
            if check.passed():
                if process.cpu_s(self.pid) > enough_cpu_s:
                    raise self._gone(f"used up {self._limits.cpu_s:g} s of processor time")
                check = Deadline.after(self._clock, _CHECK_S, "a look at its processor time")
        if rest:  # it answered before it had read everything
            self._poller.unregister(self._box.stdin)
            raise self._gone("it answered before it had read the request")
        answer = bytes(self._received[:end])
        del self._received[: end + 1]
        return answer

    def close(self) -> None:
        """End it, with all it started. May be called twice. Raises `SandboxError`."""
        self._closed = True
        self._box.close()

    def _await_start(self) -> None:
        poller = select.poll()
        poller.register(self._box.report, select.POLLIN)
        poller.register(self._box.ended, select.POLLIN)
        deadline = Deadline.after(self._clock, box.START_S, "a jail to be ready")
        while not self._box.program:
            ready = dict(poller.poll(deadline.left() * 1000))
            if not ready:
                raise NotStarted(f"the jail is not ready after {box.START_S:g} s")
            if not self._box.hear() or self._box.ended in ready:
                break
        if not self._box.program:
            self._box.close()
            raise NotStarted(self._box.failure)

    def _send(self, rest: memoryview) -> memoryview:
        """What is still to be sent."""
        try:
            rest = rest[os.write(self._box.stdin, rest[:_PIECE]) :]
        except BlockingIOError:
            return rest
        except BrokenPipeError:
            raise self._gone("") from None
        if not rest:
            self._poller.unregister(self._box.stdin)
        return rest

    def _take(self, ready: Mapping[int, int]) -> None:
        """Read what it writes. Raises `Gone` at its end, or when it is too much."""
        if self._box.stderr in ready:
            piece = os.read(self._box.stderr, _PIECE)
            if not piece:  # closed: it would be ready for ever
                self._poller.unregister(self._box.stderr)
            self._stderr += piece
            del self._stderr[:-_LAST_WORDS]
        if self._box.stdout in ready:
            piece = os.read(self._box.stdout, _PIECE)
            self._received += piece
            if len(self._received) > self._limits.output_bytes:
                raise self._gone(f"its answer is longer than {self._limits.output_bytes} bytes")
            if not piece:
                raise self._gone("")
        elif self._box.ended in ready:
            raise self._gone("")

    def _gone(self, why: str) -> Gone:
        """End it and say how it ended: `why`, unless it had ended by itself."""
        self.close()
        status = self._box.status
        if not why:
            why = process.words(None if status is None else os.waitstatus_to_exitcode(status))
        return Gone(why)
