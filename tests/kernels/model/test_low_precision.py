"""Models whose linear maps multiply in fewer bits: which maps, and that the bits are repeatable."""

from dataclasses import replace
from typing import Literal

import pytest
import torch
from torch import Tensor

from kernels.model.config import ModelConfig, TrainConfig
from kernels.model.layers import DenseLinear, Mode, TernaryLinear
from kernels.model.model import LoopLM
from kernels.model.objective import objective
from kernels.precision.recipes import RECIPES, Precision

CONFIG = ModelConfig(
    dim=64, layers=3, heads=2, loops=2, vocab_size=301, seq_len=32, init_std=0.05, predict_tokens=2
)
# What the plan for a Blackwell GPU asks for.
MIXED = TrainConfig(
    precision_attention="fp8",
    precision_ffn="nvfp4",
    precision_embedding="bf16",
    precision_high_layers=(0,),
)


def build(train: TrainConfig, mode: Mode = "codes", *, checkpointing: bool = False) -> LoopLM:
    model = LoopLM(replace(CONFIG, activation_checkpointing=checkpointing), mode)
    model.train_as(train)
    model.initialise(3)
    return model


def batch(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, 301, (4, 33), generator=generator)
    documents = torch.randint(0, 2, (4, 33), generator=generator).cumsum(1) // 8
    return tokens, documents


def gradients(model: LoopLM, noise: int = 7) -> dict[str, Tensor]:
    model.zero_grad(set_to_none=True)
    result = objective(model, *batch(), entropy_weight=0.05, noise=noise)
    result.objective_sum.backward()
    out = {"objective": result.objective_sum.detach()}
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        out[name] = parameter.grad
    return out


def differing(a: dict[str, Tensor], b: dict[str, Tensor]) -> list[str]:
    return [name for name in a if not torch.equal(a[name], b[name])]


def test_every_half_of_a_layer_has_its_own_precision_and_some_layers_stay_high():
    model = build(MIXED)
    for name, module in model.named_modules():
        if not isinstance(module, TernaryLinear | DenseLinear):
            continue
        wanted: Precision = "fp32"
        if name.startswith(("layers.1.", "layers.2.")):
            wanted = "fp8" if ".attention." in name else "nvfp4"
        assert module.recipe is RECIPES[wanted], name


@pytest.mark.parametrize("precision", ["nvfp4", "mxfp4_backward", "fp8"])
def test_recomputation_and_masters_give_the_same_bits(precision: Precision):
    train = TrainConfig(precision=precision)
    first = gradients(build(train))
    assert differing(gradients(build(train, checkpointing=True)), first) == []
    assert differing(gradients(build(train, "master")), first) == []
    assert all(torch.isfinite(value).all() for value in first.values())


def test_the_noise_key_decides_what_is_drawn_and_nothing_else_does():
    model = build(TrainConfig(precision="nvfp4"))
    first, again, other = gradients(model, 1), gradients(model, 1), gradients(model, 2)
    assert differing(first, again) == []
    changed = differing(first, other)
    assert "objective" not in changed  # forward nothing is random
    assert "layers.0.attention.q.weight" in changed


def test_without_a_key_a_recipe_that_draws_does_not_train():
    model = build(TrainConfig(precision="mxfp4_backward"))
    with pytest.raises(ValueError, match="give `objective` a `noise` key"):
        objective(model, *batch(), entropy_weight=0.05)
    with torch.no_grad():
        objective(model, *batch(), entropy_weight=0.05)


def cosine(a: Tensor, b: Tensor) -> float:
    return torch.cosine_similarity(a.flatten(), b.flatten(), dim=0).item()


@pytest.mark.parametrize(
    ("train", "least"),
    [
        (TrainConfig(precision="fp8"), 0.98),
        (TrainConfig(precision="mxfp4_backward"), 0.8),
        (TrainConfig(precision="nvfp4"), 0.8),
        (MIXED, 0.8),
    ],
)
def test_gradients_point_where_those_of_full_precision_do(train: TrainConfig, least: float):
    full, rounded = gradients(build(TrainConfig())), gradients(build(train))
    for name in ("layers.1.attention.v.weight", "layers.2.ffn.down.weight", "embedding.weight"):
        assert cosine(full[name], rounded[name]) > least, name
    assert rounded["objective"] == pytest.approx(full["objective"].item(), rel=0.02)


@pytest.mark.parametrize("key", ["precision", "precision_attention", "precision_ffn"])
def test_ternary_layers_have_no_slopes_at_their_masters(
    key: Literal["precision", "precision_attention", "precision_ffn"],
):
    model = LoopLM(CONFIG)
    with pytest.raises(ValueError, match=r"set model\.ternary = false"):
        model.train_as(TrainConfig.of({key: "fp4_dge"}))
    LoopLM(replace(CONFIG, ternary=False)).train_as(TrainConfig.of({key: "fp4_dge"}))


def test_an_unknown_precision_is_refused_by_name():
    with pytest.raises(ValueError, match=r"train\.precision_ffn is 'fp3'; accepted: fp32, fp8"):
        TrainConfig.of({"precision_ffn": "fp3"})
    with pytest.raises(ValueError, match=r"train\.precision is ''; accepted"):
        TrainConfig.of({"precision": ""})
