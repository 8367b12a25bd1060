"""One jailed program, from its start to the end of everything it started.

Its owner polls `descriptors` and hands what is readable to `hear`. The program is ended by ending
the first process of its namespace: when the keeper has gone after that, nothing is left.
"""

import contextlib
import os
import select
import signal
import socket
import struct
from pathlib import Path

from actors import process, temporary
from actors.sandbox import command, view
from actors.sandbox.terms import Means, NotStarted, SandboxError
from protocol.clock import Clock, Deadline

# An interpreter starts in 20 ms; on a machine that swaps, in many times that.
START_S = 30.0
# From SIGKILL to the end: memory has to be given back.
END_S = 30.0
_CREDENTIALS = struct.Struct("=iII")  # pid, user, group of who speaks
_SCM_CREDENTIALS = 2
_MESSAGE = 4096


class Box:
    """A started jail. Close it, always. It also ends when the thread that started it does."""

    def __init__(
        self, wanted: command.Wanted, means: Means, clock: Clock, *, run_id: str = ""
    ) -> None:
        """Start it. Raises `NotStarted`, and ValueError for paths that cannot be shown."""
        self.means = means
        self.limits = wanted.limits
        self.program = 0  # its pid, once it has been executed
        self.started_at = clock.now()
        self.status: int | None = None  # how it ended, as `wait` has it
        self.peak_memory = 0
        self.cpu_s = 0.0
        self.facts: dict[str, str] = {}  # what a probe found: why something does not hold, or ""
        self._clock = clock
        self.failure = ""  # why the program was not executed
        self._ready = 0
        self._victim = -1  # pidfd of the process whose end is the end of all
        self._closed = False
        with contextlib.ExitStack() as stack:
            scratch = self._make_scratch(stack)
            self._wire(wanted, scratch, run_id, stack)
            self._stack = stack.pop_all()
        # When memory runs out, this is what the kernel should end.
        with contextlib.suppress(OSError):
            Path(f"/proc/{self.keeper.pid}/oom_score_adj").write_text("1000")

    def _make_scratch(self, stack: contextlib.ExitStack) -> str:
        """The writable directory, as the program will call it; "" for none."""
        if not self.limits.scratch_bytes:
            return ""
        if command.has_own_files(self.means):
            return view.SCRATCH
        return str(stack.enter_context(temporary.directory("scratch")))

    def _wire(
        self, wanted: command.Wanted, scratch: str, run_id: str, stack: contextlib.ExitStack
    ) -> None:
        """Make the pipes and start the jail on their other ends."""
        words = self._command(wanted, scratch)
        self.report, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        stack.enter_context(self.report)
        self.report.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self.report.setblocking(False)
        with theirs, contextlib.ExitStack() as other_ends:
            pipes = [os.pipe() for _ in range(3)]
            given = [pipes[0][0], pipes[1][1], pipes[2][1]]
            for fd in given:
                other_ends.callback(os.close, fd)
            self.stdin, self.stdout, self.stderr = pipes[0][1], pipes[1][0], pipes[2][0]
            stack.callback(self.end_of_input)
            for fd in (self.stdout, self.stderr):
                stack.callback(os.close, fd)
            for fd in (self.stdin, self.stdout, self.stderr):
                os.set_blocking(fd, False)
            try:
                self.keeper = process.start_wired(
                    words, env=_jail_environment(run_id), wires=(*given, theirs.fileno())
                )
            except OSError as error:
                raise NotStarted(f"{words[0]}: {error.strerror}") from error
        self.ended = os.pidfd_open(self.keeper.pid)  # ours to reap: nobody else has its number
        stack.callback(os.close, self.ended)

    def _command(self, wanted: command.Wanted, scratch: str) -> list[str]:
        own = command.has_own_files(self.means)
        elsewhere = 0 if own else process.tasks_of_user()
        try:
            words = command.command(wanted, self.means, scratch=scratch, tasks_elsewhere=elsewhere)
        except OSError as error:
            raise NotStarted(f"{wanted.argv[0]}: {error}") from error
        if scratch and not own and "--identity" in words:
            identity = int(words[words.index("--identity") + 1])
            os.chown(scratch, identity, identity)
        return words

    # --- hearing ----------------------------------------------------------------------------------

    def hear(self) -> bool:
        """Take what the jail reports; False when it will report no more."""
        while True:
            try:
                message, extra, _, _ = self.report.recvmsg(
                    _MESSAGE, socket.CMSG_SPACE(_CREDENTIALS.size)
                )
            except BlockingIOError:
                return True
            except ConnectionResetError:
                return False
            if not message:
                return False
            speaker = next(
                (
                    _CREDENTIALS.unpack(data)[0]
                    for _, kind, data in extra
                    if kind == _SCM_CREDENTIALS
                ),
                0,
            )
            self._note(message.decode(errors="replace"), speaker)

    def _note(self, message: str, speaker: int) -> None:
        word, _, rest = message.partition(" ")
        if word == "first":
            self._set_victim(speaker)
        elif word == "ready":  # the program's process speaks for the last time
            self._ready = speaker
            if not command.has_own_files(self.means):
                self._set_victim(speaker)
        elif word == "executed" and not self.failure:
            self.program, self.started_at = self._ready, self._clock.now()
        elif word == "ended":
            status, peak, cpu_ms = map(int, rest.split())
            self.status, self.peak_memory, self.cpu_s = status, peak, cpu_ms / 1000
        elif word == "failed":
            self.failure = self.failure or rest
        elif word in ("holds", "lacks"):
            what, _, why = rest.partition(" ")
            self.facts[what] = why

    def _set_victim(self, pid: int) -> None:
        if self._victim >= 0 or pid <= 0:
            return
        with contextlib.suppress(ProcessLookupError):  # it has ended already
            fd = os.pidfd_open(pid)
            self._stack.callback(os.close, fd)
            if process.parent(pid) == self.keeper.pid:  # and not somebody with its number
                self._victim = fd

    # --- ending -----------------------------------------------------------------------------------

    def kill(self) -> None:
        """End everything in it, at once. The keeper's end tells when that is done."""
        self.hear()
        if self._victim >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._victim, signal.SIGKILL)
        else:  # nothing has been executed yet
            process.send_signal(self.keeper, signal.SIGKILL)

    def wait(self, within_s: float) -> bool:
        """Wait for the end of all. False when it does not come."""
        deadline = Deadline.after(self._clock, within_s, "the end of a sandboxed program")
        poller = select.poll()
        poller.register(self.ended, select.POLLIN)
        return bool(poller.poll(deadline.left() * 1000))

    def close(self) -> None:
        """End it if it runs, and leave nothing behind. Raises `SandboxError` if it cannot be."""
        if self._closed:
            return
        self.kill()
        if not self.wait(END_S):
            raise SandboxError(
                f"process {self.keeper.pid} does not end although it was killed: the kernel holds "
                "it; see its state in /proc"
            )
        self.hear()
        if not (self.program or self.failure):
            self.failure = self._last_words()
        for _ in process.reap(self.keeper.pid):
            pass
        self._closed = True
        self._stack.close()

    def _last_words(self) -> str:
        """Of bubblewrap, or of an interpreter that did not start: on stderr."""
        with contextlib.suppress(BlockingIOError):
            words = os.read(self.stderr, _MESSAGE).decode(errors="replace").split("\n")
            said = [line.strip() for line in words if line.strip()]
            if said:
                return said[-1]
        return "" if self.facts else "the jail ended without a word"

    def end_of_input(self) -> None:
        """Nothing more will be written to its stdin."""
        if self.stdin >= 0:
            os.close(self.stdin)
            self.stdin = -1


def _jail_environment(run_id: str) -> dict[str, str]:
    """Of the jail, not of the program."""
    kept = ("LD_LIBRARY_PATH",)  # our interpreter may be found by it
    env = {name: os.environ[name] for name in kept if name in os.environ}
    env |= command.origin(view.interpreter())
    if run_id:
        env[process.RUN_MARK] = run_id
    return env
