"""Steps made again from the journal: a state goes on from behind its checkpoint.

The same maths on the same contributions, so the same bits; the digests that were noted say whether
they are. A shard is not ready before it has come to the last noted step, so nothing new can be
noted while another shard still reads.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np

from actors.bases import BasisSchedule
from actors.checkpoints import CheckpointError
from actors.codec_memory import CodecMemory
from actors.optimizer import notes, updates
from actors.optimizer.journaling import Log
from actors.optimizer.notes import Committed, Index, Moved
from actors.optimizer.publishing import news
from actors.optimizer.state import Counts, State
from actors.optimizer.updates import Contribution
from actors.parameters import Parameter
from actors.published import Array, digest
from actors.topology import Topology
from actors.uplink import memory_tensors
from kernels.optimizers.finite import NotFinite


class _Noted(NamedTuple):
    """A move, read again."""

    note: Moved
    given: dict[int, Contribution]
    basis: dict[str, Array]
    memory: dict[int, dict[str, Array]]


class Replay:
    """Brings one shard's state from its checkpoint to the last noted step."""

    def __init__(
        self,
        directory: Path,
        topology: Topology,
        shard: int,
        log: Log,
        *,
        memories: Sequence[CodecMemory] = (),
        device: str = "cpu",
        progress: Callable[[], object] = lambda: None,
    ) -> None:
        """`directory`: of the journal; it need not exist."""
        self._directory, self._topology, self._shard = directory, topology, shard
        self._log, self._memories, self._device = log, memories, device
        self._progress = progress
        self._schedule = BasisSchedule(topology)
        self._others = 0  # updates that came out otherwise than noted

    def __call__(self, state: State, versions: Mapping[str, int], committed: int) -> int:
        """Move `state`, whose parameters are at `versions` like those of other shards; the step it
        is committed at then. Raises `CheckpointError`.
        """
        try:
            index = notes.indexed(self._directory, committed, self._cut, self._progress)
            upto = index.reached(versions, committed)
            for step in range(committed + 1, upto + 1):
                self._step(state, index, step, last=step == upto)
            notes.cut(index, max(upto, *versions.values()), self._answers_for)
        except (OSError, NotFinite, msgspec.MsgspecError) as error:
            raise CheckpointError(
                f"the journal in {self._directory} cannot be used: {error}; without it, the run "
                "goes on from its last checkpoint"
            ) from error
        if upto > committed:
            self._log.info("steps made again from the journal", after=committed, upto=upto)
        if self._others:
            self._log.warning(
                "another kind of host: what was made again differs in its last bits",
                updates=self._others,
            )
        return upto

    def _answers_for(self, shard: int) -> bool:
        """Whose files are this shard's to cut: there may have been more of them."""
        many = self._topology.actors.optimizer_shards
        return shard == self._shard or (self._shard == 0 and shard >= many)

    def _cut(self, why: str) -> None:
        self._log.warning("journal cut", why=why)

    def _step(self, state: State, index: Index, step: int, *, last: bool) -> None:
        behind = state.versions()
        for number, place in enumerate(state.layout.places):
            parameter = place.parameter
            if behind[number] < step:
                noted = self._read(index, step, parameter)
                self._move(state, number, parameter, noted)
                if last:
                    self._remember(parameter, noted)
            self._progress()
        if self._shard == 0:
            note = notes.note_of(index.commits[step].again())
            assert isinstance(note, Committed)
            state.put_record(step, note.record)

    def _read(self, index: Index, step: int, parameter: Parameter) -> _Noted:
        found = index.moves[step, parameter.name].again()
        note = notes.note_of(found)
        assert isinstance(note, Moved)
        whole = self._schedule.sends_remainder(step, parameter.name)
        payload: dict[int, list[Array]] = {rank: [] for rank in note.tokens}
        basis: dict[str, Array] = {}
        memory: dict[int, dict[str, Array]] = {}
        for tensor, array in notes.tensors_of(note, found.body()):
            match tensor.of:
                case "gradient":
                    payload[tensor.rank].append(array)
                case "basis":
                    basis[tensor.name] = array
                case "memory":
                    memory.setdefault(tensor.rank, {})[tensor.name] = array
        given = {
            rank: Contribution(note.tokens[rank], tuple(arrays), whole)
            for rank, arrays in sorted(payload.items())
        }
        return _Noted(note, given, basis, memory)

    def _move(self, state: State, number: int, parameter: Parameter, noted: _Noted) -> None:
        note, topology, step = noted.note, self._topology, noted.note.step
        mean = updates.mean_gradient(topology, parameter, step, noted.given, self._device)
        found = {"basis": noted.basis} if noted.basis else {}
        new = updates.updated(
            topology, parameter, state.kept(number), mean, step, self._device, **found
        )
        before = state.published(number, step - 1)
        shown = news(topology.optimizer, parameter, step, before, new["master"]).shown
        found_digest = digest(parameter, shown)
        self._others += found_digest.hex() != note.digest
        state.publish(number, step, shown, found_digest, Counts(*note.counts), note.absent)
        state.update(number, step, new)

    def _remember(self, parameter: Parameter, noted: _Noted) -> None:
        specs = memory_tensors(self._topology.optimizer, parameter)
        for rank, memory in enumerate(self._memories if specs else ()):
            empty = {spec.name: np.zeros(spec.shape, spec.dtype) for spec in specs}
            memory.fill(parameter.name, noted.note.step, noted.memory.get(rank, empty))
