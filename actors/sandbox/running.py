"""Run a program in the sandbox, to its end or to its limits."""

import contextlib
import os
import select
import signal
from collections.abc import Mapping, Sequence

from actors import process
from actors.sandbox import box, means
from actors.sandbox.box import Box
from actors.sandbox.command import Wanted
from actors.sandbox.terms import (
    Level,
    Limits,
    Means,
    NotStarted,
    Outcome,
    SandboxError,
    Status,
)
from protocol.clock import Clock, Deadline, MonotonicClock

_PIECE = 1 << 16
# Last words of programs that were refused memory: Python, Rust, C++, the C library, rustc's LLVM.
_MEMORY_WORDS = (
    b"MemoryError", b"memory allocation of", b"std::bad_alloc", b"Cannot allocate memory",
    b"out of memory", b"can't start new thread", b"LLVM ERROR: out of memory",
)  # fmt: skip
_LAST_WORDS = 4096
_NEARLY_ALL = 0.9
_NO_LIMITS = Limits()


def run(
    argv: Sequence[str],
    *,
    limits: Limits = _NO_LIMITS,
    stdin: bytes = b"",
    read_only: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
    level: Level = "execute",
    using: Means | None = None,
    run_id: str = "",
    clock: Clock | None = None,
) -> Outcome:
    """Run `argv` (the program as an absolute path) and say how it ended. Blocks until then.

    It sees itself, the libraries it is loaded from, `read_only` (absolute paths), and a directory
    of its own to write to, its working directory, when `limits.scratch_bytes` allows; no network.
    `level`: what must hold; `using`: means other than this machine's best. `run_id` marks its
    keeper, so that it is found with what else a run leaves.

    Raises `TooLittle` when this machine cannot hold `level`, `NotStarted` when the program was not
    executed, ValueError for paths that are not absolute.
    """
    chosen = means.require(level, using, limits)
    wanted = Wanted(
        argv=tuple(argv), limits=limits, read_only=tuple(read_only), env=dict(env or {})
    )
    clock = clock or MonotonicClock()
    jailed = Box(wanted, chosen, clock, run_id=run_id)
    with contextlib.closing(jailed):
        watch = _Watch(jailed, limits, stdin, clock)
        watch.until_the_end()
    return watch.outcome()


class _Watch:
    """Feeds a program, takes what it writes, and ends it at its limits."""

    def __init__(self, jailed: Box, limits: Limits, stdin: bytes, clock: Clock) -> None:
        self._box, self._limits, self._clock = jailed, limits, clock
        self._stdin = memoryview(stdin)
        self._written = {jailed.stdout: bytearray(), jailed.stderr: bytearray()}
        self._verdict: Status | None = None  # what we ended it for
        self._ended_at = jailed.started_at
        self._why = ""
        self._poller = select.poll()
        for fd in (*self._written, jailed.report, jailed.ended):
            self._poller.register(fd, select.POLLIN)
        self._feeding = True
        self._poller.register(jailed.stdin, select.POLLOUT)

    def until_the_end(self) -> None:
        """Serve the program until it and all it started have ended."""
        jailed = self._box
        deadline = Deadline.after(self._clock, box.START_S, "a jail to be ready")
        executed = False
        while True:
            ready = dict(self._poller.poll(deadline.left() * 1000))
            if jailed.report.fileno() in ready and not jailed.hear():
                self._poller.unregister(jailed.report)
            if jailed.program and not executed:
                executed = True
                what = "a sandboxed program"
                deadline = Deadline.after(self._clock, self._limits.wall_s, what)
            self._take_and_give(ready)
            if jailed.ended in ready:
                break
            if deadline.passed():
                self._give_up(executed)
                deadline = Deadline.after(self._clock, box.END_S, "the end of a killed program")
        self._ended_at = self._clock.now()
        if self._verdict is None:
            self._take_and_give(dict.fromkeys(self._written, select.POLLIN))

    def _give_up(self, executed: bool) -> None:
        if not executed:
            raise NotStarted(f"the jail is not ready after {box.START_S:g} s")
        if self._verdict is not None:
            raise SandboxError(f"a program that was killed does not end within {box.END_S:g} s")
        self._end("timeout", f"used up {self._limits.wall_s:g} s of time")

    def _take_and_give(self, ready: Mapping[int, int]) -> None:
        for fd in self._written:
            if fd in ready and self._verdict is None:
                self._take(fd)
        if self._box.stdin in ready and self._feeding:
            self._give()

    def _give(self) -> None:
        fd = self._box.stdin
        try:
            if self._stdin:
                self._stdin = self._stdin[os.write(fd, self._stdin[:_PIECE]) :]
        except BlockingIOError:
            return
        except BrokenPipeError:  # it does not want more
            self._stdin = memoryview(b"")
        if not self._stdin:
            self._feeding = False
            self._poller.unregister(fd)
            self._box.end_of_input()

    def _take(self, fd: int) -> None:
        """What there is to read, as far as the limit goes."""
        kept = self._written[fd]
        while True:
            try:
                piece = os.read(fd, _PIECE)
            except BlockingIOError:
                return
            if not piece:
                with contextlib.suppress(KeyError):  # at the end it is read once more
                    self._poller.unregister(fd)
                return
            room = self._limits.output_bytes - len(kept)
            kept += piece[:room]
            if len(piece) > room:
                name = "stdout" if fd == self._box.stdout else "stderr"
                self._end("output", f"more than {self._limits.output_bytes} bytes on {name}")
                return

    def _end(self, verdict: Status, why: str) -> None:
        self._verdict, self._why = verdict, why
        for fd in self._written:
            with contextlib.suppress(KeyError):
                self._poller.unregister(fd)
        self._box.kill()

    def outcome(self) -> Outcome:
        """How it ended. Raises `NotStarted` when it never began."""
        jailed = self._box
        if not jailed.program:
            raise NotStarted(jailed.failure)
        code = -signal.SIGKILL
        if jailed.status is not None:
            code = os.waitstatus_to_exitcode(jailed.status)
        status, detail = self._judge(code)
        return Outcome(
            status=status,
            code=code,
            stdout=bytes(self._written[jailed.stdout]),
            stderr=bytes(self._written[jailed.stderr]),
            seconds=max(0.0, self._ended_at - jailed.started_at),
            cpu_s=jailed.cpu_s,
            peak_memory=jailed.peak_memory,
            detail=detail,
        )

    def _judge(self, code: int) -> tuple[Status, str]:
        limits, jailed = self._limits, self._box
        if self._verdict is not None:
            return self._verdict, self._why
        if code == 0:
            return "ok", ""
        killed = code == -signal.SIGKILL
        if code == -signal.SIGXCPU or (killed and jailed.cpu_s >= limits.cpu_s):
            return "timeout", f"used up {limits.cpu_s:g} s of processor time"
        if code == -signal.SIGXFSZ:
            return "output", f"a file of more than {limits.scratch_bytes} bytes"
        if killed:  # not by us: by the kernel, which ends sandboxed programs first
            return "memory", "the machine ran out of memory"
        last = bytes(self._written[jailed.stderr][-_LAST_WORDS:])
        nearly = jailed.peak_memory > _NEARLY_ALL * limits.memory_bytes
        if nearly or any(words in last for words in _MEMORY_WORDS):
            return "memory", f"needs more than {limits.memory_bytes} bytes"
        return ("signal" if code < 0 else "exit"), process.words(code)
