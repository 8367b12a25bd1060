"""Strangers and guests at the tcp endpoint: real handshakes on the loopback."""

import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zmq

from protocol import messages as m
from protocol.channels import role_of
from protocol.clock import Deadline, MonotonicClock
from protocol.errors import EndpointError, Refused
from protocol.keys import Admissions, AllowList, ClientCurve, ServerCurve
from protocol.transport import Node, Received, Sent, new_keypair
from tests.protocol.examples import parts_of

CLOCK = MonotonicClock()
JOIN = m.JoinPool(pool="fast", host="h", shares_files=False)
Make = Callable[..., Node]


@pytest.fixture
def node() -> Iterator[Make]:
    made: list[Node] = []

    def make(name: str, incarnation: int = 0) -> Node:
        role = role_of(name)
        assert role is not None
        made.append(Node(name, role, incarnation, CLOCK))
        return made[-1]

    yield make
    for one in made:
        one.close(0)


class House:
    """A loader that listens with keys, and its allow-list."""

    def __init__(self, loader: Node, directory: Path) -> None:
        self.loader = loader
        self.allow = AllowList(directory)
        public, secret = new_keypair()
        self.server_key = public
        self.endpoint = loader.bind(
            "remote", "tcp://127.0.0.1:0", ServerCurve(public, secret, self.allow)
        )

    def guest_keys(self, label: str = "attic", *, invite: bool = True) -> ClientCurve:
        public, secret = new_keypair()
        if invite:
            self.allow.admit("data_worker", label, public)
        return ClientCurve(public, secret, self.server_key)


@pytest.fixture
def house(node: Make, tmp_path: Path) -> House:
    return House(node("loader"), tmp_path)


def until(condition: Callable[[], bool], *nodes: Node, within_s: float = 8.0) -> list[Received]:
    deadline = Deadline.after(CLOCK, within_s, "condition")
    heard: list[Received] = []
    while not condition():
        deadline.check()
        for one in nodes:
            heard += one.poll(0.01)
    return heard


def enter(house: House, guest: Node, keys: ClientCurve, patience_s: float = 4.0) -> None:
    """The guest's handshake, while the loader goes on polling as it always does."""
    guest.connect("remote", house.endpoint, keys)
    deadline = Deadline.after(CLOCK, patience_s, "handshake")
    while True:
        house.loader.poll(0.005)
        try:
            guest.handshake("remote", 0.02)
        except Refused as refused:
            if "no answer" not in str(refused) or deadline.passed():
                raise
        else:
            return


def test_an_invited_guest_is_let_in_and_answered(house: House, node: Make):
    guest = node("data_worker/attic-0")
    enter(house, guest, house.guest_keys())
    assert guest.trouble("remote") == ""
    guest.send("remote", JOIN)
    (received,) = until(lambda: house.loader.knows("remote", guest.name), house.loader)
    assert (received.channel, received.sender, received.role) == (
        "remote",
        "data_worker/attic-0",
        "data_worker",
    )
    plan = m.DataPlan(
        tokenizer_digest="",
        stages=(),
        cutoff_s=1.0,
        max_sample_bytes=1,
        heartbeat_s=1.0,
        options={},
    )
    assert house.loader.send("remote", plan, to=guest.name, frames=[b"{}"]) is Sent.SENT
    assert guest.poll(5.0)[0].message == plan
    assert house.loader.counters()["handshakes_accepted"] == 1


def test_an_unknown_key_is_refused_in_seconds_counted_and_noted(house: House, node: Make):
    started = time.monotonic()
    with pytest.raises(Refused, match="never invited, or revoked"):
        enter(house, node("data_worker/attic-0"), house.guest_keys(invite=False))
    assert time.monotonic() - started < 3.0
    assert house.loader.counters()["handshakes_refused"] >= 1
    stories = [story for story, _ in house.loader.take_notices()]
    assert any("127.0.0.1: key " in story and "allow-list" in story for story in stories)


def test_a_key_file_for_another_server_fails_in_seconds(house: House, node: Make):
    keys = house.guest_keys()
    wrong = ClientCurve(keys.public_key, keys.secret_key, new_keypair()[0])
    started = time.monotonic()
    with pytest.raises(Refused, match="not the server this key file was made for"):
        enter(house, node("data_worker/attic-0"), wrong)
    assert time.monotonic() - started < 3.0
    until(lambda: house.loader.counters().get("handshakes_refused", 0) > 0, house.loader)


def test_an_endpoint_that_says_nothing_fails_within_the_patience_given(node: Make):
    mute = socket.create_server(("127.0.0.1", 0))
    guest = node("data_worker/attic-0")
    public, secret = new_keypair()
    port = mute.getsockname()[1]
    guest.connect("remote", f"tcp://127.0.0.1:{port}", ClientCurve(public, secret, public))
    started = time.monotonic()
    with pytest.raises(Refused, match=r"no answer from tcp://127.0.0.1:\d+ within 0.5 s"):
        guest.handshake("remote", 0.5)
    assert time.monotonic() - started < 2.0
    mute.close()


def test_a_port_where_nobody_listens_is_called_that(node: Make):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    guest = node("data_worker/attic-0")
    public, secret = new_keypair()
    guest.connect("remote", f"tcp://127.0.0.1:{port}", ClientCurve(public, secret, public))
    with pytest.raises(Refused, match="nobody listens"):
        guest.handshake("remote", 0.5)


def test_a_loader_that_is_away_for_a_moment_is_waited_for(node: Make, tmp_path: Path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    guest, loader = node("data_worker/attic-0"), node("loader")
    allow = AllowList(tmp_path)
    server, mine = new_keypair(), new_keypair()
    allow.admit("data_worker", "attic", mine[0])
    guest.connect("remote", f"tcp://127.0.0.1:{port}", ClientCurve(*mine, server[0]))
    until(lambda: "nobody listens" in guest.trouble("remote"), guest)
    loader.bind("remote", f"tcp://127.0.0.1:{port}", ServerCurve(*server, allow))
    guest.send("remote", JOIN)
    until(lambda: loader.knows("remote", guest.name), loader, guest)


def test_a_busy_port_is_named(house: House, node: Make):
    public, secret = new_keypair()
    with pytest.raises(EndpointError, match="Address already in use") as caught:
        node("loader").bind("remote", house.endpoint, ServerCurve(public, secret, house.allow))
    assert house.endpoint in str(caught.value)


def test_a_revoked_guest_is_no_longer_heard_even_while_connected(house: House, node: Make):
    guest = node("data_worker/attic-0")
    enter(house, guest, house.guest_keys())
    guest.send("remote", JOIN)
    until(lambda: house.loader.knows("remote", guest.name), house.loader)
    assert house.allow.revoke("data_worker", "attic")
    time.sleep(Admissions.FRESH_S)
    for _ in range(2):
        guest.send("remote", JOIN)
    until(lambda: house.loader.counters().get("forbidden") == 2, house.loader)


def test_a_guest_cannot_speak_for_another_nor_as_anything_but_its_key_says(
    house: House, node: Make
):
    keys = house.guest_keys("attic")
    cellar = node("data_worker/cellar-0")
    enter(house, cellar, house.guest_keys("cellar"))
    cellar.send("remote", JOIN)
    until(lambda: house.loader.knows("remote", "data_worker/cellar-0"), house.loader)
    thief = node("data_worker/cellar-0", 5)
    enter(house, thief, keys)
    thief.send("remote", JOIN)
    until(lambda: house.loader.counters().get("forbidden") == 1, house.loader)
    request = m.Lease(
        lease=1,
        epoch=0,
        sample=0,
        attempt=1,
        ref=m.SampleRef(name="n", language="text", path="p"),
        stage=0,
        expires_s=1.0,
    )
    house.loader.send("remote", request, to="data_worker/cellar-0")
    assert len(cellar.poll(5.0)) == 1
    assert thief.poll(0.1) == []


def test_an_address_of_anothers_making_takes_no_route_over(house: House, node: Make):
    """A hand-made client claims the address that libzmq made up for a guest."""
    guest = node("data_worker/attic-0")
    enter(house, guest, house.guest_keys("attic"))
    guest.send("remote", JOIN)
    until(lambda: house.loader.knows("remote", guest.name), house.loader)
    route = house.loader._gate.route("remote", guest.name)
    assert route is not None
    keys = house.guest_keys("cellar")
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    thief = context.socket(zmq.DEALER)
    thief.setsockopt(zmq.CURVE_SERVERKEY, keys.server_key.encode())
    thief.setsockopt(zmq.CURVE_PUBLICKEY, keys.public_key.encode())
    thief.setsockopt(zmq.CURVE_SECRETKEY, keys.secret_key.encode())
    thief.setsockopt(zmq.ROUTING_ID, route)
    thief.connect(house.endpoint)
    until(lambda: house.loader.counters()["handshakes_accepted"] == 2, house.loader)
    house.loader.poll(0.2)
    plan = m.DataPlan(
        tokenizer_digest="",
        stages=(),
        cutoff_s=1.0,
        max_sample_bytes=1,
        heartbeat_s=1.0,
        options={},
    )
    house.loader.send("remote", plan, to=guest.name)
    assert len(guest.poll(5.0)) == 1
    assert thief.poll(100) == 0
    context.destroy(0)


def test_whoever_comes_without_keys_gets_nothing(house: House):
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    bare = context.socket(zmq.DEALER)
    bare.connect(house.endpoint)
    bare.send_multipart(parts_of("JoinPool"))
    until(lambda: house.loader.counters().get("handshakes_refused", 0) > 0, house.loader)
    assert "received" not in house.loader.counters()
    assert bare.poll(50) == 0
    context.destroy(0)


@pytest.mark.parametrize("garbage", [b"", b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 4096])
def test_raw_bytes_on_the_port_harm_nobody(house: House, node: Make, garbage: bytes):
    host, _, port = house.endpoint.removeprefix("tcp://").partition(":")
    with socket.create_connection((host, int(port))) as raw:
        raw.sendall(garbage)
        guest = node("data_worker/attic-0")
        enter(house, guest, house.guest_keys())
        guest.send("remote", JOIN)
        until(lambda: house.loader.knows("remote", guest.name), house.loader)
