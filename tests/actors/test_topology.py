"""Topology files: those that come with the code, decoding, emulation, copies."""

from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors import topology
from actors.parameters import unique_count
from actors.topology import TopologyError

# hardware.md's figures: model, sequence, batch (all GPUs), accumulation, schedule, rates, workers.
FIGURES: dict[str, dict[str, Any]] = {
    "config_a": {
        "model": (2048, 24, 16, 4, 8192),
        "batch": (32, 4),
        "schedule": (2_000, 80_000, 18_000),
        "adamw": (3e-4, 3e-5, 5.0),
        "muon": (0.02, 0.95, 0.01),
        "entropy": 0.05,
        "workers": 64,
        "billions": 1.31,
        "machine": (1, 64, 4),
    },
    "config_b": {
        "model": (1536, 20, 12, 4, 4096),
        "batch": (4, 8),
        "schedule": (1_000, 120_000, 29_000),
        "adamw": (4e-4, 4e-5, 4.0),
        "muon": (0.025, 0.95, 0.01),
        "entropy": 0.08,
        "workers": 8,
        "billions": 0.64,
        "machine": (2, 8, 1),
    },
    "config_c": {
        "model": (1792, 22, 14, 4, 6144),
        "batch": (24, 2),
        "schedule": (1_500, 96_000, 22_500),
        "adamw": (3.5e-4, 3.5e-5, 4.5),
        "muon": (0.022, 0.95, 0.01),
        "entropy": 0.06,
        "workers": 112,
        "billions": 0.94,
        "machine": (1, 112, 16),
    },
}


def test_five_topologies_come_with_the_code():
    assert topology.names() == ["7b", "config_a", "config_b", "config_c", "local"]


@pytest.mark.parametrize("name", FIGURES)
def test_topologies_have_the_figures_of_their_machines(name: str):
    t, figures = topology.load(name), FIGURES[name]
    model, dense, matrices = t.model, t.optimizer.dense, t.optimizer.matrices
    assert (model.dim, model.layers, model.heads, model.loops, model.seq_len) == figures["model"]
    batch = t.train.rows_per_trainer * t.actors.trainers
    assert (batch, t.train.accumulation) == figures["batch"]
    assert (t.schedule.warmup, t.schedule.stable, t.schedule.decay) == figures["schedule"]
    assert t.steps == sum(figures["schedule"])
    assert (dense.kind, dense.lr, dense.min_lr, dense.clip) == ("adamw", *figures["adamw"])
    assert matrices.kind == "muon"
    assert (matrices.lr, matrices.momentum, matrices.weight_decay) == figures["muon"]
    assert t.train.exit_entropy_weight == figures["entropy"]
    assert t.actors.fast_workers + t.actors.slow_workers == figures["workers"]
    assert (t.hardware.gpus, t.hardware.cores, t.hardware.numa_nodes) == figures["machine"]
    assert model.vocab_size == 50257
    assert model.activation_checkpointing
    assert abs(unique_count(model) / 1e9 - figures["billions"]) < 0.01


@pytest.mark.parametrize("name", topology.names())
def test_a_topology_survives_being_written_and_read(name: str):
    t = topology.load(name)
    assert topology.decode(topology.to_toml(t), source="copy") == t


@pytest.mark.parametrize("name", FIGURES)
def test_an_emulated_copy_is_complete_and_stays_as_it_is(name: str):
    t = topology.load(name)
    small = topology.emulate(t)
    assert small.emulated
    assert small.emulation is None
    assert small.model.dim == 128
    assert small.steps == 250
    assert small.actors.trainers == t.actors.trainers  # one CPU trainer in place of each GPU
    assert small.name == t.name
    assert topology.emulate(small) == small
    assert topology.decode(topology.to_toml(small), source="copy") == small


def test_emulation_runs_no_longer_than_asked_for():
    assert topology.emulate(topology.load("config_b", ("steps=30",))).steps == 30


def test_a_topology_without_emulation_says_that_it_has_none():
    with pytest.raises(TopologyError, match=r"local: has no \[emulation\] table"):
        topology.emulate(topology.load("local"))


def test_settings_are_toml_values_or_bare_strings():
    t = topology.load(
        "local",
        (
            "model.dim=64",
            " model.ternary = false",
            "optimizer.matrices.lr=1e-2",
            "data.tokenizer=/somewhere/tokenizer.json",
            'data.sources=[{kind = "jsonl", path = "/a.jsonl"}]',
            "data.sources.0.field=code",
            "rollout.group=2",
        ),
    )
    assert (t.model.dim, t.model.ternary, t.optimizer.matrices.lr) == (64, False, 1e-2)
    assert t.data.tokenizer == "/somewhere/tokenizer.json"
    assert (t.data.sources[0].kind, t.data.sources[0].field) == ("jsonl", "code")
    assert t.rollout.group == 2


def test_of_two_equal_settings_the_later_wins():
    assert topology.load("local", ("seed=1", "seed=2")).seed == 2


def test_settings_can_be_put_on_top_of_a_resolved_copy():
    small = topology.emulate(topology.load("config_b"))
    changed = topology.override(small, ("model.layers=1",), source="config_b.toml")
    assert changed == msgspec.structs.replace(
        small, model=msgspec.structs.replace(small.model, layers=1)
    )
    with pytest.raises(TopologyError, match=r"--set model.heads=3: model.heads: 3 heads do not"):
        topology.override(small, ("model.heads=3",), source="config_b.toml")


def test_relative_data_paths_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/somebody")
    source = 'data.sources=[{kind="directory",path="code"},{kind="jsonl",path="~/x.jsonl"}]'
    t = topology.load("local", (source, "data.tokenizer=t.json"))
    assert [s.path for s in t.data.sources] == [f"{tmp_path}/code", "/home/somebody/x.jsonl"]
    assert t.data.tokenizer == f"{tmp_path}/t.json"


def test_topologies_are_found_by_name_and_by_path(tmp_path: Path):
    text, source = topology.find_topology("local")
    assert source.endswith("deploy/topologies/local.toml")
    mine = tmp_path / "mine.toml"
    mine.write_text(text)
    assert topology.find_topology(str(mine)) == (text, str(mine))


def test_an_unknown_name_suggests_the_nearest():
    with pytest.raises(
        TopologyError, match=r"confg_b: no topology of that name; did you mean `conf"
    ):
        topology.load("confg_b")


def test_files_that_are_no_topology_are_refused_in_words(tmp_path: Path):
    with pytest.raises(TopologyError, match="no such file; accepted: 7b, config_a, config_b"):
        topology.load(str(tmp_path / "absent.toml"))
    (tmp_path / "folder.toml").mkdir()
    with pytest.raises(TopologyError, match=r"cannot be read: .*directory"):
        topology.load(str(tmp_path / "folder.toml"))
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(TopologyError, match="not UTF-8 text: byte 0 is wrong"):
        topology.load(str(binary))
    big = tmp_path / "big.toml"
    big.write_bytes(b"#" * 1_000_001)
    with pytest.raises(TopologyError, match="larger than 1000000 bytes"):
        topology.load(str(big))


@given(
    dim=st.integers(1, 64).map(lambda n: n * 16),
    lr=st.floats(1e-9, 1e3),
    seed=st.integers(0, 2**62 - 1),
    path=st.text(min_size=1),
    ternary=st.booleans(),
)
def test_any_valid_topology_survives_being_written_and_read(
    dim: int, lr: float, seed: int, path: str, ternary: bool
):
    t = topology.load("config_b")
    group = msgspec.structs.replace(t.optimizer.matrices, lr=lr, min_lr=0.0)
    source = topology.Source(kind="directory", path=path)
    t = msgspec.structs.replace(
        t,
        seed=seed,
        model=msgspec.structs.replace(t.model, dim=dim, heads=8, ternary=ternary),
        optimizer=msgspec.structs.replace(t.optimizer, matrices=group),
        data=msgspec.structs.replace(t.data, sources=(source,)),
    )
    assert topology.decode(topology.to_toml(t), source="copy") == t
