"""When a shard writes, who tells whom, and when a checkpoint is complete.

Every shard writes its own files into one directory and tells shard 0; shard 0 adds the manifest
and gives the directory its name. A shard that cannot write says so, and the checkpoint is given up:
older ones stay, training goes on. Only the last checkpoint of a run is tried again.

A stop makes a closing checkpoint of whatever each shard has reached, unless the newest complete one
is already that. It lies in a directory of its own until all shards have written.
"""

import hashlib
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from actors import checkpoints
from actors.checkpoints import CLOSING, FORMAT, METRICS, CheckpointError, Manifest
from actors.codec_memory import CodecMemory
from actors.optimizer.state import State
from actors.optimizer.writer import Background, ShardWriter, Written, in_thread
from actors.parameters import parameters
from actors.published import weights_digest
from actors.topology import Topology, to_toml
from protocol.messages import CheckpointPart

# The last checkpoint is tried this often before the run ends without it.
LAST_TRIES = 15
LAST_RETRY_S = 2.0


class Log(Protocol):
    """The two things that are logged here."""

    def info(self, event: str, **fields: object) -> object:
        """Something happened."""
        ...

    def warning(self, event: str, **fields: object) -> object:
        """Something that a person should know of."""
        ...


class RunFailed(RuntimeError):
    """The run cannot go on without a person; the message says why and what to do."""


@dataclass(slots=True)
class _Gathered:
    """What shard 0 knows of one checkpoint under way."""

    parts: dict[int, Written] = field(default_factory=dict[int, Written])

    @property
    def failed(self) -> str:
        return next((part.failed for part in self.parts.values() if part.failed), "")


class Checkpoints:
    """One shard's part in checkpoints; shard 0 also completes them."""

    def __init__(
        self,
        topology: Topology,
        shard: int,
        state: State,
        directory: Path,
        report: Callable[[CheckpointPart], object],
        log: Log,
        background: Background = in_thread,
        memories: Sequence[CodecMemory] = (),
    ) -> None:
        self._topology, self._shard, self._state = topology, shard, state
        self._directory, self._report, self._log = directory, report, log
        self._shards = topology.actors.optimizer_shards
        self._writer = ShardWriter(state, topology.optimizer, background, memories)
        self._gathered: dict[int, _Gathered] = {}
        self._closing: _Gathered = _Gathered()
        self._tries, self._retry_at = 0, 0.0
        self._last_part: CheckpointPart | None = None
        self._over = -1  # checkpoints up to this one are complete or given up
        self.saved = -1  # the newest complete checkpoint of this run that we know of
        for path in checkpoints.listing(directory)[:1]:
            self.saved = int(path.name.removeprefix("step-"))

    @property
    def idle(self) -> bool:
        """Whether nothing is being written here."""
        return not self._writer.busy

    def exists(self, step: int) -> bool:
        """Whether there is a complete checkpoint of `step`."""
        name = checkpoints.unfinished_path(self._directory, step).stem
        return (self._directory / name / checkpoints.MANIFEST).exists()

    def due(self, step: int) -> None:
        """All parameters have just reached `step`, which is to be written."""
        if self.exists(step):
            self.saved, self._tries = max(self.saved, step), 0
            return
        if self._writer.busy and step == self._topology.steps:
            self._tell(self._writer.poll(wait_s=self._topology.supervision.hang_s / 2))
        if self._writer.busy:
            self._tell(Written(step, False, failed="the one before it is still being written"))
            return
        self._writer.start(checkpoints.unfinished_path(self._directory, step), closing=False)

    def preserve(self, index: int) -> None:
        """A parameter is about to change."""
        self._writer.preserve(index)

    def tick(self, now: float) -> None:
        """Look after what is being written. Raises `RunFailed` when the last cannot be."""
        self._tell(self._writer.poll())
        if self._tries and now >= self._retry_at and not self._writer.busy:
            if self._tries > LAST_TRIES:
                raise RunFailed(
                    f"the checkpoint of the last step cannot be written below {self._directory}: "
                    "free some space, then run again with --resume"
                )
            self._retry_at = now + LAST_RETRY_S
            self.due(self._topology.steps)

    def repeat(self) -> None:
        """Tell shard 0 again what is on disk: it may have forgotten."""
        if self._last_part is not None and not self.exists(self._last_part.version):
            self._report(self._last_part)

    def part(self, part: CheckpointPart) -> None:
        """Shard 0: another shard has written, or has not."""
        if 0 < part.shard < self._shards:
            written = Written(part.version, part.closing, part.files, part.failed)
            self._gather(part.shard, written)

    # --- stopping --------------------------------------------------------------------------------

    def close(self) -> None:
        """The run stops here: write what is newer than the last checkpoint."""
        self._tell(self._writer.poll(wait_s=self._topology.supervision.stop_s / 4))
        version = min(self._state.versions())
        if self._writer.busy or not version or self.exists(version):
            self._tell(Written(version, True))
        else:
            self._writer.start(self._directory / CLOSING, closing=True)

    def closed(self) -> bool:
        """Whether all that can be done has been done. Call repeatedly after `close`."""
        self._tell(self._writer.poll())
        if self._writer.busy or self._shard not in self._closing.parts:
            return False
        return self._shard > 0 or len(self._closing.parts) == self._shards

    # --- inside ----------------------------------------------------------------------------------

    def _tell(self, written: Written | None) -> None:
        """This shard has written, or has not; None: it is still at it."""
        if written is None:
            return
        last = not written.closing and written.version == self._topology.steps
        if written.failed:
            self._log.warning(
                "checkpoint not written", step=written.version, why=written.failed, kept=self.saved
            )
            self._tries += last
        elif last:
            self._tries = 0
        if self._shard == 0:
            self._gather(0, written)
            return
        if written.closing:
            self._closing.parts[self._shard] = written
        self._last_part = CheckpointPart(
            version=written.version,
            shard=self._shard,
            files=written.files,
            closing=written.closing,
            failed=written.failed,
        )
        self._report(self._last_part)

    def _gather(self, shard: int, written: Written) -> None:
        """Shard 0: note a part; complete the checkpoint when it was the last."""
        if written.closing:
            self._closing.parts[shard] = written
            if len(self._closing.parts) == self._shards:
                self._complete_closing()
            return
        last = written.version == self._topology.steps
        if written.version <= self._over or self.exists(written.version):
            return  # said again
        if written.failed and last:
            return  # it is tried again by whoever could not write it
        gathered = self._gathered.setdefault(written.version, _Gathered())
        gathered.parts[shard] = written
        if len(gathered.parts) < self._shards:
            return
        del self._gathered[written.version]
        unfinished = checkpoints.unfinished_path(self._directory, written.version)
        if gathered.failed:
            self._over = max(self._over, written.version)
            self._give_up(unfinished, written.version, gathered.failed)
        else:
            self._complete(unfinished, written.version, gathered)

    def _complete_closing(self) -> None:
        parts = self._closing.parts.values()
        step = min(part.version for part in parts)
        unfinished = self._directory / CLOSING
        if self._closing.failed or not all(part.files for part in parts):
            # Without files, a shard says that the checkpoint of its version exists; so does step's.
            self._give_up(unfinished, step, self._closing.failed)
        else:
            self._complete(unfinished, step, self._closing)

    def _complete(self, unfinished: Path, step: int, gathered: _Gathered) -> None:
        try:
            manifest = self._manifest(unfinished, step, gathered)
            path = checkpoints.complete(unfinished, manifest)
        except (OSError, CheckpointError) as error:
            if step < self._topology.steps or gathered is self._closing:
                self._give_up(unfinished, step, str(error))
                return
            self._log.warning("checkpoint not completed", step=step, why=str(error))
            self._gathered[step] = gathered
            self._tries += 1
            return
        self.saved, self._over = max(self.saved, step), max(self._over, step)
        self._tries = 0
        for late in [s for s in self._gathered if s < step]:
            self._log.warning("checkpoint given up", step=late, why="a newer one came first")
            del self._gathered[late]
        keep = self._topology.checkpoint
        for stuck in checkpoints.prune(self._directory, keep.keep_last, step, keep.keep_every):
            self._log.warning("old checkpoint not removed", path=str(stuck))
        self._log.info("checkpoint written", step=step, path=str(path))

    def _manifest(self, unfinished: Path, step: int, gathered: _Gathered) -> Manifest:
        files = {name: sha for part in gathered.parts.values() for name, sha in part.files.items()}
        committed = min(self._state.committed, step)
        records = [record for record in self._state.records(0) if record["step"] <= step]
        files[METRICS] = checkpoints.write_json(unfinished / METRICS, records)
        facts = {
            str(s): {str(rank): said._asdict() for rank, said in self._state.facts(s).items()}
            for s in range(committed + 1, committed + 3)
        }
        digests = {
            name: bytes.fromhex(about.published[str(step)][0])
            for file in checkpoints.tensor_files(unfinished, files)
            for name, about in file.parameters.items()
            if str(step) in about.published
        }
        order = [parameter.name for parameter in parameters(self._topology.model)]
        lacking = [name for name in order if name not in digests]
        if lacking:
            raise CheckpointError(f"version {step} of {lacking[0]} was not written")
        return Manifest(
            format=FORMAT,
            step=step,
            committed=committed,
            seed=self._topology.seed,
            trainers=self._topology.actors.trainers,
            weights_digest=weights_digest(digests[name] for name in order),
            topology_digest=topology_digest(self._topology),
            ledger={"step": step},
            facts=facts,
            files=files,
        )

    def _give_up(self, unfinished: Path, step: int, why: str) -> None:
        if why:
            self._log.warning("checkpoint given up", step=step, why=why, kept=self.saved)
        shutil.rmtree(unfinished, ignore_errors=True)


def topology_digest(topology: Topology) -> str:
    """SHA-256 of a resolved configuration."""
    return hashlib.sha256(to_toml(topology).encode()).hexdigest()
