"""The simulated loader and its data workers: the real ones, driven turn by turn.

`Loader` runs as the coroutine it is; only what reads the corpus from disk is replaced. `Worker`
has its stages replaced by ones that take simulated time. The ledger is the real one, on a file in
memory; a death between two instructions rolls its open transaction back, as SQLite would.
"""

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from actors.data.batches import Answer, Batches
from actors.data.crew import Crew
from actors.data.feed import Composition, Feed, Recorded, Shape
from actors.data.leases import Grant, LeaseTable
from actors.data.ledger import Ledger
from actors.data.loader import Loader
from actors.data.packing import Packed
from actors.data.stages import Options, SampleProblem, Stage, State
from actors.data.terms import facts_of, shape_of, terms_of
from actors.data.worker import Worker
from actors.seat import Seat
from actors.simulation.life import Died, Exit, Life
from actors.simulation.mailbox import CoroutineMailbox, SimMailbox
from actors.simulation.setting import VOCAB, Setting
from actors.topology import Topology
from protocol import messages as m
from protocol.messages import Pool, SampleRef
from protocol.parcels import Sent

if TYPE_CHECKING:
    from collections.abc import Coroutine

_TOKENIZER = b"a tokenizer"
_STAGES = ("read", "verify", "tokenize")


class SimSeat(Seat, frozen=True, kw_only=True):
    """A seat whose topology is at hand."""

    made: Topology

    def topology(self) -> Topology:
        """It."""
        return self.made


def seat_of(life: Life) -> SimSeat:
    """Where that life sits."""
    world = life.world
    return SimSeat(
        run_dir=str(world.directory),
        run_id="00000000",
        socket_dir="",
        name=life.name,
        role=life.role,
        index=int(life.name.partition("/")[2] or 0) if not life.host else 0,
        incarnation=life.incarnation,
        made=world.topology,
    )


class _Corpus:
    """Samples are numbers; any file will do for their text."""

    def ref(self, sample: int) -> SampleRef:
        """Where its text lies."""
        return SampleRef(name=self.name(sample), language="text", path=__file__)

    def name(self, sample: int) -> str:
        """What people call it."""
        return f"sample {sample}"

    def language(self, sample: int) -> str:
        """What it is written in."""
        return self.ref(sample).language


@dataclass(frozen=True, slots=True)
class _Prompt:
    text: str
    name: str


class _Prompts:
    """Prompts that follow from the draw."""

    def draw(self, draw: int, count: int) -> list[_Prompt]:
        """`count` of them."""
        return [_Prompt(f"{draw}", f"prompt {draw}.{i}") for i in range(count)]


class _Ledger:
    """The real ledger, with the observer behind it."""

    def __init__(self, ledger: Ledger, life: Life) -> None:
        self._ledger, self._life = ledger, life

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ledger, name)

    def commit(self, composition: Composition, shape: Shape, *, forget_before: int = 0) -> None:
        """See `Ledger.commit`."""
        self._life.op()
        self._ledger.commit(composition, shape, forget_before=forget_before)
        self._life.world.truth.wrote(self._life.incarnation)
        world = self._life.world
        for refusal in composition.refused:
            world.truth.left_out(refusal.key[1])
        world.truth.composed(composition)
        world.disk.ledger_committed(composition.step)
        self._life.op()

    def respool(self, step: int, packed: Packed, shape: Shape) -> None:
        """See `Ledger.respool`."""
        self._life.op()
        self._ledger.respool(step, packed, shape)
        self._life.world.truth.wrote(self._life.incarnation)
        self._life.op()

    def truncate(self, step: int, sample: int, kind: str, detail: str) -> None:
        """See `Ledger.truncate`."""
        self._life.op()
        self._ledger.truncate(step, sample, kind, detail)
        self._life.world.truth.wrote(self._life.incarnation)
        self._life.world.truth.left_out(sample)
        self._life.world.truth.composed_anew(step)
        self._life.op()

    def reshape(self, step: int) -> None:
        """See `Ledger.reshape`."""
        self._life.op()
        self._ledger.reshape(step)
        self._life.world.truth.wrote(self._life.incarnation)
        self._life.world.truth.composed_anew(step)
        self._life.op()

    def quarantine(self, sample: int, reason: str, deaths: int) -> None:
        """See `Ledger.quarantine`."""
        self._life.op()
        self._ledger.quarantine(sample, reason, deaths)
        self._life.world.truth.wrote(self._life.incarnation)
        self._life.world.truth.left_out(sample)
        self._life.op()


class _Table(LeaseTable):
    """The real lease table, watched."""

    life: Life

    def grants(self, now: float) -> list[Grant]:
        """See `LeaseTable.grants`."""
        made = super().grants(now)
        for grant in made:
            self.life.world.truth.leased(grant.lease, grant.worker)
        return made


class SimLoader(Loader):
    """The real loader but for its corpus, its tokenizer and its door."""

    def __init__(self, life: Life) -> None:
        self._life = life
        box = life.box = CoroutineMailbox(
            life,
            ("control", "telemetry"),
            ("samples", "batches", "remote"),
            supervision=life.world.topology.supervision,
        )
        super().__init__(seat_of(life), cast("Any", box))
        self._clock = cast("Any", life)
        self._box = box
        self._course: Coroutine[float, None, str] = cast("Any", self.run())

    def proceed(self) -> float:
        """Go on until it waits for messages again."""
        try:
            timeout_s = self._course.send(None)
        except StopIteration as end:
            problem = cast("str", end.value)
            self._box.goodbye(failed=problem)
            raise Exit(1 if problem else 0) from None
        self._crew.table.check()
        return timeout_s

    def ended(self) -> None:
        """The process is gone, and SQLite's locks and open transactions with it."""
        self._course.close()

    def _open_door(self) -> None:
        """The simulated one is always open."""

    async def _prepare(self, ledger: Ledger) -> str:
        return ""

    def _begin(self, ledger: Ledger) -> None:
        wanted, data = self._topology, self._topology.data
        world, seat = self._life.world, self._seat
        ledger.bind_to(facts_of(wanted, _TOKENIZER))
        world.truth.opened(seat.incarnation)
        shape, samples = shape_of(wanted), np.arange(world.setting.samples)

        def feed(recorded: Recorded) -> Feed:
            return Feed(shape, samples, recorded, seed=wanted.seed, order=data.order)

        table = _Table(
            lease_s=data.lease_s,
            limit=data.credit,
            max_deaths=data.max_deaths_per_sample,
            first_lease=seat.incarnation << 32,
        )
        table.life = self._life
        terms = terms_of(wanted, _TOKENIZER)
        plan = m.DataPlan(
            tokenizer_digest=terms.plan.tokenizer_digest,
            stages=_STAGES,
            cutoff_s=terms.plan.cutoff_s,
            max_sample_bytes=terms.plan.max_sample_bytes,
            heartbeat_s=terms.plan.heartbeat_s,
            options=terms.plan.options,
        )
        terms = type(terms)(plan, _TOKENIZER, VOCAB, data.lease_s)
        corpus = self._corpus = cast("Any", _Corpus())
        self._tokenizer = _TOKENIZER
        log = self._mailbox.log
        self._crew = Crew(table, corpus, terms, self._mailbox.send, log)
        self._batches = Batches(cast("Any", _Ledger(ledger, self._life)), shape, feed)
        world.disk.ledger_opened(self._batches.feed.next_step - 1)
        self._losses.begin(ledger)
        self._prompts = cast("Any", _Prompts())

    def _send_batch(self, answer: Answer) -> Sent:
        self._life.world.truth.offered(answer.step, answer.rank, answer.tokens)
        return super()._send_batch(answer)


class SimWorker(Worker):
    """The real worker, with stages that take simulated time."""

    def __init__(self, life: Life, pool: Pool) -> None:
        self._life = life
        channel = "remote" if life.host else "samples"
        connect = (channel,) if life.host else ("control", "telemetry", channel)
        spec = None if life.host else life.world.topology.supervision
        box = life.box = SimMailbox(life, connect, supervision=spec)
        self._box = box
        stages = {name: _stage(life, box, name) for name in _STAGES}
        super().__init__(
            cast("Any", box),
            pool,
            life.host or "here",
            channel=channel,
            clock=life,
            stages=MappingProxyType(stages),
            load_encoder=lambda _data: cast("Any", None),
        )

    def proceed(self) -> float:
        """One round of the worker's loop."""
        self.turn()
        if self._stop:
            self._box.send(self._channel, m.Goodbye(failed=""))
            self._box.goodbye()
            raise Exit(1 if self._failed else 0)
        if self._queue:
            return 0.0
        return self._plan.heartbeat_s if self._plan else 0.2

    def ended(self) -> None:
        """Nothing is left of a worker."""


def _stage(life: Life, box: SimMailbox, name: str) -> Stage:
    """A stage that takes time, ends the process on a poisoned sample, and makes of a sample what
    follows from its key."""
    setting: Setting = life.world.setting

    def stage(state: State, ref: SampleRef, options: Options) -> State:
        sample = int(ref.name.removeprefix("sample "))
        slow = 6.0 if life.chance.random() < 0.15 else 1.0
        life.ahead += setting.stage_s * slow * (0.2 + life.chance.random())
        life.op()
        if name == "verify" and sample == setting.poison:
            raise Died
        if name == "verify" and sample == setting.refused:
            raise SampleProblem("does not compile", "line 1")
        if name == "tokenize":
            return State(b"text", setting.document((options.epoch, sample)))
        return State(b"text" if not state.text else state.text)

    return stage
