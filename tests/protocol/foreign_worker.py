"""A data worker that shares nothing with Trireme but protocol/README.md: only zmq and msgpack.

    python foreign_worker.py --socket ipc:///tmp/trireme-1000-0123abcd/samples NAME
    python foreign_worker.py --key attic.json NAME

It "tokenizes" by taking each byte for a token, which no run would accept: replace `tokens_of`.
"""

import json
import struct
import sys
import time
from pathlib import Path
from typing import Any

import msgpack
import zmq

WIRE_VERSION = 2
JOIN_S = 0.2


class Worker:
    """One connection to a loader."""

    def __init__(self, name: str, incarnation: int, endpoint: str, key: dict[str, str]) -> None:
        self.name, self.incarnation, self.seq = name, incarnation, 0
        self.socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 1000)
        if key:
            self.socket.setsockopt(zmq.CURVE_SERVERKEY, key["server_key"].encode())
            self.socket.setsockopt(zmq.CURVE_PUBLICKEY, key["public_key"].encode())
            self.socket.setsockopt(zmq.CURVE_SECRETKEY, key["secret_key"].encode())
        else:
            self.socket.setsockopt(zmq.ROUTING_ID, f"{name}#{incarnation}".encode())
        self.socket.connect(endpoint)

    def say(self, kind: str, body: dict[str, Any], *frames: bytes) -> None:
        envelope = [WIRE_VERSION, kind, self.name, self.incarnation, self.seq, 0]
        self.seq += 1
        self.socket.send_multipart([packed(envelope), packed(body), *frames])

    def hear(self, wait_s: float) -> tuple[str, dict[str, Any], list[bytes]] | None:
        if not self.socket.poll(int(wait_s * 1000)):
            return None
        head, body, *frames = self.socket.recv_multipart()
        wire, kind, *_ = msgpack.unpackb(head)
        assert wire == WIRE_VERSION, f"the loader speaks version {wire}"
        return kind, msgpack.unpackb(body), frames


def packed(thing: object) -> bytes:
    return bytes(msgpack.packb(thing) or b"")


def tokens_of(text: bytes) -> bytes:
    """int32, little endian, as many as there are bytes."""
    return struct.pack(f"<{len(text)}i", *text)


def finish(worker: Worker, lease: dict[str, Any], frames: list[bytes]) -> None:
    """Do all stages that are left and return the sample."""
    same = {field: lease[field] for field in ("lease", "epoch", "sample")}
    if lease["stage"] == 0:
        ref = lease["ref"]
        try:
            with open(ref["path"], "rb") as file:
                text = file.read()
        except OSError as error:
            refusal = {"kind": "unreadable", "detail": str(error)}
            worker.say("SampleRefused", same | refusal)
            return
    else:
        text = frames[0]
    tokens = {"dtype": "int32", "shape": [len(text)], "frame": 0}
    ready = {"tokens": tokens, "text_bytes": len(text), "stage_s": [0.0, 0.0, 0.0, 0.0]}
    worker.say("SampleReady", same | ready, tokens_of(text))


def work(worker: Worker) -> None:
    """Until the loader says Stop."""
    plan: dict[str, Any] | None = None
    due = 0.0
    while True:
        if time.monotonic() >= due:
            if plan is None:
                join = {"pool": "slow", "host": "elsewhere", "shares_files": False}
                worker.say("JoinPool", join)
                due = time.monotonic() + JOIN_S
            else:
                worker.say("LeaseRequest", {"pool": "slow", "credit": 1})
                due = time.monotonic() + plan["heartbeat_s"]
        heard = worker.hear(max(0.0, due - time.monotonic()))
        match heard:
            case ("DataPlan", body, _):
                plan, due = body, 0.0
            case ("Lease", body, frames):
                finish(worker, body, frames)
            case ("Stop", _, _):
                worker.say("Goodbye", {"failed": ""})
                return
            case _:
                pass


def main() -> None:
    how, where, name = sys.argv[1:]
    key = json.loads(Path(where).read_bytes()) if how == "--key" else {}
    worker = Worker(name, time.time_ns() // 1_000_000, key.get("endpoint", where), key)
    work(worker)
    worker.socket.close()
    zmq.Context.instance().term()
    strangers = [
        module for module in sys.modules if module.partition(".")[0] in {"protocol", "actors"}
    ]
    assert not strangers, strangers


if __name__ == "__main__":
    main()
