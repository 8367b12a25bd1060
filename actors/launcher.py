"""The launcher: prepares nothing and computes nothing; it keeps the supervisor alive and reports.

It is the subreaper of the run: whatever loses its parent becomes its child and is reaped by it. It
starts the supervisor, starts it again when it dies or falls silent (rationed like everything
else), passes Ctrl-C on as a clean stop, shows progress, and at the end makes sure that nothing is
left: no process, no shared memory, no socket.

    python -m actors.launcher RUN_DIR      what `run.py --detach` leaves running

Blocking, one thread: signals and the supervisor's pidfd end its waits.
"""

import argparse
import os
import select
import selectors
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

from actors import leftovers, outcome, process, rundir, topology
from actors.outcome import End, Outcome
from actors.process import Identity
from actors.progress import Unfailing, Watcher, quiet
from actors.rundir import RunDir, RunDirError
from actors.supervisor import reports, segments, table
from actors.supervisor.rationing import Rationing
from actors.topology import SupervisionSpec
from protocol.clock import Clock, Deadline, MonotonicClock

# A supervisor that found another one holding the lock: see supervisor/__main__.py.
_EXIT_TAKEN = 75
# How a supervisor ends that has brought the run to its end.
_ENDS: dict[int, End] = {0: "done", 3: "failed", 130: "stopped"}
# How often metrics and the supervisor's sign of life are looked at.
_LOOK_S = 0.25
# Between the request for a supervisor's stacks and SIGKILL: printing takes a few milliseconds.
_LAST_WORDS_S = 0.2
# What is left of a run after its supervisor has swept gets this long to leave the process table.
_LEFTOVERS_S = 3.0

# What signal.signal takes and returns.
Handler = Callable[[int, FrameType | None], Any] | int | signal.Handlers | None

SUPERVISOR = ("-m", "actors.supervisor")


class NotStarted(RuntimeError):
    """The first supervisor could not be started: nothing runs."""


class Launcher:
    """Drives one run from outside to its end."""

    def __init__(
        self,
        run: RunDir,
        spec: SupervisionSpec,
        *,
        watcher: Watcher,
        clock: Clock | None = None,
        command: tuple[str, ...] = SUPERVISOR,
    ) -> None:
        self._run = run
        self._spec = spec
        self._watcher = Unfailing(watcher)
        self._clock = clock or MonotonicClock()
        self._command = command
        self._rationing = Rationing(
            intensity=spec.intensity,
            period_s=spec.period_s,
            backoff_s=spec.backoff_s,
            backoff_max_s=spec.backoff_max_s,
        )
        self._who: Identity | None = None
        self._code: int | None = None  # how it ended, once reaped
        self._pidfd = -1
        self._due: float | None = None  # when the next supervisor is to be started
        self._pulse = (0, 0.0)  # its lock's mtime, and when we saw that change
        self._pulse_limit_s = spec.start_s
        self._kill_at: float | None = None  # when it has had the time to print its stacks
        self._signals = 0
        self._passed_on = 0
        self._selector = selectors.DefaultSelector()
        self._wake_r, self._wake_w = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._selector.register(self._wake_r, selectors.EVENT_READ)
        self._handlers: list[tuple[int, Handler]] = []

    # --- The run ----------------------------------------------------------------------------------

    def drive(self) -> Outcome:
        """Until the run has ended. Takes over the supervisor that lives, or starts one.

        Raises `NotStarted`.
        """
        process.become_subreaper()
        living = table.read(self._run).get("supervisor", table.Row()).who
        if living is not None and process.alive(living):
            self._attend(living)
        else:
            try:
                self._start()
            except OSError as error:
                raise NotStarted(f"the supervisor cannot be started: {error}") from error
        end = None
        while end is None:
            self._wait()
            self._pass_signals_on()
            self._watcher.look()
            end = self._look_after()
        self._watcher.look()
        return self._clean_up(end)

    def _wait(self) -> None:
        within_s = _LOOK_S
        if self._due is not None:  # somebody is to be started: not as late as the next look
            within_s = min(_LOOK_S, max(0.0, self._due - self._clock.now()))
        for key, _ in self._selector.select(within_s):
            if key.fd == self._wake_r:
                os.read(self._wake_r, 4096)

    def _start(self) -> None:
        self._due = None
        who = process.start(
            process.python(*self._command, str(self._run.path)),
            output=self._run.stderr_of("supervisor"),
            env=process.environment(self._run.run_id),
            held=(signal.SIGTERM, process.NOT_TO_WAIT),
        )
        self._attend(who)

    def _attend(self, who: Identity) -> None:
        """Watch this supervisor."""
        self._who, self._code = who, None
        self._passed_on = 0
        self._pulse = (self._mtime(), self._clock.now())
        self._pulse_limit_s = self._spec.start_s
        self._kill_at = None
        fd = process.pidfd(who)
        if fd is not None:
            self._pidfd = fd
            self._selector.register(fd, selectors.EVENT_READ)

    def _look_after(self) -> Outcome | None:
        """One look at the supervisor; the outcome once there is one."""
        self._reap()
        if self._who is not None:
            if process.alive(self._who):
                self._feel_pulse(self._who)
                return None
            return self._after_death()
        if self._due is not None and self._clock.now() >= self._due:
            try:
                self._start()
            except OSError as error:
                return self._ration(f"cannot be started: {error}")
        return None

    def _reap(self) -> None:
        """Whatever ended: the supervisor, and orphans of it and of its forkservers."""
        for end in process.reap():
            if self._who is not None and end.pid == self._who.pid:
                self._code = end.code

    def _after_death(self) -> Outcome | None:
        self._who, code = None, self._code
        if self._pidfd >= 0:
            self._selector.unregister(self._pidfd)
            code = process.exit_code(self._pidfd) if code is None else code
            os.close(self._pidfd)
            self._pidfd = -1
        found = outcome.read(self._run)
        if found is not None:
            return found
        if code is not None and code in _ENDS:
            log = self._run.stderr_of("supervisor")
            return Outcome(end=_ENDS[code], reason=f"it could not be recorded why, see {log}")
        if self._signals > 2:
            return Outcome(end="stopped", reason="interrupted, and not waited for")
        if code == _EXIT_TAKEN:
            self._due = self._clock.now() + 1.0  # it may be leaving; ask again
            return None
        return self._ration(process.words(code))

    def _ration(self, how: str) -> Outcome | None:
        """Start another one soon, or give the run up."""
        wait_s = self._rationing.died(self._clock.now())
        self._watcher.say(f"supervisor {how}" + ("" if wait_s is None else "; restarting it"))
        if wait_s is not None:
            self._due = self._clock.now() + wait_s
            return None
        said = reports.tail(self._run.stderr_of("supervisor"), 1)
        last = f" ({said[-1].strip()})" if said else ""
        return Outcome(
            end="failed",
            reason=f"the supervisor died {self._spec.intensity + 1} times within "
            f"{self._spec.period_s:g} s, the last time: {how}{last}; "
            f"see {self._run.stderr_of('supervisor')}",
        )

    def _feel_pulse(self, who: Identity) -> None:
        """A supervisor touches its lock file; one that stopped doing so is replaced."""
        mtime, now = self._mtime(), self._clock.now()
        if mtime != self._pulse[0]:
            self._pulse, self._pulse_limit_s = (mtime, now), self._spec.silence_s
            self._kill_at = None
        elif self._kill_at is not None:
            if now >= self._kill_at:
                process.send_signal(who, signal.SIGKILL)
                self._pulse, self._kill_at = (mtime, now), None
        elif now - self._pulse[1] > self._pulse_limit_s:
            self._watcher.say(f"supervisor silent for {now - self._pulse[1]:.1f} s; killing it")
            process.send_signal(who, signal.SIGUSR2)  # its stacks, if it can
            self._kill_at = now + _LAST_WORDS_S

    def _mtime(self) -> int:
        try:
            return self._run.supervisor_lock.stat().st_mtime_ns
        except OSError:
            return 0

    # --- Signals ----------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        signal.set_wakeup_fd(self._wake_w, warn_on_full_buffer=False)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD):
            # Ignored by whoever started us (nohup, a shell's background job): that is their wish.
            if number == signal.SIGCHLD or signal.getsignal(number) != signal.SIG_IGN:
                self._handlers.append((number, signal.signal(number, self._signalled)))
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._handlers:
            signal.signal(number, handler)
        signal.set_wakeup_fd(-1)
        self._selector.close()
        for fd in (self._wake_r, self._wake_w, self._pidfd):
            if fd >= 0:
                os.close(fd)

    def _signalled(self, number: int, _frame: FrameType | None) -> None:
        if number != signal.SIGCHLD:
            self._signals += 1

    def _pass_signals_on(self) -> None:
        """Ctrl-C once: a clean stop. Again: without waiting. A third time: kill what is there."""
        if self._signals <= self._passed_on or self._who is None:
            return
        self._passed_on += 1
        if self._passed_on <= 2:
            number = signal.SIGTERM if self._passed_on == 1 else process.NOT_TO_WAIT
            process.send_signal(self._who, number)
        else:
            leftovers.end_all(self._run)
        words = ("stopping; once more not to wait", "not waiting any more", "killing what is left")
        self._watcher.say(words[min(self._passed_on, 3) - 1])

    # --- The end ----------------------------------------------------------------------------------

    def _clean_up(self, end: Outcome) -> Outcome:
        """Leave nothing: what the supervisor did not remove goes now, and is said."""
        within = Deadline.after(self._clock, _LEFTOVERS_S, "processes of the run to end")
        while (left := leftovers.end_all(self._run)) and not within.passed():
            self._reap()
            self._selector.select(0.01)
        self._reap()
        stuck = segments.remove(self._run.run_id)
        try:
            self._run.remove_socket_dir()
        except RunDirError as error:
            self._watcher.say(f"sockets are left: {error}")
        if outcome.read(self._run) is None:
            outcome.write(self._run, end)
        if left:
            self._watcher.say(f"processes that cannot be ended: {[who.pid for who in left]}")
        if stuck:
            self._watcher.say(f"shared memory that cannot be removed: {stuck}")
        return end


def detach(run: RunDir, names: set[str], within_s: float) -> Identity:
    """Start a launcher of its own for this run and wait until all `names` have a process.

    Raises `ChildProcessError` with the run's reason when it ends before, and `TimeoutError`.
    """
    who = process.start(
        process.python("-m", "actors.launcher", str(run.path)),
        output=run.stderr_of("launcher"),
        env=process.environment(),
    )
    within = Deadline.after(MonotonicClock(), within_s, "everybody to be up")
    while not within.passed():
        if names <= {name for name, row in table.read(run).items() if row.pid}:
            return who
        fd = process.pidfd(who)
        if fd is None or select.select([fd], [], [], _LOOK_S)[0]:
            for _ in process.reap(who.pid):
                pass
            found = outcome.read(run)
            log = run.stderr_of("launcher")
            raise ChildProcessError(
                f"the launcher has ended, see {log}" if found is None else found.reason
            )
        os.close(fd)
    raise TimeoutError(f"not everybody was up within {within_s:g} s, see {run.logs}")


def exit_code(end: Outcome) -> int:
    """Of the launcher, as the architecture has it."""
    return {"done": 0, "failed": 1, "stopped": 130}[end.end]


def main() -> None:
    """A launcher without a terminal."""
    parser = argparse.ArgumentParser(prog="actors.launcher")
    parser.add_argument("run_dir", type=Path)
    wanted = parser.parse_args()
    run = rundir.open_(wanted.run_dir)
    lock = process.try_lock(run.launcher_lock)
    if lock is None:
        raise RunDirError(f"{run.path} has a launcher already")
    text = run.topology.read_text(encoding="utf-8")
    spec = topology.decode(text, source=str(run.topology)).supervision
    with Launcher(run, spec, watcher=quiet()) as launcher:
        end = launcher.drive()
    os.close(lock)
    sys.exit(exit_code(end))


if __name__ == "__main__":
    main()
