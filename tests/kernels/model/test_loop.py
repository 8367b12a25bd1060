"""The exit distribution: a distribution, and finite whatever the gate says."""

import pytest
import torch

from kernels.model.loop import exit_entropy, exit_log_probabilities, exit_turn


def test_probabilities_are_those_of_leaving_turn_by_turn():
    gates = torch.tensor([[0.3, -1.0], [2.0, 0.1], [-0.5, 0.7], [9.0, 9.0]], dtype=torch.float64)
    leave = gates.sigmoid()
    stay = 1 - leave
    expected = torch.stack(
        [leave[0], stay[0] * leave[1], stay[0] * stay[1] * leave[2], stay[0] * stay[1] * stay[2]]
    )
    log_p = exit_log_probabilities(gates)
    torch.testing.assert_close(log_p.exp(), expected)
    torch.testing.assert_close(log_p.exp().sum(0), torch.ones(2, dtype=torch.float64))
    torch.testing.assert_close(exit_entropy(log_p), -(expected * expected.log()).sum(0))


@pytest.mark.parametrize("size", [30.0, 200.0, 1e4])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_gate_that_is_sure_gives_finite_entropy_and_gradients(size: float, sign: float):
    gates = torch.full((4, 3), sign * size, requires_grad=True)
    log_p = exit_log_probabilities(gates)
    entropy = exit_entropy(log_p)
    (entropy.sum() + log_p.exp()[0].sum()).backward()
    assert torch.isfinite(entropy).all()
    assert gates.grad is not None
    assert torch.isfinite(gates.grad).all()
    assert entropy.abs().max() < 1e-6


def test_the_last_gate_is_never_used():
    gates = torch.randn(3, 5, generator=torch.Generator().manual_seed(0), requires_grad=True)
    exit_entropy(exit_log_probabilities(gates)).sum().backward()
    assert gates.grad is not None
    assert not gates.grad[-1].any()
    assert gates.grad[:-1].all()


def test_one_loop_leaves_at_once():
    assert exit_log_probabilities(torch.tensor([[3.0, -3.0]])).tolist() == [[0.0, 0.0]]


def test_leaving_at_a_quantile():
    log_p = torch.tensor([[0.5, 0.1], [0.3, 0.1], [0.2, 0.8]]).log()
    assert exit_turn(log_p, 0.45).tolist() == [0, 2]
    assert exit_turn(log_p, 0.75).tolist() == [1, 2]
    assert exit_turn(log_p, 1.5).tolist() == [2, 2]
