"""A copy on disk: what is handed out on one side is put in place on the other."""

import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from actors import checkpoints, journal, rundir
from actors.checkpoints import FORMAT, Manifest
from actors.commands.status import _standbys
from actors.data.ledger import Ledger
from actors.journal import Part, Writer
from actors.optimizer.notes import Committed
from actors.rundir import RunDir, RunDirError
from actors.standby import guest
from actors.standby.guest import Copy, Standby
from actors.standby.shelf import Shelf
from protocol import messages as m
from protocol.clock import ManualClock
from protocol.codec import Buffer
from protocol.errors import Refused
from protocol.keys import KeyFile
from protocol.messages import Envelope, Message, Role
from protocol.transport import Received, Sent
from tests.actors.exchange import tiny


@dataclass
class Wire:
    """Both mailboxes: what one side says is heard by the other when it is asked to listen."""

    up: list[Received] = field(default_factory=list[Received])
    down: list[Received] = field(default_factory=list[Received])
    gauges: dict[str, float] = field(default_factory=dict[str, float])
    stopping: m.Stop | None = None

    @property
    def log(self) -> "Wire":
        return self

    def info(self, event: str, **fields: object) -> None: ...

    warning = error = info

    def gauge(self, name: str, value: float) -> None:
        self.gauges[name] = value

    def send(
        self, channel: str, message: Message, *, to: str = "", frames: tuple[Buffer, ...] = ()
    ) -> Sent:
        sender, role = ("loader", "loader") if to else ("standby/vault-0", "standby")
        envelope = Envelope(m.WIRE_VERSION, type(message).__name__, sender, 1, 0, 0)
        views = tuple(memoryview(frame) for frame in frames)
        received = Received(channel, sender, cast("Role", role), 1, envelope, message, views)
        (self.down if to else self.up).append(received)
        return Sent.SENT


class Hosts:
    """A run's host and another one."""

    def __init__(self, tmp_path: Path) -> None:
        self.clock, self.wire = ManualClock(), Wire()
        self.run = rundir.create(tmp_path / "run")
        self.run.topology.write_text("seed = 1\n")
        self.run.tokenizer.write_text("{}")
        self.run.journal.mkdir()
        self.copy = rundir.create(tmp_path / "copy")
        self.copy.journal.mkdir()
        mailbox: Any = self.wire
        self.shelf = Shelf(self.run, tiny(), mailbox, self.clock)
        self.begin()

    def begin(self) -> None:
        """The standby starts (anew)."""
        mailbox: Any = self.wire
        self.standby = Standby(mailbox, Copy(self.copy), self.clock)

    def until_quiet(self, turns: int = 400) -> None:
        """Until two rounds have brought nothing."""
        for _ in range(turns):
            self.clock.advance(0.06)
            if self.standby._question is None:
                self.standby._ask_what_is_there()
            while self.wire.up:
                self.shelf.hear(self.wire.up.pop(0))
            pieces = sum(isinstance(item.message, m.Piece) for item in self.wire.down)
            while self.wire.down:
                self.standby._hear(self.wire.down.pop(0))
            if not pieces and not self.standby._mirror.lacking_bytes:
                return
        raise AssertionError(self.wire.gauges)

    def save(self, step: int, *, content: object = "w" * 100) -> Path:
        """The run's host has a checkpoint of `step`."""
        unfinished = checkpoints.unfinished_path(self.run.checkpoints, step)
        unfinished.mkdir()
        sha = checkpoints.write_json(unfinished / "weights.json", content)
        manifest = Manifest(
            format=FORMAT,
            step=step,
            committed=step,
            seed=1,
            trainers=1,
            weights_digest="",
            topology_digest="",
            ledger={},
            facts={},
            files={"weights.json": sha},
        )
        return checkpoints.complete(unfinished, manifest)

    def note(self, start: int, steps: range, number: int = 1) -> None:
        """Shard 0 has committed these."""
        writer = Writer(self.run.journal / Part(0, start, number).name)
        for step in steps:
            writer.append(msgspec.msgpack.encode(Committed(step=step, whole=True, record={})))
        writer.close()


@pytest.fixture
def hosts(tmp_path: Path) -> Hosts:
    made = Hosts(tmp_path)
    with Ledger(made.run.ledger) as ledger:
        ledger.note_in(made.run.journal).join()
        ledger.bind_to({"seed": "1"})
    return made


def contents(run: RunDir) -> dict[str, bytes]:
    skipped = {"format", "sockets", "ledger.sqlite"}
    return {
        str(path.relative_to(run.path)): path.read_bytes()
        for path in run.path.rglob("*")
        if path.is_file() and path.name not in skipped
    }


def test_the_copy_comes_to_be_what_is_there(hosts: Hosts):
    hosts.save(20)
    hosts.note(20, range(21, 24))
    hosts.run.metrics.write_text('{"step": 1}\n')
    hosts.until_quiet()
    assert contents(hosts.copy) == contents(hosts.run)
    assert hosts.standby.step == 23
    hosts.standby._ask_what_is_there()
    hosts.shelf.hear(hosts.wire.up.pop())
    assert hosts.wire.gauges["standby vault-0: step"] == 23


def test_one_that_starts_anew_has_what_it_had(hosts: Hosts):
    hosts.save(20)
    hosts.note(20, range(21, 24))
    hosts.until_quiet()
    hosts.begin()
    assert hosts.standby.step == 23
    hosts.note(23, range(24, 26), number=2)
    hosts.until_quiet()
    assert hosts.standby.step == 25


def test_steps_that_the_run_has_taken_back_do_not_count(hosts: Hosts):
    hosts.save(20)
    hosts.note(20, range(21, 26))
    hosts.until_quiet()
    assert hosts.standby.step == 25
    path = hosts.run.journal / Part(0, 20, 1).name
    path.write_bytes(path.read_bytes()[: len(path.read_bytes()) // 5 * 3])
    hosts.until_quiet()
    assert hosts.standby.step == 23
    assert contents(hosts.copy) == contents(hosts.run)


def test_without_a_checkpoint_or_a_ledger_nothing_can_be_resumed(hosts: Hosts):
    hosts.note(20, range(21, 24))
    hosts.until_quiet()
    assert hosts.standby.step == -1
    assert "not complete" in guest.held(-1)


def test_a_damaged_checkpoint_is_copied_until_it_is_whole(
    hosts: Hosts, capsys: pytest.CaptureFixture[str]
):
    path = hosts.save(20) / "weights.json"
    whole = path.read_bytes()
    path.write_bytes(b"x" * len(whole))
    for _ in range(30):
        hosts.clock.advance(0.06)
        if hosts.standby._question is None:
            hosts.standby._ask_what_is_there()
        for item in hosts.wire.up[:]:
            hosts.wire.up.remove(item)
            hosts.shelf.hear(item)
        for item in hosts.wire.down[:]:
            hosts.wire.down.remove(item)
            hosts.standby._hear(item)
    assert "copied again" in capsys.readouterr().err
    assert not checkpoints.listing(hosts.copy.checkpoints)
    path.write_bytes(whole)
    hosts.until_quiet()
    assert hosts.standby.step == 20


def test_older_checkpoints_and_steps_go(hosts: Hosts):
    hosts.save(20)
    hosts.note(20, range(21, 41))
    hosts.until_quiet()
    hosts.save(40)
    hosts.note(40, range(41, 43))
    hosts.until_quiet()
    assert [path.name for path in checkpoints.listing(hosts.copy.checkpoints)] == ["step-00000040"]
    parts = journal.parts_of(path.name for path in hosts.copy.journal.iterdir())
    assert [part.start for part in parts] == [40]
    assert hosts.standby.step == 42


@pytest.mark.parametrize(
    "path", ["keys/server.json", "../outside", "checkpoints/step-00000001/../../keys/server.json"]
)
def test_nothing_else_is_handed_out(hosts: Hosts, path: str):
    (hosts.run.keys / "server.json").write_text("secret")
    hosts.wire.send("standby", m.PieceRequest(path=path, offset=0, size=100))
    hosts.shelf.hear(hosts.wire.up.pop())
    assert bytes(hosts.wire.down.pop().frames[0]) == b""


def test_what_nobody_asked_for_is_not_written(hosts: Hosts):
    hosts.wire.send(
        "standby", m.Piece(path="topology.toml", offset=0), to="standby/vault-0", frames=(b"x",)
    )
    hosts.standby._hear(hosts.wire.down.pop())
    assert not list(hosts.copy.path.glob("topology*"))


# --- The directory --------------------------------------------------------------------------------


def key_of(server: str) -> KeyFile:
    return KeyFile(
        role="standby",
        label="vault",
        endpoint="tcp://127.0.0.1:1",
        server_key=server,
        public_key="p" * 40,
        secret_key="s" * 40,
    )


def test_a_directory_is_one_runs(tmp_path: Path):
    opened = guest._opened
    _, lock = opened(key_of("a" * 40), tmp_path / "copy")
    with pytest.raises(Refused, match="in use"):
        opened(key_of("a" * 40), tmp_path / "copy")
    os.close(lock)
    with pytest.raises(Refused, match="another run"):
        opened(key_of("b" * 40), tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy")
    rundir.create(tmp_path / "copy")
    with pytest.raises(RunDirError, match="in use"):
        opened(key_of("a" * 40), tmp_path / "copy")


def test_status_says_how_far_it_is():
    gauges = {"standby vault-0: step": 40.0, "standby vault-0: lacking_bytes": 2.5e6}
    actors: list[dict[str, Any]] = [{"role": "loader", "gauges": gauges}]
    assert _standbys(actors, 42) == ["standby vault-0: holds step 40, 2 behind, 2.5 MB to come"]
    gauges["standby vault-0: silent_s"] = 31.0
    assert _standbys(actors, 42)[0].endswith("silent for 31 s")
    gauges["standby vault-0: step"] = -1.0
    assert "next checkpoint" in _standbys(actors, 42)[0]
    assert _standbys([], 42) == []
