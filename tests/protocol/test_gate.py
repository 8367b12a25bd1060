"""Who is believed: channels, incarnations, names and keys, all without sockets."""

import pytest

from protocol import messages as m
from protocol.channels import ACTORS, CHANNELS, ROLES, address, channel, endpoint, role_of
from protocol.codec import KINDS, encode
from protocol.gate import MAX_NAMES, MAX_NOTICE_CHARS, MAX_NOTICES, Gate
from protocol.keys import Admission
from protocol.messages import WIRE_VERSION, Envelope, Message
from protocol.parcels import Received

BEAT = m.Goodbye(failed="")


def let_in(
    gate: Gate,
    at: str,
    message: Message,
    sender: str,
    incarnation: int = 0,
    *,
    route: bytes | str | None = "own",
    admitted: Admission | None = None,
    seq: int = 0,
) -> Received | None:
    """Show the gate one message, from a peer of a ROUTER unless `route` says otherwise."""
    kind = type(message).__name__
    parts = encode(Envelope(WIRE_VERSION, kind, sender, incarnation, seq, 0), message)
    path = address(sender, incarnation) if isinstance(route, str) else route
    return gate.let_in(at, channel(at), parts, route=path, admitted=admitted)


def test_every_message_may_be_said_somewhere_by_somebody():
    said = {kind for c in CHANNELS.values() for kind, roles in c.senders.items() if roles}
    assert said == set(KINDS.values())
    assert all(roles <= ROLES for c in CHANNELS.values() for roles in c.senders.values())


def test_only_the_binder_and_its_peers_have_words_on_a_channel():
    for c in CHANNELS.values():
        assert 0 < c.high_water <= 4096
        assert 0 < c.linger_s < 2
        assert 0 < c.max_part_bytes <= 1 << 32
    assert "operator" not in ACTORS


@pytest.mark.parametrize(
    "name", ["", "nothing", "exchange", "exchange/", "exchange/x", "control/1"]
)
def test_a_channel_that_does_not_exist_is_named_together_with_those_that_do(name: str):
    with pytest.raises(ValueError, match="there are control, samples, remote, batches, exchange/K"):
        channel(name)


def test_endpoints_lie_in_the_socket_directory():
    assert endpoint("/tmp/t", "exchange/3") == "ipc:///tmp/t/exchange.3"
    assert channel("exchange/3").name == "exchange"


def test_roles_are_read_off_names():
    assert role_of("data_worker/attic-0") == "data_worker"
    assert role_of("loader") == "loader"
    assert role_of("root/0") is None


def test_a_message_of_the_right_peer_comes_in_and_its_route_is_known():
    gate = Gate()
    received = let_in(gate, "control", BEAT, "trainer/0", 3)
    assert received is not None
    assert (received.sender, received.role, received.incarnation) == ("trainer/0", "trainer", 3)
    assert gate.route("control", "trainer/0") == b"trainer/0#3"
    assert gate.route("control", "trainer/1") is None
    assert gate.route("samples", "trainer/0") is None


@pytest.mark.parametrize(
    ("at", "message", "sender"),
    [
        ("control", m.Stop(reason="", within_s=0.0), "trainer/0"),  # only the supervisor stops
        ("control", m.KillRequest(pattern="*", signal=9), "loader"),
        ("control", m.BatchRequest(step=1, rank=0), "trainer/0"),  # another channel's
        ("exchange/0", m.Update(version=1, param="", codec="", digest="", tensors=()), "trainer/0"),
        ("control", BEAT, "emperor/0"),
        ("control", BEAT, "supervisor"),
    ],
)
def test_what_a_role_may_not_say_is_forbidden_and_counted(at: str, message: Message, sender: str):
    gate = Gate()
    assert let_in(gate, at, message, sender) is None
    assert gate.counts["forbidden"] == 1
    assert gate.route(at, sender) is None
    assert len(gate.take_notices()) == 1


def test_speaking_in_another_name_than_ones_address_is_forbidden():
    gate = Gate()
    assert let_in(gate, "control", BEAT, "trainer/0", 1, route=b"trainer/1#1") is None
    assert let_in(gate, "control", BEAT, "trainer/0", 1, route=b"trainer/0#2") is None
    assert gate.counts["forbidden"] == 2


def test_a_dealer_hears_only_the_binder():
    gate = Gate()
    update = m.StepNeeds(step=1, params=(), facts=False)
    assert let_in(gate, "exchange/1", update, "optimizer_shard/1", route=None) is not None
    assert let_in(gate, "exchange/1", update, "optimizer_shard/0", route=None) is None
    assert gate.counts["forbidden"] == 1


def test_a_past_life_is_a_zombie_and_its_successor_takes_the_route():
    gate = Gate()
    let_in(gate, "control", BEAT, "trainer/0", 1)
    let_in(gate, "control", BEAT, "trainer/0", 2)
    assert let_in(gate, "control", BEAT, "trainer/0", 1) is None
    assert gate.counts["zombies"] == 1
    assert gate.route("control", "trainer/0") == b"trainer/0#2"


def test_a_life_can_be_declared_over_before_its_successor_speaks():
    gate = Gate()
    let_in(gate, "samples", m.LeaseRequest(pool="fast", credit=1), "data_worker/0", 1)
    gate.refuse_older("data_worker/0", 2)
    assert gate.route("samples", "data_worker/0") is None
    late = m.LeaseRequest(pool="fast", credit=1)
    assert let_in(gate, "samples", late, "data_worker/0", 1) is None
    assert let_in(gate, "samples", late, "data_worker/0", 2) is not None
    gate.refuse_older("data_worker/0", 1)
    assert gate.route("samples", "data_worker/0") == b"data_worker/0#2"


def test_with_keys_the_role_and_the_label_come_from_the_key():
    gate = Gate()
    attic = Admission("data_worker", "attic")
    join = m.JoinPool(pool="fast", host="h", shares_files=False)
    for name in ("data_worker/attic", "data_worker/attic-0"):
        assert let_in(gate, "remote", join, name, route=b"\0abcd", admitted=attic) is not None
        assert gate.route("remote", name) == b"\0abcd"
    for name in ("data_worker/cellar-0", "data_worker/atticus-0", "trainer/attic-0", "loader"):
        assert let_in(gate, "remote", join, name, route=b"\0abcd", admitted=attic) is None
    assert let_in(gate, "remote", join, "data_worker/attic-0", route=b"\0abcd") is None
    assert gate.counts["forbidden"] == 5


def test_lost_telemetry_is_counted_by_the_gaps_it_leaves():
    gate = Gate()
    record = m.LogRecord(record={})
    for sender, seqs in (("loader", (0, 1, 4, 5)), ("trainer/0", (700, 702))):
        for seq in seqs:
            let_in(gate, "telemetry", record, sender, route=None, seq=seq)
    assert gate.counts["telemetry_gaps"] == 2 + 1


def test_bytes_that_are_no_message_are_counted_by_reason():
    gate = Gate()
    control = channel("control")
    assert gate.let_in("control", control, [b"x"], route=b"y", admitted=None) is None
    other = [b"\x96\x63\xa1x\xa1y\x00\x00\x00", b"\x80"]
    assert gate.let_in("control", control, other, route=b"y", admitted=None) is None
    assert gate.counts == {"received": 2, "bytes_in": 11, "malformed": 1, "other_versions": 1}


def test_notices_are_bounded_and_repetitions_counted():
    gate = Gate()
    for _ in range(3):
        gate.note("again")
    for n in range(2 * MAX_NOTICES):
        gate.note(f"notice {n}")
    taken = gate.take_notices()
    assert taken[0] == ("again", 3)
    assert len(taken) == MAX_NOTICES
    assert gate.take_notices() == []
    gate.note("x" * 1_000_000)
    assert len(gate.take_notices()[0][0]) == MAX_NOTICE_CHARS


def test_names_that_come_and_go_do_not_fill_the_memory():
    gate = Gate()
    for pid in range(MAX_NAMES + 10):
        let_in(gate, "control", m.StatusRequest(), f"operator/{pid}")
        let_in(gate, "control", BEAT, "trainer/0")
    assert gate.route("control", "operator/0") is None
    assert gate.route("control", f"operator/{MAX_NAMES + 9}") is not None
    assert gate.route("control", "trainer/0") is not None
