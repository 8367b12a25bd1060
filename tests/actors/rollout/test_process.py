"""A whole rollout generator on real sockets, between made-up shards, loader and recorder."""

import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from actors import rundir, topology
from actors.data.tokenizer import train
from actors.parameters import Parameter, parameters, partition
from actors.published import codec_of, digest, published_tensors
from actors.rollout import process as rollout_process
from actors.rollout.process import main
from actors.seat import Seat
from actors.topology import Topology
from kernels.model.config import ModelConfig
from kernels.model.model import LoopLM
from kernels.precision.packing import pack_array
from protocol import messages as m
from protocol.channels import endpoint
from protocol.clock import MonotonicClock
from protocol.messages import Role
from protocol.tensors import Frames
from protocol.transport import Node, Received

LOCAL = topology.TOPOLOGIES / "local.toml"
SHARDS = 2
PROMPT = "def total(items):\n"
SETTINGS = (
    "model.dim=32",
    "model.layers=1",
    "model.heads=2",
    "model.loops=2",
    "model.vocab_size=300",
    "model.seq_len=64",
    f"actors.optimizer_shards={SHARDS}",
    "rollout.group=3",
    "rollout.prompts=2",
    "rollout.max_new_tokens=6",
    "rollout.max_version_lag=2",
    "rollout.share=1.0",
    "supervision.heartbeat_s=0.05",
)


def published(spec: Topology, version: int) -> dict[str, dict[str, np.ndarray[Any, Any]]]:
    """Weights of a version: another initialisation for each."""
    model = LoopLM(ModelConfig.of(topology.to_dict(spec)["model"]), "codes")
    model.initialise(seed=version)
    layers = model.ternary_layers()
    out: dict[str, dict[str, np.ndarray[Any, Any]]] = {}
    for parameter in parameters(spec.model):
        if parameter.kind == "ternary":
            layer = layers[parameter.name]
            packed = pack_array(layer.codes.numpy())
            scale = np.array(float(layer.scale), np.float32)
            out[parameter.name] = {"packed": packed, "scale": scale}
        else:
            dense = model.get_parameter(parameter.name).detach().numpy().copy()
            out[parameter.name] = {"dense": dense}
    return out


class Graph:
    """What the rollout generator sees of a run. Everything happens in the test's own thread."""

    def __init__(self, directory: Path) -> None:
        self.run = rundir.create(directory / "run")
        self.topology = topology.decode(LOCAL.read_text(), source=str(LOCAL), overrides=SETTINGS)
        self.run.topology.write_text(topology.to_toml(self.topology))
        self.seat = Seat(
            run_dir=str(self.run.path),
            run_id=self.run.run_id,
            socket_dir=str(self.run.make_socket_dir()),
            name="rollout/0",
            role="rollout",
            incarnation=1,
        )
        self.step = 0
        self.weights = {0: published(self.topology, 0)}
        self.owned = partition(parameters(self.topology.model), SHARDS)
        self.tokenizer = train([PROMPT * 20 + "    return sum(items)\n" * 20], 300)
        self.damage = 0  # parts still to be sent with a wrong digest
        self.reports: list[m.RolloutReport] = []
        self.records: list[dict[str, Any]] = []
        self.beats: list[m.Beat] = []
        self.draws: list[int] = []
        self.nodes = {
            name: self.node(name, role, channel)
            for name, role, channel in (
                ("supervisor", "supervisor", "control"),
                ("loader", "loader", "batches"),
                ("recorder", "recorder", "telemetry"),
                *(
                    (f"optimizer_shard/{k}", "optimizer_shard", f"exchange/{k}")
                    for k in range(SHARDS)
                ),
            )
        }
        self.exit_code = -1
        self.thread = threading.Thread(target=self._main)

    def node(self, name: str, role: str, channel: str) -> Node:
        node = Node(name, msgspec.convert(role, Role), 1, MonotonicClock())
        node.bind(channel, endpoint(self.seat.socket_dir, channel))
        return node

    def _main(self) -> None:
        self.exit_code = main(self.seat)

    def commit(self, step: int) -> None:
        """The run comes to `step`; the newest two versions are kept."""
        self.step = step
        self.weights[step] = published(self.topology, step)
        self.weights = {v: w for v, w in self.weights.items() if v >= step - 1}

    def turn(self) -> None:
        for name, node in self.nodes.items():
            for got in node.poll(0.002):
                self.answer(name, node, got)

    def answer(self, name: str, node: Node, got: Received) -> None:
        match got.message:
            case m.Beat() as beat:
                self.beats.append(beat)
                node.send("control", m.Welcome(peers={"rollout/0": 1}), to="rollout/0")
            case m.MetricsRequest(after=after):
                records = tuple({"step": step} for step in range(after + 1, self.step + 1))
                node.send(got.channel, m.Metrics(records=records), to="rollout/0")
            case m.CodesRequest(version=version):
                self.send_codes(int(name.partition("/")[2]), node, version)
            case m.PromptRequest(count=count, draw=draw):
                self.draws.append(draw)
                prompts = m.Prompts(
                    draw=draw, texts=(PROMPT,) * count, names=tuple(f"f{n}" for n in range(count))
                )
                node.send("batches", prompts, to="rollout/0", frames=[self.tokenizer])
            case m.RolloutReport() as report:
                self.reports.append(report)
            case m.LogRecord(record=record):
                self.records.append(record)
            case _:
                pass

    def send_codes(self, shard: int, node: Node, version: int) -> None:
        if not self.weights:
            return
        version = version if version in self.weights else max(self.weights)
        for index, parameter in enumerate(self.owned[shard]):
            arrays = self.weights[version][parameter.name]
            frames = Frames()
            refs = tuple(frames.add(arrays[spec.name]) for spec in published_tensors(parameter))
            codes = m.Codes(
                version=version,
                param=parameter.name,
                index=index,
                count=len(self.owned[shard]),
                codec=codec_of(parameter),
                digest=self.digest(parameter, arrays),
                tensors=refs,
            )
            node.send(f"exchange/{shard}", codes, to="rollout/0", frames=frames.parts)

    def digest(self, parameter: Parameter, arrays: dict[str, np.ndarray[Any, Any]]) -> str:
        if self.damage:
            self.damage -= 1
            return "00" * 32
        return digest(parameter, arrays).hex()

    def until(self, what: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 30
        while not what():
            assert time.monotonic() < deadline, f"it did not come to that; {self.records}"
            assert self.thread.is_alive(), f"the rollout has ended; {self.records}"
            self.turn()

    def stop(self) -> None:
        self.until(lambda: bool(self.beats))
        self.nodes["supervisor"].send("control", m.Stop(reason="t", within_s=5.0), to="rollout/0")
        while self.thread.is_alive():
            self.turn()
        self.thread.join()
        self.turn()

    def events(self, event: str) -> list[dict[str, Any]]:
        return [record for record in self.records if record["event"] == event]


@pytest.fixture
def graph(monkeypatch: pytest.MonkeyPatch) -> Iterator[Graph]:
    monkeypatch.setattr(rollout_process, "NEWS_S", 0.0)
    threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory(prefix="roll-") as directory:
        graph = Graph(Path(directory))
        graph.thread.start()
        yield graph
        if graph.thread.is_alive():
            graph.stop()
        for node in graph.nodes.values():
            node.close(0)
        graph.run.remove_socket_dir()
    torch.set_num_threads(threads)


def test_groups_are_generated_scored_and_reported(graph: Graph):
    graph.until(lambda: len(graph.reports) >= 4)
    graph.stop()
    assert graph.exit_code == 0
    for report in graph.reports:
        assert report.version == 0
        assert len(report.rewards) == report.completions == 3
        assert set(report.rewards) <= {0.0, 1.0}
        assert sum(report.rewards) <= report.compiled <= 3
        assert 3 <= report.tokens <= 18
        assert report.prompt in {"f0", "f1"}
    assert len(set(graph.draws)) == len(graph.draws), "a prompt was drawn twice"
    (scored,) = graph.events("version scored")
    assert scored["low"] <= scored["compile_rate"] <= scored["high"]
    assert sum(scored["reasons"].values()) == scored["completions"]


def test_weights_are_replaced_only_when_they_lag_too_far(graph: Graph):
    graph.until(lambda: len(graph.reports) >= 2)
    graph.commit(2)
    seen = len(graph.reports)
    graph.until(lambda: len(graph.reports) >= seen + 6)
    assert {report.version for report in graph.reports} == {0}
    graph.commit(3)
    graph.until(lambda: graph.reports[-1].version == 3)
    assert [one["version"] for one in graph.events("new weights")] == [0, 3]


def test_damaged_parts_are_asked_for_again(graph: Graph):
    graph.damage = 3
    graph.until(lambda: bool(graph.reports))
    (taken,) = graph.events("new weights")
    assert taken["refused"] == 3


def test_the_beat_shows_version_rate_and_share(graph: Graph):
    graph.until(lambda: any("compile_rate" in beat.gauges for beat in graph.beats))
    gauges = next(beat.gauges for beat in graph.beats if "compile_rate" in beat.gauges)
    assert gauges["version"] == 0.0
    assert gauges["compile_rate_low"] <= gauges["compile_rate"] <= gauges["compile_rate_high"]
    assert gauges["share"] > 0.0
    assert gauges["lost_groups"] == 0.0


def test_without_a_scorer_groups_are_dropped_not_scored(
    graph: Graph, monkeypatch: pytest.MonkeyPatch
):
    graph.until(lambda: len(graph.reports) >= 1)
    monkeypatch.setattr(rollout_process, "PAUSE_S", 0.05)
    monkeypatch.setattr(rollout_process.Judge, "_ensure", unavailable)
    graph.until(lambda: len(graph.events("groups dropped unscored")) >= 2)
    count = len(graph.reports)
    graph.until(lambda: len(graph.events("groups dropped unscored")) >= 4)
    assert len(graph.reports) == count


def unavailable(judge: object) -> None:
    raise rollout_process.ScorerUnavailable("no processes left")


def test_a_stop_while_waiting_for_weights_is_heard(graph: Graph):
    graph.weights.clear()  # before the first turn: nobody has answered yet
    graph.until(lambda: any("snapshot" in beat.waiting_for for beat in graph.beats))
    began = time.monotonic()
    graph.stop()
    assert time.monotonic() - began < 3.0
    assert (graph.exit_code, graph.reports) == (0, [])
