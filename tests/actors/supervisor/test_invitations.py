"""Who admits whom: the loader its workers, and each rank of another host the one trainer it has."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from actors import topology
from actors.supervisor.control import Desk
from protocol.clock import ManualClock
from protocol.keys import AllowList
from protocol.messages import Invitation, InviteRequest, Message
from protocol.transport import new_keypair


def desk(keys: Path, *settings: str) -> Any:
    home = SimpleNamespace(
        topology=topology.load("local", settings), run=SimpleNamespace(keys=keys)
    )
    return Desk(cast("Any", home))


def admit(keys: Path, rank: int, label: str) -> None:
    AllowList(keys / "allowed", "trainer", rank).admit("trainer", label, new_keypair()[0])


def test_trainers_get_the_first_rank_that_is_free(tmp_path: Path):
    made = desk(tmp_path, "actors.trainers=3", "actors.remote_trainers=2")
    assert made._host_for("data_worker", "box") == ("loader", "")
    assert made._host_for("trainer", "attic") == ("trainer/1", "")
    admit(tmp_path, 1, "attic")
    assert made._host_for("trainer", "cellar") == ("trainer/2", "")
    admit(tmp_path, 2, "cellar")
    assert made._host_for("trainer", "roof") == (
        "",
        "no rank is free: trainer/1 is attic's, trainer/2 is cellar's; "
        "`run.py revoke LABEL --role trainer` makes one free",
    )
    assert AllowList(tmp_path / "allowed").revoke("trainer", "attic")
    assert made._host_for("trainer", "roof") == ("trainer/1", "")


def test_a_run_whose_trainers_are_its_own_says_how_to_start_another(tmp_path: Path):
    host, why = desk(tmp_path)._host_for("trainer", "attic")
    assert host == ""
    assert "actors.remote_trainers=1" in why


def test_an_invitation_goes_to_whoever_asked_for_that_key(tmp_path: Path):
    """The first answer never comes (the loader died with it), and the others in another order."""
    made, said = answering(tmp_path)
    keys = [new_keypair()[0] for _ in range(3)]
    for number, key in enumerate(keys):
        made._invite(
            f"operator/{number}", InviteRequest(role="data_worker", public_key=key, label="x")
        )
    for key in (keys[2], keys[1], keys[1]):  # what is said twice is answered once
        made._relay("loader", Invitation(public_key=key, endpoint="e", server_key=key))
    assert [(to, answer.server_key) for to, answer in said] == [
        ("operator/2", keys[2]),
        ("operator/1", keys[1]),
    ]
    made._relay("trainer/1", Invitation(public_key=keys[0], endpoint="e", server_key="k"))
    made._home.clock.advance(60.0)  # nobody waits that long
    made._relay("loader", Invitation(public_key=keys[0], endpoint="e", server_key="k"))
    assert len(said) == 2


def test_more_than_a_few_do_not_wait_for_invitations(tmp_path: Path):
    made, said = answering(tmp_path)
    for number in range(17):
        request = InviteRequest(role="data_worker", public_key=f"key {number}", label="x")
        made._invite(f"operator/{number}", request)
    ((to, answer),) = said
    assert (to, answer.public_key) == ("operator/16", "key 16")
    assert "ask again" in answer.refused


def answering(keys: Path) -> tuple[Any, list[tuple[str, Invitation]]]:
    """A desk of a run whose loader lives, and what it says to operators."""
    said: list[tuple[str, Invitation]] = []

    def send(_channel: str, message: Message, to: str) -> None:
        if isinstance(message, Invitation):
            said.append((to, message))

    made = desk(keys)
    made._home.clock = ManualClock()
    made._home.mailbox = SimpleNamespace(send=send)
    made._home.supervision = SimpleNamespace(actors={"loader": SimpleNamespace(stage="running")})
    return made, said
