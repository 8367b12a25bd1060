"""A worker goes on with other samples while a program works on one of its own."""

import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from actors.data.questions import MOST, Question
from actors.data.rustc import CannotVerify, Verdict, Verifier
from actors.data.stages import Options, SampleProblem, State
from actors.data.worker import Worker
from protocol import messages as m
from protocol.clock import MonotonicClock
from protocol.messages import WIRE_VERSION, Envelope, Message
from protocol.transport import Received

STAGES = ("read", "verify", "tokenize")
PLAN = m.DataPlan(
    tokenizer_digest="d",
    stages=STAGES,
    cutoff_s=30.0,
    max_sample_bytes=1000,
    heartbeat_s=0.05,
    options={"credit": 4},
)


class Box:
    """What a worker needs of a mailbox; the test is the loader."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inbox: deque[Received] = deque()
        self._woken = False
        self.said: list[Message] = []
        self.waits: list[str] = []
        self.log = self

    def put(self, message: Message, *frames: bytes, life: int = 1) -> None:
        said = Envelope(WIRE_VERSION, type(message).__name__, "loader", life, 0, 0)
        views = tuple(memoryview(frame) for frame in frames)
        with self._changed:
            self._inbox.append(Received("samples", "loader", "loader", life, said, message, views))
            self._changed.notify_all()

    def receive(self, timeout_s: float) -> list[Received]:
        with self._changed:
            self._changed.wait_for(lambda: self._inbox or self._woken, timeout_s)
            self._woken = False
            taken = list(self._inbox)
            self._inbox.clear()
            return taken

    def wake(self) -> None:
        with self._changed:
            self._woken = True
            self._changed.notify_all()

    def send(self, _channel: str, message: Message, *, frames: Sequence[bytes] = ()) -> None:
        del frames
        self.said.append(message)

    def progress(self, waiting_for: str = "") -> None:
        self.waits.append(waiting_for)

    def gauge(self, _name: str, _value: float) -> None:
        pass

    def error(self, event: str, **facts: object) -> None:
        self.waits.append(f"{event} {facts}")


@dataclass
class Compiler:
    """Answers when the test says so."""

    may_answer: threading.Event = field(default_factory=threading.Event)
    asked: list[str] = field(default_factory=list[str])
    told: set[str] = field(default_factory=set[str])
    fails: bool = False

    def question(self, stage: str, _state: State, ref: m.SampleRef, _o: Options) -> Question | None:
        if stage != "verify" or ref.language != "rust" or ref.name in self.told:
            return None
        return _Asked(self, ref.name)


class _Asked(Question):
    def __init__(self, compiler: Compiler, name: str) -> None:
        super().__init__(name.encode(), cast("Verifier", None))
        object.__setattr__(self, "compiler", compiler)

    @property
    def _compiler(self) -> Compiler:
        return self.__dict__["compiler"]

    def ask(self) -> Verdict:
        self._compiler.asked.append(self.text.decode())
        assert self._compiler.may_answer.wait(20)
        if self._compiler.fails:
            raise CannotVerify("no compiler any more")
        return None, True

    def tell(self, answer: Verdict) -> None:
        del answer
        self._compiler.told.add(self.text.decode())


class Bench:
    """A worker whose turns the test takes."""

    def __init__(self) -> None:
        self.box, self.compiler = Box(), Compiler()
        self.ran: list[tuple[str, str]] = []
        self.worker = Worker(
            cast("Any", self.box),
            "fast",
            "here",
            channel="samples",
            clock=MonotonicClock(),
            stages={name: self._stage(name) for name in STAGES},
            asking=self.compiler.question,
            load_encoder=lambda _data: cast("Any", None),
        )
        self.box.put(PLAN, b"{}")

    def _stage(self, name: str):
        def stage(_state: State, ref: m.SampleRef, _options: Options) -> State:
            self.ran.append((ref.name, name))
            if name == "tokenize" and ref.name == "bad.rs":
                raise SampleProblem("empty", "")
            return State(b"text")

        return stage

    def lease(self, number: int, name: str) -> None:
        language = "rust" if name.endswith(".rs") else "python"
        ref = m.SampleRef(name=name, language=language, path=name)
        self.box.put(
            m.Lease(
                lease=number, epoch=0, sample=number, attempt=1, ref=ref, stage=0, expires_s=30.0
            )
        )

    def turns(self, until: str, count: int = 1) -> None:
        """Until so many messages of a kind have been said."""
        for _ in range(2000):
            if len(self.leases(until)) >= count:
                return
            self.worker.turn()
        raise AssertionError(f"no {until} among {self.box.said}")

    def leases(self, kind: str) -> list[int]:
        return [cast("Any", said).lease for said in self.box.said if type(said).__name__ == kind]


@pytest.fixture
def bench():
    made = Bench()
    yield made
    made.compiler.may_answer.set()


def test_others_go_on_while_a_compiler_runs(bench: Bench):
    bench.lease(1, "slow.rs")
    bench.lease(2, "quick.py")
    bench.turns("SampleReady")
    assert bench.leases("SampleParked") == [1]
    assert bench.leases("SampleReady") == [2]
    bench.compiler.may_answer.set()
    bench.turns("SampleReady", 2)
    assert bench.leases("SampleReady") == [2, 1]
    # Nothing was done twice, and the waiting is told from the work.
    assert [stage for name, stage in bench.ran if name == "slow.rs"] == list(STAGES)
    ready = [said for said in bench.box.said if isinstance(said, m.SampleReady)]
    assert ready[0].waited_s == 0.0
    assert 0.0 < ready[1].waited_s <= sum(ready[1].stage_s)


def test_no_more_compilers_than_agreed_and_nobody_is_begun_behind_who_waits_for_one(bench: Bench):
    for number in range(MOST + 1):
        bench.lease(number, f"{number}.rs")
    bench.lease(MOST + 1, "quick.py")
    bench.turns("SampleParked", MOST)
    for _ in range(5):
        bench.worker.turn()
    assert bench.leases("SampleParked") == list(range(MOST))
    assert bench.leases("SampleReady") == []  # who is blamed for a death has to be at work
    # Its own place is not offered to others: what is stalled and what is queued.
    asked = [said for said in bench.box.said if isinstance(said, m.LeaseRequest)]
    assert asked[-1].credit == 4 - 2
    assert "a compiler" in bench.box.waits
    bench.compiler.may_answer.set()
    bench.turns("SampleReady", MOST + 2)
    assert sorted(bench.leases("SampleReady")) == list(range(MOST + 2))
    assert len(bench.compiler.asked) == MOST + 1


def test_what_is_refused_after_a_wait_is_refused_once(bench: Bench):
    bench.compiler.may_answer.set()
    bench.lease(1, "bad.rs")
    bench.turns("SampleRefused")
    assert bench.leases("SampleRefused") == [1]
    assert bench.leases("SampleReady") == []


def test_a_compiler_that_is_gone_ends_the_worker_in_words_and_blames_no_sample(bench: Bench):
    bench.compiler.fails = True
    bench.compiler.may_answer.set()
    bench.lease(1, "some.rs")
    assert bench.worker.run() == 1
    assert bench.leases("SampleRefused") == []
    assert "no compiler any more" in str(bench.box.waits)


def test_leases_of_a_loader_that_is_gone_are_not_begun(bench: Bench):
    for number in range(MOST + 1):
        bench.lease(number, f"{number}.rs")
    bench.turns("SampleParked", MOST)
    bench.worker.turn()
    bench.box.put(m.Welcome(peers={}), life=2)
    bench.worker.turn()
    bench.compiler.may_answer.set()
    bench.turns("SampleReady", MOST)
    for _ in range(5):
        bench.worker.turn()
    assert sorted(bench.leases("SampleReady")) == list(range(MOST))
