"""The simulated trainers: the real `Trainer`, whose model is a table and whose backward pass takes
simulated time; and those who only look on, rollouts and the recorder.
"""

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np

from actors.gradient_slots import GradientSlots
from actors.parameters import parameters, partition
from actors.published import Array
from actors.replica import read_codes
from actors.simulation import setting as sums
from actors.simulation.exchanging import SimAttached
from actors.simulation.life import Exit, Life
from actors.simulation.mailbox import SimMailbox
from actors.snapshots import SnapshotCollector
from actors.trainer.projecting import Projecting
from actors.trainer.rounds import TrainerRounds
from actors.trainer.trainer import ShardsDisagree, Trainer
from protocol import messages as m
from protocol.errors import Malformed, ProtocolError, SegmentError
from protocol.messages import Stop
from protocol.parcels import Received
from protocol.tensors import Attached, read

TICK_S = 0.25
# Every rank counts as many targets: the mean over ranks is then exact.
_TOKENS = 64


class _Replica:
    """Weights of one version, without a model around them."""

    def __init__(self, life: Life) -> None:
        self._life = life
        self.parameters = parameters(life.world.topology.model)
        self.named = {p.name: p for p in self.parameters}
        self.weights: dict[str, float] = {}

    def load(self, snapshot: Mapping[str, Mapping[str, Array]]) -> None:
        """See `Replica.load`."""
        for name, tensors in snapshot.items():
            self.weights[name] = float(tensors["dense"].reshape(-1)[0])

    def apply(
        self, message: m.Update | m.Codes, frames: Sequence[memoryview], attached: Attached | None
    ) -> None:
        """See `Replica.apply`."""
        parameter = self.named[message.param]
        tensors = read_codes(parameter, message, frames, attached)
        life = self._life
        life.world.truth.tensors(f"{life}'s", parameter, message.version, tensors["dense"])
        self.weights[message.param] = float(tensors["dense"].reshape(-1)[0])


class SimTrainer(Trainer):
    """The real trainer; `compute` adds up whole numbers instead of gradients."""

    def __init__(self, life: Life, rank: int) -> None:
        self._life = life
        topology = self._topology = life.world.topology
        shards = topology.actors.optimizer_shards
        channels = [f"exchange/{k}" for k in range(shards)]
        box = self._box = life.box = SimMailbox(
            life, ("control", "telemetry", "batches", *channels), supervision=topology.supervision
        )
        params = parameters(topology.model)
        owned = partition(params, shards)
        self._rank, self._outbox, self._clock = rank, cast("Any", box), life
        self._attached, self._device = SimAttached(life), "cpu"
        self._slots = None
        if life.world.setting.slots:
            with contextlib.suppress(SegmentError):  # they travel as frames then
                memory = life.world.disk.segment(f"trireme-gradients-{rank}")
                self._slots = GradientSlots(memory, params)
        self._projecting = Projecting(topology, "cpu")
        self._progress = box.progress
        self._owner = {p.name: k for k, shard in enumerate(owned) for p in shard}
        self.rounds = TrainerRounds(self._owner, topology.steps)
        self.replica = cast("Any", _Replica(life))
        self._table = cast("_Replica", self.replica)
        self._collector = SnapshotCollector([[p.name for p in shard] for shard in owned])
        self._batches = {}
        self._updates, self._gradients = {}, {}
        self._facts = None
        self._sent_bytes, self._last_step_s, self._data_wait_s = 0, 0.0, 0.0
        self._step_began = self._waiting_since = None
        self.malformed = self.repairs = 0

    def proceed(self) -> float:
        """As trainer/process.py has it."""
        box = self._box
        if not self.may_compute:
            box.progress(self.rounds.waiting_for())
        for item in box.receive():
            if not isinstance(item.message, Stop):
                self._listen(item)
        self.tick()
        if box.stopping is not None:
            box.goodbye()
            raise Exit(0)
        if self.may_compute:
            box.progress()
            self.compute()
        self.rounds.check()
        return 0.0 if self.may_compute else TICK_S

    def _listen(self, item: Received) -> None:
        try:
            self.hear(item.sender, item.message, item.frames)
        except ShardsDisagree as error:
            self._box.goodbye(failed=str(error))
            raise Exit(1) from error

    def ended(self) -> None:
        """Nothing is left of a trainer."""

    def _batch(self, message: m.Batch, frames: Sequence[memoryview]) -> None:
        if message.rank != self._rank:
            raise Malformed(f"the batch of rank {message.rank} came to rank {self._rank}")
        tokens = read(message.tokens, frames, self._attached)
        if self.rounds.batch(message.step):
            self._batches[message.step] = cast("Any", sums.batch_sum(tokens))

    def compute(self) -> None:
        """Gradients leave one after the other, in the course of simulated time."""
        life, setting = self._life, self._life.world.setting
        self.rounds.begin()
        step = self.rounds.step
        batch = cast("int", self._batches[step])
        each_s = setting.step_s / (1 + len(self._owner))
        life.ahead += each_s * (0.5 + life.chance.random())
        life.op()
        self._facts = m.StepFacts(
            step=step,
            rank=self._rank,
            tokens=_TOKENS,
            text_bytes=_TOKENS,
            loss_sum=1.0,
            objective_sum=1.0,
            step_s=0.0,
            data_wait_s=0.0,
            up_bytes=0,
        )
        self._perform(self.rounds.facts())
        for number, parameter in enumerate(self._table.parameters):
            life.ahead += each_s * (0.5 + life.chance.random())
            life.op()
            name = parameter.name
            value = sums.contribution(step, self._rank, number, batch, self._table.weights[name])
            gradient = np.full(parameter.shape, value, np.float32)
            if self._slots is None:
                self._gradients[name] = (gradient,)
            else:
                life.later(0.0, self._write, name, gradient)
            self._perform(self.rounds.gradient(name))
        self._perform(self.rounds.finish())

    def _write(self, name: str, gradient: Array) -> None:
        assert self._slots is not None
        self._slots.array(name)[...] = gradient

    def _forget(self, version: int) -> None:
        super()._forget(version)
        for parameter in self._table.parameters:
            found = np.full(1, self._table.weights[parameter.name], np.float32)
            self._life.world.truth.tensors(f"{self._life}'s", parameter, version, found)


class SimRollout:
    """Takes snapshots of the weights, and prompts, again and again."""

    def __init__(self, life: Life) -> None:
        self._life, topology = life, life.world.topology
        self._shards = topology.actors.optimizer_shards
        channels = [f"exchange/{k}" for k in range(self._shards)]
        self._box = life.box = SimMailbox(
            life, ("control", "telemetry", "batches", *channels), supervision=topology.supervision
        )
        params = parameters(topology.model)
        self._owned = partition(params, self._shards)
        self._named = {p.name: p for p in params}
        self._collector: SnapshotCollector[Any] | None = None
        self._rest_until = 0.0
        self._draw = life.incarnation << 20

    def proceed(self) -> float:
        """Collect a snapshot, then rest."""
        now = self._life.now()
        if self._box.stopping is not None:
            self._box.goodbye()
            raise Exit(0)
        if self._collector is None and now >= self._rest_until:
            self._collector = SnapshotCollector([[p.name for p in own] for own in self._owned])
            self._draw += 1
            self._box.send("batches", m.PromptRequest(count=2, draw=self._draw))
        for item in self._box.receive():
            self._hear(item.channel, item.message, item.frames)
        if self._collector is None:
            self._box.progress("its share of the processor")
            return max(0.05, self._rest_until - now)
        self._box.progress("a snapshot of the weights")
        for ask in self._collector.asks(now):
            self._box.send(f"exchange/{ask.shard}", m.CodesRequest(version=ask.version))
        return TICK_S

    def ended(self) -> None:
        """Nothing is left of a rollout."""

    def _hear(self, channel: str, message: m.Message, frames: Sequence[memoryview]) -> None:
        if self._collector is None:
            return
        match message:
            case m.Codes(version=version, param=name):
                try:
                    tensors = read_codes(self._named[name], message, frames, None)
                except ProtocolError:
                    return
                self._collector.add(int(channel.partition("/")[2]), version, name, tensors)
                self._take()
            case m.PeerUp(name=name) if name.startswith("optimizer_shard/"):
                self._collector.shard_up(int(name.partition("/")[2]))
            case _:
                pass

    def _take(self) -> None:
        assert self._collector is not None
        snapshot = self._collector.result()
        if snapshot is None:
            return
        for name, tensors in snapshot.parameters.items():
            self._life.world.truth.tensors(
                f"{self._life}'s", self._named[name], snapshot.version, tensors["dense"]
            )
        self._collector = None
        self._rest_until = self._life.now() + 0.3 * self._life.chance.random()


class SimRecorder:
    """Asks shard 0 for metrics records; they come in order and without gaps."""

    def __init__(self, life: Life) -> None:
        self._life = life
        self._box = life.box = SimMailbox(
            life, ("control", "exchange/0"), supervision=life.world.topology.supervision
        )
        self._ask_at = 0.0

    def proceed(self) -> float:
        """Ask again."""
        world = self._life.world
        if self._box.stopping is not None:
            self._box.goodbye()
            raise Exit(0)
        for item in self._box.receive():
            if isinstance(item.message, m.Metrics):
                world.truth.recorded(item.message.records, world.disk.metrics)
        now = self._life.now()
        if now >= self._ask_at:
            self._ask_at = now + 1.0
            self._box.progress("metrics")
            after = max(world.disk.metrics, default=0)
            self._box.send("exchange/0", m.MetricsRequest(after=after))
        return self._ask_at - now

    def ended(self) -> None:
        """Its files stay."""
