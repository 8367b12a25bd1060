"""A worker's words to its loader, under a manual clock."""

from typing import Any, cast

import pytest

from actors.data.worker import Worker
from protocol import messages as m
from protocol.clock import ManualClock
from protocol.messages import WIRE_VERSION, Envelope, Message
from protocol.transport import Received

HEARTBEAT_S = 1.0
PLAN = m.DataPlan(
    tokenizer_digest="d",
    stages=("read", "tokenize"),
    cutoff_s=1.0,
    max_sample_bytes=1000,
    heartbeat_s=HEARTBEAT_S,
    options={"credit": 4},
)


class Box:
    """What a worker needs of a mailbox. Nobody waits: the test moves the clock."""

    def __init__(self) -> None:
        self.inbox: list[Received] = []
        self.said: list[Message] = []

    def put(self, sender: str, message: Message, *frames: bytes) -> None:
        said = Envelope(WIRE_VERSION, type(message).__name__, sender, 1, 0, 0)
        views = tuple(memoryview(frame) for frame in frames)
        channel = "control" if sender == "supervisor" else "samples"
        self.inbox.append(
            Received(channel, sender, cast("Any", sender), 1, said, message, cast("Any", views))
        )

    def receive(self, _timeout_s: float) -> list[Received]:
        taken, self.inbox = self.inbox, []
        return taken

    def send(self, _channel: str, message: Message, **_more: object) -> None:
        self.said.append(message)

    def progress(self, waiting_for: str = "") -> None:
        del waiting_for

    def wake(self) -> None:
        pass


@pytest.fixture
def box() -> Box:
    return Box()


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def worker(box: Box, clock: ManualClock) -> Worker:
    made = Worker(
        cast("Any", box),
        "fast",
        "here",
        channel="samples",
        clock=clock,
        load_encoder=lambda _data: cast("Any", None),
    )
    box.put("loader", PLAN, b"{}")
    made.turn()
    made.turn()
    box.said.clear()
    return made


def test_a_worker_says_every_heartbeat_how_much_room_there_is(
    worker: Worker, box: Box, clock: ManualClock
):
    worker.turn()
    assert box.said == []
    clock.advance(HEARTBEAT_S)
    worker.turn()
    assert box.said == [m.LeaseRequest(pool="fast", credit=4)]


def test_a_new_loader_is_asked_at_once(worker: Worker, box: Box):
    box.put("supervisor", m.PeerUp(name="recorder", incarnation=2))
    worker.turn()
    worker.turn()
    assert box.said == []
    box.put("supervisor", m.PeerUp(name="loader", incarnation=2))
    worker.turn()
    worker.turn()
    assert box.said == [m.LeaseRequest(pool="fast", credit=4)]
