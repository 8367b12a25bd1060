"""With every technique off the model computes the bits it computed before there were any."""

import pytest
import torch
from torch import Tensor

from kernels.model.config import ModelConfig
from kernels.model.layers import Mode
from kernels.model.model import LoopLM
from kernels.model.objective import objective
from tests.kernels.model import plain


def batch(seq_len: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, 301, (3, seq_len + 1), generator=generator)
    documents = torch.randint(0, 2, tokens.shape, generator=generator).cumsum(1) // 8
    return tokens, documents


@pytest.mark.parametrize("mode", ["master", "codes"])
@pytest.mark.parametrize(
    "changes",
    [
        {"loops": 3},
        {"loops": 1, "tie_embedding": False},
        {"loops": 2, "ternary": False, "activation_checkpointing": True},
    ],
)
def test_values_and_gradients_are_the_same_bits(changes: dict[str, bool | int], mode: Mode):
    table = {"dim": 64, "layers": 2, "heads": 2, "vocab_size": 301, "seq_len": 40, **changes}
    model = LoopLM(ModelConfig.of(table), mode)
    model.initialise(11)
    tokens, documents = batch(40)
    names = [name for name, _ in model.named_parameters()]
    parameters = [p for _, p in model.named_parameters()]
    result = objective(model, tokens, documents, entropy_weight=0.05)
    total, sums = plain.objective(model, tokens, documents, 0.05)
    assert torch.equal(result.objective_sum, total)
    assert torch.equal(result.loop_ce_sums, sums)
    got = torch.autograd.grad(result.objective_sum, parameters, allow_unused=True)
    wanted = torch.autograd.grad(total, parameters, allow_unused=True)
    for name, a, b in zip(names, got, wanted, strict=True):
        assert a is b is None or (a is not None and b is not None and torch.equal(a, b)), name
