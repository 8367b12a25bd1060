"""Nodes over real local sockets, and strangers who knock with anything at all."""

import gc
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zmq

from protocol import messages as m
from protocol.channels import channel, endpoint, role_of
from protocol.clock import Deadline, MonotonicClock
from protocol.codec import MAX_FRAMES
from protocol.errors import EndpointError, Unsendable
from protocol.transport import BATCH, Node, Received, Sent
from tests.protocol.examples import parts_of

CLOCK = MonotonicClock()
BYE = m.Goodbye(failed="")

Make = Callable[..., Node]


@pytest.fixture
def sockets(tmp_path: Path) -> Path:
    tmp_path.chmod(0o700)
    return tmp_path


@pytest.fixture
def node() -> Iterator[Make]:
    """Make nodes that are closed afterwards."""
    made: list[Node] = []

    def make(name: str, incarnation: int = 0) -> Node:
        role = role_of(name)
        assert role is not None
        made.append(Node(name, role, incarnation, CLOCK))
        return made[-1]

    yield make
    for one in made:
        one.close(0)


@pytest.fixture
def pair(sockets: Path, node: Make) -> tuple[Node, Node]:
    """A supervisor and a trainer that know each other."""
    supervisor, trainer = node("supervisor"), node("trainer/0", 1)
    supervisor.bind("control", endpoint(sockets, "control"))
    trainer.connect("control", endpoint(sockets, "control"))
    trainer.send("control", BYE)
    assert [r.sender for r in hear(supervisor)] == ["trainer/0"]
    return supervisor, trainer


def hear(node: Node, count: int = 1, within_s: float = 5.0) -> list[Received]:
    """Poll until `count` messages came."""
    deadline = Deadline.after(CLOCK, within_s, f"{count} messages")
    received: list[Received] = []
    while len(received) < count and not deadline.passed():
        received += node.poll(deadline.left())
    return received


def until(condition: Callable[[], bool], *nodes: Node, within_s: float = 5.0) -> None:
    deadline = Deadline.after(CLOCK, within_s, "condition")
    while not condition():
        deadline.check()
        for one in nodes:
            one.poll(0.01)


def stranger(
    path: str, identity: bytes
) -> tuple[zmq.Context[zmq.Socket[bytes]], zmq.Socket[bytes]]:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    socket = context.socket(zmq.DEALER)
    socket.setsockopt(zmq.LINGER, 1000)
    socket.setsockopt(zmq.ROUTING_ID, identity)
    socket.connect(path)
    return context, socket


def test_a_question_and_its_answer(pair: tuple[Node, Node]):
    supervisor, trainer = pair
    assert supervisor.send("control", m.Welcome(peers={}), to="trainer/0", step=5) is Sent.SENT
    (received,) = hear(trainer)
    assert (received.channel, received.sender, received.role) == (
        "control",
        "supervisor",
        "supervisor",
    )
    assert received.message == m.Welcome(peers={})
    assert (received.envelope.seq, received.envelope.step) == (0, 5)


def test_every_message_has_the_next_seq_of_its_channel(pair: tuple[Node, Node]):
    supervisor, trainer = pair
    for _ in range(3 * BATCH):
        trainer.send("control", BYE)
    received = hear(supervisor, 3 * BATCH)
    assert [r.envelope.seq for r in received] == list(range(1, 3 * BATCH + 1))


def test_large_frames_arrive_without_a_copy_in_python(sockets: Path, node: Make):
    loader, worker = node("loader"), node("data_worker/0")
    loader.bind("samples", endpoint(sockets, "samples"))
    worker.connect("samples", endpoint(sockets, "samples"))
    bulk = os.urandom(8 << 20)
    lease = m.SampleHandover(lease=1, epoch=0, sample=0, stage=1, elapsed_s=0.1)
    worker.send("samples", lease, frames=[bulk, b"", memoryview(b"small")])
    (received,) = hear(loader)
    assert [bytes(frame) for frame in received.frames] == [bulk, b"", b"small"]
    # The bytes belong to libzmq's own message, which the view keeps alive.
    assert isinstance(received.frames[0].obj, zmq.Frame)
    frame = received.frames[0]
    del received
    gc.collect()
    assert bytes(frame[:16]) == bulk[:16]


def test_sending_to_someone_never_heard_or_gone_says_so(pair: tuple[Node, Node]):
    supervisor, trainer = pair
    welcome = m.Welcome(peers={})
    assert supervisor.send("control", welcome, to="trainer/1") is Sent.NO_PEER
    assert supervisor.knows("control", "trainer/0")
    trainer.close(0)
    # libzmq may accept a few before it notices.
    until(lambda: supervisor.send("control", welcome, to="trainer/0") is Sent.NO_PEER, supervisor)
    assert not supervisor.knows("control", "trainer/0")
    assert supervisor.counters()["no_peer"] == 2


def test_a_peer_that_does_not_read_fills_its_own_queue_only(sockets: Path, node: Make):
    loader, sleeper, other = node("loader"), node("trainer/0"), node("trainer/1")
    loader.bind("batches", endpoint(sockets, "batches"))
    for one in (sleeper, other):
        one.connect("batches", endpoint(sockets, "batches"))
        one.send("batches", m.BatchRequest(step=1, rank=0))
    assert len(hear(loader, 2)) == 2
    prompts = m.Prompts(draw=0, texts=("x" * 100_000,), names=("n",))
    sent = 0
    while loader.send("batches", prompts, to="trainer/0") is Sent.SENT:
        sent += 1
    assert sent <= 3 * channel("batches").high_water + 20  # two marks and the kernel's buffer
    assert loader.send("batches", prompts, to="trainer/1") is Sent.SENT
    assert len(hear(other)) == 1
    assert len(hear(sleeper, sent)) == sent


def test_telemetry_never_blocks_and_every_loss_is_counted_at_both_ends(sockets: Path, node: Make):
    loader, recorder = node("loader"), node("recorder")
    loader.connect("telemetry", endpoint(sockets, "telemetry"))
    record = m.LogRecord(record={"event": "x"})
    mark = channel("telemetry").high_water
    results = [loader.send("telemetry", record) for _ in range(mark + 500)]
    assert results.count(Sent.FULL) == loader.counters()["dropped_telemetry"] == 500
    recorder.bind("telemetry", endpoint(sockets, "telemetry"))
    assert len(hear(recorder, mark)) == mark
    until(lambda: loader.send("telemetry", record) is Sent.SENT)
    hear(recorder)
    assert recorder.counters()["telemetry_gaps"] == loader.counters()["dropped_telemetry"]


def test_a_new_life_replaces_the_old_one(sockets: Path, pair: tuple[Node, Node], node: Make):
    supervisor, old = pair
    new = node("trainer/0", 2)
    new.connect("control", endpoint(sockets, "control"))
    new.send("control", BYE)
    hear(supervisor)
    old.send("control", BYE)
    until(lambda: supervisor.counters().get("zombies") == 1, supervisor)
    supervisor.send("control", m.Welcome(peers={}), to="trainer/0")
    assert len(hear(new)) == 1
    assert old.poll(0.05) == []


def test_peers_find_a_restarted_supervisor_by_themselves(
    sockets: Path, pair: tuple[Node, Node], node: Make
):
    first, trainer = pair
    first.close(0)
    second = node("supervisor", 1)
    second.bind("control", endpoint(sockets, "control"))
    started = time.monotonic()
    trainer.send("control", BYE)
    assert len(hear(second)) == 1
    assert time.monotonic() - started < 1.0
    second.send("control", m.Welcome(peers={}), to="trainer/0")
    assert hear(trainer)[0].incarnation == 1


def test_a_predecessor_that_closes_late_does_not_take_the_socket_with_it(
    sockets: Path, pair: tuple[Node, Node], node: Make
):
    first, _ = pair
    second, late = node("supervisor", 1), node("trainer/9")
    second.bind("control", endpoint(sockets, "control"))
    first.close(0)
    late.connect("control", endpoint(sockets, "control"))
    late.send("control", BYE)
    assert [r.sender for r in hear(second)] == ["trainer/9"]


def test_what_a_role_may_not_say_is_a_mistake_of_the_caller(pair: tuple[Node, Node]):
    supervisor, trainer = pair
    with pytest.raises(Unsendable, match="a trainer may not say Stop on control"):
        trainer.send("control", m.Stop(reason="", within_s=0.0))
    with pytest.raises(Unsendable, match="frames; the limit is"):
        trainer.send("control", BYE, frames=[b""] * (MAX_FRAMES + 1))
    with pytest.raises(Unsendable, match="frame of 8388609 bytes on control"):
        trainer.send("control", BYE, frames=[bytes((8 << 20) + 1)])
    assert supervisor.poll(0.05) == []


@pytest.mark.parametrize(
    "parts",
    [
        [b""],
        [b"\xc1"],
        [b"GET / HTTP/1.1", b"Host: x"],
        [os.urandom(100), os.urandom(1000), os.urandom(10)],
        [parts_of("Hello")[0]],
        [*parts_of("Hello"), *[b"x"] * 500],
        [parts_of("Hello")[0], b"\xdd\xff\xff\xff\xff"],
    ],
)
def test_garbage_is_counted_and_the_next_message_comes_through(
    sockets: Path, pair: tuple[Node, Node], parts: list[bytes]
):
    supervisor, trainer = pair
    context, dealer = stranger(endpoint(sockets, "control"), b"trainer/7#0")
    dealer.send_multipart(parts)
    until(lambda: supervisor.counters().get("malformed") == 1, supervisor)
    ((story, times),) = supervisor.take_notices()
    assert (story.startswith("control: "), times) == (True, 1)
    trainer.send("control", BYE)
    assert len(hear(supervisor)) == 1
    context.destroy(0)


def test_an_oversized_part_costs_only_its_sender_the_connection(
    sockets: Path, pair: tuple[Node, Node]
):
    supervisor, trainer = pair
    context, dealer = stranger(endpoint(sockets, "control"), b"trainer/7#0")
    dealer.send_multipart([parts_of("Hello")[0], bytes((8 << 20) + 1)])
    trainer.send("control", BYE)
    assert [r.sender for r in hear(supervisor)] == ["trainer/0"]
    assert supervisor.poll(0.1) == []
    context.destroy(0)


def test_bytes_that_are_not_even_zeromq_harm_nobody(sockets: Path, pair: tuple[Node, Node]):
    supervisor, trainer = pair
    for garbage in (b"", b"\xff" * 5000, b"GET / HTTP/1.1\r\n\r\n"):
        with socket.socket(socket.AF_UNIX) as raw:
            raw.connect(str(sockets / "control"))
            raw.sendall(garbage)
            trainer.send("control", BYE)
            assert [r.sender for r in hear(supervisor)] == ["trainer/0"]


def test_garbage_among_telemetry_is_counted(sockets: Path, node: Make):
    recorder = node("recorder")
    recorder.bind("telemetry", endpoint(sockets, "telemetry"))
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    push = context.socket(zmq.PUSH)
    push.connect(endpoint(sockets, "telemetry"))
    push.send_multipart([b"nonsense"])
    push.send_multipart(parts_of("Stop"))
    push.send_multipart(parts_of("LogRecord"))
    assert [type(r.message) for r in hear(recorder)] == [m.LogRecord]
    counters = recorder.counters()
    assert (counters["malformed"], counters["forbidden"]) == (1, 1)
    context.destroy(0)


def test_a_peer_without_a_proper_address_is_not_heard(sockets: Path, pair: tuple[Node, Node]):
    supervisor, _ = pair
    context, dealer = stranger(endpoint(sockets, "control"), b"somebody")
    dealer.send_multipart(parts_of("Hello"))
    until(lambda: supervisor.counters().get("forbidden") == 1, supervisor)
    context.destroy(0)


def test_polling_some_channels_leaves_the_others_queued(sockets: Path, node: Make):
    loader, worker = node("loader"), node("data_worker/0")
    for name in ("samples", "batches"):
        loader.bind(name, endpoint(sockets, name))
    worker.connect("samples", endpoint(sockets, "samples"))
    worker.send("samples", m.LeaseRequest(pool="fast", credit=1))
    assert loader.poll(0.1, only=["batches"]) == []
    assert loader.drain(only=["batches"]) == []
    assert len(loader.poll(5.0)) == 1


def test_another_thread_can_end_a_poll(node: Make):
    loader = node("loader")
    timer = threading.Timer(0.05, loader.wake)
    timer.start()
    started = time.monotonic()
    assert loader.poll(10.0) == []
    assert time.monotonic() - started < 5.0
    timer.join()
    assert loader.poll(0.0) == []


def test_a_flood_on_one_channel_does_not_silence_another(sockets: Path, node: Make):
    loader, worker, trainer = node("loader"), node("data_worker/0"), node("trainer/0")
    for name in ("samples", "batches"):
        loader.bind(name, endpoint(sockets, name))
    worker.connect("samples", endpoint(sockets, "samples"))
    trainer.connect("batches", endpoint(sockets, "batches"))
    for _ in range(2 * BATCH - 8):
        worker.send("samples", m.LeaseRequest(pool="fast", credit=1))
    trainer.send("batches", m.BatchRequest(step=1, rank=0))
    time.sleep(0.2)  # until all of it has arrived
    assert [r.channel for r in loader.poll(1.0)] == ["samples"] * BATCH + ["batches"]
    assert loader.pending


def test_closing_does_not_wait_for_the_dead(sockets: Path, node: Make):
    trainer = node("trainer/0")
    trainer.connect("control", endpoint(sockets, "control"))
    trainer.send("control", BYE)
    started = time.monotonic()
    trainer.close()
    assert time.monotonic() - started < 1.5


@pytest.mark.parametrize(
    ("name", "where", "complaint"),
    [
        ("control", "tcp://127.0.0.1:0", "only spoken with keys"),
        ("remote", "tcp://127.0.0.1:0", "never opened without keys"),
        ("control", "udp://x", "an endpoint is ipc://PATH or tcp://HOST:PORT"),
        ("control", "control", "an endpoint is"),
        ("control", "ipc:///nonexistent-dir/control", "No such file"),
        ("control", "ipc:///tmp/control", "closed to others"),
        ("control", "ipc:///tmp/" + "x" * 100, "set TMPDIR"),
    ],
)
def test_an_endpoint_that_is_not_safe_is_refused_both_ways(
    node: Make, name: str, where: str, complaint: str
):
    one = node("supervisor")
    for act in (one.bind, one.connect):
        with pytest.raises(EndpointError, match=complaint):
            act(name, where)


def test_one_channel_is_opened_once(sockets: Path, node: Make):
    one = node("supervisor")
    one.bind("control", endpoint(sockets, "control"))
    with pytest.raises(EndpointError, match="open already"):
        one.bind("control", endpoint(sockets, "control"))


def test_importing_starts_no_thread_and_no_context_so_that_children_may_be_forked():
    script = (
        "import os, protocol.transport as t, zmq\n"
        "assert len(os.listdir('/proc/self/task')) == 1\n"
        "assert zmq.Context._instance is None\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=Path(__file__).parents[2])


def test_ten_thousand_messages_a_second(pair: tuple[Node, Node]):
    """A bound far below what is measured, so that only a blunder fails it."""
    supervisor, trainer = pair
    count, got = 5000, 0
    message = m.PeerUp(name="x", incarnation=1)
    started = time.process_time()
    for n in range(count):
        while supervisor.send("control", message, to="trainer/0") is Sent.FULL:
            got += len(trainer.poll(0.01))
        if n % 64 == 0:
            got += len(trainer.poll(0))
    while got < count:
        got += len(trainer.poll(1.0))
    assert count / (time.process_time() - started) > 10_000
