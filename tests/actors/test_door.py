"""The door for other hosts: opened by invitation, found again after a restart."""

from pathlib import Path

from actors.door import Door
from actors.topology import RemoteSpec
from protocol.clock import MonotonicClock
from protocol.keys import ServerCurve
from protocol.messages import InviteRequest
from protocol.transport import Node, new_keypair

LOCAL = RemoteSpec(host="127.0.0.1")


def invite(label: str = "box", public_key: str = "") -> InviteRequest:
    key = public_key or new_keypair()[0]
    return InviteRequest(role="data_worker", public_key=key, label=label)


def door(node: Node, keys: Path, spec: RemoteSpec = LOCAL) -> Door:
    def bind(endpoint: str, curve: ServerCurve) -> str:
        return node.bind("remote", endpoint, curve)

    return Door(keys, spec, bind)


def loader() -> Node:
    return Node("loader", "loader", 1, MonotonicClock())


def test_nothing_listens_before_the_first_invitation(tmp_path: Path):
    with loader() as node:
        made = door(node, tmp_path / "keys")
        assert not made.was_opened
        invitation = made.invite(invite())
        assert invitation.refused == ""
        assert invitation.endpoint.startswith("tcp://127.0.0.1:")
        assert made.was_opened


def test_the_same_door_opens_after_a_restart(tmp_path: Path):
    with loader() as node:
        first = door(node, tmp_path / "keys").invite(invite())
    with loader() as node:
        made = door(node, tmp_path / "keys")
        assert made.was_opened
        made.open()
        again = made.invite(invite("other"))
    assert (again.endpoint, again.server_key) == (first.endpoint, first.server_key)


def test_a_busy_port_is_said_with_what_to_do(tmp_path: Path):
    with loader() as holder, loader() as node:
        held = door(holder, tmp_path / "theirs").invite(invite())
        port = int(held.endpoint.rpartition(":")[2])
        spec = RemoteSpec(host="127.0.0.1", port=port)
        invitation = door(node, tmp_path / "ours", spec).invite(invite())
    assert "in use" in invitation.refused
    assert "choose another remote.port" in invitation.refused


def test_a_label_is_invited_once(tmp_path: Path):
    with loader() as node:
        made = door(node, tmp_path / "keys")
        key = new_keypair()[0]
        assert made.invite(invite("box", key)).refused == ""
        assert made.invite(invite("box", key)).refused == ""
        assert "invited already" in made.invite(invite("box")).refused
        assert "label" in made.invite(invite("../../etc")).refused


def test_only_data_workers_are_invited(tmp_path: Path):
    with loader() as node:
        request = InviteRequest(role="trainer", public_key=new_keypair()[0], label="box")
        made = door(node, tmp_path / "keys")
        assert "cannot be invited" in made.invite(request).refused
        assert not made.was_opened
