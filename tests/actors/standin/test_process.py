"""A real stand-in between a run and a guest whose parts the test plays."""

import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from actors import process, rundir, topology
from actors.seat import Seat
from actors.standin.forwarding import unwrapped, wrapped
from protocol import messages as m
from protocol import segments
from protocol.channels import endpoint
from protocol.clock import MonotonicClock
from protocol.errors import Refused, Unauthorised
from protocol.keys import ClientCurve, KeyFile
from protocol.messages import Message
from protocol.segments import segment_name
from protocol.tensors import Frames, read, ref_in
from protocol.transport import Node, Received, new_keypair
from tests.harness import wait_until

CLOCK = MonotonicClock()
NAME = "trainer/1"
SETTINGS = (
    "actors.trainers=2",
    "actors.remote_trainers=1",
    "supervision.heartbeat_s=0.05",
    'remote.host="127.0.0.1"',
)
START = (
    "import sys, msgspec; from actors.seat import Seat; from actors.standin.process import main; "
    "sys.exit(main(msgspec.json.decode(sys.argv[1], type=Seat)))"
)


class Scene:
    """The run's host, as a stand-in sees it, and one host that was invited."""

    def __init__(self, path: Path) -> None:
        self.run = rundir.create(path)
        self.sockets = tempfile.mkdtemp(prefix="trireme-test-")
        self.heard: dict[str, list[Received]] = {}
        self.nodes = {
            name: Node(name, name.partition("/")[0], 1, CLOCK)  # pyright: ignore[reportArgumentType]
            for name in ("supervisor", "recorder", "loader", "optimizer_shard/0")
        }
        bound = ("control", "telemetry", "batches", "exchange/0")
        for node, channel in zip(self.nodes.values(), bound, strict=True):
            node.bind(channel, endpoint(self.sockets, channel))
        self.key: KeyFile | None = None
        self.life = 0
        self.who: process.Identity | None = None

    def start(self, silence_s: float = 60.0) -> None:
        """The next life of the stand-in. Guests here do not beat: they are soon missed or never."""
        self.life += 1
        self.wanted = topology.load("local", (*SETTINGS, f"supervision.silence_s={silence_s}"))
        self.run.topology.write_text(topology.to_toml(self.wanted))
        seat = Seat(
            run_dir=str(self.run.path),
            run_id=self.run.run_id,
            socket_dir=self.sockets,
            name=NAME,
            role="trainer",
            index=1,
            incarnation=self.life,
        )
        text = msgspec.json.encode(seat).decode()
        command = [sys.executable, "-c", START, text]
        self.who = process.start(command, output=self.run.path / "out", env=process.environment())
        self.until(lambda: self.last("supervisor", m.Beat, life=self.life) is not None, "a beat")

    def poll(self) -> None:
        for name, node in self.nodes.items():
            for received in node.poll(0.0):
                self.heard.setdefault(name, []).append(received)
                if isinstance(received.message, m.Beat):
                    node.send("control", m.Welcome(peers={"loader": 1}), to=NAME)

    def until(self, done: Callable[[], Any], what: str) -> None:
        def look() -> bool:
            self.poll()
            return bool(done())

        wait_until(look, 20.0, what)

    def last(self, who: str, kind: type[Message], life: int = 0) -> Received | None:
        """The newest message of that kind that `who` has got."""
        found = [
            received
            for received in self.heard.get(who, ())
            if isinstance(received.message, kind) and received.incarnation in (life, life or 1)
        ]
        return found[-1] if found else None

    def says(self) -> m.Beat:
        found = self.last("supervisor", m.Beat, self.life)
        assert found is not None
        assert isinstance(found.message, m.Beat)
        return found.message

    def invite(self) -> KeyFile:
        public, secret = new_keypair()
        request = m.InviteRequest(role="trainer", public_key=public, label="attic")
        self.nodes["supervisor"].send("control", request, to=NAME)
        self.until(lambda: self.last("supervisor", m.Invitation, self.life), "an invitation")
        found = self.last("supervisor", m.Invitation, self.life)
        assert found is not None
        assert isinstance(found.message, m.Invitation)
        assert found.message.refused == ""
        self.key = KeyFile(
            role="trainer",
            label="attic",
            endpoint=found.message.endpoint,
            server_key=found.message.server_key,
            public_key=public,
            secret_key=secret,
            rank=found.message.rank,
        )
        return self.key

    def guest(self, incarnation: int, name: str = "trainer/attic-0") -> Node:
        """A connection of the invited host, let in."""
        assert self.key is not None
        node = Node(name, "trainer", incarnation, CLOCK)
        self.nodes[f"guest {incarnation}"] = node
        node.connect("rank/1", self.key.endpoint, self.key.curve())
        node.handshake("rank/1", 10.0)
        return node

    def join(self, incarnation: int) -> Node:
        """A guest that has the rank."""
        node = self.guest(incarnation)
        node.send("rank/1", m.JoinRank(host="attic"))
        self.until(
            lambda: self.last(f"guest {incarnation}", m.RankPlan, self.life), "the rank to be ours"
        )
        return node

    def code(self) -> int | None:
        """Of the stand-in, once it has left."""
        assert self.who is not None
        codes: list[int | None] = []

        def gone() -> bool:
            codes.extend(ended.code for ended in process.reap(self.who.pid if self.who else 0))
            return bool(codes)

        self.until(gone, "the stand-in to leave")
        self.who = None
        return codes[0]

    def logged(self) -> list[dict[str, Any]]:
        self.poll()
        said = self.heard.get("recorder", ())
        return [r.message.record for r in said if isinstance(r.message, m.LogRecord)]

    def close(self) -> None:
        if self.who is not None:
            process.send_signal(self.who, 9)
            list(process.reap(self.who.pid))
        for node in self.nodes.values():
            node.close(0)


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    made = Scene(tmp_path / "run")
    yield made
    made.close()


def test_messages_pass_both_ways_and_nothing_else_does(scene: Scene):
    scene.start()
    waits = "a host to attach as trainer/1"
    scene.until(lambda: scene.says().waiting_for == waits, "it to wait")
    assert scene.says().state == "starting"
    assert scene.invite().rank == 1
    guest = scene.join(5)
    plan = scene.last("guest 5", m.RankPlan, 1)
    assert plan is not None
    assert isinstance(plan.message, m.RankPlan)
    assert topology.decode(plan.message.topology, source="told") == scene.wanted
    scene.until(lambda: scene.says().state == "running", "its beats to say that it works")
    assert scene.says().host == "attic"

    out = Frames()
    gradient = m.Gradient(
        step=1,
        rank=1,
        param="p",
        codec="dense",
        basis=0,
        tokens=3,
        tensors=(out.add(np.arange(4, dtype=np.float32)),),
    )
    foreign = msgspec.structs.replace(gradient, rank=0)
    hidden = m.TensorRef(dtype="float32", shape=(4,), segment="trireme-0-x")
    for message, frames in (
        (foreign, out.parts),
        (msgspec.structs.replace(gradient, tensors=(hidden,)), ()),
        (m.MetricsRequest(after=0), ()),
        (gradient, out.parts),
    ):
        forward, parts = wrapped("exchange/0", message, frames)
        guest.send("rank/1", forward, frames=parts, step=1)
    scene.until(lambda: scene.last("optimizer_shard/0", m.Gradient, 1), "the gradient")
    came = [item for item in scene.heard["optimizer_shard/0"] if item.message == gradient]
    assert [(item.sender, item.incarnation, item.envelope.step) for item in came] == [(NAME, 1, 1)]
    assert np.array_equal(read(gradient.tensors[0], came[0].frames), np.arange(4, dtype=np.float32))
    assert len([i for i in scene.heard["optimizer_shard/0"] if i.channel == "exchange/0"]) == 1
    scene.until(lambda: scene.says().gauges.get("not_passed_on") == 3.0, "nonsense to be counted")

    name = segment_name(scene.run.run_id, "optimizer_shard/0", "state")
    segment = segments.create(name, 4096)
    try:
        segment.array("float32", (4,), 0)[...] = 7.0
        update = m.Update(
            version=1,
            param="p",
            codec="dense",
            digest="d",
            tensors=(ref_in(segment, "float32", (4,), 0),),
        )
        scene.nodes["optimizer_shard/0"].send("exchange/0", update, to=NAME)
        scene.until(lambda: scene.last("guest 5", m.Forward, 1), "the update")
    finally:
        segment.close()
        segments.unlink(name)
    item = scene.last("guest 5", m.Forward, 1)
    assert item is not None
    assert isinstance(item.message, m.Forward)
    assert item.message.sender == "optimizer_shard/0"
    found, frames = unwrapped(item.message, item.frames, item.message.sender)
    assert isinstance(found, m.Update)
    assert np.array_equal(read(found.tensors[0], frames), np.full(4, 7.0, np.float32))


def test_a_guest_that_falls_silent_is_lost_and_its_earlier_life_is_refused(scene: Scene):
    scene.start(silence_s=0.3)
    scene.invite()
    scene.join(5)
    assert scene.code() == 0
    assert "attached trainer lost" in {record["event"] for record in scene.logged()}
    scene.start()
    early = scene.guest(4)
    early.send("rank/1", m.JoinRank(host="attic"))
    again = scene.join(6)
    assert scene.last("guest 4", m.RankPlan, 2) is None
    # A later life does not wait until its predecessor is missed: the next stand-in takes it.
    later = scene.guest(7)
    later.send("rank/1", m.JoinRank(host="attic"))
    assert scene.code() == 0
    again.send("rank/1", m.Goodbye(failed=""))
    lost = [r["why"] for r in scene.logged() if r["event"] == "attached trainer lost"]
    assert lost[-1] == "it came anew"


def test_the_run_s_stop_reaches_the_guest_and_its_goodbye_ends_the_stand_in(scene: Scene):
    scene.start()
    scene.invite()
    guest = scene.join(5)
    scene.nodes["supervisor"].send("control", m.Stop(reason="enough", within_s=30.0), to=NAME)
    scene.until(lambda: scene.last("guest 5", m.Stop, 1), "the stop")
    guest.send("rank/1", m.Goodbye(failed=""))
    assert scene.code() == 0
    assert scene.last("supervisor", m.Goodbye, 1) is not None


def test_keys_of_others_are_refused_named_and_a_revoked_one_is_heard_no_more(scene: Scene):
    scene.start(silence_s=0.3)
    key = scene.invite()
    public, secret = new_keypair()
    for role in ("data_worker", "nobody"):
        if role == "data_worker":
            door = scene.run.keys / "allowed"
            stolen = {"role": role, "label": "box", "public_key": public, "rank": -1}
            (door / "data_worker-box.json").write_bytes(msgspec.json.encode(stolen))
        else:
            public, secret = new_keypair()
        with Node("trainer/box-0", "trainer", 1, CLOCK) as stranger:
            stranger.connect("rank/1", key.endpoint, ClientCurve(public, secret, key.server_key))
            with pytest.raises(Unauthorised, match="refuses this key"):
                stranger.handshake("rank/1", 10.0)

        def named(public: str = public) -> bool:
            return any(public in str(record.get("why")) for record in scene.logged())

        scene.until(named, "the refusal in the log")
    guest = scene.join(5)
    (scene.run.keys / "allowed" / "trainer-attic.json").unlink()
    beat = msgspec.structs.replace(scene.says(), gauges={}, progress=1)

    def missed() -> bool:
        guest.send("rank/1", beat)
        return any(record["event"] == "attached trainer lost" for record in scene.logged())

    scene.until(missed, "the guest to be shut out")
    assert scene.code() == 0
    scene.start()
    with Node("trainer/attic-0", "trainer", 9, CLOCK) as back:
        back.connect("rank/1", key.endpoint, key.curve())
        with pytest.raises(Refused, match="never invited, or revoked"):
            back.handshake("rank/1", 10.0)
