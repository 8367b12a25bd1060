"""The asyncio mailbox on uvloop: no message waits for a wake-up that does not come."""

import asyncio
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from actors import loop_async
from actors.loop import AsyncMailbox, serve
from actors.seat import Seat
from actors.topology import SupervisionSpec
from protocol import messages as m
from protocol.channels import endpoint, role_of
from protocol.clock import Deadline, MonotonicClock
from protocol.errors import Refused
from protocol.keys import Admission, ClientCurve, ServerCurve
from protocol.transport import Node, Received, Sent, new_keypair

CLOCK = MonotonicClock()
# No timer comes to the rescue of a missed wake-up within a test's patience.
STILL = SupervisionSpec(heartbeat_s=60.0, orphan_grace_s=600.0)
QUICK = SupervisionSpec(heartbeat_s=0.02, orphan_grace_s=20.0)
ASK = m.LeaseRequest(pool="fast", credit=1)


@pytest.fixture
def sockets(tmp_path: Path) -> Path:
    tmp_path.chmod(0o700)
    return tmp_path


@pytest.fixture
def supervisor(sockets: Path) -> Iterator[Node]:
    with Node("supervisor", "supervisor", 3, CLOCK) as node:
        node.bind("control", endpoint(sockets, "control"))
        yield node


def seat(sockets: Path, name: str = "loader") -> Seat:
    role = role_of(name)
    assert role is not None
    return Seat(run_dir="", run_id="x", socket_dir=str(sockets), name=name, role=role)


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def bounded() -> int:
        await asyncio.wait_for(main(), 30)
        return 0

    assert serve(bounded()) == 0


def answer(credit: int) -> m.Lease:
    ref = m.SampleRef(name="n", language="text", path="p")
    return m.Lease(lease=credit, epoch=0, sample=0, attempt=1, ref=ref, stage=0, expires_s=1.0)


def ask_in_bursts(sockets: Path, name: str, rounds: int, slowest_s: list[float]) -> None:
    """A peer that asks a random number of questions and waits for exactly as many answers."""
    draw = random.Random(name)
    with Node(name, "data_worker", 0, CLOCK) as node:
        node.connect("samples", endpoint(sockets, "samples"))
        for _ in range(rounds):
            burst = draw.choice([1, 1, 1, 2, 3, 17])
            asked_at = CLOCK.now()
            for _ in range(burst):
                assert node.send("samples", ASK) is Sent.SENT
            deadline = Deadline.after(CLOCK, 10.0, "answers")
            while burst:
                deadline.check()
                burst -= len(node.poll(deadline.left()))
            slowest_s.append(CLOCK.now() - asked_at)


def test_no_wake_up_is_missed_however_sends_and_arrivals_interleave(sockets: Path):
    """Each send may swallow the announcement of what arrived meanwhile."""
    rounds, peers = 300, 3
    waits_s: list[float] = []
    threads = [
        threading.Thread(target=ask_in_bursts, args=(sockets, f"data_worker/{n}", rounds, waits_s))
        for n in range(peers)
    ]

    async def main() -> None:
        connect = ("control", "telemetry")
        with AsyncMailbox(
            seat(sockets), connect, bind=("samples", "batches"), supervision=STILL, signals=False
        ) as mailbox:
            for thread in threads:
                thread.start()
            while len(waits_s) < rounds * peers:
                for received in await mailbox.receive(1.0):
                    mailbox.log.info("asked", by=received.sender)
                    sent = mailbox.send("samples", answer(1), to=received.sender)
                    assert sent is Sent.SENT

    run(main)
    for thread in threads:
        thread.join()
    assert max(waits_s) < 5.0


def test_a_send_that_swallows_the_announcement_of_input_does_not_hide_it(sockets: Path):
    async def main() -> None:
        with (
            AsyncMailbox(seat(sockets), (), ("samples",), signals=False) as mailbox,
            Node("data_worker/0", "data_worker", 0, CLOCK) as first,
            Node("data_worker/1", "data_worker", 0, CLOCK) as second,
        ):
            for node in (first, second):
                node.connect("samples", endpoint(sockets, "samples"))
                node.send("samples", ASK)
                assert [r.sender for r in await mailbox.receive(5.0)] == [node.name]
            for _ in range(5):
                second.send("samples", ASK)
                time.sleep(0.03)  # it arrives while the loop is busy ...
                mailbox.send("samples", answer(1), to=first.name)  # ... and ZeroMQ notices here
                started = time.monotonic()
                assert [r.sender for r in await mailbox.receive(5.0)] == [second.name]
                assert time.monotonic() - started < 0.4  # before any timer

    run(main)


def test_messages_sent_before_anybody_listens_are_found(sockets: Path):
    with Node("data_worker/0", "data_worker", 0, CLOCK) as worker:
        worker.connect("samples", endpoint(sockets, "samples"))
        for _ in range(200):  # more than one batch
            worker.send("samples", ASK)

        async def main() -> None:
            got = 0
            with AsyncMailbox(
                seat(sockets), (), bind=("samples",), supervision=STILL, signals=False
            ) as mailbox:
                while got < 64:
                    got += len(await mailbox.receive(5.0))

        run(main)


def test_a_cancelled_receive_loses_nothing(sockets: Path):
    async def main() -> None:
        with (
            AsyncMailbox(seat(sockets), (), ("samples",), signals=False) as mailbox,
            Node("data_worker/0", "data_worker", 0, CLOCK) as worker,
        ):
            worker.connect("samples", endpoint(sockets, "samples"))
            got: list[Received] = []
            for n in range(200):
                worker.send("samples", ASK, step=n)
                waiting = asyncio.ensure_future(mailbox.receive(1.0))
                await asyncio.sleep(random.Random(n).choice([0, 0.0001, 0.001]))
                waiting.cancel()
                try:
                    got += await waiting
                except asyncio.CancelledError:
                    continue
            while len(got) < 200:
                got += await mailbox.receive(5.0)
            assert [r.envelope.step for r in got] == list(range(200))

    run(main)


def test_waiting_ends_in_time_when_nothing_comes(sockets: Path):
    async def main() -> None:
        with AsyncMailbox(seat(sockets), (), ("samples",), signals=False) as mailbox:
            started = time.monotonic()
            assert await mailbox.receive(0.1) == []
            assert 0.05 < time.monotonic() - started < 2.0
            assert await mailbox.receive(0.0) == []

    run(main)


def test_it_says_hello_beats_stops_and_says_goodbye(sockets: Path, supervisor: Node):
    said: list[m.Message] = []

    def supervise() -> None:
        while not said or not isinstance(said[-1], m.Goodbye):
            for received in supervisor.poll(0.1):
                said.append(received.message)
                if isinstance(received.message, m.Beat) and received.message.gauges:
                    stop = m.Stop(reason="done", within_s=1.0)
                    supervisor.send("control", stop, to=received.sender)

    async def main() -> None:
        async with AsyncMailbox(seat(sockets), supervision=QUICK, signals=False) as mailbox:
            mailbox.gauge("fast", 3)
            mailbox.progress("data workers")
            while mailbox.stopping is None:
                await mailbox.receive(0.5)

    thread = threading.Thread(target=supervise)
    thread.start()
    run(main)
    thread.join()
    assert isinstance(said[0], m.Hello)
    beats = [one for one in said if isinstance(one, m.Beat)]
    assert beats[-1].gauges["fast"] == 3
    assert any(beat.waiting_for == "data workers" for beat in beats)


def test_an_orphan_stops(sockets: Path):
    orphaned = SupervisionSpec(heartbeat_s=0.02, orphan_grace_s=0.3, stop_s=0.2)
    left: list[int] = []

    async def main() -> None:
        with AsyncMailbox(
            seat(sockets), supervision=orphaned, signals=False, leave=left.append
        ) as mailbox:
            (received,) = await mailbox.receive(5.0)
            assert isinstance(received.message, m.Stop)
            while not left:
                await mailbox.receive(0.05)

    run(main)
    assert set(left) == {75}


def test_sigterm_is_a_polite_stop(sockets: Path, supervisor: Node):
    async def main() -> None:
        before = signal.getsignal(signal.SIGINT)
        with AsyncMailbox(seat(sockets), supervision=QUICK) as mailbox:
            os.kill(os.getpid(), signal.SIGTERM)
            (received,) = await mailbox.receive(5.0)
            assert received.message == mailbox.stopping
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        signal.signal(signal.SIGINT, before)

    run(main)


def test_a_channel_can_be_opened_later(sockets: Path):
    async def main() -> None:
        with (
            AsyncMailbox(seat(sockets), (), signals=False) as mailbox,
            Node("data_worker/0", "data_worker", 0, CLOCK) as worker,
        ):
            where = mailbox.bind("samples", endpoint(sockets, "samples"))
            worker.connect("samples", where)
            worker.send("samples", ASK)
            (received,) = await mailbox.receive(5.0)
            assert received.message == ASK
            assert mailbox.knows("samples", "data_worker/0")

    run(main)


def test_guests_with_keys_are_let_in_without_any_timer(sockets: Path):
    """The doorkeeper's own descriptors are watched too."""
    server, guest = new_keypair(), new_keypair()
    known = {guest[0]: Admission("data_worker", "attic")}
    refused: list[str] = []

    def visit(where: str) -> None:
        for keys in (new_keypair(), guest):
            with Node("data_worker/attic", "data_worker", 0, CLOCK) as node:
                node.connect("remote", where, ClientCurve(*keys, server[0]))
                try:
                    node.handshake("remote", 5.0)
                except Refused as error:
                    refused.append(str(error))
                else:
                    node.send("remote", ASK)

    async def main() -> None:
        with AsyncMailbox(seat(sockets), supervision=STILL, signals=False) as mailbox:
            curve = ServerCurve(*server, known.get)
            where = mailbox.bind("remote", "tcp://127.0.0.1:0", curve)
            visiting = asyncio.create_task(asyncio.to_thread(visit, where))
            (received,) = await mailbox.receive(10.0)
            assert received.message == ASK
            await visiting

    run(main)
    assert len(refused) == 1
    assert "never invited" in refused[0]


def test_a_full_inbox_leaves_the_rest_to_zeromq(
    sockets: Path, supervisor: Node, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(loop_async, "MAX_INBOX", 50)

    async def main() -> None:
        with (
            AsyncMailbox(
                seat(sockets), bind=("samples",), supervision=QUICK, signals=False
            ) as mailbox,
            Node("data_worker/0", "data_worker", 0, CLOCK) as worker,
        ):
            worker.connect("samples", endpoint(sockets, "samples"))
            sent = sum(worker.send("samples", ASK) is Sent.SENT for _ in range(2000))
            beats = 0
            while beats < 10:  # the actor does not read, yet it beats and hears its supervisor
                await asyncio.sleep(0.01)
                for received in supervisor.poll(0):
                    beats += isinstance(received.message, m.Beat)
                    supervisor.send("control", m.Welcome(peers={"x": beats}), to="loader")
            assert mailbox.counters()["received"] < 50 + 2 * 64 + 40
            got = 0
            while got < sent:
                got += sum(r.channel == "samples" for r in await mailbox.receive(5.0))

    run(main)


def test_logging_from_another_thread_is_safe(sockets: Path):
    with Node("recorder", "recorder", 0, CLOCK) as recorder:
        recorder.bind("telemetry", endpoint(sockets, "telemetry"))

        async def main() -> None:
            with AsyncMailbox(seat(sockets), ("telemetry",), signals=False) as mailbox:
                await asyncio.to_thread(mailbox.log.info, "from a thread")
                await mailbox.receive(0.01)

        run(main)
        (received,) = recorder.poll(5.0)
        assert isinstance(received.message, m.LogRecord)
        assert received.message.record["event"] == "from a thread"


def test_an_idle_mailbox_uses_no_cpu(sockets: Path, supervisor: Node):
    """A descriptor left readable would keep the loop spinning."""

    async def main() -> None:
        with AsyncMailbox(seat(sockets), bind=("samples",), supervision=STILL, signals=False):
            await asyncio.sleep(0.2)
            before_s = time.process_time()
            await asyncio.sleep(0.5)
            assert time.process_time() - before_s < 0.1

    run(main)
