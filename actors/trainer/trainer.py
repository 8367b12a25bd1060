"""One trainer without its sockets: codes in, batches in, gradients out, updates in.

Everything here runs on the computing thread. What the trainer holds can be asked for again: codes
from the shards, batches from the loader; gradients lie in a segment that outlives it, and a
successor computes the same bits again.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import torch
from torch import Tensor

from actors.codec_memory import CodecMemory
from actors.gradient_slots import GradientSlots
from actors.outbox import Outbox
from actors.parameters import parameters, partition
from actors.replica import Replica, read_codes
from actors.snapshots import SnapshotCollector
from actors.topology import Topology
from actors.trainer import rounds
from actors.trainer.projecting import Projecting
from actors.trainer.reference import load_reference
from actors.trainer.rounds import Instruction, TrainerRounds
from actors.trainer.step import GradientHooks, Sums, noise_key, run_step
from actors.trainer.uplink import Uplink
from actors.uplink import codec_of
from kernels.model.config import TrainConfig
from protocol import messages as m
from protocol.clock import Clock
from protocol.errors import Malformed, ProtocolError
from protocol.tensors import Attached, Frames, nbytes, read

if TYPE_CHECKING:
    from actors.published import Array

# Shards that were this often found more than one version apart will never agree.
MOST_FAR_APART = 5

Payload = tuple[m.Update | m.Codes, Sequence[memoryview]]


@dataclass(frozen=True, slots=True)
class _Rows:
    """One step's batch, checked and private."""

    tokens: Tensor  # int64 (rows, seq_len + 1)
    documents: Tensor
    text_bytes: int


class ShardsDisagree(RuntimeError):
    """The shards' states cannot belong to one run: nothing that a restart would mend."""


class Trainer:
    """One rank's work. `hear` every message, `tick` now and then, `compute` when `may_compute`."""

    def __init__(
        self,
        topology: Topology,
        rank: int,
        outbox: Outbox,
        clock: Clock,
        *,
        slots: GradientSlots | None = None,
        memory: CodecMemory | None = None,
        attached: Attached | None = None,
        device: str = "cpu",
        progress: Callable[[], object] = lambda: None,
    ) -> None:
        """Without `slots`, gradients are kept here and travel as frames. `memory` is what codecs
        with a memory keep it in.

        `progress` is called whenever a part of a step is done.
        """
        self._topology, self._rank, self._outbox, self._clock = topology, rank, outbox, clock
        self._slots, self._attached, self._device = slots, attached, device
        self._progress = progress
        owned = partition(parameters(topology.model), topology.actors.optimizer_shards)
        self._owner = {p.name: k for k, shard in enumerate(owned) for p in shard}
        self.rounds = TrainerRounds(self._owner, topology.steps)
        self.replica = Replica(topology.model, device)
        self.replica.model.train_as(
            TrainConfig.of(msgspec.to_builtins(topology.train)), load_reference(topology, device)
        )
        self._uplink = Uplink(topology, rank, memory, device)
        self._projecting = Projecting(topology, device)
        self._hooks = GradientHooks(self.replica.model, self._gradient_done)
        self._collector: SnapshotCollector[dict[str, Array]] | None = SnapshotCollector(
            [[p.name for p in shard] for shard in owned]
        )
        self._batches: dict[int, _Rows] = {}
        self._updates: dict[str, Payload] = {}
        self._gradients: dict[
            str, Sequence[Array]
        ] = {}  # without slots: this step's, until it commits
        self._facts: m.StepFacts | None = None
        self._sent_bytes = 0
        self._step_began: float | None = None
        self._last_step_s = 0.0
        self._waiting_since: float | None = None
        self._data_wait_s = 0.0
        self.malformed = 0
        self.repairs = 0

    # --- hearing ---------------------------------------------------------------------------------

    def hear(self, sender: str, message: m.Message, frames: Sequence[memoryview] = ()) -> None:
        """Act on a message. What makes no sense is counted and dropped.

        Raises `ShardsDisagree`, or `Diverged` where a gradient cannot be encoded.
        """
        try:
            self._hear(sender, message, frames)
        except ProtocolError:
            self.malformed += 1

    def _hear(self, sender: str, message: m.Message, frames: Sequence[memoryview]) -> None:
        match message:
            case m.Codes() if self._collector is not None:
                self._snapshot_part(sender, message, frames)
            case m.Update(version=version, param=name) | m.Codes(version=version, param=name):
                if self.rounds.wants(version, name):
                    self._updates[name] = (message, frames)
                self._perform(self.rounds.update(version, name))
            case m.Batch():
                self._batch(message, frames)
            case m.SketchRequest() | m.NewBasis():
                self._refresh(sender, message, frames)
            case m.StepNeeds(step=step, params=params, facts=facts):
                known = [name for name in params if name in self._owner]
                sketches = [name for name in message.sketches if name in self._owner]
                self._perform(self.rounds.needs(step, known, facts, sketches))
            case m.PeerUp(name="loader"):
                self._perform(self.rounds.loader_up())
            case m.PeerUp(name=name) if name.startswith("optimizer_shard/"):
                shard = int(name.removeprefix("optimizer_shard/"))
                if self._collector is not None:
                    self._collector.shard_up(shard)
                self._perform(self.rounds.shard_up(shard))
            case _:
                pass

    def tick(self) -> None:
        """Time has passed."""
        now = self._clock.now()
        if self._collector is not None:
            for ask in self._collector.asks(now):
                self._ask_codes(ask.shard, ask.version)
        if self.rounds.phase == "feeding" and self._waiting_since is None:
            self._waiting_since = now
        self._perform(self.rounds.tick(now))

    def _snapshot_part(self, sender: str, message: m.Codes, frames: Sequence[memoryview]) -> None:
        assert self._collector is not None
        shard = self._owner.get(message.param)
        if shard is None or sender != f"optimizer_shard/{shard}":
            raise Malformed(f"codes of {message.param[:80]!r} from {sender}")
        parameter = self.replica.named[message.param]
        tensors = read_codes(parameter, message, frames, self._attached)
        self._take_basis(message, frames)
        self._collector.add(shard, message.version, message.param, tensors)
        if self._collector.far_apart >= MOST_FAR_APART and not self._topology.elastic:
            raise ShardsDisagree(
                "the optimizer shards hold versions that are more than one step apart, so they "
                "were restored from different checkpoints: remove the damaged one that a shard "
                "names in its log as skipped, then resume"
            )
        snapshot = self._collector.result()
        if snapshot is not None:
            self.replica.load(snapshot.parameters)
            self._collector = None
            self._step_began = self._clock.now()
            self._perform(self.rounds.joined(snapshot.version))

    def _batch(self, message: m.Batch, frames: Sequence[memoryview]) -> None:
        if message.rank != self._rank:
            raise Malformed(f"the batch of rank {message.rank} came to rank {self._rank}")
        train, model = self._topology.train, self._topology.model
        shape = (train.rows_per_trainer * train.accumulation, model.seq_len + 1)
        tokens = read(message.tokens, frames, self._attached)
        documents = read(message.documents, frames, self._attached)
        for array in (tokens, documents):
            if array.dtype != np.int32 or array.shape != shape:
                raise Malformed(f"batch of {array.dtype} {array.shape}, expected int32 {shape}")
        if tokens.min() < 0 or tokens.max() >= model.vocab_size:
            raise Malformed(f"batch with token ids outside of 0 to {model.vocab_size - 1}")
        if self.rounds.batch(message.step):
            self._batches[message.step] = _Rows(
                torch.from_numpy(tokens.astype(np.int64)).to(self._device),
                torch.from_numpy(documents.astype(np.int64)).to(self._device),
                message.text_bytes,
            )

    # --- bases ------------------------------------------------------------------------------------

    def _refresh(
        self, sender: str, message: m.SketchRequest | m.NewBasis, frames: Sequence[memoryview]
    ) -> None:
        step, name = message.step, message.param
        if sender != f"optimizer_shard/{self._owner.get(name)}":
            raise Malformed(f"{sender} seeks a basis of {name[:80]!r}, which it does not own")
        holds = self.rounds.holds(step, name)
        if isinstance(message, m.SketchRequest):
            if holds:
                self._projecting.asked(message, frames, self._attached)
            self._perform(self.rounds.asked(step, name, message.round))
            return
        if holds:
            self._take_basis(message, frames)
            self._encode(name, self._projecting.travelling(step, name))
        self._perform(self.rounds.based(step, name))

    def _take_basis(
        self, message: m.Update | m.Codes | m.NewBasis, frames: Sequence[memoryview]
    ) -> None:
        """A basis comes when it is found and, for those who were not there, with weights.

        Raises `ProtocolError`.
        """
        if message.basis is not None:
            parameter = self.replica.named[message.param]
            kept = self._projecting.checked(parameter, message.basis, frames, self._attached)
            self._projecting.take(message.param, message.basis.version, kept)

    # --- computing -------------------------------------------------------------------------------

    @property
    def may_compute(self) -> bool:
        """Whether `compute` has all it needs."""
        return self.rounds.may_compute

    def compute(self) -> None:
        """Forward and backward of the step; gradients leave as they become complete.

        Raises `Diverged`.
        """
        now = self._clock.now()
        self._data_wait_s = 0.0 if self._waiting_since is None else now - self._waiting_since
        self._waiting_since = None
        step = self.rounds.step
        self._hooks.gather(self._projecting.gathering(step))
        self.rounds.begin(self._projecting.schedule.refreshing(step))
        rows = self._batches[step]
        run_step(
            self.replica.model,
            self._hooks,
            rows.tokens,
            rows.documents,
            self._topology.train,
            partial(noise_key, self._topology.seed, step, self._rank),
            self._sums_known,
            self._progress,
        )
        self._perform(self.rounds.finish())

    def _sums_known(self, sums: Sums) -> None:
        step = self.rounds.step
        self._facts = m.StepFacts(
            step=step,
            rank=self._rank,
            tokens=sums.tokens,
            text_bytes=self._batches[step].text_bytes,
            loss_sum=sums.loss_sum,
            objective_sum=sums.objective_sum,
            step_s=self._last_step_s,
            data_wait_s=self._data_wait_s,
            up_bytes=self._sent_bytes,
        )
        self._sent_bytes = 0
        self._perform(self.rounds.facts())

    def _gradient_done(self, name: str, gradient: Tensor) -> None:
        step = self.rounds.step
        if self._projecting.schedule.refreshes(step, name):
            self._projecting.hold(name, gradient)
        else:
            self._encode(name, self._projecting.travelling(step, name, gradient))
        self._perform(self.rounds.gradient(name))
        self._progress()

    def _encode(self, name: str, travelling: Tensor) -> None:
        """Put what is to be sent of a gradient where it can be sent from, as often as needed."""
        step = self.rounds.step
        whole = self._projecting.schedule.sends_remainder(step, name)
        payload = self._uplink.encode(step, self.replica.named[name], travelling, whole=whole)
        if self._slots is None:
            self._gradients[name] = [array.copy() for array in payload]
        else:
            self._slots.put(name, payload)

    # --- acting ----------------------------------------------------------------------------------

    def _perform(self, todo: Iterable[Instruction]) -> None:
        queue = list(todo)
        while queue:
            match queue.pop(0):
                case rounds.AskBatch(step):
                    self._send("batches", m.BatchRequest(step=step, rank=self._rank))
                case rounds.SendFacts():
                    assert self._facts is not None
                    self._send("exchange/0", self._facts)
                case rounds.SendGradient(step, param, shard):
                    self._send_gradient(step, param, shard)
                case rounds.SendSketch(step, param, shard, number):
                    self._send_sketch(step, param, shard, number)
                case rounds.Query(shard, version, lacking):
                    self.repairs += 1
                    query = m.StepQuery(version=version, rank=self._rank, lacking=lacking)
                    self._send(f"exchange/{shard}", query)
                case rounds.ApplyUpdate(_, param):
                    queue += self._apply(param)
                case rounds.AskCodes(shard, version):
                    self._ask_codes(shard, version)
                case rounds.ForgetStep(version):
                    self._forget(version)

    def _apply(self, param: str) -> list[Instruction]:
        message, frames = self._updates.pop(param)
        try:
            self._take_basis(message, frames)
            self.replica.apply(message, frames, self._attached)
        except ProtocolError:
            self.malformed += 1
            return self.rounds.refused(param)
        return self.rounds.applied(param)

    def _forget(self, version: int) -> None:
        now = self._clock.now()
        self._last_step_s = 0.0 if self._step_began is None else now - self._step_began
        self._step_began = self._waiting_since = now
        self._batches.pop(version, None)
        self._gradients.clear()
        self._updates.clear()
        self._projecting.forget()

    def _ask_codes(self, shard: int, version: int) -> None:
        self._send(f"exchange/{shard}", m.CodesRequest(version=version))

    def _send_gradient(self, step: int, param: str, shard: int) -> None:
        assert self._facts is not None
        out = Frames()
        if self._slots is None:
            tensors = tuple(out.add(array) for array in self._gradients[param])
        else:
            tensors = self._slots.refs(param)
        message = m.Gradient(
            step=step,
            rank=self._rank,
            param=param,
            codec=codec_of(self._topology.optimizer, self.replica.named[param]),
            basis=self._projecting.schedule.version(step, param),
            tokens=self._facts.tokens,
            tensors=tensors,
        )
        self._sent_bytes += sum(nbytes(ref) for ref in tensors)
        self._send(f"exchange/{shard}", message, out.parts)

    def _send_sketch(self, step: int, param: str, shard: int, number: int) -> None:
        assert self._facts is not None
        out = Frames()
        tensor = out.add(self._projecting.sketch(step, param, number))
        message = m.Sketch(
            step=step,
            rank=self._rank,
            param=param,
            round=number,
            tokens=self._facts.tokens,
            tensors=(tensor,),
        )
        self._sent_bytes += nbytes(tensor)
        self._send(f"exchange/{shard}", message, out.parts)

    def _send(self, channel: str, message: m.Message, frames: Sequence[memoryview] = ()) -> None:
        self._outbox.send(channel, message, frames=frames, step=max(self.rounds.step, 0))

    def close(self) -> None:
        """Take the hooks off the model."""
        self._hooks.remove()
