"""AdamW against torch.optim.AdamW, bit for bit."""

import pytest
import torch
from torch import Tensor

from kernels.optimizers.adamw import AdamWHyper, declared, update
from kernels.optimizers.clipping import clipped
from kernels.optimizers.quantised_state import zeros


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(50, 24), (24,), (1,)])
def test_equals_torchs_adamw(shape: tuple[int, ...]):
    w = normal(*shape)
    theirs = torch.nn.Parameter(w.clone())
    optimizer = torch.optim.AdamW(
        [theirs], lr=3e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1, foreach=False
    )
    state = zeros(declared(tuple(w.shape)))
    for step in range(1, 12):
        lr = 3e-3 / step  # the schedule moves it
        optimizer.param_groups[0]["lr"] = lr
        grad = normal(*shape, seed=step)
        theirs.grad = grad.clone()
        optimizer.step()
        w, state = update(w, state, grad, AdamWHyper(lr=lr, weight_decay=0.1), step)
        torch.testing.assert_close(w, theirs.detach(), rtol=1e-6, atol=1e-9)
    assert torch.equal(state["mean"], optimizer.state[theirs]["exp_avg"])
    assert torch.equal(state["square"], optimizer.state[theirs]["exp_avg_sq"])


def test_is_pure_and_bitwise_repeatable():
    w, grad, state = normal(9, 9), normal(9, 9, seed=1), zeros(declared((9, 9)))
    before = w.clone(), grad.clone()
    first, second = (update(w, state, grad, AdamWHyper(lr=0.1), 1) for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert torch.equal(w, before[0])
    assert torch.equal(grad, before[1])
    assert not any(t.any() for t in state.values())


def test_the_first_step_has_the_size_of_the_learning_rate():
    w = torch.zeros(4)
    grad = torch.tensor([1.0, -2.0, 1e-3, 30.0])
    new, _ = update(w, zeros(declared(tuple(w.shape))), grad, AdamWHyper(lr=0.1), 1)
    torch.testing.assert_close(new, -0.1 * grad.sign(), rtol=1e-4, atol=0)


def test_clipping_shrinks_only_what_is_too_long():
    grad = normal(6, 10)
    assert clipped(grad, 0.0) is grad
    assert torch.equal(clipped(grad, 1e6), grad)
    short = clipped(grad, 0.5)
    assert short.norm().item() == pytest.approx(0.5, rel=1e-5)
    torch.testing.assert_close(short / short.norm(), grad / grad.norm())
    assert clipped(torch.tensor([3.0]), 1.0).item() == pytest.approx(1.0)


def test_a_gradient_that_is_not_a_number_stays_one():
    assert clipped(torch.tensor([float("nan"), 1.0]), 1.0).isnan().all()
