"""`run.py attach`: join a running graph with data workers, a trainer or a standby of this host.

Knocks once by itself, so that a refusal comes in seconds and in words; then starts one process
per worker and looks after them until the run ends or somebody presses Ctrl-C. Leaving costs the
run only the samples the workers were on, which go to others; a trainer's rank is free again.
"""

import os
import re
import signal
import sys
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import click

from actors.commands import Failed, Refused
from protocol.keys import INVITED

if TYPE_CHECKING:
    from collections.abc import Generator

    from actors.process import Ended, Identity
    from actors.supervisor.rationing import Rationing
    from protocol.keys import KeyFile

# How long whoever lets us in may take to answer the knock.
PATIENCE_S = 8.0
# The polite part of leaving.
LEAVE_S = 10.0
# Deaths of one worker that are answered with a new one.
INTENSITY, PERIOD_S = 5, 60.0
MAX_COUNT = 1024
_ENDPOINT = re.compile(r"tcp://(\[[0-9A-Fa-f:.%\w]+\]|[^\s:/\[\]]+):(\d{1,5})")
_DEVICE = re.compile(r"cpu|cuda:\d{1,3}")
_LOOK_S = 0.5
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)


@click.command()
@click.argument("endpoint")
@click.option(
    "--key",
    "key_file",
    required=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Key file that `run.py invite` wrote.",
)
@click.option(
    "--role",
    default="data_worker",
    show_default=True,
    type=click.Choice(INVITED),
    help="What to be.",
)
@click.option(
    "--count",
    default=1,
    show_default=True,
    type=click.IntRange(1, MAX_COUNT),
    help="Worker processes to start.",
)
@click.option(
    "--pool",
    default="fast",
    show_default=True,
    type=click.Choice(["fast", "slow"]),
    help="Of data workers.",
)
@click.option("--device", default="cpu", show_default=True, help="Of a trainer: cpu, cuda:0, ...")
@click.option(
    "--run",
    "run_dir",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Of a standby: where to keep the copy.",
)
def attach(
    endpoint: str,
    key_file: Path,
    role: str,
    count: int,
    pool: str,
    device: str,
    run_dir: Path | None,
) -> None:
    """Join the run at ENDPOINT (tcp://HOST:PORT) with data workers, a trainer, or a standby, of
    this host.
    """
    from actors import process, temporary

    key = _usable_key(endpoint, key_file, role)
    if key.role != "data_worker" and count > 1:
        raise Refused(f"--count {count}: a key lets one {key.role} in; invite one for each")
    if (key.role == "standby") != (run_dir is not None):
        raise Refused("--run: names where a standby keeps its copy; with --role standby, and only")
    if not _DEVICE.fullmatch(device):
        raise Refused(f"--device {device!r}: cpu, or cuda:0, cuda:1, ...")
    try:
        lock = process.try_lock(key_file)
    except OSError as error:
        raise Refused(f"--key {key_file}: {error.strerror or error}") from error
    if lock is None:
        raise Refused(
            f"--key {key_file} is in use by another attach on this host; one key, one attach: "
            "use a greater --count there, or invite again"
        )
    try:
        _knock(endpoint, key)
        with temporary.directory("attach") as directory:
            places = {"trainer": device, "standby": str((run_dir or Path()).absolute())}
            place = places.get(key.role, pool)
            host = Host(endpoint, key, key_file.resolve(), place, directory)
            sys.exit(host.look_after(count))
    finally:
        os.close(lock)


def _usable_key(endpoint: str, key_file: Path, role: str) -> "KeyFile":
    from protocol.errors import EndpointError
    from protocol.keys import KeyFile

    found = _ENDPOINT.fullmatch(endpoint)
    if not found or not 0 < int(found[2]) < 65536:
        raise Refused(f"{endpoint!r} is no endpoint; one looks like tcp://192.0.2.7:40000")
    try:
        key = KeyFile.read(key_file)
    except EndpointError as error:
        raise Refused(f"--key: {error}") from error
    if key.role != role:
        raise Refused(f"--role {role}: {key_file} is a key for the role {key.role}")
    return key


def _knock(endpoint: str, key: "KeyFile") -> None:
    """Be let in once. Raises `Failed`, in words."""
    from protocol import errors
    from protocol.clock import MonotonicClock
    from protocol.transport import Node

    try:
        with Node(f"{key.role}/{key.label}", key.role, 0, MonotonicClock()) as node:
            node.connect(key.channel, endpoint, key.curve())
            node.handshake(key.channel, PATIENCE_S)
    except (errors.Refused, errors.EndpointError) as error:
        raise Failed(f"not attached: {error}") from error


@dataclass(slots=True)
class Guest:
    """One worker, through all its lives."""

    name: str
    cpus: tuple[int, ...]
    output: Path
    rationing: "Rationing"
    who: "Identity | None" = None
    due: float = 0.0  # when to start the next life
    told: str = ""  # what it said last, and a person has read
    ended: str | None = None  # why there is none any more; "": on purpose


@dataclass(slots=True)
class Host:
    """The workers of this host."""

    endpoint: str
    key: "KeyFile"
    key_file: Path
    place: str  # pool of data workers, device of a trainer, directory of a standby
    directory: Path
    guests: list[Guest] = field(default_factory=list[Guest])
    interrupted: int = 0  # the signal that asked us to leave

    def look_after(self, count: int) -> int:
        """Start `count` workers and see them through; the exit code. Raises `Failed`."""
        from protocol.clock import Deadline, MonotonicClock

        clock = MonotonicClock()
        self.guests = [self._guest(index, count) for index in range(count)]
        leaving: Deadline | None = None
        with _signals_held():
            try:
                click.echo(f"attached {count} x {self.key.role} to {self.endpoint} (Ctrl-C leaves)")
                while self._alive(starting=leaving is None):
                    if leaving is None:
                        self._start_due(clock.now())
                    self._wait()
                    if self.interrupted and leaving is None:
                        leaving = Deadline.after(clock, LEAVE_S, "workers to leave")
                        click.echo("leaving: finishing what is at hand", err=True)
                        self._signal_all(signal.SIGTERM)
                    if leaving is not None and leaving.passed():
                        self._signal_all(signal.SIGKILL)
                    self._reap(clock.now())
                    self._pass_on()
            finally:
                self._signal_all(signal.SIGKILL)
        return self._outcome()

    def _guest(self, index: int, count: int) -> Guest:
        from actors.supervisor.rationing import Rationing

        # One core each while there are enough; otherwise the kernel shares them out.
        allowed = sorted(os.sched_getaffinity(0))
        pinned = count <= len(allowed) and self.key.role == "data_worker"
        cpus = (allowed[index],) if pinned else ()
        return Guest(
            name=f"{self.key.role}/{self.key.label}-{index}",
            cpus=cpus,
            output=self.directory / f"{index}.out",
            rationing=Rationing(
                intensity=INTENSITY, period_s=PERIOD_S, backoff_s=0.5, backoff_max_s=10.0
            ),
        )

    def _alive(self, *, starting: bool) -> bool:
        """Does anybody work, or will again?"""
        return any(
            guest.who is not None or (starting and guest.ended is None) for guest in self.guests
        )

    def _start_due(self, now: float) -> None:
        from actors import process

        for guest in self.guests:
            if guest.who is not None or guest.ended is not None or now < guest.due:
                continue
            command = process.python(
                *("-m", "actors.attached", str(self.key_file), self.endpoint, guest.name),
                *(self.place, *map(str, guest.cpus)),
            )
            try:
                guest.who = process.start(command, output=guest.output, env=process.environment())
            except OSError as error:
                raise Failed(f"a worker cannot be started: {error.strerror or error}") from error

    def _wait(self) -> None:
        """Until a child ends, somebody wants us to leave, or for a moment."""
        found = signal.sigtimedwait(_SIGNALS, _LOOK_S)
        if found is not None and found.si_signo != signal.SIGCHLD:
            self.interrupted = self.interrupted or found.si_signo

    def _signal_all(self, number: int) -> None:
        from actors import process

        for guest in self.guests:
            if guest.who is not None:
                process.send_signal(guest.who, number)

    def _reap(self, now: float) -> None:
        from actors import process

        for guest in self.guests:
            if guest.who is not None:
                for ended in process.reap(guest.who.pid):
                    guest.who = None
                    self._decide(guest, ended, now)

    def _pass_on(self) -> None:
        """What a standby says of its copy is for whoever sits here."""
        for guest in self.guests if self.key.role == "standby" else ():
            line = _last_line(guest.output)
            if line and line != guest.told:
                guest.told = line
                click.echo(line)

    def _decide(self, guest: Guest, ended: "Ended", now: float) -> None:
        """A worker that died is replaced; one that left, or was refused, is not."""
        from actors import process
        from actors.attached import EXIT_REFUSED

        words = _last_line(guest.output) or process.words(ended.code)
        if ended.code == 0 or self.interrupted:
            guest.ended = ""
        elif ended.code == EXIT_REFUSED:
            guest.ended = words
        else:
            wait_s = guest.rationing.died(now)
            click.echo(f"{guest.name} died: {words}", err=True)
            if wait_s is None:
                guest.ended = f"{guest.name} keeps dying: {words}"
            else:
                guest.due = now + wait_s

    def _outcome(self) -> int:
        troubles = [guest.ended for guest in self.guests if guest.ended]
        if self.interrupted:
            click.echo("left the run")
            return 130 if self.interrupted == signal.SIGINT else 0
        if troubles:
            raise Failed(f"detached: {troubles[0]}")
        click.echo("the run has ended")
        return 0


@contextmanager
def _signals_held() -> "Generator[None]":
    """Signals wait for `sigtimedwait` instead of interrupting anything."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _last_line(path: Path) -> str:
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    except OSError:
        return ""
    return lines[-1] if lines else ""
