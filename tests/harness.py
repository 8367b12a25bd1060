"""Running the real thing in tests: processes started here, found again, killed, and counted.

Everything a run starts carries its mark (see `actors.process.RUN_MARK`), so a test can tell its
own processes from everybody else's, and ends exactly those.
"""

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from actors import outcome, process
from actors.process import Identity
from actors.rundir import RunDir
from actors.supervisor import table
from protocol import segments

ROOT = Path(__file__).resolve().parent.parent


def wait_until(happened: Callable[[], Any], s: float = 10.0, what: str = "it") -> Any:
    """Wait for something true and return it."""
    end = time.monotonic() + s
    while not (found := happened()):
        assert time.monotonic() < end, f"{what} did not happen within {s:g} s"
        select.select([], [], [], 0.005)
    return found


class Driven:
    """One launcher that a test has started, and the run it drives."""

    def __init__(self, command: Sequence[str], run_dir: Path, env: Mapping[str, str]) -> None:
        self.run = RunDir(run_dir)
        self.command = list(command)
        self.env = dict(env)
        self.popen = self._start()
        self.out = ""
        self.err = ""

    def _start(self) -> subprocess.Popen[str]:
        # In a shell's background job it is ignored, and would be by a launcher that we start.
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            return subprocess.Popen(
                self.command,
                cwd=ROOT,
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
        finally:
            signal.signal(signal.SIGINT, before)

    def again(self, *arguments: str) -> None:
        """Start the launcher anew, after the last one has gone."""
        self.finish()
        self.command += arguments
        self.popen = self._start()

    def finish(self, s: float = 60.0) -> int:
        """Wait for the launcher; its exit code."""
        try:
            self.out, self.err = self.popen.communicate(timeout=s)
        except subprocess.TimeoutExpired:
            self.end()
            raise AssertionError(f"the run did not end within {s:g} s\n{self.story()}") from None
        except ValueError:  # communicated before
            pass
        return self.popen.returncode

    @property
    def last_line(self) -> str:
        """Of everything it printed."""
        lines = (self.out + self.err).strip().splitlines()
        return lines[-1] if lines else ""

    def until(self, happened: Callable[[], Any], s: float = 60.0, what: str = "it") -> Any:
        """Wait for something true while the launcher lives, and return it."""
        end = time.monotonic() + s
        while not (found := happened()):
            left = self.popen.poll() is not None and "--detach" not in self.command
            assert not left, f"the run has ended before {what}\n{self.finished()}"
            assert time.monotonic() < end, f"{what} did not happen in {s:g} s\n{self.story()}"
            select.select([], [], [], 0.005)
        return found

    def finished(self) -> str:
        """The story of a run that has ended."""
        self.finish()
        return self.story()

    # --- Looking ----------------------------------------------------------------------------------

    def rows(self) -> dict[str, table.Row]:
        return table.read(self.run)

    def who(self, name: str) -> Identity | None:
        """The living process of an actor, a forkserver or the supervisor."""
        row = self.rows().get(name)
        return row.who if row is not None and row.who and process.alive(row.who) else None

    def wait_for(self, *names: str, s: float = 20.0) -> list[Identity]:
        """Until they all live."""

        def all_live() -> list[Identity]:
            found = [who for name in names if (who := self.who(name)) is not None]
            return found if len(found) == len(names) else []

        return self.until(all_live, s, f"life of {names}")

    def wait_for_another(self, name: str, than: Identity | None, s: float = 20.0) -> Identity:
        """Until a new life of that name is there."""

        def another() -> Identity | None:
            found = self.who(name)
            return found if found is not None and found != than else None

        return self.until(another, s, f"another life of {name}")

    def metrics(self) -> list[dict[str, Any]]:
        if not self.run.metrics.exists():
            return []
        lines = self.run.metrics.read_text().split("\n")[:-1]
        return [json.loads(line) for line in lines]

    def step(self) -> int:
        found = self.metrics()
        return found[-1]["step"] if found else 0

    def log(self, name: str) -> list[dict[str, Any]]:
        path = self.run.log_of(name)
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def outcome(self) -> outcome.Outcome | None:
        return outcome.read(self.run)

    def story(self) -> str:
        """What everybody printed, for a failing test."""
        parts = [f"stdout: {self.out}", f"stderr: {self.err}"]
        parts += [
            f"{path.name}:\n{text[-3000:]}"
            for path in sorted(self.run.logs.glob("*.stderr"))
            if (text := path.read_text(errors="replace"))
        ]
        parts += [json.dumps(record) for record in self.log("supervisor")[-40:]]
        return "\n".join(parts)

    # --- Doing ------------------------------------------------------------------------------------

    def kill(self, name: str, number: int = signal.SIGKILL) -> Identity:
        who = self.who(name)
        assert who is not None, f"{name} does not live\n{self.story()}"
        assert process.send_signal(who, number)
        return who

    def kill_launcher(self) -> None:
        self.popen.kill()
        self.finish()

    def interrupt(self) -> None:
        """What Ctrl-C does, once the launcher is far enough to handle it."""

        def handles_terminate() -> bool:
            status = Path(f"/proc/{self.popen.pid}/status").read_text()
            caught = next(line for line in status.splitlines() if line.startswith("SigCgt"))
            return bool(int(caught.split()[1], 16) >> (signal.SIGTERM - 1) & 1)

        wait_until(handles_terminate, 10.0, "the launcher's beginning")
        self.popen.send_signal(signal.SIGINT)

    # --- The end ----------------------------------------------------------------------------------

    def processes(self) -> list[Identity]:
        """Everything of the run that lives."""
        return process.of_run(self.run.run_id)

    def leftovers(self) -> list[str]:
        """What an ended run must not leave: processes, shared memory, sockets."""
        found = [f"process {who.pid}: {_command(who.pid)}" for who in self.processes()]
        found += [f"segment {name}" for name in segments.listing(f"trireme-{self.run.run_id}")]
        if self.run.socket_dir.exists():
            found.append(f"socket directory {self.run.socket_dir}")
        return found

    def end(self) -> None:
        """Whatever is left, by its own pid."""
        if self.popen.poll() is None:
            self.popen.kill()
        self.popen.communicate()

        def all_gone() -> bool:
            # Again and again: one of them may just be forking another.
            for who in self.processes():
                process.send_signal(who, signal.SIGKILL)
            return not self.processes()

        wait_until(all_gone, 10.0, "the end of all processes")
        for name in segments.listing(f"trireme-{self.run.run_id}"):
            segments.unlink(name)
        self.run.remove_socket_dir()


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return "gone"


def python_env() -> dict[str, str]:
    """Environment of a child that finds our packages."""
    return dict(os.environ, PYTHONPATH=str(ROOT))


def python(*arguments: str) -> list[str]:
    return [sys.executable, *arguments]
