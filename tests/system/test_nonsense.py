"""Strangers at every socket of a living run: refused, counted, logged, and no bit of it changes."""

import json
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zmq

from protocol.codec import encode
from protocol.messages import WIRE_VERSION, Envelope, Stop
from tests.harness import ROOT, python
from tests.system.conftest import Run

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.timeout(300)]

Start = Callable[..., Run]
STEPS = 40
WHO_BINDS = {
    "control": "supervisor",
    "samples": "loader",
    "batches": "loader",
    "telemetry": "recorder",
    "exchange.0": "optimizer_shard/0",
}


def talk_nonsense(door: Path) -> None:
    """Bytes that are no ZeroMQ, messages that are no messages, and one that is too large."""
    with socket.socket(socket.AF_UNIX) as raw:
        raw.connect(str(door))
        raw.sendall(b"GET / HTTP/1.1\r\n\r\n" + b"\xff" * 5000)
    envelope = Envelope(WIRE_VERSION, "Stop", "trainer/0", 1, 0, 0)
    order = encode(envelope, Stop(reason="because I say so", within_s=0.1))
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    try:
        for identity in (b"trainer/0#1", b"supervisor#1", b"\x01\x02\x03", b"stranger"):
            kind = zmq.PUSH if door.name == "telemetry" else zmq.DEALER
            with context.socket(kind) as dealer:
                dealer.setsockopt(zmq.LINGER, 2000)
                if kind == zmq.DEALER:
                    dealer.setsockopt(zmq.IDENTITY, identity)
                dealer.connect(f"ipc://{door}")
                dealer.send_multipart([b"nonsense"])
                dealer.send_multipart([b"\xdd\xff\xff\xff\xff", b"\xc1" * 100, b"x"])
                dealer.send_multipart([bytes(part) for part in order])
                dealer.send_multipart([b"x"] * 300)
                dealer.send_multipart([b"", bytes(9 << 20)])
    finally:
        context.destroy()


def counted(run: Run) -> dict[str, float]:
    """Messages that each actor refused."""
    done = subprocess.run(
        python("run.py", "status", "--json", "--run", str(run.run.path)),
        check=True,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    actors: list[dict[str, Any]] = json.loads(done.stdout)["actors"]
    return {
        actor["name"]: actor["gauges"].get("malformed", 0) + actor["gauges"].get("forbidden", 0)
        for actor in actors
    }


def digests(run: Run) -> list[str]:
    return [record["weights_digest"] for record in run.metrics()]


def test_nonsense_at_every_door_is_refused_and_changes_nothing(start: Start, tmp_path: Path):
    calm = start("--steps", str(STEPS), path=tmp_path / "calm")
    assert calm.finish(200) == 0, calm.story()

    run = start("--steps", str(STEPS), path=tmp_path / "noisy")
    run.until(lambda: run.step() >= 1, 120, "the first step")
    for door in WHO_BINDS:
        talk_nonsense(run.run.socket_dir / door)
    refused = run.until(
        lambda: all((seen := counted(run)).get(who, 0) > 0 for who in WHO_BINDS.values()) and seen,
        60,
        "refusals of every actor that listens",
    )
    assert refused
    assert run.finish(200) == 0, run.story()
    assert digests(run) == digests(calm)
    assert run.leftovers() == []
    told = [json.dumps(record) for who in set(WHO_BINDS.values()) for record in run.log(who)]
    assert any("nonsense" in line or "malformed" in line for line in told)
