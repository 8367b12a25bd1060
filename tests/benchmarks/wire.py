"""How fast the wire is, beside bare pyzmq in the same run.

    python -m tests.benchmarks.wire [--seconds 1.0] [--json]

Two processes on ipc. "one way" and "round trip" carry one small message (Goodbye), "16 MB" a
16 MiB array with four on their way: as a frame, and through a shared segment (the sender copies
the array in, the receiver sums it or not). Medians of three windows. On a shared machine only
compare lines of one run with each other.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import zmq

from actors.loop import AsyncMailbox, Mailbox, serve
from actors.seat import Seat
from actors.topology import SupervisionSpec
from protocol import messages as m
from protocol import segments, tensors
from protocol.channels import endpoint
from protocol.clock import MonotonicClock
from protocol.messages import TensorRef
from protocol.segments import segment_name
from protocol.tensors import Attached
from protocol.transport import Node, Sent

BULK = 16 << 20
IN_FLIGHT = 4
WINDOWS = 3
STILL = SupervisionSpec(heartbeat_s=60.0, orphan_grace_s=600.0)
BYE = m.Goodbye(failed="")
GRADIENT = "exchange/0"
RUN = "benchwire"
ROOT = Path(__file__).parents[2]


def seat(directory: str, name: str) -> Seat:
    role = "trainer" if name.startswith("trainer") else "optimizer_shard"
    return Seat(run_dir="", run_id=RUN, socket_dir=directory, name=name, role=role)


def gradient(tensor: TensorRef) -> m.Gradient:
    return m.Gradient(
        step=1, rank=0, param="p", codec="dense", basis=0, tokens=1, tensors=(tensor,)
    )


# --- the far side: answers every question ---------------------------------------------------------


def far_raw(directory: str) -> None:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    socket = context.socket(zmq.ROUTER)
    socket.bind(f"ipc://{directory}/raw")
    while True:
        who, *parts = socket.recv_multipart(copy=False)
        if bytes(parts[0].buffer[:1]) == b"?":
            socket.send_multipart([who, b"!"])


def answer(received_step: int) -> bool:
    """Only messages that ask (step 1) are answered."""
    return received_step == 1


def far_node(directory: str) -> None:
    with Node("optimizer_shard/0", "optimizer_shard", 0, MonotonicClock()) as node:
        node.bind(GRADIENT, endpoint(directory, GRADIENT))
        with Attached() as attached:
            while True:
                for got in node.poll(1.0):
                    message = got.message
                    if isinstance(message, m.Gradient):
                        array = tensors.read(message.tensors[0], got.frames, attached)
                        if message.codec == "sum":
                            array.sum()
                        del array
                    if answer(got.envelope.step):
                        node.send(GRADIENT, NEEDS, to=got.sender)


NEEDS = m.StepNeeds(step=1, params=(), facts=False)
QUERY = m.StepQuery(version=1, rank=0, lacking=())


def far_mailbox(directory: str) -> None:
    with Mailbox(seat(directory, "optimizer_shard/0"), (), (GRADIENT,)) as mailbox:
        while True:
            for got in mailbox.receive(1.0):
                if answer(got.envelope.step):
                    mailbox.send(GRADIENT, NEEDS, to=got.sender)


def far_async(directory: str) -> None:
    async def main() -> int:
        with AsyncMailbox(seat(directory, "optimizer_shard/0"), (), (GRADIENT,)) as mailbox:
            while True:
                for got in await mailbox.receive(1.0):
                    if answer(got.envelope.step):
                        mailbox.send(GRADIENT, NEEDS, to=got.sender)

    serve(main())


FAR: dict[str, Callable[[str], None]] = {
    "raw": far_raw,
    "node": far_node,
    "mailbox": far_mailbox,
    "async": far_async,
}


@contextmanager
def far(kind: str, directory: str) -> Generator[None]:
    command = [sys.executable, "-m", "tests.benchmarks.wire", "--far", kind, directory]
    child = subprocess.Popen(command, cwd=ROOT)
    try:
        yield
    finally:
        child.kill()
        child.wait()


# --- the near side --------------------------------------------------------------------------------


class Raw:
    """Bare pyzmq."""

    def __init__(self, directory: str, _stack: ExitStack) -> None:
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.socket = self.context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.SNDHWM, 1024)
        self.socket.connect(f"ipc://{directory}/raw")
        _stack.callback(self.context.destroy, 0)

    def tell(self, *, ask: bool) -> None:
        self.socket.send_multipart([b"?" if ask else b".", b"x" * 62])

    def bulk(self, array: np.ndarray, *, ask: bool) -> None:
        self.socket.send_multipart([b"?" if ask else b".", array.data], copy=False)

    def hear(self) -> int:
        self.socket.recv()
        return 1


class OfNode:
    """A Node, as the Mailbox's thread uses it."""

    def __init__(self, directory: str, stack: ExitStack) -> None:
        self.node = stack.enter_context(Node("trainer/0", "trainer", 0, MonotonicClock()))
        self.node.connect(GRADIENT, endpoint(directory, GRADIENT))

    def tell(self, *, ask: bool) -> None:
        while self.node.send(GRADIENT, QUERY, step=int(ask)) is Sent.FULL:
            time.sleep(0.0005)

    def bulk(self, array: np.ndarray, *, ask: bool) -> None:
        frames = tensors.Frames()
        message = gradient(frames.add(array))
        while self.node.send(GRADIENT, message, frames=frames.parts, step=int(ask)) is Sent.FULL:
            time.sleep(0.0005)

    def hear(self) -> int:
        return len(self.node.poll(5.0))


class OfSegment(OfNode):
    """The array is copied into a segment, a reference travels."""

    codec = "dense"

    def __init__(self, directory: str, stack: ExitStack) -> None:
        super().__init__(directory, stack)
        name = segment_name(RUN, "trainer/0", f"bulk{os.getpid()}")
        self.segment = stack.enter_context(segments.create(name, BULK * IN_FLIGHT))
        stack.callback(segments.unlink, name)
        self.slot = 0

    def bulk(self, array: np.ndarray, *, ask: bool) -> None:
        offset = self.slot % IN_FLIGHT * BULK
        self.slot += 1
        self.segment.array("uint8", (BULK,), offset)[:] = array
        ref = tensors.ref_in(self.segment, "uint8", (BULK,), offset)
        message = gradient(ref)
        message = m.Gradient(
            step=1, rank=0, param="p", codec=self.codec, basis=0, tokens=1, tensors=(ref,)
        )
        self.node.send(GRADIENT, message, step=int(ask))


class OfSegmentSummed(OfSegment):
    """... and the receiver reads every byte."""

    codec = "sum"


class OfMailbox:
    """A Mailbox: two hand-overs between threads more."""

    def __init__(self, directory: str, stack: ExitStack) -> None:
        self.mailbox = stack.enter_context(Mailbox(seat(directory, "trainer/0"), (GRADIENT,)))

    def tell(self, *, ask: bool) -> None:
        self.mailbox.send(GRADIENT, QUERY, step=int(ask))

    def bulk(self, array: np.ndarray, *, ask: bool) -> None:
        frames = tensors.Frames()
        message = gradient(frames.add(array))
        self.mailbox.send(GRADIENT, message, frames=frames.parts, step=int(ask))

    def hear(self) -> int:
        return len(self.mailbox.receive(5.0))


Near = Raw | OfNode | OfMailbox


def round_trips_us(near: Near, seconds: float) -> tuple[float, float]:
    """Median and 99th percentile."""
    near.tell(ask=True)
    near.hear()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        asked = time.perf_counter()
        near.tell(ask=True)
        while not near.hear():
            continue
        times.append((time.perf_counter() - asked) * 1e6)
    return statistics.median(times), sorted(times)[int(len(times) * 0.99)]


def one_way_per_s(near: Near, seconds: float) -> float:
    """Every thousandth asks; ended by an answer, so that all have really arrived."""
    count, asked, heard = 0, 0, 0
    started = time.perf_counter()
    while time.perf_counter() - started < seconds:
        for n in range(1000):
            near.tell(ask=n == 999)
        count += 1000
        asked += 1
        while heard < asked - 2:
            heard += near.hear()
    while heard < asked:
        heard += near.hear()
    return count / (time.perf_counter() - started)


def bulk_gb_per_s(near: Near, seconds: float) -> float:
    array = np.arange(BULK, dtype=np.uint8)
    count, heard = 0, 0
    started = time.perf_counter()
    while time.perf_counter() - started < seconds:
        near.bulk(array, ask=True)
        count += 1
        while heard < count - IN_FLIGHT + 1:
            heard += near.hear()
    while heard < count:
        heard += near.hear()
    return count * BULK / 1e9 / (time.perf_counter() - started)


LINES: list[tuple[str, str, type[Near]]] = [
    ("pyzmq", "raw", Raw),
    ("Node", "node", OfNode),
    ("Mailbox <-> Mailbox", "mailbox", OfMailbox),
    ("Node <-> AsyncMailbox", "async", OfNode),
]
BULK_LINES: list[tuple[str, str, type[Near]]] = [
    ("pyzmq, frame, no copy", "raw", Raw),
    ("Node, frame", "node", OfNode),
    ("Node, segment, copied in", "node", OfSegment),
    ("... and read by the receiver", "node", OfSegmentSummed),
]


def measure(seconds: float) -> list[dict[str, str | float]]:
    """One record per line of the table."""
    found: list[dict[str, str | float]] = []
    for title, kind, near in LINES:
        with tempfile.TemporaryDirectory() as directory, ExitStack() as stack:
            stack.enter_context(far(kind, directory))
            side = near(directory, stack)
            trips = [round_trips_us(side, seconds) for _ in range(WINDOWS)]
            rates = [one_way_per_s(side, seconds) for _ in range(WINDOWS)]
            p50, p99 = (statistics.median(column) for column in zip(*trips, strict=True))
            found.append(
                {"what": title, "p50_us": p50, "p99_us": p99, "per_s": statistics.median(rates)}
            )
    for title, kind, near in BULK_LINES:
        with tempfile.TemporaryDirectory() as directory, ExitStack() as stack:
            stack.enter_context(far(kind, directory))
            side = near(directory, stack)
            speeds = [bulk_gb_per_s(side, seconds) for _ in range(WINDOWS)]
            found.append({"what": title, "gb_per_s": statistics.median(speeds)})
    return found


def table(found: list[dict[str, str | float]]) -> str:
    lines = [f"{'':32}{'p50 us':>9}{'p99 us':>9}{'msg/s':>10}{'16 MB GB/s':>12}"]
    for record in found:
        cells = [
            f"{record[key]:{width},.{digits}f}" if key in record else " " * width
            for key, width, digits in (
                ("p50_us", 9, 0),
                ("p99_us", 9, 0),
                ("per_s", 10, 0),
                ("gb_per_s", 12, 2),
            )
        ]
        lines.append(f"{record['what']:32}{''.join(cells)}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each window")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--far", nargs=2, metavar=("KIND", "DIR"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.far:
        FAR[arguments.far[0]](arguments.far[1])
    found = measure(arguments.seconds)
    print(json.dumps(found) if arguments.json else table(found))


if __name__ == "__main__":
    main()
