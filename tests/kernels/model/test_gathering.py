"""Gradients handed over use by use add up to autograd's, and autograd keeps none of them."""

from typing import Any

import pytest
import torch
from torch import Tensor

from kernels.model.config import ModelConfig, TrainConfig
from kernels.model.model import LoopLM
from kernels.model.objective import objective

PLAIN = ModelConfig(dim=32, layers=2, heads=2, loops=3, vocab_size=61, seq_len=12, init_std=0.05)
NAMES = ("layers.0.attention.q.weight", "layers.1.ffn.gate.weight", "layers.1.ffn.down.weight")


def batch() -> tuple[Tensor, Tensor]:
    tokens = torch.randint(0, 61, (2, 13), generator=torch.Generator().manual_seed(1))
    return tokens, torch.zeros_like(tokens)


def built(mode: Any, config: ModelConfig, train: TrainConfig) -> LoopLM:
    model = LoopLM(config, mode)
    model.train_as(train)
    model.initialise(5)
    return model


def backward(model: LoopLM) -> None:
    objective(model, *batch(), entropy_weight=0.05, noise=3).objective_sum.backward()


@pytest.mark.parametrize("mode", ["master", "codes"])
@pytest.mark.parametrize(
    ("changes", "train"),
    [
        ({}, {}),
        ({"activation_checkpointing": True}, {}),
        ({"ternary": False}, {}),
        ({"predict_tokens": 2, "prediction": "sequential"}, {}),
        ({"streams": 2}, {"precision": "nvfp4"}),
        ({}, {"filter": "loss", "filter_keep": 0.5}),
        ({"activation_checkpointing": True}, {"filter": "loss", "precision": "fp8"}),
    ],
    ids=str,
)
def test_uses_add_up_to_the_whole_gradient(mode: Any, changes: Any, train: Any):
    config = ModelConfig(**{**vars_of(PLAIN), **changes})
    plain, handed = (built(mode, config, TrainConfig(**train)) for _ in range(2))
    got: dict[str, list[Tensor]] = {name: [] for name in NAMES}
    handed.hand_over({name: got[name].append for name in NAMES})
    backward(plain)
    backward(handed)
    for name, parameter in plain.named_parameters():
        other = handed.get_parameter(name).grad
        if name in NAMES:
            assert other is None
            assert len(got[name]) == config.loops
            torch.testing.assert_close(torch.stack(got[name]).sum(dim=0), parameter.grad)
        elif parameter.grad is not None:
            assert other is not None
            assert torch.equal(other, parameter.grad)
    handed.hand_over({})
    backward(handed)
    grad = handed.get_parameter(NAMES[0]).grad
    assert grad is not None
    assert torch.equal(grad, plain.get_parameter(NAMES[0]).grad)  # pyright: ignore[reportArgumentType]


def vars_of(config: ModelConfig) -> dict[str, Any]:
    return {name: getattr(config, name) for name in config.__dataclass_fields__}


def test_the_end_of_a_backward_pass_is_still_seen_at_the_weight():
    """Its hook is called without a gradient: that is when all uses have come."""
    model = built("codes", PLAIN, TrainConfig())
    weight, order = model.get_parameter(NAMES[0]), list[str]()

    def ended(parameter: Tensor) -> None:
        order.append(f"end {parameter.grad}")

    weight.register_post_accumulate_grad_hook(ended)
    model.hand_over({NAMES[0]: lambda _grad: order.append("use")})
    backward(model)
    assert order == ["use"] * 3 + ["end None"]


def test_only_linear_maps_can_be_handed_over():
    with pytest.raises(KeyError, match=r"norm\.weight is no linear map"):
        built("codes", PLAIN, TrainConfig()).hand_over({"norm.weight": print})
