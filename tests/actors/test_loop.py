"""Mailboxes over real local sockets, with a bare Node playing the supervisor."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from actors import loop
from actors.loop import Mailbox
from actors.seat import Seat
from actors.topology import SupervisionSpec
from protocol import messages as m
from protocol.channels import endpoint, role_of
from protocol.clock import Deadline, MonotonicClock
from protocol.errors import DeadlinePassed, EndpointError, Unsendable
from protocol.transport import Node, Received

CLOCK = MonotonicClock()
QUICK = SupervisionSpec(heartbeat_s=0.02, orphan_grace_s=20.0)
ORPHANED = SupervisionSpec(heartbeat_s=0.02, orphan_grace_s=0.3, stop_s=0.2)
ROOT = Path(__file__).parents[2]


@pytest.fixture
def sockets(tmp_path: Path) -> Path:
    tmp_path.chmod(0o700)
    return tmp_path


@pytest.fixture
def supervisor(sockets: Path) -> Iterator[Node]:
    with Node("supervisor", "supervisor", 3, CLOCK) as node:
        node.bind("control", endpoint(sockets, "control"))
        yield node


@pytest.fixture
def recorder(sockets: Path) -> Iterator[Node]:
    with Node("recorder", "recorder", 0, CLOCK) as node:
        node.bind("telemetry", endpoint(sockets, "telemetry"))
        yield node


def seat(sockets: Path, name: str = "trainer/0", incarnation: int = 1) -> Seat:
    role = role_of(name)
    assert role is not None
    return Seat(
        run_dir="",
        run_id="x",
        socket_dir=str(sockets),
        name=name,
        role=role,
        incarnation=incarnation,
    )


def hear(node: Node, wanted: Callable[[Received], bool], *, answer: bool = True) -> Received:
    """Poll, answering beats like a supervisor, until a message is as wanted."""
    deadline = Deadline.after(CLOCK, 5.0, "message")
    while True:
        deadline.check()
        for received in node.poll(0.05):
            if answer and isinstance(received.message, m.Beat):
                node.send("control", m.Welcome(peers={}), to=received.sender)
            if wanted(received):
                return received


def kind(of: type[m.Message]) -> Callable[[Received], bool]:
    return lambda received: isinstance(received.message, of)


def test_an_actor_says_hello_beats_and_says_goodbye(sockets: Path, supervisor: Node):
    with Mailbox(seat(sockets), supervision=QUICK) as mailbox:
        hello = hear(supervisor, kind(m.Hello)).message
        assert isinstance(hello, m.Hello)
        assert (hello.role, hello.pid) == ("trainer", os.getpid())
        mailbox.gauge("loss", 2.5)
        mailbox.step = 7
        mailbox.progress("optimizer_shard/0")
        beat = hear(supervisor, lambda r: isinstance(r.message, m.Beat) and r.message.progress > 0)
        assert isinstance(beat.message, m.Beat)
        assert beat.envelope.step == 7
        assert beat.message.state == "running"
        assert beat.message.progress == 1
        assert beat.message.waiting_for == "optimizer_shard/0"
        assert beat.message.started_ticks == hello.started_ticks
        assert beat.message.rss_bytes > 1_000_000
        assert beat.message.gauges["loss"] == 2.5
    assert hear(supervisor, kind(m.Goodbye)).message == m.Goodbye(failed="")


def test_the_computing_threads_silence_shows_in_the_beats(sockets: Path, supervisor: Node):
    """A socket thread that beats is no proof of work: the counter stands still."""
    with Mailbox(seat(sockets), supervision=QUICK) as mailbox:
        mailbox.progress()
        beats = [hear(supervisor, kind(m.Beat)).message for _ in range(5)]
    assert {beat.progress for beat in beats[1:] if isinstance(beat, m.Beat)} == {1}


def test_a_stop_is_received_and_visible(sockets: Path, supervisor: Node):
    with Mailbox(seat(sockets), supervision=QUICK) as mailbox:
        hear(supervisor, kind(m.Hello))
        assert mailbox.stopping is None
        supervisor.send("control", m.Stop(reason="done", within_s=1.0), to="trainer/0")
        (received,) = mailbox.receive(5.0)
        assert received.message == mailbox.stopping == m.Stop(reason="done", within_s=1.0)
        beat = hear(supervisor, lambda r: isinstance(r.message, m.Beat) and r.message.progress > 0)
        assert isinstance(beat.message, m.Beat)
        assert beat.message.state == "stopping"


def test_an_orphan_is_told_to_stop_and_ended_if_it_does_not(sockets: Path):
    left: list[int] = []
    with Mailbox(seat(sockets), supervision=ORPHANED, leave=left.append) as mailbox:
        started = time.monotonic()
        (received,) = mailbox.receive(5.0)
        assert isinstance(received.message, m.Stop)
        assert "no supervisor has answered" in received.message.reason
        assert 0.25 < time.monotonic() - started < 2.0
        assert left == []
        deadline = Deadline.after(CLOCK, 5.0, "leaving")
        while not left:
            deadline.check()
            time.sleep(0.01)
    assert set(left) == {75}


def test_a_supervisor_that_answers_keeps_its_actors(sockets: Path, supervisor: Node):
    patient = SupervisionSpec(heartbeat_s=0.02, orphan_grace_s=1.0)
    with Mailbox(seat(sockets), supervision=patient, leave=print) as mailbox:
        until = time.monotonic() + 2 * patient.orphan_grace_s
        hear(supervisor, lambda _: time.monotonic() > until)
        assert mailbox.stopping is None


def test_a_restarted_supervisor_is_told_everything_again(sockets: Path):
    with Mailbox(seat(sockets), supervision=QUICK) as mailbox:
        with Node("supervisor", "supervisor", 1, CLOCK) as first:
            first.bind("control", endpoint(sockets, "control"))
            hear(first, kind(m.Beat))
        with Node("supervisor", "supervisor", 2, CLOCK) as second:
            second.bind("control", endpoint(sockets, "control"))
            hear(second, kind(m.Beat))
            hear(second, kind(m.Hello))
        assert mailbox.stopping is None


def test_the_dead_are_not_heard(sockets: Path, supervisor: Node):
    with (
        Mailbox(seat(sockets, "loader", 0), bind=("batches",), supervision=QUICK) as mailbox,
        Node("trainer/0", "trainer", 4, CLOCK) as trainer,
    ):
        trainer.connect("batches", endpoint(sockets, "batches"))
        hear(supervisor, kind(m.Hello))
        down = m.PeerDown(name="trainer/0", incarnation=4, reason="killed by signal 9")
        supervisor.send("control", down, to="loader")
        assert [r.message for r in mailbox.receive(5.0)] == [down]
        trainer.send("batches", m.BatchRequest(step=1, rank=0))
        deadline = Deadline.after(CLOCK, 5.0, "zombie")
        while not mailbox.counters().get("zombies"):
            deadline.check()
            assert [r for r in mailbox.receive(0.01) if r.channel == "batches"] == []


def test_a_wait_can_be_ended_from_another_thread(sockets: Path, supervisor: Node):
    with Mailbox(seat(sockets), supervision=QUICK) as mailbox:
        threading.Timer(0.05, mailbox.wake).start()
        began = time.monotonic()
        while time.monotonic() - began < 5.0 and mailbox.receive(10.0):
            pass  # what the supervisor says
        assert time.monotonic() - began < 5.0
        mailbox.wake()  # counts for the next wait when nobody waits
        assert mailbox.receive(10.0) == []
        assert time.monotonic() - began < 8.0


def test_messages_keep_their_order_per_destination(sockets: Path, supervisor: Node):
    """One trainer does not read: its messages wait, the other's do not."""
    with (
        Mailbox(seat(sockets, "loader", 0), bind=("batches",), supervision=QUICK) as mailbox,
        Node("trainer/0", "trainer", 0, CLOCK) as lazy,
        Node("trainer/1", "trainer", 0, CLOCK) as eager,
    ):
        for node in (lazy, eager):
            node.connect("batches", endpoint(sockets, "batches"))
            node.send("batches", m.BatchRequest(step=1, rank=0))
        heard: set[str] = set()
        while heard != {"trainer/0", "trainer/1"}:
            heard |= {r.sender for r in mailbox.receive(1.0)} - {"loader"}
        text = "x" * 100_000
        for n in range(100):
            for name in ("trainer/0", "trainer/1"):
                mailbox.send("batches", m.Prompts(draw=n, texts=(text,), names=("n",)), to=name)
        for node in (eager, lazy):
            draws: list[int] = []
            deadline = Deadline.after(CLOCK, 10.0, "prompts")
            while len(draws) < 100:
                deadline.check()
                messages = [r.message for r in node.poll(0.1)]
                draws += [got.draw for got in messages if isinstance(got, m.Prompts)]
            assert draws == list(range(100))


def test_a_full_outbox_waits_under_a_name_and_then_gives_up(
    sockets: Path, supervisor: Node, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(loop, "MAX_OUTBOX", 20)
    with Mailbox(
        seat(sockets),
        ("control", "batches"),
        supervision=QUICK,
        send_patience_s=0.3,
    ) as mailbox:

        def flood() -> None:
            for _ in range(1000):  # nobody binds batches: 16 fit into ZeroMQ, 20 into the outbox
                mailbox.send("batches", m.BatchRequest(step=1, rank=0))

        with pytest.raises(DeadlinePassed, match="room to send BatchRequest to batches"):
            flood()
        beat = hear(
            supervisor,
            lambda r: isinstance(r.message, m.Beat) and "room" in r.message.waiting_for,
        )
        assert isinstance(beat.message, m.Beat)


def test_an_inbox_nobody_empties_holds_the_senders_back(
    sockets: Path, supervisor: Node, monkeypatch: pytest.MonkeyPatch
):
    """Bounded here, and still beating: only "control" is listened to."""
    monkeypatch.setattr(loop, "MAX_INBOX", 50)
    with (
        Mailbox(seat(sockets, "loader", 0), bind=("samples",), supervision=QUICK) as mailbox,
        Node("data_worker/0", "data_worker", 0, CLOCK) as worker,
    ):
        worker.connect("samples", endpoint(sockets, "samples"))
        request = m.LeaseRequest(pool="fast", credit=1)
        sent = 0
        for _ in range(2000):
            sent += worker.send("samples", request) == "sent"
        for _ in range(10):
            hear(supervisor, kind(m.Beat))
        assert mailbox.counters()["received"] < 50 + 2 * 64 + 20
        got = 0
        deadline = Deadline.after(CLOCK, 10.0, "the rest")
        while got < sent:
            deadline.check()
            got += sum(r.channel == "samples" for r in mailbox.receive(0.1))
            hear(supervisor, lambda _: True)


def test_log_records_arrive_at_the_recorder(sockets: Path, supervisor: Node, recorder: Node):
    with Mailbox(seat(sockets), supervision=QUICK) as mailbox:
        mailbox.step = 5
        mailbox.log.info("hello", n=1)
        record = hear(recorder, kind(m.LogRecord)).message
        assert isinstance(record, m.LogRecord)
        assert record.record["event"] == "hello"
        assert (record.record["actor"], record.record["incarnation"]) == ("trainer/0", 1)
        assert (record.record["step"], record.record["n"]) == (5, 1)


def test_logging_never_blocks_and_what_is_lost_is_counted(
    sockets: Path, supervisor: Node, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(loop, "MAX_RECORDS", 10)
    with Mailbox(seat(sockets), supervision=QUICK) as mailbox:
        for n in range(20_000):
            mailbox.log.info("flood", n=n)
        beat = hear(supervisor, lambda r: isinstance(r.message, m.Beat) and bool(r.message.gauges))
        assert isinstance(beat.message, m.Beat)
        assert beat.message.gauges.keys() & {"log_records_lost", "dropped_telemetry"}


def test_strange_input_is_logged(sockets: Path, supervisor: Node, recorder: Node):
    with (
        Mailbox(seat(sockets, "loader", 0), bind=("samples",), supervision=QUICK),
        Node("rollout/0", "rollout", 0, CLOCK) as liar,
    ):
        liar.connect("samples", endpoint(sockets, "samples"))
        packed = liar.pack("batches", m.PromptRequest(count=1, draw=1))
        liar.send_packed(type(packed)("samples", packed.kind, packed.body, (), packed.nbytes))
        record = hear(recorder, kind(m.LogRecord)).message
        assert isinstance(record, m.LogRecord)
        assert record.record["why"] == "samples: rollout/0 may not say PromptRequest here"


def test_what_cannot_be_sent_fails_at_the_caller(sockets: Path, supervisor: Node):
    with (
        Mailbox(seat(sockets), supervision=QUICK) as mailbox,
        pytest.raises(Unsendable, match="may not say Stop"),
    ):
        mailbox.send("control", m.Stop(reason="", within_s=1.0))


def test_an_actor_that_fails_logs_why_and_says_no_goodbye(
    sockets: Path, supervisor: Node, recorder: Node
):
    def fail() -> None:
        with Mailbox(seat(sockets), supervision=QUICK):
            raise KeyError("lost parameter")

    with pytest.raises(KeyError):
        fail()
    record = hear(recorder, kind(m.LogRecord)).message
    assert isinstance(record, m.LogRecord)
    assert "KeyError: 'lost parameter'" in record.record["exception"]
    said = [type(r.message) for _ in range(5) for r in supervisor.poll(0.02)]
    assert m.Goodbye not in said


def test_a_bad_socket_directory_fails_at_once_and_leaves_no_thread(sockets: Path):
    threads = threading.active_count()
    with pytest.raises(EndpointError, match="No such file"):
        Mailbox(seat(sockets / "absent"), supervision=QUICK)
    assert threading.active_count() == threads


def test_a_closed_mailbox_says_so(sockets: Path, supervisor: Node):
    mailbox = Mailbox(seat(sockets), supervision=QUICK)
    mailbox.close()
    mailbox.close()
    mailbox.log.info("nobody hears this")
    for act in (
        lambda: mailbox.receive(1.0),
        lambda: mailbox.send("control", m.Goodbye(failed="")),
    ):
        with pytest.raises(RuntimeError, match="closed"):
            act()


def test_signals_are_given_back(sockets: Path, supervisor: Node):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with Mailbox(seat(sockets), supervision=QUICK) as mailbox:
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        os.kill(os.getpid(), signal.SIGTERM)
        received = mailbox.receive(5.0)
        assert [r.message for r in received if isinstance(r.message, m.Stop)] == [mailbox.stopping]
        assert mailbox.stopping is not None
        assert mailbox.stopping.reason == "SIGTERM"
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


FORKED = """
import os, sys
from actors.loop import Mailbox
from actors.seat import Seat
from actors.topology import SupervisionSpec
from protocol.channels import endpoint
from protocol.clock import MonotonicClock
from protocol.transport import Node

directory = sys.argv[1]
children = []
for n in range(4):
    pid = os.fork()
    if pid == 0:
        seat = Seat(run_dir="", run_id="x", socket_dir=directory, name=f"trainer/{n}",
                    role="trainer", incarnation=1)
        with Mailbox(seat, ("control",), supervision=SupervisionSpec()) as mailbox:
            said = mailbox.receive(10.0)
        os._exit(0 if said else 1)
    children.append(pid)
with Node("supervisor", "supervisor", 0, MonotonicClock()) as node:
    node.bind("control", endpoint(directory, "control"))
    gone = set()
    while len(gone) < 4:
        for received in node.poll(5.0):
            from protocol.messages import Goodbye, Stop
            if isinstance(received.message, Goodbye):
                gone.add(received.sender)
            else:
                node.send("control", Stop(reason="enough", within_s=1.0), to=received.sender)
assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children] == [0] * 4
"""


def test_forked_children_live_on_sockets_of_their_own(sockets: Path):
    subprocess.run([sys.executable, "-c", FORKED, str(sockets)], check=True, cwd=ROOT, timeout=60)
