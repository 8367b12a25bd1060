"""`run.py invite` against a supervisor played by a bare Node."""

import threading
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner, Result

from actors import asking, rundir
from actors.commands.invite import invite
from actors.rundir import RunDir
from protocol import messages as m
from protocol.channels import endpoint
from protocol.clock import MonotonicClock
from protocol.keys import KeyFile
from protocol.transport import Node, new_keypair

CLOCK = MonotonicClock()


INVITATION = m.Invitation(
    public_key=new_keypair()[0], endpoint="tcp://192.0.2.7:40000", server_key=new_keypair()[0]
)


class Clerk(threading.Thread):
    """A supervisor that answers every invitation the same."""

    def __init__(self, run: RunDir, answer: m.Invitation) -> None:
        super().__init__()
        run.make_socket_dir()
        self.asked: list[m.Message] = []
        self.over = threading.Event()
        self._answer = answer
        self._node = Node("supervisor", "supervisor", 0, CLOCK)
        self._node.bind("control", endpoint(run.socket_dir, "control"))

    def run(self) -> None:
        with self._node as node:
            while not self.over.is_set():
                for received in node.poll(0.02):
                    self.asked.append(received.message)
                    node.send("control", self._answer, to=received.sender)


@contextmanager
def supervised(
    run: RunDir, monkeypatch: pytest.MonkeyPatch, answer: m.Invitation = INVITATION
) -> Generator[Clerk]:
    def always(_run: RunDir) -> bool:
        return True

    monkeypatch.setattr(asking, "lives", always)
    clerk = Clerk(run, answer)
    clerk.start()
    try:
        yield clerk
    finally:
        clerk.over.set()
        clerk.join()
        run.remove_socket_dir()


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return rundir.create(tmp_path / "run")


def ask(run: RunDir, *options: str) -> Result:
    return CliRunner().invoke(invite, ["--run", str(run.path), *options])


def test_an_invitation_is_a_private_key_file_and_only_its_public_half_travels(
    run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    out = tmp_path / "attic.key"
    with supervised(run, monkeypatch) as clerk:
        result = ask(run, "--role", "data_worker", "--out", str(out), "--label", "attic")
    assert result.exit_code == 0, result.output
    key = KeyFile.read(out)
    assert (key.role, key.label) == ("data_worker", "attic")
    assert (key.endpoint, key.server_key) == (INVITATION.endpoint, INVITATION.server_key)
    assert clerk.asked == [
        m.InviteRequest(role="data_worker", public_key=key.public_key, label="attic")
    ]
    assert key.secret_key not in result.output
    assert f"attach {INVITATION.endpoint} --key attic.key" in result.output


def test_a_trainers_key_is_for_the_rank_it_was_given(
    run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    out = tmp_path / "cellar.key"
    with supervised(run, monkeypatch, msgspec.structs.replace(INVITATION, rank=3)) as clerk:
        result = ask(run, "--role", "trainer", "--out", str(out), "--label", "cellar")
    assert result.exit_code == 0, result.output
    key = KeyFile.read(out)
    assert (key.role, key.rank, key.channel) == ("trainer", 3, "rank/3")
    asked = m.InviteRequest(role="trainer", public_key=key.public_key, label="cellar")
    assert clerk.asked == [asked]
    assert "one host in as trainer/3, named cellar-0" in result.output
    assert "--key cellar.key --role trainer" in result.output


def test_without_a_label_one_is_made_up(
    run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    with supervised(run, monkeypatch):
        results = [ask(run) for _ in range(2)]
    assert [result.exit_code for result in results] == [0, 0]
    assert len(list(tmp_path.glob("guest_*.key"))) == 2


def test_a_refused_invitation_leaves_no_file(
    run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    refusal = m.Invitation(
        public_key="", endpoint="", server_key="", refused="remote.port 80 is busy"
    )
    out = tmp_path / "attic.key"
    with supervised(run, monkeypatch, refusal):
        result = ask(run, "--out", str(out))
    assert result.exit_code == 1
    assert result.output.splitlines()[-1] == "nobody was invited: remote.port 80 is busy"
    assert not out.exists()


def test_a_run_that_does_not_run_cannot_invite(run: RunDir, tmp_path: Path):
    result = ask(run, "--out", str(tmp_path / "x.key"))
    assert (result.exit_code, "is not running" in result.output) == (1, True)
    assert not (tmp_path / "x.key").exists()


def test_wrong_usage_is_told_before_anybody_is_asked(run: RunDir, tmp_path: Path):
    (tmp_path / "taken.key").touch()
    for options, complaint in (
        (["--label", "a/b"], "letters, digits"),
        (["--role", "rollout"], "data_worker"),
        (["--out", str(tmp_path / "taken.key")], "never overwritten"),
        (["--out", str(tmp_path / "absent" / "x.key")], "no directory"),
    ):
        result = ask(run, *options)
        assert (result.exit_code, complaint in result.output) == (2, True), result.output
    result = CliRunner().invoke(invite, ["--run", str(tmp_path / "nowhere")])
    assert (result.exit_code, "is not a run directory" in result.output) == (2, True)
