"""What outlives processes: shared memory, files, the process table. A host's loss takes the first.

Files are real ones below a directory of this run (in memory, where /dev/shm is); `Truth` looks at
every checkpoint as soon as it has its final name.
"""

import mmap
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from actors import checkpoints, gradient_slots
from actors.checkpoints import CheckpointError
from actors.data.database import newest_life
from actors.simulation.setting import layout
from actors.simulation.truth import Violation
from actors.supervisor.table import Row
from protocol.errors import SegmentError
from protocol.segments import Segment

if TYPE_CHECKING:
    from actors.simulation.world import World

_LEDGER = ("ledger.sqlite", "ledger.sqlite-wal")


class Disk:
    """One run's, through all its launches."""

    def __init__(self, world: "World", directory: Path) -> None:
        self.directory, self.checkpoints = directory, directory / "checkpoints"
        self.table: dict[str, Row] = {}
        self.metrics: dict[int, str] = {}  # what the recorder has written: step -> digest
        self.remember_ledgers = False  # keep copies, so that a lost host can forget a step
        self._world = world
        self._segments: dict[str, Segment] = {}
        self._seen: set[str] = set()
        self._tables: list[dict[str, Row]] = []
        self.checkpoints.mkdir(parents=True)

    # --- shared memory ----------------------------------------------------------------------------

    def make_segments(self) -> None:
        """As the supervisor does: what is missing is created, zeroed."""
        topology = self._world.topology
        for shard in range(topology.actors.optimizer_shards):
            nbytes = layout(topology, shard).total_bytes
            self._make(f"trireme-state-{shard}", nbytes)
        for rank in range(topology.actors.trainers):
            nbytes = gradient_slots.segment_bytes(topology.model)
            self._make(f"trireme-gradients-{rank}", nbytes)

    def _make(self, name: str, nbytes: int) -> None:
        if name not in self._segments:
            self._segments[name] = Segment(name, mmap.mmap(-1, nbytes))

    def segment(self, name: str) -> Segment:
        """The segment of that name. Raises `SegmentError`."""
        found = self._segments.get(name)
        if found is None:
            raise SegmentError(f"cannot open segment {name}")
        return found

    # --- checkpoints ------------------------------------------------------------------------------

    def checkpoints_checked(self) -> None:
        """Look at checkpoints that are new. Raises `Violation`."""
        names = {path.name for path in checkpoints.listing(self.checkpoints)}
        for name in sorted(names - self._seen):
            path = self.checkpoints / name
            if not (path / checkpoints.MANIFEST).exists():
                continue  # half removed by somebody who died over it
            try:
                found = checkpoints.verify(path)
            except CheckpointError as error:
                raise Violation("checkpoints loadable", str(error)) from error
            self._world.truth.checkpoint(found)
        self._seen = names

    def newest(self) -> int:
        """Step of the newest checkpoint that is whole; -1: there is none."""
        found = checkpoints.newest(self.checkpoints, lambda _why: None)
        return -1 if found is None else found.step

    def damage(self) -> None:
        """Flip a bit in the newest checkpoint, unless it is the only one."""
        whole = checkpoints.listing(self.checkpoints)
        if len(whole) < 2:
            return
        files = sorted(whole[0].glob("*.safetensors"))
        file = files[self._world.chance.randrange(len(files))]
        data = bytearray(file.read_bytes())
        data[self._world.chance.randrange(len(data))] ^= 1
        file.write_bytes(data)

    # --- files that change ------------------------------------------------------------------------

    def save_table(self, rows: dict[str, Row]) -> None:
        """Replace processes.json."""
        self._tables = [*self._tables[-4:], self.table]
        self.table = rows

    def ledger_opened(self, step: int) -> None:
        """A loader has taken the ledger over: that is synced, with all that lay before it."""
        for copy in self.directory.glob("ledger-*"):
            shutil.rmtree(copy)
        self.ledger_committed(step)

    def ledger_committed(self, step: int) -> None:
        """A step is in the ledger."""
        if self.remember_ledgers:
            copy = self.directory / f"ledger-{step}"
            copy.mkdir()
            for name in _LEDGER:
                if (self.directory / name).exists():
                    shutil.copyfile(self.directory / name, copy / name)

    def lose_host(self, forget: int, *, stale: bool) -> None:
        """Memory is gone; so are the ledger's last `forget` steps and, with `stale`, the newest
        process tables. A disk that was told to sync keeps the rest."""
        self._segments.clear()
        if stale:
            self.table = self._tables[0] if self._tables else {}
        copies = sorted(
            int(path.name.partition("-")[2]) for path in self.directory.glob("ledger-*")
        )
        if not self.remember_ledgers or len(copies) <= forget or not forget:
            return
        step = copies[-1 - forget]
        for later in copies[-forget:]:
            shutil.rmtree(self.directory / f"ledger-{later}")
        for name in _LEDGER:
            (self.directory / name).unlink(missing_ok=True)
            source = self.directory / f"ledger-{step}" / name
            if source.exists():
                shutil.copyfile(source, self.directory / name)
        (self.directory / "ledger.sqlite-shm").unlink(missing_ok=True)
        self._world.truth.recorded_upto(step)

    def clear(self) -> None:
        """What `leftovers.clear` does before a run is resumed."""
        self._segments.clear()
        lives = {name: row.incarnation for name, row in self.table.items()}
        lives["loader"] = max(lives.get("loader", 0), newest_life(self.directory / _LEDGER[0]))
        self.table = {name: Row(incarnation=incarnation) for name, incarnation in lives.items()}
        newest = self.newest()
        self.metrics = {step: sha for step, sha in self.metrics.items() if step <= newest}
