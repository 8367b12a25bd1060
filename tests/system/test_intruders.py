"""Whoever knocks at every endpoint of a run gets nothing, is counted, and harms nobody.

What local processes of the same user could do with signals they need no socket for; they are here
to be garbled, out of date and in the wrong role.
"""

import json
import random
import socket
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
import zmq

from protocol import messages as m
from protocol.channels import CHANNELS
from protocol.codec import decode, encode
from protocol.keys import KeyFile
from protocol.messages import WIRE_VERSION, Envelope
from protocol.transport import new_keypair
from tests.protocol.examples import EXAMPLES, parts_of
from tests.system.conftest import STEPS_IN_PEACE, digests
from tests.system.test_graph import Start, command

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.timeout(300)]

# Legitimate words of operators, and of workers, who may come unannounced.
WELCOME = (m.StopRequest, m.KillRequest, m.InviteRequest, m.StatusRequest)
WELCOME_GUESTS = (m.JoinPool, m.LeaseRequest, m.Goodbye)
WELCOME_STANDBYS = (m.FilesRequest, m.PieceRequest, m.Goodbye)
GARBAGE = (
    b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    b"\x00" * 300,
    b"\xff\x00\x00\x00\x00\x00\x00\x00\x01\x7f\x03\x00NULL" + b"\x00" * 60,
    bytes(range(256)) * 8,
)


def raw(family: int, address: Any) -> None:
    """Bytes that are not ZeroMQ's, and a scanner that says nothing."""
    for garbage in (*GARBAGE, b""):
        with closing(socket.socket(family, socket.SOCK_STREAM)) as knock, suppress(OSError):
            knock.settimeout(1.0)
            knock.connect(address)
            knock.sendall(garbage)
            knock.settimeout(0.05)
            knock.recv(100)


def says(endpoint: str, parcels: Iterator[list[bytes]], identity: bytes, **curve: bytes) -> None:
    """A stranger connects and says all that; what cannot be delivered is dropped."""
    kind = zmq.PUSH if endpoint.endswith("telemetry") else zmq.DEALER
    with zmq.Context() as context, context.socket(kind) as dealer:
        dealer.setsockopt(zmq.LINGER, 300)
        dealer.setsockopt(zmq.ROUTING_ID, identity)
        for option, key in curve.items():
            dealer.setsockopt(getattr(zmq, f"CURVE_{option.upper()}"), key)
        dealer.connect(endpoint)
        for parts in parcels:
            with suppress(zmq.Again):
                dealer.send_multipart(parts, zmq.NOBLOCK)
        dealer.poll(60, zmq.POLLOUT if kind == zmq.PUSH else zmq.POLLIN)


def mutated(chance: random.Random) -> Iterator[list[bytes]]:
    """Every message there is, a few times, with a bit flipped or a part lost, doubled, cut."""
    for kind in EXAMPLES:
        for _ in range(6):
            parts = [bytearray(part) for part in parts_of(kind)]
            part = chance.choice([part for part in parts if part])
            match chance.randrange(4):
                case 0:
                    part[chance.randrange(len(part))] ^= 1 << chance.randrange(8)
                case 1:
                    parts.remove(part)
                case 2:
                    parts.append(part)
                case _:
                    del part[chance.randrange(len(part)) :]
            yield [bytes(part) for part in parts]


def replayed(name: str, incarnation: int, *, but: tuple[type, ...]) -> Iterator[list[bytes]]:
    """Every message there is but those, whole, as `name` would say it."""
    for message, frames in EXAMPLES.values():
        if not isinstance(message, but):
            kind = type(message).__name__
            envelope = Envelope(WIRE_VERSION, kind, name, incarnation, 0, 1)
            yield [*encode(envelope, message), *frames]


def strangers_at(endpoint: str, seed: int) -> None:
    chance = random.Random(seed)
    says(endpoint, mutated(chance), b"trainer/7#1")
    says(endpoint, mutated(chance), b"no address of ours")
    says(endpoint, replayed("operator/1", 1, but=WELCOME), b"operator/1#1")
    says(endpoint, replayed("trainer/0", 1, but=()), b"trainer/7#1")  # in another's name
    for name in ("trainer/7", "optimizer_shard/7", "rollout/7", "recorder/7", "loader/7"):
        says(endpoint, replayed(name, 0, but=()), f"{name}#0".encode())
    says(endpoint, replayed("data_worker/7", 0, but=WELCOME_GUESTS), b"data_worker/7#0")


def at_the_door(key: KeyFile, welcome: tuple[type, ...]) -> None:
    """Over tcp: no keys, unknown keys, an invited host's key with words that are not its own."""
    endpoint, own = key.endpoint, f"{key.role}/{key.label}-0"
    host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
    raw(socket.AF_INET, (host, int(port)))
    says(endpoint, replayed("trainer/0", 1, but=()), b"trainer/0#1")
    server = key.server_key.encode()
    public, secret = (text.encode() for text in new_keypair())
    stranger = {"serverkey": server, "publickey": public, "secretkey": secret}
    says(endpoint, replayed(own, 1, but=()), f"{own}#1".encode(), **stranger)
    guest = stranger | {
        "publickey": key.public_key.encode(),
        "secretkey": key.secret_key.encode(),
    }
    for name in ("trainer/0", "supervisor", f"{key.role}/other-0", "operator/1"):
        said = replayed(name, 1, but=welcome)
        says(endpoint, said, f"{name}#1".encode(), **guest)
    for life in (5, 4):
        says(endpoint, replayed(own, life, but=welcome), f"{own}#{life}".encode(), **guest)
    says(endpoint, mutated(random.Random(1)), f"{own}#5".encode(), **guest)


def test_nobody_gets_in_and_the_run_does_not_notice(
    start: Start, tmp_path: Path, in_peace: list[str]
):
    run = start("--steps", "100000", "--set", 'remote.host="127.0.0.1"')
    run.until(lambda: run.step() >= 1, 120, "the first step")
    keys: dict[str, KeyFile] = {}
    for role in ("data_worker", "standby"):
        file = tmp_path / f"{role}.key"
        invited = command(run, "invite", "--role", role, "--label", "guest", "--out", str(file))
        assert invited.returncode == 0, invited.stderr
        keys[role] = KeyFile.read(file)

    sockets = sorted(path for path in run.run.socket_dir.iterdir() if path.is_socket())
    names = {path.name.partition(".")[0] for path in sockets}
    assert set(CHANNELS) - {"remote", "rank", "standby"} <= names
    for seed, path in enumerate(sockets):
        raw(socket.AF_UNIX, str(path))
        if path.name.partition(".")[0] in CHANNELS:
            strangers_at(f"ipc://{path}", seed)
    at_the_door(keys["data_worker"], WELCOME_GUESTS)
    at_the_door(keys["standby"], WELCOME_STANDBYS)

    document = json.loads(command(run, "status", "--json").stdout)
    assert document["actors"], run.story()
    counted = {
        actor["name"]: {
            what: actor["gauges"].get(what, 0) for what in ("malformed", "forbidden", "zombies")
        }
        for actor in document["actors"]
    }
    for name in ("supervisor", "loader", "optimizer_shard/0", "recorder"):
        assert counted[name]["malformed"] > 0, counted
        assert counted[name]["forbidden"] > 0, counted
    assert counted["loader"]["zombies"] > 0, counted
    run.until(lambda: run.step() >= STEPS_IN_PEACE, 120, "enough steps")
    assert command(run, "stop").returncode == 0
    assert run.finish(60) == 130, run.story()
    assert digests(run)[:STEPS_IN_PEACE] == in_peace
    assert {actor["restarts"] for actor in document["actors"]} == {0}
    assert run.leftovers() == []


def test_examples_are_what_is_said():
    """Or intruders would be refused for another reason than they should be."""
    for kind in EXAMPLES:
        assert type(decode(parts_of(kind)).message).__name__ == kind
