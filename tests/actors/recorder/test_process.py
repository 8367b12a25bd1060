"""A whole recorder on real sockets, between a made-up supervisor, shard and trainer."""

import json
import shutil
import socket
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from actors import rundir, topology
from actors.recorder.process import main
from actors.rundir import RunDir
from actors.seat import Seat
from protocol import messages as m
from protocol.channels import endpoint
from protocol.clock import MonotonicClock
from protocol.messages import Role
from protocol.transport import Node

LOCAL = topology.TOPOLOGIES / "local.toml"


def record(step: int) -> dict[str, Any]:
    return {"step": step, "loss": 5.0, "tokens": 100, "step_s": 0.5, "up_bytes": 7}


class Graph:
    """What the recorder sees of a run."""

    def __init__(self, run: RunDir, port: int) -> None:
        self.run = run
        overrides = (f"recorder.prometheus_port={port}", "supervision.heartbeat_s=0.05")
        text = topology.to_toml(
            topology.decode(LOCAL.read_text(), source=str(LOCAL), overrides=overrides)
        )
        run.topology.write_text(text)
        self.seat = Seat(
            run_dir=str(run.path),
            run_id=run.run_id,
            socket_dir=str(run.make_socket_dir()),
            name="recorder",
            role="recorder",
            incarnation=1,
        )
        self.committed = [record(1), record(2)]
        self.beats: list[m.Beat] = []
        self.asked_after: list[int] = []
        self.nodes = [
            self.node("supervisor", "supervisor", "control"),
            self.node("optimizer_shard/0", "optimizer_shard", "exchange/0"),
        ]
        self.exit_code = -1
        self.thread = threading.Thread(target=self._main)

    def node(self, name: str, role: Role, binds: str) -> Node:
        node = Node(name, role, 1, MonotonicClock())
        node.bind(binds, endpoint(self.seat.socket_dir, binds))
        return node

    def speaker(self, name: str, role: Role, incarnation: int = 1) -> Node:
        node = Node(name, role, incarnation, MonotonicClock())
        node.connect("telemetry", endpoint(self.seat.socket_dir, "telemetry"))
        self.nodes.append(node)
        return node

    def _main(self) -> None:
        self.exit_code = main(self.seat)

    def turn(self) -> None:
        """Answer the recorder as supervisor and shard would."""
        for node in self.nodes[:2]:
            for got in node.poll(0.01):
                match got.message:
                    case m.Beat() as beat:
                        self.beats.append(beat)
                        node.send("control", m.Welcome(peers={"recorder": 1}), to="recorder")
                    case m.StatusRequest():
                        node.send("control", m.Status(document=STATUS), to="recorder")
                    case m.MetricsRequest(after=after):
                        self.asked_after.append(after)
                        new = tuple(r for r in self.committed if r["step"] > after)
                        node.send("exchange/0", m.Metrics(records=new), to="recorder")
                    case _:
                        pass

    def until(self, what: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 20
        while not what():
            assert time.monotonic() < deadline, "it did not come to that"
            self.turn()

    def stop(self) -> None:
        self.until(lambda: bool(self.beats))
        self.nodes[0].send("control", m.Stop(reason="test", within_s=5.0), to="recorder")
        self.until(lambda: not self.thread.is_alive())
        self.thread.join()


STATUS = json.dumps(
    {
        "run": "x",
        "queues": {"fast": 3, "slow": 0, "batches": 2},
        "actors": [
            {"name": "trainer/0", "role": "trainer", "state": "running", "restarts": 2, "pid": 1}
        ],
    }
)


@pytest.fixture
def graph() -> Iterator[Graph]:
    directory = Path(tempfile.mkdtemp(prefix="rec-"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    graph = Graph(rundir.create(directory / "run"), port)
    graph.thread.start()
    yield graph
    if graph.thread.is_alive():
        graph.stop()
    for node in graph.nodes:
        node.close(0)
    graph.run.remove_socket_dir()
    shutil.rmtree(directory)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def say(node: Node, event: str) -> None:
    log = {"timestamp": "2026-11-23T08:00:00+00:00", "level": "info", "event": event}
    node.send("telemetry", m.LogRecord(record={**log, "actor": node.name, "incarnation": 1}))


def report(*rewards: float, version: int = 4) -> m.RolloutReport:
    return m.RolloutReport(
        version=version,
        draw=1,
        prompt="def f():",
        rewards=rewards,
        compiled=len(rewards),
        completions=len(rewards),
        tokens=9,
        seconds=0.1,
    )


def test_everything_said_is_written_and_a_stop_loses_nothing(graph: Graph):
    trainer, rollout = graph.speaker("trainer/0", "trainer"), graph.speaker("rollout/0", "rollout")
    graph.until(lambda: len(lines(graph.run.metrics)) == 2)
    for number in range(50):
        say(trainer, f"event {number}")
    rollout.send("telemetry", report(1.0, 0.0))
    rollout.send("telemetry", report(1.0, 1.0))
    graph.committed.append(record(3))
    graph.until(lambda: len(lines(graph.run.metrics)) == 3)
    graph.stop()
    assert graph.exit_code == 0
    assert [one["event"] for one in lines(graph.run.log_of("trainer/0"))] == [
        f"event {number}" for number in range(50)
    ]
    assert lines(graph.run.metrics) == graph.committed
    newest = lines(graph.run.rollouts)[-1]
    assert (newest["version_completions"], newest["compile_rate"]) == (4, 0.75)
    assert newest["compile_rate_low"] < 0.75 < newest["compile_rate_high"]
    own = [one["event"] for one in lines(graph.run.log_of("recorder"))]
    assert (own[0], own[-1]) == ("Prometheus endpoint", "recorded")


def test_a_new_life_asks_for_all_and_writes_each_step_once(graph: Graph):
    graph.until(lambda: len(lines(graph.run.metrics)) == 2)
    graph.stop()
    graph.asked_after.clear()
    graph.beats.clear()
    graph.committed.append(record(3))
    graph.thread = threading.Thread(target=graph._main)
    graph.thread.start()
    graph.until(lambda: len(lines(graph.run.metrics)) == 3)
    graph.until(lambda: len(graph.asked_after) > 1)
    assert graph.asked_after[0] == 0
    assert graph.asked_after[-1] == 3
    assert lines(graph.run.metrics) == graph.committed


def test_figures_are_served_to_prometheus(graph: Graph):
    rollout = graph.speaker("rollout/0", "rollout")
    rollout.send("telemetry", report(1.0, 0.0))
    port = topology.decode(graph.run.topology.read_text(), source="x").recorder.prometheus_port
    page: list[str] = []

    def shown() -> bool:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
            page[:] = answer.read().decode().splitlines()
        return "trireme_queue_length" in "\n".join(page) and "trireme_step 2.0" in page

    graph.until(lambda: bool(lines(graph.run.log_of("recorder"))))
    graph.until(shown)
    for line in (
        "trireme_tokens_per_second 200.0",
        "trireme_tokens_total 200.0",
        'trireme_queue_length{queue="fast"} 3.0',
        'trireme_actor_restarts_total{actor="trainer/0",role="trainer"} 2.0',
        'trireme_compile_rate{bound="value"} 0.5',
        "trireme_rollout_version 4.0",
        "trireme_telemetry_lost_total 0.0",
    ):
        assert line in page, line


def test_a_run_directory_that_vanishes_is_survived_and_counted(graph: Graph):
    trainer = graph.speaker("trainer/0", "trainer")
    graph.until(lambda: len(lines(graph.run.metrics)) == 2)
    shutil.rmtree(graph.run.logs)
    graph.beats.clear()
    say(trainer, "lost")
    graph.until(lambda: any(beat.gauges.get("lost_lines") for beat in graph.beats))
    graph.run.logs.mkdir()
    say(trainer, "kept")
    graph.until(lambda: bool(lines(graph.run.log_of("trainer/0"))))
    assert [one["event"] for one in lines(graph.run.log_of("trainer/0"))] == ["kept"]
