"""A loader and its workers as real processes, with a supervisor and trainers played by the test."""

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from actors import rundir, topology
from actors.data.database import newest_life
from actors.rundir import RunDir
from actors.seat import Seat
from actors.topology import DataSpec, Topology
from protocol import messages as m
from protocol import tensors
from protocol.channels import endpoint
from protocol.clock import MonotonicClock
from protocol.messages import Message, Role
from protocol.transport import Node, Received

ROOT = Path(__file__).parents[3]
LOCAL = ROOT / "deploy" / "topologies" / "local.toml"
Batch = tuple[list[list[int]], list[list[int]], int]


def small(data: DataSpec, **changes: Any) -> Topology:
    """The smallest topology: rows of 33 tokens, two trainers of two rows."""
    base = topology.decode(LOCAL.read_text(), source=str(LOCAL))
    replace = msgspec.structs.replace
    wanted = replace(
        base,
        data=data,
        steps=1000,
        model=replace(base.model, vocab_size=300, seq_len=32),
        train=replace(base.train, rows_per_trainer=2),
        actors=replace(base.actors, trainers=2, fast_workers=1, slow_workers=1, rollouts=0),
        rollout=replace(base.rollout, max_new_tokens=8),
    )
    wanted = replace(wanted, **changes)
    return topology.decode(topology.to_toml(wanted), source="small")


class Graph:
    """Processes under test, and the test's own place among them."""

    def __init__(self, path: Path, wanted: Topology) -> None:
        self.run = RunDir(path)
        if not (path / "format").exists():
            rundir.create(path)
            self.run.topology.write_text(topology.to_toml(wanted))
        self.wanted = wanted
        self.sockets = tempfile.mkdtemp(prefix="trireme-test-")
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.pools: dict[str, str] = {}
        self.mischief = False
        self.mends = False  # whether those that end by themselves are replaced at once
        self.notes = path / "notes"  # which worker did which stage of which sample
        self.lives: dict[str, int] = {}
        if self.run.ledger.exists():  # a resumed run counts on
            self.lives["loader"] = newest_life(self.run.ledger)
        self.said: list[Received] = []
        self.supervisor = Node("supervisor", "supervisor", 1, MonotonicClock())
        self.supervisor.bind("control", endpoint(self.sockets, "control"))
        self.recorder = Node("recorder", "recorder", 1, MonotonicClock())
        self.recorder.bind("telemetry", endpoint(self.sockets, "telemetry"))
        self.peers: dict[str, Node] = {}
        self.gauges: dict[str, dict[str, float]] = {}
        self.rss_bytes: dict[str, int] = {}
        self.records: list[dict[str, Any]] = []
        self.goodbyes: dict[str, str] = {}

    # --- processes --------------------------------------------------------------------------------

    def start(self, name: str, *, pool: str = "fast") -> None:
        """Start an actor, or its next life."""
        self.pools[name] = pool
        role: Role = "loader" if name == "loader" else "data_worker"
        module = "actors.data.loader" if role == "loader" else "actors.data.worker"
        self.lives[name] = self.lives.get(name, 0) + 1
        seat = Seat(
            run_dir=str(self.run.path),
            run_id=self.run.run_id,
            socket_dir=self.sockets,
            name=name,
            role=role,
            incarnation=self.lives[name],
            pool=pool,
        )
        code = (
            f"import sys, msgspec; from actors.seat import Seat; from {module} import main;"
            + (f"from tests.actors.data.mischief import arm; arm({str(self.notes)!r});")
            * self.mischief
            + "sys.exit(main(msgspec.json.decode(sys.argv[1], type=Seat)))"
        )
        with self.run.stderr_of(name).open("ab") as output:
            self.processes[name] = subprocess.Popen(
                [sys.executable, "-c", code, msgspec.json.encode(seat).decode()],
                cwd=ROOT,
                stderr=output,
            )
        self.tell(m.PeerUp(name=name, incarnation=self.lives[name]))

    def kill(self, name: str, number: int = signal.SIGKILL) -> None:
        """End a life and tell the others, as a supervisor does."""
        self.processes[name].send_signal(number)
        self.processes[name].wait(10)
        self.tell(m.PeerDown(name=name, incarnation=self.lives[name], reason="was killed"))

    def tell(self, message: Message) -> None:
        """Say something to every actor that has been heard."""
        for name in self.processes:
            self.supervisor.send("control", message, to=name)

    def stop(self, name: str) -> int:
        """Ask an actor to leave; its exit code."""
        self.supervisor.send("control", m.Stop(reason="test", within_s=5.0), to=name)
        self.until(lambda: self.processes[name].poll() is not None, f"{name} to leave")
        return self.processes[name].returncode

    def stderr(self, name: str) -> str:
        """What an actor has printed."""
        return self.run.stderr_of(name).read_text()

    # --- the test's own part ----------------------------------------------------------------------

    def peer(self, name: str) -> Node:
        """A trainer or rollout played by the test."""
        if name not in self.peers:
            role: Role = "trainer" if name.startswith("trainer") else "rollout"
            node = self.peers[name] = Node(name, role, 1, MonotonicClock())
            node.connect("batches", endpoint(self.sockets, "batches"))
        return self.peers[name]

    def pump(self, timeout_s: float = 0.01) -> None:
        """Play the supervisor and the recorder for a moment."""
        for received in self.supervisor.poll(timeout_s):
            match received.message:
                case m.Beat(gauges=gauges, rss_bytes=rss_bytes):
                    self.gauges[received.sender] = gauges
                    self.rss_bytes[received.sender] = rss_bytes
                    welcome = m.Welcome(peers=dict(self.lives))
                    self.supervisor.send("control", welcome, to=received.sender)
                case m.Goodbye(failed=failed):
                    self.goodbyes[received.sender] = failed
                case _:
                    self.said.append(received)
        for received in self.recorder.drain():
            if isinstance(received.message, m.LogRecord):
                self.records.append(received.message.record)

    def gauge(self, actor: str, name: str) -> float | None:
        """What that actor's newest beat says; None until it says it."""
        return self.gauges.get(actor, {}).get(name)

    def replace_the_dead(self) -> int:
        """What a supervisor does about workers that ended by themselves; how many did."""
        dead = [name for name, process in self.processes.items() if process.poll() is not None]
        for name in dead:
            self.tell(m.PeerDown(name=name, incarnation=self.lives[name], reason="died"))
            self.start(name, pool=self.pools[name])
        return len(dead)

    def until(self, true: Callable[[], bool], what: str, timeout_s: float = 80.0) -> None:
        """Play on until something holds."""
        deadline = time.monotonic() + timeout_s
        while not true():
            assert time.monotonic() < deadline, f"waited {timeout_s} s for {what}\n{self.story()}"
            if self.mends:
                self.replace_the_dead()
            tracebacks = [self.stderr(name) for name in self.processes]
            assert "Traceback" not in "".join(tracebacks), self.story()
            self.pump()

    def last_note(self, name: str) -> tuple[str, str]:
        """File and stage that an actor under mischief began last; ("", "") when none."""
        if not self.notes.exists():
            return "", ""
        with self.notes.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - 4096))
            lines = file.read().decode().splitlines()
        pid = str(self.processes[name].pid)
        found = [words for line in lines if len(words := line.split()) == 3 and words[2] == pid]
        return (found[-1][0], found[-1][1]) if found else ("", "")

    def ask(self, step: int) -> None:
        """All ranks ask for the batch of a step, and do not wait for it."""
        for rank in range(self.wanted.actors.trainers):
            node = self.peer(f"trainer/{rank}")
            node.send("batches", m.BatchRequest(step=step, rank=rank))
            node.drain()

    def story(self) -> str:
        """What is known about a graph that does not do what it should."""
        printed = {name: self.stderr(name)[-2000:] for name in self.processes}
        return json.dumps([self.gauges, self.goodbyes, self.records[-20:], printed], indent=1)

    def batch(self, step: int, rank: int, timeout_s: float = 40.0) -> Batch:
        """Ask for a batch, patiently, as a trainer does: tokens, documents, text bytes."""
        node = self.peer(f"trainer/{rank}")
        found: list[Batch] = []
        asked_at = 0.0

        def here() -> bool:
            nonlocal asked_at
            if time.monotonic() - asked_at > 0.5:
                asked_at = time.monotonic()
                node.send("batches", m.BatchRequest(step=step, rank=rank))
            for received in node.drain():
                match received.message:
                    case m.Batch(step=s, rank=r) as said if (s, r) == (step, rank):
                        tokens = tensors.read(said.tokens, received.frames).tolist()
                        documents = tensors.read(said.documents, received.frames).tolist()
                        found.append((tokens, documents, said.text_bytes))
                    case _:
                        pass
            return bool(found)

        self.until(here, f"batch {step} of rank {rank}", timeout_s)
        return found[0]

    def batches(self, steps: range) -> list[Batch]:
        """The batches of all ranks for these steps."""
        ranks = range(self.wanted.actors.trainers)
        return [self.batch(step, rank) for step in steps for rank in ranks]

    def prompts(self, draw: int, count: int = 2) -> m.Prompts:
        """Prompts, as a rollout asks for them."""
        node = self.peer("rollout/0")
        node.send("batches", m.PromptRequest(count=count, draw=draw))
        found: list[m.Prompts] = []

        def here() -> bool:
            messages = [received.message for received in node.drain()]
            found.extend(message for message in messages if isinstance(message, m.Prompts))
            return bool(found)

        self.until(here, f"prompts {draw}")
        return found[0]

    def sql(self, query: str) -> list[tuple[Any, ...]]:
        """What the ledger says."""
        with contextlib.closing(sqlite3.connect(self.run.ledger)) as db:
            return db.execute(query).fetchall()

    def close(self) -> None:
        """End everything that was started, and only that."""
        for process in self.processes.values():
            if process.poll() is None:
                process.kill()
            process.wait(10)
        for node in (self.supervisor, self.recorder, *self.peers.values()):
            node.close(0)
        for entry in Path(self.sockets).iterdir():
            entry.unlink()
        Path(self.sockets).rmdir()


@contextlib.contextmanager
def graph(
    path: Path, wanted: Topology, *, workers: int = 1, mischief: bool = False
) -> Generator[Graph]:
    """A loader with that many fast workers, and one slow one. `mischief`: see mischief.py."""
    made = Graph(path, wanted)
    made.mischief = mischief
    try:
        made.start("loader")
        for index in range(workers):
            made.start(f"data_worker/{index}")
        made.start(f"data_worker/{workers}", pool="slow")
        yield made
    finally:
        made.close()


def exactly_once(ledger: Path) -> None:
    """Assert that spans tile documents without gap or overlap.

    Only the document that a lane was at last may be cut short.
    """
    with contextlib.closing(sqlite3.connect(ledger)) as db:
        spans: dict[tuple[int, int], list[tuple[int, int]]] = {}
        rows = db.execute(
            "SELECT epoch, sample, start, length, rank, row FROM delivered "
            "ORDER BY step, rank, row, offset"
        ).fetchall()
        lengths = {
            (e, s): n for e, s, n in db.execute("SELECT epoch, sample, tokens FROM documents")
        }
    last: dict[tuple[int, int], tuple[int, int]] = {}
    for epoch, sample, start, length, *lane in rows:
        spans.setdefault((epoch, sample), []).append((start, length))
        last[lane[0], lane[1]] = epoch, sample
    for key, found in spans.items():
        starts, counts = np.array(sorted(found)).T
        assert starts[0] == 0
        assert (starts[1:] == np.cumsum(counts)[:-1]).all(), key
        assert counts.sum() == lengths[key] or key in last.values(), key
