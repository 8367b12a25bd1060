"""Combinations of keys that cannot work, and paths that cannot be read."""

import os
from pathlib import Path
from typing import Any

import msgspec
import pytest

from actors import topology
from actors.parameters import parameters
from actors.topology import Source, Topology, TopologyError
from actors.topology_rules import check_paths, tensor_count

PARTS = ("warmup", "stable", "decay")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["model.heads=5"], "model.heads: 5 heads do not divide dim 1536"),
        (["model.dim=36", "model.heads=12"], "model.heads: dim / heads is 3, but rotary"),
        (
            ["model.streams=5", 'model.stream_mixing="permutation"'],
            "model.streams: 5 streams have 120 permutations",
        ),
        (
            ["model.seq_len=3", "model.predict_tokens=4", "rollout.max_new_tokens=2"],
            "model.predict_tokens: 4 tokens ahead are further than a row of seq_len 3",
        ),
        (["actors.optimizer_shards=300"], "accepted: 1 to 264"),
        (["actors.trainers=3"], "actors.trainers: 3 trainers for hardware.gpus = 2"),
        (["actors.remote_trainers=2"], "remote_trainers: 2 of 2 trainers; accepted: fewer than"),
        (
            ["actors.remote_trainers=1", "optimizer.codec=ternary"],
            "actors.remote_trainers: the codec 'ternary' remembers from step to step, in shared",
        ),
        (
            ["actors.remote_trainers=1", "train.filter=excess", 'train.filter_reference="/x"'],
            "actors.remote_trainers: train.filter_reference is a directory of this host",
        ),
        (["hardware.any=true"], "hardware.any: contradicts hardware.gpus"),
        ([f"schedule.{part}=0" for part in PARTS], "schedule: warmup + stable"),
        (["optimizer.dense.kind=muon"], "optimizer.dense.kind: Muon orthogonalises matrices"),
        (["optimizer.dense.kind=muon8bit"], "optimizer.dense.kind: Muon orthogonalises matrices"),
        (["optimizer.matrices.block=256"], 'block: has no effect on kind "muon"; accepted: kind ='),
        (["optimizer.dense.level=3"], 'dense.level: has no effect on kind "adamw"; accepted: kind'),
        (
            ["optimizer.matrices.kind=muon8bit", "optimizer.matrices.block=32"],
            "optimizer.matrices.block: 32 codes to a scale; accepted: 0 for the kind's own, or 64",
        ),
        (
            ["optimizer.codec=power"],
            'codec_rank: codec "power" sends two factors of that many columns; accepted: 1 or more',
        ),
        (
            ["optimizer.codec_rank=8"],
            'codec_rank: has no effect on codec "ternary_scaled"; accepted: codec',
        ),
        (["optimizer.matrices.rank=8"], 'rank: has no effect on projection "none"; accepted: proj'),
        (
            ["optimizer.dense.projection=galore"],
            "optimizer.dense.projection: this group holds vectors and the embedding",
        ),
        (
            ["optimizer.matrices.projection=gum", "optimizer.matrices.moments=rotate"],
            'moments: has no effect on projection "gum"; accepted: projection = "galore"',
        ),
        (["optimizer.fire_exclude=['*.q.*']"], "fire_exclude: has no effect without fire_at"),
        (["optimizer.fire_method=svd"], "fire_method: has no effect without fire_at"),
        (
            ["optimizer.matrices.projection=gum", "optimizer.matrices.clip=1"],
            "clip: each of GUM's two parts is divided by its probability, so a bound would "
            'bias the gradient; accepted: 0, or projection = "galore" or "none"',
        ),
        (
            ["optimizer.matrices.projection=gum", "optimizer.matrices.kind=adamw"],
            'optimizer.matrices.kind: "adamw" cannot follow GUM',
        ),
        (
            ["optimizer.matrices.projection=gum", "optimizer.matrices.remainder=1"],
            "optimizer.matrices.remainder: 1 would never send one of the two parts",
        ),
        (
            ["optimizer.matrices.projection=gum", "optimizer.matrices.rank=1536"],
            "optimizer.matrices.rank: 1536 directions span all of a matrix with 1536 rows or",
        ),
        (
            ["optimizer.matrices.projection=galore", "optimizer.matrices.kind=foam"],
            'optimizer.matrices.kind: "foam" shares moments among neighbours',
        ),
        (
            ["optimizer.matrices.projection=galore", "optimizer.matrices.neuron_beta2=0.9"],
            "optimizer.matrices.neuron_beta2: a projected neuron has no row of its own",
        ),
        (
            [
                "optimizer.matrices.projection=galore",
                "optimizer.matrices.kind=muon8bit",
                "optimizer.matrices.map=dynamic",
            ],
            "optimizer.matrices.map: projected momentum is kept in linear codes",
        ),
        (
            ["optimizer.matrices.projection=galore", "optimizer.codec=ternary"],
            'optimizer.codec: "ternary" remembers errors in directions that a new basis replaces',
        ),
        (["optimizer.dense.min_lr=1"], "optimizer.dense.min_lr: 1 is above lr = 0.0004"),
        (["rollout.max_new_tokens=4096"], "rollout.max_new_tokens: 4096 new tokens leave no room"),
        (["data.sources=[]"], "data.sources: is empty"),
        (["data.sources.0.path=/x"], 'data.sources.0.path: kind "python_stdlib" finds itself'),
        (["data.sources.0.kind=jsonl"], 'data.sources.0.path: kind "jsonl" needs one'),
        (
            ["data.sources.0.kind=directory", "data.sources.0.path=x", "data.sources.0.pattern="],
            "data.sources.0.pattern: is empty",
        ),
        (
            ["data.sources.0.kind=parquet", "data.sources.0.path=x", "data.sources.0.field="],
            "data.sources.0.field: is empty",
        ),
        (["data.held_out_share=1"], "data.held_out_share: leaves nothing to train on"),
        (["data.held_out_share=0"], "data.held_out_share: is 0, but rollouts cut their prompts"),
        (["supervision.silence_s=0.3"], "supervision.silence_s: 0.3 would count one late beat"),
        (["supervision.backoff_s=9"], "supervision.backoff_max_s: 5 is below backoff_s = 9"),
        (["emulated=true"], "emulation: has already been put in place"),
        (
            ["train.precision_ffn=fp4_dge"],
            'train.precision_ffn: "fp4_dge" multiplies gradients by a slope at the full-precision',
        ),
        (
            ["train.precision=nvfp4", "train.precision_high_layers=[0, 20]"],
            "train.precision_high_layers: there is no layer 20 in a stack of 20; accepted: 0 to 19",
        ),
        (
            ["train.precision_high_layers=[0]"],
            "train.precision_high_layers: has no effect where all layers are; accepted: precision",
        ),
        (["train.filter_keep=0.5"], "train.filter_keep: has no effect without a filter; accepted"),
        (
            ["train.filter_backward=masked"],
            "train.filter_backward: has no effect without a filter",
        ),
        (
            ["train.filter=excess"],
            'train.filter_reference: filter "excess" compares losses with those of another model',
        ),
        (
            ["train.filter_reference=somewhere"],
            'train.filter_reference: has no effect on filter "none"; accepted: filter = "excess"',
        ),
        (
            ["emulation.train.precision=fp8", "emulation.train.precision_high_layers=[9]"],
            "emulation.train.precision_high_layers: there is no layer 9",
        ),
        (["emulation.model.heads=3"], "emulation.model.heads: 3 heads do not divide dim 128"),
        (["emulation.actors.optimizer_shards=31"], "emulation.actors.optimizer_shards: 31 shards"),
        ([f"emulation.schedule.{part}=0" for part in PARTS], "emulation.schedule: warmup"),
        (["emulation.optimizer.dense.kind=muon"], "emulation.optimizer.dense.kind: Muon"),
        (["emulation.rollout.max_new_tokens=128"], "emulation.rollout.max_new_tokens: 128 new"),
    ],
)
def test_impossible_combinations_are_refused(settings: list[str], words: str):
    with pytest.raises(TopologyError) as caught:
        topology.load("config_b", tuple(settings))
    assert words in str(caught.value)
    assert "accepted: " in str(caught.value)


def test_a_fault_of_the_real_optimizer_is_not_blamed_on_the_emulation():
    text, source = topology.find_topology("config_b")
    head, _, tail = text.partition("[emulation.optimizer.matrices]")
    with pytest.raises(TopologyError) as caught:
        topology.decode(
            head + "[emulation.rollout]" + tail.partition("[emulation.rollout]")[2],
            source=source,
            overrides=("optimizer.dense.kind=muon",),
        )
    assert len(str(caught.value).splitlines()) == 1


def test_without_rollouts_nothing_is_held_out():
    t = topology.load(
        "config_b", ("data.held_out_share=0", "actors.rollouts=0", "emulation.actors.rollouts=0")
    )
    assert t.data.held_out_share == 0


@pytest.mark.parametrize("name", topology.names())
@pytest.mark.parametrize("tied", [True, False])
def test_the_most_shards_are_as_many_as_there_are_parameters(name: str, tied: bool):
    model = msgspec.structs.replace(topology.load(name).model, tie_embedding=tied)
    further: list[dict[str, Any]] = [
        {},
        {"streams": 4},
        {"predict_tokens": 4},
        {"predict_tokens": 3, "prediction": "sequential"},
    ]
    for changes in further:
        changed = msgspec.structs.replace(model, **changes)
        assert tensor_count(changed) == len(parameters(changed))


def with_source(source: Source, tokenizer: str = "") -> Topology:
    t = topology.load("local")
    data = msgspec.structs.replace(t.data, sources=(source,), tokenizer=tokenizer)
    return msgspec.structs.replace(t, data=data)


def test_paths_that_are_there_are_accepted(tmp_path: Path):
    file = tmp_path / "a.jsonl"
    file.write_text("{}\n")
    for source in (
        Source(kind="python_stdlib"),
        Source(kind="directory", path=str(tmp_path)),
        Source(kind="jsonl", path=str(file)),
        Source(kind="jsonl", path=str(tmp_path / "*.jsonl")),
    ):
        assert check_paths(with_source(source, tokenizer=str(file))) == []


def test_paths_that_are_not_there_are_named(tmp_path: Path):
    absent = str(tmp_path / "absent")
    assert check_paths(with_source(Source(kind="directory", path=absent), absent)) == [
        f"data.sources.0.path: {absent} does not exist; accepted: a directory",
        f"data.tokenizer: {absent} does not exist; accepted: a file",
    ]
    (problem,) = check_paths(with_source(Source(kind="jsonl", path=absent + "/*.jsonl")))
    assert "no file matches" in problem


def test_paths_that_cannot_be_paths_are_named(tmp_path: Path):
    for path in ("\0", "~no-such-user-here/x", "a" * 5000):
        (problem,) = check_paths(with_source(Source(kind="jsonl", path=path)))
        assert problem.startswith("data.sources.0.path: ")
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    (problem,) = check_paths(with_source(Source(kind="jsonl", path=str(pipe))))
    assert "neither a file nor a directory" in problem


def test_paths_that_may_not_be_read_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(_path: object, _mode: int) -> bool:
        return False

    monkeypatch.setattr(os, "access", refuse)  # root may read everything
    (problem,) = check_paths(with_source(Source(kind="directory", path=str(tmp_path))))
    assert "may not be read by this user" in problem
