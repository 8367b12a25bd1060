"""What a shard notes of every update, so that it can be made again: what the ranks contributed.

A state is a function of a checkpoint and of the contributions since. They are noted before the
state moves, so every update in the state is in the journal; what is there and was never acted upon
is noted again by whoever comes next, and the later note is right.

A journal begins with a checkpoint, and each new one begins a new file. A disk that refuses costs
the journal until the next checkpoint, and nothing else.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import msgspec
import numpy as np

from actors import checkpoints, journal
from actors.codec_memory import CodecMemory
from actors.journal import Part, Writer
from actors.optimizer.notes import Committed, Kind, Moved, Note, Tensor
from actors.optimizer.state import Counts
from actors.published import Array

if TYPE_CHECKING:
    from actors.optimizer.updates import Contribution


class Log(Protocol):
    """Where a person looks."""

    def info(self, event: str, **fields: object) -> object:
        """Something happened."""
        ...

    def warning(self, event: str, **fields: object) -> object:
        """Something that a person should know of."""
        ...


class Journal:
    """One shard's notes, in one life. Notes nothing while `directory` does not exist."""

    def __init__(
        self,
        directory: Path,
        saved: Path,
        shard: int,
        log: Log,
        memories: Sequence[CodecMemory] = (),
        memory_every: int = 1,
    ) -> None:
        """`saved`: the directory of checkpoints; `memories`: what codecs of all ranks remember,
        which is noted in every `memory_every`th step.
        """
        self._directory, self._saved, self._shard, self._log = directory, saved, shard, log
        self._memories, self._memory_every = memories, memory_every
        self._writer: Writer | None = None
        self.noted_bytes = 0

    def resume(self, step: int) -> None:
        """A life begins, at `step`: go on where an earlier one has noted."""
        if any(part.shard == self._shard for part in journal.parts_of(self._names())):
            self._open(step)

    def begin(self, step: int) -> None:
        """All parameters have just reached `step`, of which a checkpoint will be made. What the
        newest whole one makes needless goes.
        """
        if not self._directory.is_dir():
            return
        first = self._writer is None
        self._open(step)
        if first and self._writer is not None:
            self._log.info("steps are noted for a standby", after=step)
        for path in checkpoints.listing(self._saved)[:1]:
            newest = int(path.name.removeprefix("step-"))
            for name in journal.superseded(self._names(), newest):
                (self._directory / name).unlink(missing_ok=True)

    def moved(
        self,
        step: int,
        param: str,
        given: "Mapping[int, Contribution]",
        basis: Mapping[str, Array],
        digest: bytes,
        counts: Counts,
        absent: int,
    ) -> None:
        """A parameter is about to move to version `step`."""
        if self._writer is None:
            return
        tensors: list[Tensor] = []
        arrays: list[Array] = []

        def add(of: Kind, rank: int, name: str, a: Array) -> None:
            tensors.append(Tensor(of, rank, name, str(a.dtype), a.shape))
            arrays.append(a)

        for rank, contribution in given.items():
            for number, array in enumerate(contribution.payload):
                add("gradient", rank, str(number), array)
        for name, array in basis.items():
            add("basis", 0, name, array)
        for rank, memory in enumerate(self._memories if self._whole(step) else ()):
            if memory.remembers(param) and memory.has(param, step):
                for name, array in memory.read(param, step).items():
                    add("memory", rank, name, array)
        note = Moved(
            step=step,
            param=param,
            digest=digest.hex(),
            counts=(counts.flips, counts.up_bytes, counts.down_bytes),
            absent=absent,
            tokens={rank: contribution.tokens for rank, contribution in given.items()},
            tensors=tuple(tensors),
        )
        self._append(note, arrays)

    def committed(self, step: int, record: Mapping[str, Any]) -> None:
        """Shard 0 is about to commit `step`."""
        self._append(Committed(step=step, whole=self._whole(step), record=dict(record)))

    def close(self) -> None:
        """The end of this life."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _whole(self, step: int) -> bool:
        return not self._memories or step % self._memory_every == 0

    def _append(self, note: Note, arrays: Sequence[Array] = ()) -> None:
        if self._writer is None:
            return
        body = [np.ascontiguousarray(a).reshape(-1).view(np.uint8).data for a in arrays]
        header = msgspec.msgpack.encode(note)
        try:
            self._writer.append(header, body)
        except OSError as error:
            self._give_up(error)
        else:
            self.noted_bytes += len(header) + sum(part.nbytes for part in body)

    def _open(self, step: int) -> None:
        self.close()
        numbers = (p.number for p in journal.parts_of(self._names()) if p.shard == self._shard)
        part = Part(self._shard, step, 1 + max(numbers, default=0))
        try:
            self._writer = Writer(self._directory / part.name)
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        self.close()
        self._log.warning(
            "steps are not noted until the next checkpoint", why=error.strerror or str(error)
        )

    def _names(self) -> list[str]:
        try:
            return [path.name for path in self._directory.iterdir()]
        except OSError:
            return []
