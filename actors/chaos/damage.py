"""Files of a run, damaged on purpose and mended again; a disk that is full for a while."""

import contextlib
import os
import random
import shutil
from pathlib import Path

from actors.rundir import RunDir

_PAGE = 4096
_LEDGER = ("ledger.sqlite", "ledger.sqlite-wal")
_BALLAST = "ballast"
_CHUNK = b"\0" * (1 << 20)
# Steps whose batches may be under way: beyond them, nothing is committed without a loader.
_UNDER_WAY = 6


def newest_checkpoints(run: RunDir) -> list[Path]:
    """Complete ones, the newest first."""
    found = sorted(run.checkpoints.glob("step-*/manifest.json"), reverse=True)
    return [path.parent for path in found if path.parent.name[len("step-") :].isdecimal()]


def damage_checkpoint(run: RunDir, chance: random.Random) -> str:
    """Flip one bit in one file of the newest checkpoint; which file."""
    newest = newest_checkpoints(run)[0]
    files = sorted(path for path in newest.iterdir() if path.is_file() and path.stat().st_size)
    file = files[chance.randrange(len(files))]
    at = chance.randrange(file.stat().st_size)
    with file.open("r+b") as handle:
        handle.seek(at)
        byte = handle.read(1)[0]
        handle.seek(at)
        handle.write(bytes([byte ^ 1 << chance.randrange(8)]))
    return str(file.relative_to(run.path))


class Ledger:
    """The ledger's files, copied before one of its pages is overwritten."""

    def __init__(self, run: RunDir, copies: Path) -> None:
        self._run, self._copies = run, copies
        self.damaged = False
        self._at_step = 0

    def damage(self, chance: random.Random, step: int) -> str:
        """Its writer must stand still. Copies it, then overwrites a page of it; where. `step` is
        the last one committed."""
        self._copies.mkdir(exist_ok=True)
        for name in _LEDGER:
            (self._copies / name).unlink(missing_ok=True)
            with contextlib.suppress(FileNotFoundError):
                shutil.copyfile(self._run.path / name, self._copies / name)
        pages = self._run.ledger.stat().st_size // _PAGE
        page = chance.randrange(pages) if pages else 0
        with self._run.ledger.open("r+b") as handle:
            handle.seek(page * _PAGE)
            handle.write(chance.randbytes(_PAGE))
        self.damaged, self._at_step = True, step
        return f"page {page} of {pages}"

    def outlived(self, step: int) -> None:
        """Step `step` is committed. Another loader has opened it meanwhile if that is long after,
        and goes on: nobody reads that page, and the copy is not what should stand there any more.
        """
        if step > self._at_step + _UNDER_WAY:
            self.damaged = False

    def mend(self) -> None:
        """Put the copy back. Nobody may have it open."""
        self.damaged = False
        for name in (*_LEDGER, "ledger.sqlite-shm"):
            (self._run.path / name).unlink(missing_ok=True)
        for name in _LEDGER:
            with contextlib.suppress(FileNotFoundError):
                shutil.copyfile(self._copies / name, self._run.path / name)


def fill(directory: Path) -> None:
    """Take all that is left of the disk on which `directory` lies."""
    with contextlib.suppress(OSError), (directory / _BALLAST).open("wb", buffering=0) as file:
        chunk = _CHUNK
        while True:
            try:
                file.write(chunk)
            except OSError:
                if len(chunk) == 1:
                    raise
                chunk = chunk[: len(chunk) // 2]
            os.fsync(file.fileno())


def empty(directory: Path) -> None:
    """Give it back."""
    (directory / _BALLAST).unlink(missing_ok=True)
