"""The run directory: where everything one run leaves behind lies, and under which name.

    runs/NAME/
      format               version of this layout; another one is refused
      sockets              where its unix sockets lie
      topology.toml        the resolved configuration, complete
      hardware.json        what was found
      plan.json            where each actor was placed
      processes.json       actor -> pid, start time, incarnation
      outcome.json         how the run ended, once it has
      ledger.sqlite        which token span went into which row of which batch
      metrics.jsonl        one object per committed step
      rollouts.jsonl       one object per scored group of completions
      logs/                ACTOR.jsonl, ACTOR.stderr, death-ACTOR-INCARNATION.json
      checkpoints/         step-00000100/
      journal/             steps since the last checkpoints, once a standby has been invited
      keys/                CURVE keys of remote hosts, 0600
      tokenizer.json       experiences.sqlite

Sockets and shared memory cannot lie here (paths of unix sockets are short, and memory is memory),
so both carry the run's id: eight hex digits that are a function of this directory's real path.
"""

import contextlib
import hashlib
import json
import os
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# In a directory that a standby keeps, until a run is resumed there: whose copy it is.
COPY = "copy-of"
# Bump when a file of the layout above changes its meaning.
FORMAT = 1

# sun_path holds 108 bytes; the longest name we put behind the directory is under 40.
_MAX_SOCKET_DIR = 64


class RunDirError(ValueError):
    """A run directory that cannot be used: says which one, why, and what to do instead."""


def _choose_socket_dir(leaf: str) -> Path:
    chosen = Path(tempfile.gettempdir()) / leaf
    return chosen if len(os.fsencode(chosen)) <= _MAX_SOCKET_DIR else Path("/tmp") / leaf  # noqa: S108


def file_name(actor: str) -> str:
    """An actor's name as part of a file name: `trainer/0` is `trainer.0`."""
    return actor.replace("/", ".")


@dataclass(frozen=True, slots=True)
class RunDir:
    """Paths of one run. Makes nothing by itself: see `create` and `open_`."""

    path: Path

    @property
    def topology(self) -> Path:
        """The resolved topology."""
        return self.path / "topology.toml"

    @property
    def hardware(self) -> Path:
        """The hardware found when the run began."""
        return self.path / "hardware.json"

    @property
    def plan(self) -> Path:
        """Where each actor was placed."""
        return self.path / "plan.json"

    @property
    def processes(self) -> Path:
        """The process table, rewritten by the supervisor at every change."""
        return self.path / "processes.json"

    @property
    def outcome(self) -> Path:
        """How the run ended. Absent while it runs, and after a crash of everything."""
        return self.path / "outcome.json"

    @property
    def ledger(self) -> Path:
        """The loader's SQLite file."""
        return self.path / "ledger.sqlite"

    @property
    def metrics(self) -> Path:
        """One JSON object per committed step."""
        return self.path / "metrics.jsonl"

    @property
    def rollouts(self) -> Path:
        """One JSON object per group of completions, with the compile rate of its version so far."""
        return self.path / "rollouts.jsonl"

    @property
    def tokenizer(self) -> Path:
        """The tokenizer this run's token ids belong to."""
        return self.path / "tokenizer.json"

    @property
    def logs(self) -> Path:
        """Directory of log lines, stderr and death reports."""
        return self.path / "logs"

    @property
    def checkpoints(self) -> Path:
        """Directory of checkpoints."""
        return self.path / "checkpoints"

    @property
    def journal(self) -> Path:
        """Directory of what a standby needs besides checkpoints; absent without one."""
        return self.path / "journal"

    @property
    def keys(self) -> Path:
        """Directory of CURVE keys, 0700."""
        return self.path / "keys"

    @property
    def experiences(self) -> Path:
        """The experience library of the rollouts."""
        return self.path / "experiences.sqlite"

    @property
    def supervisor_lock(self) -> Path:
        """Locked (flock) by the one living supervisor of this run."""
        return self.path / "supervisor.lock"

    @property
    def launcher_lock(self) -> Path:
        """Locked (flock) by the one living launcher of this run."""
        return self.path / "launcher.lock"

    def log_of(self, actor: str) -> Path:
        """The actor's log lines, of all its incarnations."""
        return self.logs / f"{file_name(actor)}.jsonl"

    def stderr_of(self, actor: str) -> Path:
        """What the actor printed, tracebacks and fault handler included."""
        return self.logs / f"{file_name(actor)}.stderr"

    def death_of(self, actor: str, incarnation: int) -> Path:
        """The report on how that life ended."""
        return self.logs / f"death-{file_name(actor)}-{incarnation}.json"

    @property
    def run_id(self) -> str:
        """Eight hex digits that name the run in /dev/shm and among socket directories."""
        return hashlib.sha256(os.fsencode(self.path.resolve())).hexdigest()[:8]

    @property
    def socket_dir(self) -> Path:
        """Where this run's unix sockets lie, short enough for the kernel.

        Chosen when the run was made and noted in it: whoever asks later may have another TMPDIR.
        """
        leaf = f"trireme-{os.getuid()}-{self.run_id}"
        try:
            noted = Path((self.path / "sockets").read_text(encoding="utf-8").strip())
        except (OSError, UnicodeDecodeError):
            noted = None
        # A copied or moved run directory has another id, and sockets of its own.
        return noted if noted is not None and noted.name == leaf else _choose_socket_dir(leaf)

    def make_socket_dir(self) -> Path:
        """Make the socket directory, 0700. Raises `RunDirError` when somebody else holds the name.

        The directory is the only lock on our local sockets, so one that others may enter, or that
        is a link to elsewhere, is refused rather than repaired.
        """
        path = self.socket_dir
        with contextlib.suppress(FileExistsError):
            path.mkdir(mode=0o700)
        found = _our_directory(path)
        if stat.S_IMODE(found.st_mode) & 0o077:
            raise RunDirError(f"{path} is open to others (wanted mode 0700); remove it")
        return path

    def remove_socket_dir(self) -> None:
        """Remove the socket directory and what lies in it. Nothing happens when it is gone.

        Raises `RunDirError` when the name is not our directory's: anybody can make a link there.
        """
        path = self.socket_dir
        with contextlib.suppress(FileNotFoundError):
            _our_directory(path)
            for entry in path.iterdir():
                entry.unlink(missing_ok=True)
            path.rmdir()


def _our_directory(path: Path) -> os.stat_result:
    """Of a directory of this user, not a link to one. Raises `RunDirError`, FileNotFoundError."""
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise RunDirError(f"{path} is not a directory of yours; remove it and start again")
    return found


def create(path: Path) -> RunDir:
    """Make a new run directory. Raises `RunDirError` when it is in use or cannot be written."""
    run = RunDir(path)
    if (path / "format").exists() or (path.is_dir() and any(path.iterdir())):
        raise RunDirError(
            f"run directory {path} is already in use; "
            f"add --resume to go on with it, or name another one with --run"
        )
    try:
        for directory in (path, run.logs, run.checkpoints):
            directory.mkdir(parents=True, exist_ok=True)
        run.keys.mkdir(mode=0o700, exist_ok=True)
        write_atomically(path / "sockets", f"{run.socket_dir}\n")
        write_atomically(path / "format", f"{FORMAT}\n")
    except OSError as error:
        raise _unwritable(path, error) from error
    return run


def open_(path: Path) -> RunDir:
    """An existing run directory. Raises `RunDirError` when it is none, or of another format."""
    marker = path / "format"
    try:
        text = marker.read_text(encoding="utf-8").strip()
    except (FileNotFoundError, NotADirectoryError):
        hint = "" if path.exists() else " (nothing is there)"
        raise RunDirError(f"{path} is not a run directory{hint}: name one with --run") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RunDirError(f"{marker} cannot be read: {error}") from error
    if text != str(FORMAT):
        raise RunDirError(
            f"run directory {path} has format {text[:20]!r}; this version of Trireme reads format "
            f"{FORMAT}: use the version that made it, or start a new run"
        )
    return RunDir(path)


def writable(run: RunDir) -> None:
    """Raise `RunDirError` unless a file can be written in the run directory now."""
    probe = run.path / f".probe-{os.getpid()}"
    try:
        write_atomically(probe, " " * 4096)
        probe.unlink()
    except OSError as error:
        with contextlib.suppress(OSError):
            probe.unlink(missing_ok=True)
        raise _unwritable(run.path, error) from error


def point_latest_at(run: RunDir) -> None:
    """Make `latest`, beside the run directory, a link to it. A lost race leaves a later run's link.

    A file or directory of that name that is not a link is somebody's own: it stays.
    """
    link = run.path.parent / "latest"
    if link.exists() and not link.is_symlink():
        return
    fresh = link.with_name(f".latest-{os.getpid()}")
    with contextlib.suppress(OSError):
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(run.path.name)
        fresh.replace(link)


def write_atomically(path: Path, text: str, *, durable: bool = True) -> None:
    """Replace a small file so that readers see the old text or the new one, never half of it.

    `durable`: even after the machine has crashed. Raises OSError.
    """
    fresh = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with fresh.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        fresh.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            fresh.unlink(missing_ok=True)
        raise


def read_json(path: Path) -> dict[str, Any] | None:
    """A JSON object of the run directory; None when it is absent or damaged."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None  # pyright: ignore[reportUnknownVariableType]


def _unwritable(path: Path, error: OSError) -> RunDirError:
    why = error.strerror or str(error)
    return RunDirError(
        f"run directory {path} cannot be written: {why}; "
        f"free some space or name a writable place with --run"
    )
