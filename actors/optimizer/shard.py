"""One optimizer shard without its sockets: hears messages, lets the rounds decide, acts, answers.

Everything here runs on the computing thread. Gradients of one host are read where the trainers
wrote them; nothing is copied before it is summed.
"""

from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np

from actors.diverged import REMEDY
from actors.optimizer import journaling, metrics, rounds, updates
from actors.optimizer.answers import Answers
from actors.optimizer.attendance import Everybody, described, mask_of
from actors.optimizer.checkpointing import RunFailed
from actors.optimizer.publishing import news
from actors.optimizer.refreshing import Refreshing, Sketched
from actors.optimizer.rounds import Instruction, Setting, ShardRounds
from actors.optimizer.state import Counts, Facts, State
from actors.optimizer.updates import Contribution
from actors.outbox import Outbox
from actors.parameters import Parameter, parameters, partition
from actors.published import Array, digest, digest_from, weights_digest
from actors.topology import Topology
from actors.uplink import codec_of, payload_tensors
from kernels.optimizers.finite import NotFinite
from protocol import messages as m
from protocol.clock import Clock
from protocol.errors import Malformed, ProtocolError
from protocol.segments import Segment
from protocol.tensors import Attached, read


class CheckpointKeeper(Protocol):
    """What a shard needs of `checkpointing.Checkpoints`."""

    def due(self, step: int) -> None:
        """All parameters have just reached `step`, which is to be written."""
        ...

    def preserve(self, index: int) -> None:
        """A parameter is about to change."""
        ...

    def part(self, part: m.CheckpointPart) -> None:
        """Another shard has written, or has not."""
        ...

    def repeat(self) -> None:
        """Tell shard 0 again what is on disk."""
        ...


class Shard:
    """One shard's work: `begin` once, then `hear` every message and `tick` now and then."""

    def __init__(
        self,
        topology: Topology,
        index: int,
        state: State,
        outbox: Outbox,
        clock: Clock,
        *,
        segment: Segment | None = None,
        attached: Attached | None = None,
        device: str = "cpu",
        update: updates.Update = updates.updated,
        attendance: Everybody | None = None,
    ) -> None:
        """`segment` holds `state`; without it (and `attached`) all tensors travel as frames.

        `update` is the arithmetic of one parameter's update; `attendance` says whom it waits for.
        """
        self.topology, self.index, self.state = topology, index, state
        self._refreshing = Refreshing(topology, device)
        self._answers = Answers(state, index, outbox, segment, self._refreshing.schedule)
        self._clock, self._attached, self._device = clock, attached, device
        self._update = update
        self._parameters = state.layout.parameters
        self._index_of = {p.name: i for i, p in enumerate(self._parameters)}
        self._ranks = topology.actors.trainers
        shards = partition(parameters(topology.model), topology.actors.optimizer_shards)
        self._sizes = [len(owned) for owned in shards]  # parameters of each shard
        setting = Setting(
            params=tuple(self._index_of),
            shard=index,
            shards=topology.actors.optimizer_shards,
            ranks=self._ranks,
            checkpoint_every=topology.checkpoint.every_steps,
            last_step=topology.steps,
            rounds=self._refreshing.schedule.rounds,
        )
        versions = dict(zip(self._index_of, state.versions(), strict=True))
        known = {
            step: set(said)
            for step in (state.committed + 1, state.committed + 2)
            if (said := state.facts(step))
        }
        self._attendance = attendance or Everybody()
        self.rounds = ShardRounds(
            setting, versions, state.committed, known, attendance=self._attendance
        )
        self.checkpoints: CheckpointKeeper | None = None
        self.journal: journaling.Journal | None = None
        self._given: dict[str, dict[int, Contribution]] = {name: {} for name in self._index_of}
        self._facts: dict[tuple[int, int], Facts] = {}
        self._parts: dict[tuple[int, int], m.ShardCommitted] = {}
        self._since: float | None = None
        self._computing_s = 0.0
        self.malformed = 0

    # --- hearing ---------------------------------------------------------------------------------

    def begin(self) -> None:
        """Go on where the state was left."""
        if self.rounds.complete:
            self._start_clock()
        self._perform(self.rounds.begin(self._clock.now()))

    def tick(self) -> None:
        """Time has passed."""
        self._perform(self.rounds.tick(self._clock.now()))

    def hear(self, sender: str, message: m.Message, frames: Sequence[memoryview] = ()) -> None:
        """Act on a message. What makes no sense is counted and dropped.

        Raises `RunFailed` when the run cannot go on.
        """
        try:
            if isinstance(message, m.Gradient):
                self._gradient(sender, message, frames)
            elif isinstance(message, m.Sketch):
                self._sketch(sender, message, frames)
            else:
                self._hear(sender, message)
        except ProtocolError:
            self.malformed += 1

    def _hear(self, sender: str, message: m.Message) -> None:
        match message:
            case m.StepFacts():
                self._step_facts(sender, message)
            case m.StepQuery(rank=rank) if sender == f"trainer/{rank}":
                self._perform(self.rounds.query(rank, message.version, message.lacking))
            case m.CodesRequest(version=version):
                self._start_clock()
                chosen = self._version_for(version)
                self._attendance.asks(sender, chosen)
                self._answers.codes(sender, chosen)
            case m.ShardCommitted():
                self._part(sender, message)
            case m.CheckpointPart(shard=shard) if sender == f"optimizer_shard/{shard}":
                if self.checkpoints is not None:
                    self.checkpoints.part(message)
            case m.MetricsRequest(after=after):
                self._answers.metrics(sender, after)
            case m.PeerUp() | m.PeerDown() | m.Welcome():
                self._peer(message)
            case _:
                pass

    def _peer(self, message: m.PeerUp | m.PeerDown | m.Welcome) -> None:
        now = self._clock.now()
        match message:
            case m.PeerUp(name=name):
                self._attendance.up(name)
                if name == "optimizer_shard/0":
                    self._perform(self.rounds.leader_up(now))
            case m.PeerDown(name=name):
                self._attendance.down(name, now)
            case m.Welcome(peers=peers):
                self._attendance.peers(peers, now)

    def _gradient(self, sender: str, message: m.Gradient, frames: Sequence[memoryview]) -> None:
        step, rank, name = message.step, message.rank, message.param
        if sender != f"trainer/{rank}" or not self.rounds.takes_gradient(step, rank, name):
            return
        parameter = self._parameters[self._index_of[name]]
        payload = self._payload(parameter, message, frames)
        whole = self._refreshing.schedule.sends_remainder(step, name)
        self._given[name][rank] = Contribution(message.tokens, payload, whole)
        self._perform(self.rounds.gradient(step, rank, name))

    def _payload(
        self, parameter: Parameter, message: m.Gradient, frames: Sequence[memoryview]
    ) -> tuple[Array, ...]:
        """What came of a gradient, where it lies. Raises `ProtocolError`."""
        codec, name = codec_of(self.topology.optimizer, parameter), parameter.name
        schedule = self._refreshing.schedule
        whole = schedule.sends_remainder(message.step, name)
        specs = payload_tensors(self.topology.optimizer, parameter, whole=whole)
        if message.basis != schedule.version(message.step, name):
            raise Malformed(f"gradient of {name}: projected on basis {message.basis}")
        if message.codec != codec or len(message.tensors) != len(specs) or message.tokens < 0:
            raise Malformed(f"gradient of {name}: codec {message.codec!r}, expected {codec!r}")
        payload = tuple(read(ref, frames, self._attached) for ref in message.tensors)
        for array, spec in zip(payload, specs, strict=True):
            if array.dtype != spec.dtype or array.shape != spec.shape:
                raise Malformed(f"gradient of {name}: {spec.name} is {array.dtype} {array.shape}")
        return payload

    def _sketch(self, sender: str, message: m.Sketch, frames: Sequence[memoryview]) -> None:
        step, rank, name, number = message.step, message.rank, message.param, message.round
        if sender != f"trainer/{rank}" or not self.rounds.takes_sketch(step, rank, name, number):
            return
        if len(message.tensors) != 1:
            raise Malformed(f"sketch of {name}: {len(message.tensors)} tensors, one is expected")
        product = np.array(read(message.tensors[0], frames, self._attached))
        sketched = Sketched(message.tokens, product)
        self._refreshing.take(self._parameters[self._index_of[name]], rank, number, sketched)
        self._perform(self.rounds.sketch(step, rank, name, number))

    def _step_facts(self, sender: str, message: m.StepFacts) -> None:
        step, rank = message.step, message.rank
        if sender != f"trainer/{rank}":
            return
        if not np.isfinite(message.loss_sum) or not np.isfinite(message.objective_sum):
            raise RunFailed(f"the loss of step {step} is not finite (trainer/{rank}): {REMEDY}")
        names = Facts._fields
        self._facts[step, rank] = Facts(*(getattr(message, name) for name in names))
        self._perform(self.rounds.facts(step, rank))
        self._facts.pop((step, rank), None)

    def _part(self, sender: str, message: m.ShardCommitted) -> None:
        shard = message.shard
        if sender != f"optimizer_shard/{shard}" or not 0 < shard < len(self._sizes):
            return
        count = self._sizes[shard]
        if len(message.digests) != count or len(message.absent) not in (0, count):
            raise Malformed(f"part of shard {shard}: {len(message.digests)} digests")
        for text in message.digests:
            digest_from(text)
        if message.version > self.rounds.committed:
            self._parts[message.version, shard] = message
        self._perform(self.rounds.part(message.version, shard))

    def weights_digest(self) -> str:
        """Shard 0: digest of all weights after the last committed step."""
        digests = [record["weights_digest"] for record in self.state.records(0)]
        return digests[-1] if digests else ""

    # --- acting ----------------------------------------------------------------------------------

    def _perform(self, todo: Iterable[Instruction]) -> None:
        queue = list(todo)
        while queue:
            try:
                queue += self._act(queue.pop(0))
            except NotFinite as error:
                raise RunFailed(f"{error}: {REMEDY}") from error

    def _act(self, instruction: Instruction) -> list[Instruction]:
        """What follows from carrying it out."""
        match instruction:
            case rounds.Apply(step, param):
                self._apply(step, param)
                return self.rounds.applied(param)
            case rounds.Sum(step, param, number):
                self._sum(step, param, number)
                return self.rounds.summed(param)
            case rounds.KeepFacts(step, rank):
                self.state.put_facts(step, rank, self._facts[step, rank])
            case rounds.Commit(step):
                self._commit(step)
            case rounds.Checkpoint(step):
                if self.journal is not None:
                    self.journal.begin(step)
                if self.checkpoints is not None:
                    self.checkpoints.due(step)
            case _:
                self._say(instruction)
        return []

    def _say(self, instruction: Instruction) -> None:
        match instruction:
            case rounds.Publish(version, param, ranks):
                self._answers.update(self._index_of[param], version, ranks)
            case rounds.Need() as need:
                self._answers.needs(need)
            case rounds.Ask(step, param, ranks):
                parameter = self._parameters[self._index_of[param]]
                self._answers.ask(ranks, *self._refreshing.answer(step, parameter))
            case rounds.Report(version):
                self._report(version)
            case _:
                raise AssertionError(instruction)

    def _sum(self, step: int, name: str, number: int) -> None:
        began = self._clock.now()
        self._refreshing.sum(step, self._parameters[self._index_of[name]], number)
        self._computing_s += self._clock.now() - began

    def _apply(self, step: int, name: str) -> None:
        """Move one parameter to version `step`: everything up to here is lost with the process."""
        began = self._clock.now()
        index = self._index_of[name]
        parameter = self._parameters[index]
        given = self._given[name]
        ordered = {
            rank: given[rank] for rank in sorted(given) if self._attendance.counts(step, rank, name)
        }
        absent = mask_of(set(range(self._ranks)) - set(ordered))
        mean = updates.mean_gradient(self.topology, parameter, step, ordered, self._device)
        basis = self._refreshing.basis(name)
        found = {} if basis is None else {"basis": basis}
        kept = self.state.kept(index)
        new = self._update(self.topology, parameter, kept, mean, step, self._device, **found)
        sketched_up, sketched_down = self._refreshing.forget(name)
        before = self.state.published(index, step - 1)
        told = news(self.topology.optimizer, parameter, step, before, new["master"])
        self._answers.remember(index, step, told)
        counts = Counts(
            flips=told.flips,
            up_bytes=sum(array.nbytes for c in ordered.values() for array in c.payload)
            + sketched_up,
            down_bytes=told.nbytes * self._ranks + sketched_down,
        )
        if self.checkpoints is not None:
            self.checkpoints.preserve(index)
        found_digest = digest(parameter, told.shown)
        if self.journal is not None:
            self.journal.moved(step, name, ordered, basis or {}, found_digest, counts, absent)
        self.state.publish(index, step, told.shown, found_digest, counts, absent)
        self.state.update(index, step, new)
        given.clear()
        self._computing_s += self._clock.now() - began

    def _version_for(self, asked: int) -> int:
        """What to hand out: a predecessor may have died over the places of the older version."""
        version = self.rounds.version_for(asked)
        whole = all(self.state.has(index, version) for index in range(len(self._parameters)))
        return version if whole else self.rounds.complete

    def _report(self, version: int) -> None:
        if not all(self.state.has(i, version) for i in range(len(self._parameters))):
            return  # older than what is kept, so shard 0 has it
        digests, counts = self._digests(version), self._counts(version)
        self._answers.part(version, digests, counts, self._absent(version))
        if self.checkpoints is not None:
            self.checkpoints.repeat()

    def _commit(self, step: int) -> None:
        if self.index > 0:
            self.state.commit(step)
            return
        parts = [self._parts.pop((step, k)) for k in range(1, self.rounds.setting.shards)]
        everybody = [
            self._counts(step),
            *(Counts(part.flips, part.up_bytes, part.down_bytes) for part in parts),
        ]
        digests = [
            *self._digests(step),
            *(digest_from(text) for part in parts for text in part.digests),
        ]
        absent = self._absent(step)
        for part, size in zip(parts, self._sizes[1:], strict=True):
            absent += part.absent or (0,) * size
        facts = self.state.facts(step)
        attended = described(absent, set(range(self._ranks)) - set(facts))
        groups = self.topology.optimizer
        now = self._clock.now()
        clocked = metrics.Clocked(
            step_s=now - (now if self._since is None else self._since),
            optimizer_s=self._computing_s,
            lr=updates.rate_at(self.topology, groups.matrices, step),
            dense_lr=updates.rate_at(self.topology, groups.dense, step),
        )
        record = metrics.step_record(
            step,
            facts,
            Counts(*(sum(column) for column in zip(*everybody, strict=True))),
            clocked,
            weights_digest(digests),
        )
        record |= attended
        if self.journal is not None:
            self.journal.committed(step, record)
        self.state.commit(step, record)
        self._since, self._computing_s = now, 0.0

    def _digests(self, version: int) -> list[bytes]:
        return [self.state.digest(index, version) for index in range(len(self._parameters))]

    def _absent(self, version: int) -> list[int]:
        return [self.state.absent(index, version) for index in range(len(self._parameters))]

    def _counts(self, version: int) -> Counts:
        each = [self.state.counts(index, version) for index in range(len(self._parameters))]
        return Counts(*(sum(column) for column in zip(*each, strict=True)))

    def _start_clock(self) -> None:
        """The first step is timed from the first sign of somebody who wants to compute it, that of
        a later life from its beginning.
        """
        if self._since is None:
            self._since = self._clock.now()
