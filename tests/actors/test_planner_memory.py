"""The planner's memory estimates, held against what autograd and the layouts really keep."""

import os
from pathlib import Path

import msgspec
import pytest
import torch

from actors import codec_memory, gradient_slots, plan_memory, topology
from actors.bases import BasisSchedule
from actors.optimizer.layout import state_layout
from actors.parameters import parameters
from actors.supervisor import segments
from actors.topology import ModelSpec, TrainSpec
from kernels.model.config import ModelConfig, TrainConfig
from kernels.model.cross_entropy import LOGIT_ELEMENTS
from kernels.model.model import LoopLM
from kernels.model.objective import objective
from tests.actors.exchange import Exchange, tiny
from tests.actors.live_bytes import LiveBytes

SMALL = topology.emulate(topology.load("config_b"))


def kept_by_autograd(model: ModelSpec, rows: int, train: TrainSpec = SMALL.train) -> int:
    """Bytes of distinct storages saved for the backward pass, weights aside."""
    lm = LoopLM(ModelConfig.of(msgspec.structs.asdict(model)), "codes")
    lm.train_as(TrainConfig.of(msgspec.to_builtins(train)))
    lm.initialise(seed=0)
    weights = {t.untyped_storage().data_ptr() for t in (*lm.parameters(), *lm.buffers())}
    seen: dict[int, int] = {}
    alive: list[torch.Tensor] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            seen[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)
        return tensor

    def unpack(tensor: torch.Tensor) -> torch.Tensor:
        return tensor

    tokens = torch.randint(
        model.vocab_size, (rows, model.seq_len + 1), generator=torch.Generator().manual_seed(0)
    )
    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        objective(lm, tokens, torch.zeros_like(tokens), entropy_weight=0.05, noise=1)
    return sum(seen.values())


@pytest.mark.parametrize("rows", [2, 4])
@pytest.mark.parametrize(
    "change",
    [
        {},
        {"loops": 3},
        {"dim": 192, "layers": 3},
        {"ternary": False},
        {"streams": 2},
        {"streams": 4, "stream_mixing": "permutation"},
        {"predict_tokens": 3},
        {"predict_tokens": 2, "prediction": "sequential", "streams": 3},
    ],
    ids=str,
)
def test_activations_are_what_autograd_keeps(rows: int, change: dict[str, int]):
    model = msgspec.structs.replace(SMALL.model, **change)
    estimate = plan_memory.activation_bytes(model, rows) - plan_memory.logit_bytes(model, rows)
    assert estimate == pytest.approx(kept_by_autograd(model, rows), rel=0.1)


@pytest.mark.parametrize(("layers", "remainder"), [(1, 0.1), (8, 0.1), (8, 0.02), (24, 0.3)])
def test_gums_remainders_are_planned_for_its_draws_and_not_for_their_mean(
    layers: int, remainder: float
):
    found = tiny(
        f"model.layers={layers}",
        "optimizer.matrices.projection=gum",
        "optimizer.matrices.refresh_every=5",
        f"optimizer.matrices.remainder={remainder}",
    )
    sizes = {p.name: p.numel for p in parameters(found.model) if p.group == "matrices"}
    held = list[int]()
    for seed in range(20):
        schedule = BasisSchedule(msgspec.structs.replace(found, seed=seed))
        held += [
            sum(size for name, size in sizes.items() if schedule.sends_remainder(step, name))
            for step in range(1, 40)
        ]
    planned = plan_memory.most_remainders(tuple(sizes.values()), remainder)
    assert max(held) <= planned <= sum(sizes.values())
    if layers == 24:
        assert planned < 0.6 * sum(sizes.values())


def test_logits_are_planned_in_the_kernels_pieces():
    large = msgspec.structs.replace(SMALL.model, vocab_size=100_000)
    assert plan_memory.logit_bytes(large, 64) == 3 * 4 * LOGIT_ELEMENTS


@pytest.mark.parametrize(
    "change",
    [
        {"precision": "nvfp4"},
        {"precision_attention": "fp8"},
        {"precision_ffn": "mxfp4_backward", "precision_high_layers": (0,)},
    ],
    ids=str,
)
def test_other_precisions_keep_inputs_anew(change: dict[str, str]):
    train = msgspec.structs.replace(SMALL.train, **change)
    estimate = plan_memory.activation_bytes(SMALL.model, 4, train)
    estimate -= plan_memory.logit_bytes(SMALL.model, 4)
    assert estimate == pytest.approx(kept_by_autograd(SMALL.model, 4, train), rel=0.1)


def test_a_token_filter_keeps_no_more():
    train = msgspec.structs.replace(SMALL.train, filter="loss", filter_keep=0.6)
    estimate = plan_memory.activation_bytes(SMALL.model, 4, train)
    assert kept_by_autograd(SMALL.model, 4, train) < estimate


def test_checkpointing_keeps_one_state_per_layer_call_and_one_layer():
    plain = msgspec.structs.replace(SMALL.model, layers=12)
    saving = msgspec.structs.replace(plain, activation_checkpointing=True)
    assert plan_memory.activation_bytes(saving, 8) < plan_memory.activation_bytes(plain, 8) / 4


PROJECTED = (
    "optimizer.matrices.projection=galore",
    "optimizer.matrices.rank=16",
    "optimizer.matrices.first_basis=random",
)
GUM = ("optimizer.matrices.projection=gum",)


@pytest.mark.parametrize(
    "settings",
    [
        ("model.loops=2",),
        ("model.loops=1",),
        ("model.loops=1", "train.accumulation=2"),
        ("model.loops=1", "optimizer.codec=ternary"),
        ("model.loops=2", "optimizer.codec=int4"),
        ("optimizer.dense_codec=ternary_rotated", "model.vocab_size=8000"),
        ("model.loops=1", *PROJECTED),
        ("model.loops=2", "train.accumulation=2", *PROJECTED),
        ("model.loops=2", *PROJECTED, "optimizer.codec=int4"),
        ("model.loops=2", *PROJECTED, "model.activation_checkpointing=true"),
        ("model.loops=2", *PROJECTED, *GUM, "optimizer.matrices.remainder=0.9"),
    ],
    ids=lambda settings: " ".join(s.split(".")[-1] for s in settings),
)
def test_a_trainers_step_takes_no_more_than_is_planned(settings: tuple[str, ...]):
    """Measured: every tensor that a step makes, gradients, activations and all."""
    shape = ("model.dim=128", "model.layers=6", "model.heads=4", "model.ffn_dim=384", "steps=2")
    t = tiny(*shape, *settings)
    exchange, peaks = Exchange(t), list[int]()
    trainer = exchange.trainers[0]
    compute = trainer.compute

    def watched() -> None:
        with LiveBytes() as live:
            compute()
        peaks.append(live.peak)

    trainer.compute = watched
    exchange.run()
    planned = plan_memory.of_trainer(t)
    assert max(peaks) <= planned.gradients + planned.activations <= 1.6 * max(peaks)


def test_projection_spares_a_looped_model_its_set_of_gradients():
    plain, projected = (
        plan_memory.gradient_bytes(topology.load("config_b", ("optimizer.codec=dense", *settings)))
        for settings in ((), ("train.accumulation=1", *PROJECTED, "optimizer.matrices.rank=128"))
    )
    assert projected < plain / 3


TECHNIQUES = (
    "optimizer.matrices.kind=muon8bit",
    "optimizer.dense.kind=foam",
    "optimizer.dense.level=3",
)


@pytest.mark.parametrize(
    "settings",
    [
        (*TECHNIQUES, "optimizer.codec=two_bit", "optimizer.matrices.neuron_beta2=0.9"),
        (*TECHNIQUES, *PROJECTED, "optimizer.codec=int4"),
        (*TECHNIQUES, *PROJECTED, *GUM),
        ("optimizer.codec=power_int8", "optimizer.codec_rank=8", "optimizer.dense_codec=int8"),
    ],
    ids=lambda settings: " ".join(s.split(".")[-1] for s in settings),
)
def test_segments_have_the_bytes_that_are_planned(settings: tuple[str, ...]):
    t = tiny("model.dim=64", "actors.trainers=2", "actors.optimizer_shards=2", *settings)
    run_id = f"planned{os.getpid()}"
    sizes = segments.wanted(run_id, t)
    try:
        segments.make(sizes)
        real = {name: Path("/dev/shm", name).stat().st_size for name in sizes}
    finally:
        segments.remove(run_id)
    for k in range(2):
        planned = plan_memory.of_shard(t, k)
        state = real.pop(f"trireme-{run_id}-optimizer_shard.{k}-state")
        assert planned.weights + planned.optimizer == state
    trainer = plan_memory.of_trainer(t)
    idle = plan_memory.of_trainer(tiny("model.dim=64", "actors.trainers=2"))
    known = codec_memory.segment_bytes(t), gradient_slots.segment_bytes(t.model, t.optimizer)
    assert sum(real.values()) == 2 * sum(known)
    assert trainer.buffers - sum(known) == idle.buffers - gradient_slots.segment_bytes(t.model)


def test_the_wire_is_what_travels():
    """Over a period, in which each of the seven matrices gets one new basis."""
    settings = ("optimizer.codec=int4", "optimizer.matrices.refresh_every=7", "actors.trainers=2")
    t = tiny("model.dim=64", "steps=7", *PROJECTED, *settings)
    exchange = Exchange(t)
    exchange.run()
    sent = sum(record["up_bytes"] for record in exchange.records())
    assert plan_memory.wire(t).up_bytes_per_step == pytest.approx(sent / 7, rel=1e-4)


def test_whole_model_optimizer_memory_falls_by_most_of_adamws():
    """At least 86 % below fp32 AdamW with everything on, from the layout of the real segments."""
    everything = (
        "optimizer.matrices.kind=muon8bit",
        "optimizer.matrices.projection=galore",
        "optimizer.codec=int4",
        "optimizer.dense.kind=adamw8bit",
    )
    adamw = ("optimizer.matrices.kind=adamw",)
    small, large = (
        sum(plan_memory.of_shard(topology.load("config_b", s), k).optimizer for k in range(2))
        for s in (everything, adamw)
    )
    assert small <= 0.14 * large


@pytest.mark.parametrize("shards", [1, 2, 5])
def test_a_shards_state_and_weights_fill_its_segment(shards: int):
    actors = msgspec.structs.replace(SMALL.actors, optimizer_shards=shards)
    t = msgspec.structs.replace(SMALL, actors=actors)
    for k in range(shards):
        memory = plan_memory.of_shard(t, k)
        assert memory.weights + memory.optimizer == state_layout(t, k).total_bytes


def test_more_rows_take_more():
    sizes = [plan_memory.activation_bytes(SMALL.model, rows) for rows in (1, 2, 4, 8)]
    assert sizes == sorted(set(sizes))
