"""Trainers and shards in one process, without sockets: a post office of lists.

Messages are encoded and decoded as on the wire. Tests decide what is delivered, when, and who dies.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from actors import checkpoints, codec_memory, gradient_slots
from actors import topology as topologies
from actors.codec_memory import CodecMemory
from actors.optimizer import updates
from actors.optimizer.attendance import Everybody
from actors.optimizer.checkpointing import Checkpoints
from actors.optimizer.journaling import Journal
from actors.optimizer.layout import state_layout
from actors.optimizer.replaying import Replay
from actors.optimizer.restore import restore
from actors.optimizer.shard import Shard
from actors.optimizer.state import State
from actors.parameters import parameters
from actors.published import Array
from actors.topology import Topology
from actors.trainer.trainer import Trainer
from protocol import codec, segments
from protocol import messages as m
from protocol.clock import ManualClock
from protocol.messages import WIRE_VERSION, Envelope
from protocol.tensors import Attached
from tests.benchmarks.plain_loop import Rows

# Small tensors gain nothing from threads, and threads that wait for one another spin.
torch.set_num_threads(1)

TINY = (
    "model.dim=32",
    "model.layers=1",
    "model.heads=2",
    "model.loops=2",
    "model.vocab_size=300",
    "model.seq_len=16",
    "train.rows_per_trainer=2",
    "rollout.max_new_tokens=4",
    "schedule.warmup=2",
    "schedule.stable=2",
    "schedule.decay=2",
)


def tiny(*overrides: str) -> Topology:
    """`local` with a model that trains in milliseconds."""
    path = topologies.TOPOLOGIES / "local.toml"
    return topologies.decode(path.read_text(), source=str(path), overrides=(*TINY, *overrides))


class PlainMemory:
    """Memory that a state can live in, and that outlives it."""

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes
        self.bytes = np.zeros(nbytes, np.uint8)

    def array(self, dtype: str, shape: tuple[int, ...], offset: int = 0) -> Array:
        """A writable view."""
        count = int(np.prod(shape, dtype=np.int64))
        return np.frombuffer(self.bytes, dtype, count, offset).reshape(shape)


def rows_of(topology: Topology, step: int, rank: int) -> Rows:
    """The batch of (step, rank): random tokens, two documents in every row."""
    torch_seed = hash((topology.seed, step, rank)) % 2**31
    generator = torch.Generator().manual_seed(torch_seed)
    train, model = topology.train, topology.model
    shape = (train.rows_per_trainer * train.accumulation, model.seq_len + 1)
    tokens = torch.randint(0, model.vocab_size, shape, generator=generator)
    borders = torch.randint(1, model.seq_len, (shape[0], 1), generator=generator)
    documents = (torch.arange(shape[1])[None, :] >= borders).long()
    return Rows(tokens, documents, 3 * tokens.numel())


@dataclass(slots=True)
class Letter:
    """One message as bytes."""

    sender: str
    to: str
    parts: list[bytes]


@dataclass
class PostOffice:
    """All letters under way. `tamper` may change, drop (return []) or repeat a letter."""

    letters: deque[Letter] = field(default_factory=deque[Letter])
    tamper: Callable[[Letter], list[Letter]] = lambda letter: [letter]
    counts: dict[str, int] = field(default_factory=dict[str, int])

    def outbox(self, name: str) -> "PostBox":
        """Where actor `name` puts what it says."""
        return PostBox(self, name)


class PostBox:
    """One actor's outbox."""

    def __init__(self, office: PostOffice, name: str) -> None:
        self._office, self._name = office, name

    def send(
        self,
        channel: str,
        message: m.Message,
        *,
        to: str = "",
        frames: Sequence[Any] = (),
        step: int = 0,
    ) -> None:
        """Encode now, as a socket would."""
        kind = type(message).__name__
        envelope = Envelope(WIRE_VERSION, kind, self._name, 1, 0, step)
        head, body = codec.encode(envelope, message)
        family, _, index = channel.partition("/")
        default = f"optimizer_shard/{index}" if family == "exchange" else "loader"
        letter = Letter(self._name, to or default, [head, body, *map(bytes, frames)])
        self._office.counts[kind] = self._office.counts.get(kind, 0) + 1
        self._office.letters.extend(self._office.tamper(letter))


class Exchange:
    """All trainers and shards of a topology."""

    def __init__(
        self,
        topology: Topology,
        office: PostOffice | None = None,
        directory: Path | None = None,
        shared: str = "",
        attendance: Callable[[Topology, float], Everybody] = lambda _topology, _now: Everybody(),
        journal: Path | None = None,
    ) -> None:
        """With a `directory`, shards write checkpoints there and begin from the newest; with a run
        id `shared`, state and gradients lie in shared memory (see `close`). `attendance` is made
        for every life of a shard. `journal`: where steps are noted once it exists.
        """
        self.journal = journal
        self.journals: dict[int, Journal] = {}
        self.attendance = attendance
        self.topology, self.directory = topology, directory
        self._run_id = shared
        self._attached = Attached(f"trireme-{shared}-") if shared else None
        self._segments: dict[tuple[str, str], segments.Segment] = {}
        self.events: list[tuple[str, dict[str, object]]] = []
        self.office = office or PostOffice()
        self.clock = ManualClock()
        self.keepers: dict[int, Checkpoints] = {}
        self.memories = [
            self._memory(f"optimizer_shard/{k}", "state", state_layout(topology, k).total_bytes)
            for k in range(topology.actors.optimizer_shards)
        ]
        remembered = codec_memory.segment_bytes(topology)
        self.remembered = [
            CodecMemory(topology, self._memory(f"trainer/{rank}", "memory", remembered))
            for rank in range(topology.actors.trainers if remembered else 0)
        ]
        self.shards = [self.new_shard(k) for k in range(topology.actors.optimizer_shards)]
        self.trainers = [self.new_trainer(rank) for rank in range(topology.actors.trainers)]

    def new_shard(self, index: int) -> Shard:
        """A shard process starts on the memory its predecessor left."""
        state = State(state_layout(self.topology, index), self.memories[index])
        if state.ready:
            state.recover()
        else:
            self._fill(index, state)
        outbox = self.office.outbox(f"optimizer_shard/{index}")
        shard = Shard(
            self.topology,
            index,
            state,
            outbox,
            self.clock,
            segment=self._segments.get((f"optimizer_shard/{index}", "state")),
            attached=self._attached,
            attendance=self.attendance(self.topology, self.clock.now()),
        )
        if self.directory is not None:
            self.keepers[index] = Checkpoints(
                self.topology,
                index,
                state,
                self.directory,
                lambda part: outbox.send("exchange/0", part),
                self,
                memories=self.remembered,
            )
            shard.checkpoints = self.keepers[index]
            if self.journal is not None:
                if index in self.journals:
                    self.journals[index].close()
                noted = Journal(
                    *(self.journal, self.directory, index, self, self.remembered),
                    memory_every=self.topology.checkpoint.memory_every,
                )
                noted.resume(state.committed)
                shard.journal = self.journals[index] = noted
        shard.begin()
        return shard

    def _fill(self, index: int, state: State) -> None:
        found = None
        if self.directory is not None:
            found = checkpoints.newest(self.directory, lambda why: self.warning("skipped", why=why))
        if found is None:
            updates.fill_fresh(state, self.topology)
        else:
            replay = Replay(
                *(self.journal or found.path / "no journal", self.topology, index, self),
                memories=self.remembered,
            )
            restore(state, found, self.topology, index, self.remembered, replay=replay)

    def info(self, event: str, **fields: object) -> None:
        """The shards' log."""
        self.events.append((event, fields))

    warning = info

    def settle(self) -> None:
        """Let all checkpoints be written and completed."""
        for _ in range(2000):
            self.deliver()
            for keeper in self.keepers.values():
                keeper.tick(self.clock.now())
            if not self.office.letters and all(keeper.idle for keeper in self.keepers.values()):
                return
            time.sleep(0.002)
        raise AssertionError("a checkpoint is never finished")

    def stop(self) -> None:
        """The run is told to stop: trainers leave, shards save."""
        self.deliver()
        for keeper in self.keepers.values():
            keeper.close()
        for _ in range(2000):
            closed = [keeper.closed() for keeper in self.keepers.values()]
            if all(closed):
                return
            self.deliver()
            time.sleep(0.002)
        raise AssertionError("a stop never ends")

    def new_trainer(self, rank: int) -> Trainer:
        """A trainer process starts."""
        name = f"trainer/{rank}"
        slots = None
        if self._run_id:
            model, optimizer = self.topology.model, self.topology.optimizer
            self._memory(name, "gradients", gradient_slots.segment_bytes(model, optimizer))
            slots = gradient_slots.GradientSlots(
                self._segments[name, "gradients"], parameters(model), optimizer
            )
        return Trainer(
            self.topology,
            rank,
            self.office.outbox(name),
            self.clock,
            slots=slots,
            memory=self.remembered[rank] if self.remembered else None,
            attached=self._attached,
        )

    def _memory(self, name: str, what: str, nbytes: int) -> "PlainMemory | segments.Segment":
        if not self._run_id:
            return PlainMemory(nbytes)
        if (name, what) not in self._segments:
            full = segments.segment_name(self._run_id, name, what)
            self._segments[name, what] = segments.create(full, nbytes)
        return self._segments[name, what]

    def close(self) -> None:
        """Remove shared memory, close files."""
        for noted in self.journals.values():
            noted.close()
        if self._attached is not None:
            self._attached.close()
        for segment in self._segments.values():
            segment.close()
            segments.unlink(segment.name)

    def deliver(self, limit: int = 1_000_000) -> int:
        """Deliver letters, oldest first; how many."""
        done = 0
        while self.office.letters and done < limit:
            self.hand_over(self.office.letters.popleft())
            done += 1
        return done

    def hand_over(self, letter: Letter) -> None:
        """One letter arrives."""
        decoded = codec.decode(letter.parts)
        role, _, index = letter.to.partition("/")
        if role == "loader":
            assert isinstance(decoded.message, m.BatchRequest)
            self._feed(decoded.message)
        elif role == "trainer":
            self.trainers[int(index)].hear(letter.sender, decoded.message, decoded.frames)
        elif role == "optimizer_shard":
            self.shards[int(index)].hear(letter.sender, decoded.message, decoded.frames)

    def _feed(self, request: m.BatchRequest) -> None:
        rows = rows_of(self.topology, request.step, request.rank)
        tokens, documents = (t.numpy().astype(np.int32) for t in rows[:2])
        refs = [m.TensorRef(dtype="int32", shape=tokens.shape, frame=index) for index in range(2)]
        batch = m.Batch(
            step=request.step,
            rank=request.rank,
            epoch=0,
            tokens=refs[0],
            documents=refs[1],
            text_bytes=rows.text_bytes,
        )
        outbox = self.office.outbox("loader")
        outbox.send(
            "batches", batch, to=f"trainer/{request.rank}", frames=[tokens.data, documents.data]
        )

    def turn(self, seconds: float = 0.1) -> None:
        """Everybody does what they can."""
        self.clock.advance(seconds)
        for trainer in self.trainers:
            trainer.tick()
            if trainer.may_compute:
                trainer.compute()
        for shard in self.shards:
            shard.tick()
        for keeper in self.keepers.values():
            keeper.tick(self.clock.now())
        self.deliver()

    def turns(self, most: int = 500) -> Iterator[int]:
        """Turns until the last step is committed everywhere. Fails when that takes too long."""
        for number in range(most):
            if all(shard.rounds.finished for shard in self.shards):
                return
            self.turn()
            yield number
        raise AssertionError([shard.rounds.waiting_for() for shard in self.shards])

    def run(self) -> str:
        """Train to the end; digest of the weights."""
        for _ in self.turns():
            pass
        return self.shards[0].weights_digest()

    def records(self) -> list[dict[str, Any]]:
        """The metrics of all committed steps."""
        return list(self.shards[0].state.records(0))
