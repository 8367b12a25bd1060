"""The loader's dealings with workers, honest ones and others."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np
import pytest
import structlog

from actors.data.corpus import Corpus, SourceFile, assemble, one_sample
from actors.data.crew import Crew, Outcome
from actors.data.cutoffs import NEVER_S
from actors.data.feed import Refusal
from actors.data.learning import Timing
from actors.data.leases import LeaseTable
from actors.data.packing import Document
from actors.data.terms import Terms
from actors.topology import DataSpec
from protocol import messages as m
from protocol.messages import WIRE_VERSION, Envelope, Message, Role
from protocol.tensors import Frames
from protocol.transport import Received, Sent

PLAN = m.DataPlan(
    tokenizer_digest="d",
    stages=("read", "verify", "tokenize"),
    cutoff_s=0.05,
    max_sample_bytes=1000,
    heartbeat_s=0.25,
    options={"credit": 2},
)


@dataclass
class Wire:
    """What the loader has said."""

    said: list[tuple[str, str, Message, list[bytes]]] = field(
        default_factory=list[tuple[str, str, Message, list[bytes]]]
    )
    answer: Sent = Sent.SENT

    def send(
        self,
        channel: str,
        message: Message,
        *,
        to: str = "",
        frames: Sequence[bytes] = (),
    ) -> Sent:
        self.said.append((channel, to, message, [bytes(frame) for frame in frames]))
        return self.answer

    def leases(self) -> list[m.Lease]:
        return [message for _, _, message, _ in self.said if isinstance(message, m.Lease)]


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    for name in "abc":
        (tmp_path / name).write_text(f"text of {name}\n")
    files = [SourceFile(n, str(tmp_path / n), "text", "file", "", 10) for n in ("a", "b", "c")]
    files.append(SourceFile("z", str(tmp_path / "nowhere"), "text", "file", "", 10))
    return assemble([(file, one_sample()) for file in files], "digest")


@pytest.fixture
def wire() -> Wire:
    return Wire()


@pytest.fixture
def crew(corpus: Corpus, wire: Wire) -> Crew:
    data = DataSpec()
    table = LeaseTable(lease_s=data.lease_s, limit=2, max_deaths=3)
    for sample in range(3):
        table.add((0, sample), sample)
    terms = Terms(PLAN, b"{}", vocab_size=300, lease_s=data.lease_s)
    return Crew(table, corpus, terms, wire.send, structlog.get_logger())  # pyright: ignore[reportArgumentType]


def hear(
    crew: Crew,
    message: Message,
    *frames: bytes,
    sender: str = "data_worker/0",
    channel: str = "samples",
    now: float = 0.0,
) -> list[Outcome]:
    role: Role = "data_worker"
    said = Envelope(WIRE_VERSION, type(message).__name__, sender, 1, 0, 0)
    views = tuple(memoryview(frame) for frame in frames)
    outcomes = crew.hear(Received(channel, sender, role, 1, said, message, views), now)
    crew.table.check()
    return outcomes


def guests(crew: Crew, now: float) -> tuple[m.Guest, ...]:
    said = crew.guests.due(now)
    assert said is not None
    return said.guests


def join(crew: Crew, sender: str = "data_worker/0", channel: str = "samples") -> None:
    shares_files = channel == "samples"
    asked = m.JoinPool(pool="fast", host="h", shares_files=shares_files)
    hear(crew, asked, sender=sender, channel=channel)
    hear(crew, m.LeaseRequest(pool="fast", credit=1), sender=sender, channel=channel)


def ready(
    lease: m.Lease, tokens: "np.ndarray[tuple[int, ...], np.dtype[np.generic]]", text_bytes: int = 9
):
    frames = Frames()
    message = m.SampleReady(
        lease=lease.lease,
        epoch=lease.epoch,
        sample=lease.sample,
        tokens=frames.add(tokens),
        text_bytes=text_bytes,
        stage_s=(0.0, 0.0, 0.0),
    )
    return message, bytes(frames.parts[0])


def test_who_joins_gets_the_plan_and_the_tokenizer(crew: Crew, wire: Wire):
    join(crew)
    assert wire.said[0] == ("samples", "data_worker/0", PLAN, [b"{}"])


def test_leases_carry_the_cutoff_that_samples_have_taught(crew: Crew, wire: Wire):
    join(crew)
    hear(crew, m.JoinPool(pool="slow", host="h", shares_files=True), sender="data_worker/1")
    crew.lease(0.0)
    (lease,) = wire.leases()
    assert lease.cutoff_s == PLAN.cutoff_s
    for i in range(200):
        timing = Timing(0.001 + 0.00001 * (i % 100) if i % 5 else 0.4, 1.0)
        crew.learning.finished((0, 0), timing)
    crew.table.request("data_worker/1", 1, 1.0)
    crew.lease(1.0)
    hear(crew, m.LeaseRequest(pool="fast", credit=2), now=2.0)
    crew.lease(2.0)
    by_worker = {lease.lease: lease for lease in wire.leases()}
    cutoffs = [lease.cutoff_s for lease in by_worker.values()]
    assert cutoffs[1] == NEVER_S  # the slow one
    assert 0.001 < cutoffs[2] < 0.002


def test_a_finished_sample_comes_back_as_a_document(crew: Crew, wire: Wire):
    join(crew)
    assert crew.lease(0.0) == []
    (lease,) = wire.leases()
    assert (lease.sample, lease.stage, lease.ref.name) == (0, 0, "a")
    (document,) = hear(crew, *ready(lease, np.array([0, 7, 1], np.int32)))
    assert isinstance(document, Document)
    assert document.key == (0, 0)
    assert document.tokens.tolist() == [0, 7, 1]
    assert hear(crew, *ready(lease, np.array([0, 7, 1], np.int32))) == []


def test_whoever_parks_a_sample_gets_another_and_its_wait_is_not_its_work(
    crew: Crew, wire: Wire, monkeypatch: pytest.MonkeyPatch
):
    told: list[Timing] = []
    monkeypatch.setattr(crew.learning, "finished", lambda _key, timing: told.append(timing))  # pyright: ignore[reportUnknownLambdaType]
    join(crew)
    crew.lease(0.0)
    (first,) = wire.leases()
    parked = m.SampleParked(lease=first.lease, epoch=first.epoch, sample=first.sample)
    assert hear(crew, parked) == []
    crew.lease(0.0)
    assert [lease.sample for lease in wire.leases()] == [0, 1]
    assert (crew.parked, crew.table.parked) == (1, 1)
    message, *frames = ready(first, np.array([0, 7, 1], np.int32))
    done = msgspec.structs.replace(message, stage_s=(0.1, 2.0, 0.1), waited_s=1.9)
    for _ in range(2):
        hear(crew, done, *frames)
    (timing,) = told
    assert (timing.line_s, timing.total_s) == pytest.approx((0.3, 2.2))
    assert crew.table.parked == 0


@pytest.mark.parametrize(
    ("tokens", "text_bytes"),
    [
        (np.array([0, 300, 1], np.int32), 9),
        (np.array([0, -1, 1], np.int32), 9),
        (np.array([[0, 1]], np.int32), 9),
        (np.array([0.0, 1.0], np.float32), 9),
        (np.array([0], np.int32), 9),
        (np.array([], np.int32), 9),
        (np.array([0, 1], np.int32), 0),
        (np.array([0, 1], np.int32), 10**9),
    ],
)
def test_tokens_that_cannot_be_are_not_taken(
    capsys: pytest.CaptureFixture[str],
    crew: Crew,
    wire: Wire,
    tokens: "np.ndarray[tuple[int, ...], np.dtype[np.generic]]",
    text_bytes: int,
):
    join(crew)
    crew.lease(0.0)
    (lease,) = wire.leases()
    assert hear(crew, *ready(lease, tokens, text_bytes)) == []
    assert crew.table.workers == {}
    said = capsys.readouterr().out
    assert "nonsense from a worker" in said
    assert "tokens that cannot be" in said
    assert crew.table.unfinished() == 3


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -0.1, 1e300])
def test_times_that_cannot_be_are_not_learned_from(crew: Crew, wire: Wire, wrong: float):
    """Estimates are made of them, for everybody."""
    for changes in ({"stage_s": (0.1, wrong, 0.1)}, {"waited_s": wrong}):
        join(crew)
        crew.lease(0.0)
        message, *frames = ready(wire.leases()[-1], np.array([0, 7, 1], np.int32))
        assert hear(crew, msgspec.structs.replace(message, **changes), *frames) == []
        assert crew.table.workers == {}
    join(crew)
    crew.lease(0.0)
    lease = wire.leases()[-1].lease
    hear(crew, m.SampleHandover(lease=lease, epoch=0, sample=0, stage=1, elapsed_s=wrong), b"x")
    assert crew.table.workers == {}


def test_a_reference_into_memory_of_this_host_is_not_followed(crew: Crew, wire: Wire):
    join(crew)
    crew.lease(0.0)
    message, _ = ready(wire.leases()[0], np.array([0, 1], np.int32))
    inside = m.TensorRef(dtype="int32", shape=(2,), segment="trireme-x")
    changed = msgspec.structs.replace(message, tokens=inside)
    assert hear(crew, changed) == []
    assert crew.table.workers == {}


@pytest.mark.parametrize(("stage", "state"), [(1, b""), (3, b"x"), (99, b"x")])
def test_hand_overs_that_cannot_be_are_not_taken(crew: Crew, wire: Wire, stage: int, state: bytes):
    join(crew)
    crew.lease(0.0)
    (lease,) = wire.leases()
    handover = m.SampleHandover(lease=lease.lease, epoch=0, sample=0, stage=stage, elapsed_s=1.0)
    hear(crew, handover, *([state] if state else []))
    assert crew.table.workers == {}
    assert crew.table.unfinished() == 3


def test_workers_of_other_hosts_get_the_text_itself(crew: Crew, wire: Wire):
    join(crew, "data_worker/box-0", "remote")
    assert any(isinstance(message, m.Welcome) for _, _, message, _ in wire.said)
    crew.lease(0.0)
    channel, to, lease, frames = wire.said[-1]
    assert isinstance(lease, m.Lease)
    assert (channel, to, lease.stage, frames) == (
        "remote",
        "data_worker/box-0",
        1,
        [b"text of a\n"],
    )


def test_what_cannot_be_read_for_them_is_refused_here(crew: Crew, wire: Wire):
    crew.table.add((0, 3), -1)
    join(crew, "data_worker/box-0", "remote")
    outcomes = crew.lease(0.0)
    assert [(o.key, o.kind) for o in outcomes if isinstance(o, Refusal)] == [((0, 3), "vanished")]
    assert [lease.sample for lease in wire.leases()] == [0]


def test_who_is_silent_on_another_host_loses_what_it_held(
    crew: Crew, capsys: pytest.CaptureFixture[str]
):
    join(crew, "data_worker/box-0", "remote")
    crew.lease(0.0)
    assert crew.watch(4.9) == []
    assert crew.table.leased == 1
    crew.watch(5.1)
    assert crew.table.workers == {}
    assert "remote worker lost" in capsys.readouterr().out
    assert guests(crew, 5.1) == ()


def test_of_workers_of_other_hosts_it_is_told_who_they_are_and_what_they_did(
    crew: Crew, wire: Wire
):
    assert guests(crew, 0.0) == ()  # whatever an earlier loader said
    assert crew.guests.due(0.0) is None
    join(crew, "data_worker/box-0", "remote")
    (guest,) = guests(crew, 0.0)
    assert (guest.name, guest.host, guest.pool) == ("data_worker/box-0", "h", "fast")
    crew.lease(0.0)
    assert crew.guests.due(0.9) is None
    (lease,) = wire.leases()
    hear(crew, *ready(lease, np.array([0, 7, 1], np.int32)), sender="data_worker/box-0")
    (guest,) = guests(crew, 1.0)
    assert (guest.delivered, guest.silent_s) == (1, 1.0)
    hear(crew, m.Goodbye(failed=""), sender="data_worker/box-0")
    assert guests(crew, 1.1) == ()
    assert crew.guests.due(9.0) is None


def test_of_our_own_workers_nothing_is_told(crew: Crew):
    assert guests(crew, 0.0) == ()
    join(crew)
    assert crew.guests.due(9.0) is None


def test_a_new_loader_learns_the_host_of_a_worker_that_joined_the_old_one(crew: Crew):
    ask = m.LeaseRequest(pool="slow", credit=2, host="node-2")
    hear(crew, ask, sender="data_worker/box-0", channel="remote")
    assert [guest.host for guest in guests(crew, 0.0)] == ["node-2"]


def test_who_cannot_be_reached_holds_nothing(crew: Crew, wire: Wire):
    join(crew)
    wire.answer = Sent.NO_PEER
    crew.lease(0.0)
    assert crew.table.workers == {}
    assert crew.table.unfinished() == 3


def test_a_worker_of_a_former_loader_is_taken_on_when_it_asks(crew: Crew, wire: Wire):
    hear(crew, m.LeaseRequest(pool="slow", credit=2), sender="data_worker/5")
    assert crew.table.workers["data_worker/5"].pool == "slow"
    crew.lease(0.0)
    assert len(wire.leases()) == 2


def test_farewells_free_what_was_held_and_deaths_of_older_lives_do_not(crew: Crew):
    join(crew)
    crew.lease(0.0)
    hear(crew, m.PeerDown(name="data_worker/0", incarnation=0, reason="old"), sender="supervisor")
    assert crew.table.leased == 1
    hear(crew, m.Goodbye(failed=""))
    assert crew.table.workers == {}


def test_others_are_told_when_the_run_is_over(crew: Crew, wire: Wire):
    join(crew)
    join(crew, "data_worker/box-0", "remote")
    crew.dismiss(m.Stop(reason="done", within_s=1.0))
    stops = [(channel, to) for channel, to, message, _ in wire.said if isinstance(message, m.Stop)]
    assert stops == [("remote", "data_worker/box-0")]
