import pytest
import torch

from kernels.optimizers import gum
from kernels.optimizers.projection import core_shape, project, random_basis

SHAPES = [(24, 40), (32, 32), (40, 24)]


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def sent(gradient: torch.Tensor, basis: torch.Tensor, q: float, *, rest: bool) -> torch.Tensor:
    """The estimate that comes of one draw."""
    if rest:
        return gum.remainder(gradient, basis, q)
    core = gum.core(project(gradient, basis), q)
    assert tuple(core.shape) == core_shape(tuple(gradient.shape), basis.shape[1])
    return gum.estimate(core, basis, tuple(gradient.shape))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("begun", [True, False], ids=["basis", "no basis yet"])
def test_it_is_unbiased_over_its_two_draws(shape, begun):
    q, gradient = 0.25, randn(*shape)
    basis = random_basis(shape, 4, key=1) * float(begun)
    core, rest = (sent(gradient, basis, q, rest=drawn) for drawn in (False, True))
    torch.testing.assert_close((1 - q) * core + q * rest, gradient, rtol=0, atol=1e-5)
    missed = project(rest, basis)
    torch.testing.assert_close(missed, torch.zeros_like(missed), rtol=0, atol=1e-5)


def test_a_period_draws_once_with_its_probability():
    period, q = 20, 0.3
    drawn = [gum.draws_remainder(7, "layers.0.ffn.up", step, period, q) for step in range(1, 8001)]
    for start in range(0, 8000, period):
        assert len(set(drawn[start : start + period])) == 1
    share = sum(drawn) / len(drawn)
    assert share == pytest.approx(q, abs=0.08)  # 400 draws: three standard deviations
    other = [gum.draws_remainder(7, "layers.1.ffn.up", step, period, q) for step in range(1, 8001)]
    assert other != drawn


def test_estimates_average_to_the_gradient_over_periods():
    gradient, q, period = randn(16, 24), 0.3, 5
    basis = random_basis((16, 24), 4, key=1)
    total, periods = torch.zeros(16, 24), 1000
    for p in range(periods):
        rest = gum.draws_remainder(3, "w", p * period + 1, period, q)
        total += sent(gradient, basis, q, rest=rest)
    assert float((total / periods - gradient).norm() / gradient.norm()) < 0.1
