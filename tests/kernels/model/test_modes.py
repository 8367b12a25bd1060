"""Codes alone give the bits that master weights give; so do checkpointing and doing it twice."""

import itertools
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor

from kernels.model.config import ModelConfig
from kernels.model.layers import Mode
from kernels.model.model import LoopLM
from kernels.model.objective import objective

CONFIG = ModelConfig(dim=64, layers=2, heads=2, loops=2, vocab_size=301, seq_len=32, init_std=0.05)


def build(mode: Mode, *, checkpointing: bool = False, loops: int = 2) -> LoopLM:
    model = LoopLM(replace(CONFIG, loops=loops, activation_checkpointing=checkpointing), mode)
    model.initialise(3)
    return model


def batch(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, 301, (4, 33), generator=generator)
    documents = torch.randint(0, 2, (4, 33), generator=generator).cumsum(1) // 8
    return tokens, documents


def gradients(model: LoopLM, micro_batches: int = 2) -> dict[str, Tensor]:
    """Of everything a step computes, accumulated over micro-batches."""
    out: dict[str, Tensor] = {}
    for seed in range(micro_batches):
        result = objective(model, *batch(seed), entropy_weight=0.05)
        (result.objective_sum / 200).backward()
        out[f"objective {seed}"] = result.objective_sum.detach()
        out[f"loops {seed}"] = result.loop_ce_sums
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        out[name] = parameter.grad
    return out


def differing(a: dict[str, Tensor], b: dict[str, Tensor]) -> list[str]:
    assert a.keys() == b.keys()
    return [name for name in a if not torch.equal(a[name], b[name])]


@pytest.mark.parametrize(
    ("mode", "checkpointing"), list(itertools.product(["master", "codes"], [False, True]))
)
def test_every_way_of_computing_a_step_gives_the_same_bits(mode: Mode, checkpointing: bool):
    plain = gradients(build("master"))
    assert differing(gradients(build(mode, checkpointing=checkpointing)), plain) == []
    assert all(torch.isfinite(value).all() for value in plain.values())


def test_a_step_done_twice_gives_the_same_bits():
    model = build("codes", loops=3)
    first = gradients(model)
    model.zero_grad(set_to_none=True)
    assert differing(gradients(model), first) == []


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_carrier_reports_its_gradient_once_per_backward(checkpointing: bool):
    model = build("codes", checkpointing=checkpointing, loops=3)
    heard: list[str] = []

    def note(name: str, parameter: Tensor) -> None:
        assert parameter.grad is not None
        heard.append(name)

    for name, parameter in model.named_parameters():
        parameter.register_post_accumulate_grad_hook(partial(note, name))
    objective(model, *batch(0), entropy_weight=0.05).objective_sum.backward()
    assert sorted(heard) == sorted(name for name, _ in model.named_parameters())


def test_codes_take_a_byte_a_weight_and_no_floats():
    model = build("codes")
    for layer in model.ternary_layers().values():
        held = [*layer.parameters(), *layer.buffers()]
        assert sum(t.untyped_storage().nbytes() for t in held) == layer.weight.numel() + 4 + 4


def test_masters_changed_in_place_are_seen_by_the_next_forward():
    model = build("master")
    tokens = batch(0)[0][:, :-1]
    before = model(tokens)
    with torch.no_grad():
        for layer in model.ternary_layers().values():
            layer.weight.data.neg_()  # unseen by version counters
    assert not torch.equal(model(tokens), before)


def test_codes_may_change_between_steps_but_not_under_a_graph():
    model = build("codes")
    result = objective(model, *batch(0), entropy_weight=0.05)
    next(iter(model.ternary_layers().values())).codes.neg_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        result.objective_sum.backward()
