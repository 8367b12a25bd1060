"""Who admits whom: the loader its workers, and each rank of another host the one trainer it has."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from actors import topology
from actors.supervisor.control import Desk
from protocol.keys import AllowList
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
