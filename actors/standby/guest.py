"""A standby: keeps, on another host, a run directory that the run can be resumed in.

It asks the run's loader what is there, and takes what it lacks. What it has taken is on disk before
it counts: everything is synced, checkpoints are checked byte by byte before they get their name,
and records of steps before they are counted. One that starts anew goes on from what it has.

The directory is locked meanwhile as by a launcher, so nobody can resume a run in the middle of it.
"""

import datetime
import os
import shutil
import sys
from pathlib import Path

from actors import checkpoints, journal, process, rundir
from actors.checkpoints import CheckpointError
from actors.loop import Mailbox, Remote
from actors.optimizer import notes
from actors.rundir import RunDir, RunDirError
from actors.seat import Seat
from actors.standby import catalogue, mirror
from actors.standby.mirror import Mirror, Reach
from protocol import messages as m
from protocol.clock import Clock, Deadline, MonotonicClock
from protocol.errors import Refused
from protocol.keys import KeyFile
from protocol.messages import Message
from protocol.transport import Received

CHANNEL = "standby"
# Between two rounds when nothing new was there.
ROUND_S = 0.05
# An answer that does not come is asked for again.
AGAIN_S = 2.0
# After so long without a word, the person on this host is told.
LOST_S = 15.0


class Copy:
    """The copy on disk. Methods raise `OSError`."""

    def __init__(self, run: RunDir) -> None:
        self._run = run
        self._scanned: dict[str, int] = {}
        self._dirty: set[Path] = set()
        self.reach = Reach()
        shutil.rmtree(run.checkpoints / checkpoints.CLOSING, ignore_errors=True)

    def found(self) -> Mirror:
        """What lies here already."""
        root, sizes = self._run.path, dict[str, tuple[int, int]]()
        for path in root.rglob("*"):
            name = str(path.relative_to(root)).replace(".tmp/", "/")
            if path.is_file() and path.parent.suffix == ".tmp":
                sizes[name] = (path.stat().st_size, 0)
            elif path.is_file() and catalogue.step_of(name) < 0:
                sizes[name] = (path.stat().st_size, path.stat().st_mtime_ns)
        newest = checkpoints.newest(self._run.checkpoints, _say)
        saved = -1 if newest is None else newest.step
        if newest is not None:
            self.reach.complete(saved)
        return Mirror(mirror.held_files(sizes), saved)

    def act(self, instruction: mirror.Instruction) -> bool | None:
        """Carry it out; of `Complete`, whether the checkpoint is whole."""
        root = self._run.path
        match instruction:
            case mirror.Begin(path=path):
                self._unfinished(path).unlink(missing_ok=True)
            case mirror.Cut(path=path, size=size):
                os.truncate(root / path, size)
                self._dirty.add(root / path)
                self._scanned.clear()
                self.reach.forget()
                self.scan()
            case mirror.Finish(path=path, modified_ns=modified_ns):
                unfinished = self._unfinished(path)
                _sync(unfinished)
                os.utime(unfinished, ns=(modified_ns, modified_ns))
                self._dirty.discard(unfinished)
                unfinished.replace(root / path)
                _sync((root / path).parent)
            case mirror.Remove(path=path):
                shutil.rmtree(root / path, ignore_errors=True)
                (root / path).unlink(missing_ok=True)
                self._scanned.pop(path.rpartition("/")[2], None)
            case mirror.Complete(step=step):
                return self._complete(step)
            case mirror.Fetch():
                raise AssertionError(instruction)
        return None

    def write(self, path: str, offset: int, piece: memoryview) -> None:
        """Bytes of a file from `offset` on."""
        file = self._unfinished(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        known = file.exists()
        with file.open("r+b" if known else "xb") as out:
            out.seek(offset)
            out.write(piece)
        self._dirty |= {file} if known else {file, file.parent}

    def settle(self) -> None:
        """What has been taken is on disk; the steps that it tells of count."""
        for file in self._dirty:
            if file.exists():
                _sync(file)
        told = [file.name for file in self._dirty]
        self._dirty.clear()
        for part in journal.parts_of(told):
            if part.shard == 0:
                self.reach.committed(*self._commits(part.name))

    def scan(self) -> None:
        """Count the steps of all that lies here."""
        names = [path.name for path in self._run.journal.glob("*.journal")]
        for part in journal.parts_of(names):
            if part.shard == 0:
                self.reach.committed(*self._commits(part.name))

    def _commits(self, name: str) -> tuple[set[int], set[int]]:
        """Steps that are new there, and those of them that a run can go on from."""
        steps, whole = set[int](), set[int]()
        path, start = self._run.journal / name, self._scanned.get(name, 0)
        # A record whose end is still to come is looked at again.
        for found in journal.records(path, lambda _why: None, start):
            note = notes.note_of(found)
            if isinstance(note, notes.Committed):
                steps.add(note.step)
                whole |= {note.step} if note.whole else set()
            self._scanned[name] = found.end
        return steps, whole

    def _complete(self, step: int) -> bool:
        unfinished = checkpoints.unfinished_path(self._run.checkpoints, step)
        for file in unfinished.iterdir():
            _sync(file)
        self._dirty = {file for file in self._dirty if file.parent != unfinished}
        try:
            checkpoints.verify(unfinished)
        except CheckpointError as error:
            _say(f"{error}; it is copied again")
            return False
        _sync(unfinished)
        final = unfinished.with_suffix("")
        shutil.rmtree(final, ignore_errors=True)
        unfinished.rename(final)
        _sync(final.parent)
        self.reach.complete(step)
        for older in checkpoints.listing(self._run.checkpoints):
            if older != final:
                shutil.rmtree(older)
        return True

    def _unfinished(self, path: str) -> Path:
        """Where bytes of that file are put."""
        folder, _, name = path.rpartition("/")
        if catalogue.kind_of(path) == "saved":
            return self._run.path / f"{folder}.tmp" / name
        suffix = ".part" if catalogue.kind_of(path) == "whole" else ""
        return self._run.path / folder / f"{name}{suffix}"


class Standby:
    """Takes what it lacks, one question at a time."""

    def __init__(self, mailbox: Mailbox, copy: Copy, clock: Clock) -> None:
        self._mailbox, self._copy, self._clock = mailbox, copy, clock
        self._mirror = copy.found()
        copy.scan()
        self._question: Message | None = None
        self._again = Deadline.after(clock, 0.0, "an answer")
        self._heard_at = clock.now()
        self._lost = False

    def run(self) -> bool:
        """Until the run ends (True), or somebody sends SIGTERM (False). Raises `OSError`."""
        while self._mailbox.stopping is None:
            if self._question is None and self._again.passed():
                self._ask_what_is_there()
            elif self._question is not None and self._again.passed():
                self._ask(self._question)
            for received in self._mailbox.receive(ROUND_S):
                if isinstance(received.message, m.Stop):
                    return received.role == "loader"  # and not our own mailbox
                self._hear(received)
            self._watch()
        return False

    @property
    def step(self) -> int:
        """The last step that a run could go on from here; -1: none yet."""
        return self._copy.reach.step if self._mirror.startable else -1

    def _hear(self, received: Received) -> None:
        """An answer to what was asked last; others are of earlier questions."""
        self._heard_at, asked = self._clock.now(), self._question
        match received.message:
            case m.Files(files=files) if isinstance(asked, m.FilesRequest):
                self._question = None
                self._mirror.told(files)
                self._go_on()
            case m.Piece(path=path, offset=offset) if isinstance(asked, m.PieceRequest) and (
                (path, offset) == (asked.path, asked.offset)
            ):
                self._question = None
                piece = received.frames[0] if received.frames else memoryview(b"")
                if piece.nbytes:
                    self._copy.write(path, offset, piece)
                self._mirror.took(path, piece.nbytes)
                self._go_on()
            case _:
                pass

    def _go_on(self) -> None:
        """Do what can be done here, up to the next question."""
        while (instruction := self._mirror.next()) is not None:
            if isinstance(instruction, mirror.Fetch):
                fetch = instruction
                self._ask(m.PieceRequest(path=fetch.path, offset=fetch.offset, size=fetch.size))
                return
            whole = self._copy.act(instruction)
            if isinstance(instruction, mirror.Complete):
                self._mirror.completed(instruction.step, whole=bool(whole))
        self._copy.settle()
        pause_s = 0.0 if self._mirror.lacking_bytes else ROUND_S
        self._again = Deadline.after(self._clock, pause_s, "the next round")

    def _ask_what_is_there(self) -> None:
        host, lacking = os.uname().nodename, self._mirror.lacking_bytes
        self._ask(m.FilesRequest(host=host, step=self.step, lacking_bytes=lacking))

    def _ask(self, question: Message) -> None:
        self._question = question
        self._again = Deadline.after(self._clock, AGAIN_S, "an answer")
        self._mailbox.send(CHANNEL, question)

    def _watch(self) -> None:
        """Say once that the run is not to be heard, and once that it is."""
        silent_s = self._clock.now() - self._heard_at
        if self._lost != (silent_s > LOST_S):
            self._lost = not self._lost
            how = "no word from the run" if self._lost else "the run is heard again"
            _say(f"{how}; this copy {held(self.step)}")


def held(step: int) -> str:
    """What a copy is good for, in words."""
    return "is not complete yet" if step < 0 else f"goes on from step {step}"


def serve_remote(key: KeyFile, name: str, *, endpoint: str, directory: Path) -> int:
    """Copy the run into `directory` until it ends, or somebody sends SIGTERM.

    Raises `Refused`, in words, when the directory holds something else, or we are not let in.
    """
    try:
        run, lock = _opened(key, directory)
        try:
            return _copied(key, name, endpoint, run)
        finally:
            os.close(lock)
    except (OSError, RunDirError) as error:
        raise Refused(f"{directory} cannot hold a copy: {error}") from error


def _copied(key: KeyFile, name: str, endpoint: str, run: RunDir) -> int:
    seat = Seat(
        run_dir=str(run.path),
        run_id="",
        socket_dir="",
        name=name,
        role="standby",
        incarnation=int(datetime.datetime.now(datetime.UTC).timestamp() * 1000),
    )
    remote = Remote(endpoint or key.endpoint, key.curve(), channel=CHANNEL)
    with Mailbox(seat, (), remote=remote) as mailbox:
        standby = Standby(mailbox, Copy(run), MonotonicClock())
        ended = standby.run()
        mailbox.send(CHANNEL, m.Goodbye(failed=""))
    _say(f"{'the run has ended' if ended else 'left'}; this copy {held(standby.step)}")
    return 0


def _opened(key: KeyFile, directory: Path) -> tuple[RunDir, int]:
    """The directory, locked. Raises `Refused`, `RunDirError`, `OSError`."""
    marker = directory / rundir.COPY
    if not marker.exists():
        rundir.create(directory)
        rundir.write_atomically(marker, f"{key.server_key}\n")
    run = rundir.open_(directory)
    if marker.read_text(encoding="utf-8").strip() != key.server_key:
        raise Refused(f"{directory} is a copy of another run; name another directory with --run")
    lock = process.try_lock(run.launcher_lock)
    if lock is None:
        raise Refused(f"{directory} is in use; end what uses it, or name another with --run")
    run.journal.mkdir(exist_ok=True)
    return run, lock


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()
