import pytest
import torch

from kernels.optimizers.isometry import (
    MOST_ITERATIONS,
    defect,
    is_projected,
    isometric,
    isometric_ternary,
    polar,
    relative_defect,
)
from kernels.precision.ternary import quantise

SHAPES = [(48, 96), (96, 96), (96, 48)]


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def svd_factor(w: torch.Tensor) -> torch.Tensor:
    u, _, vh = torch.linalg.svd(w.double(), full_matrices=False)
    return u @ vh


@pytest.mark.parametrize("shape", SHAPES)
def test_newton_schulz_reaches_the_polar_factor_of_the_svd(shape):
    w = randn(*shape)
    exact = svd_factor(w)
    torch.testing.assert_close(polar(w).double(), exact, rtol=0, atol=2e-3)
    torch.testing.assert_close(polar(w, iterations=40).double(), exact, rtol=0, atol=1e-4)
    torch.testing.assert_close(polar(w, "svd").double(), exact, rtol=0, atol=1e-5)
    torch.testing.assert_close(polar(w.double()), exact, rtol=0, atol=1e-5)


def test_spectra_as_steep_as_trained_ones_are_flattened_too():
    u, _, vh = torch.linalg.svd(randn(128, 128).double())
    w = u / torch.arange(1, 129) @ vh
    assert defect(polar(w)) < 1e-6
    assert defect(polar(w, iterations=5)) > 50  # the paper's setting: far from an isometry


def test_five_iterations_leave_a_gaussian_at_a_quarter_of_its_spectrum():
    w = randn(256, 256)
    median = {n: float(torch.linalg.svdvals(polar(w, iterations=n)).median()) for n in (5, 10)}
    assert 0.3 < median[5] < 0.6
    assert median[10] > 0.95
    assert float(torch.linalg.svdvals(polar(w)).min()) > 0.999


@pytest.mark.parametrize("shape", SHAPES)
def test_fire_scales_by_the_root_of_out_over_in(shape):
    values = torch.linalg.svdvals(isometric(randn(*shape)))
    expected = torch.full((48 if shape != (96, 96) else 96,), (shape[0] / shape[1]) ** 0.5)
    torch.testing.assert_close(values, expected, rtol=1e-3, atol=0)


def test_isometries_stay_where_they_are():
    q = svd_factor(randn(40, 64))
    torch.testing.assert_close(polar(q), q, rtol=0, atol=1e-6)
    torch.testing.assert_close(polar(5 * q), q, rtol=0, atol=1e-6)


def test_the_defect_is_the_squared_distance_of_the_gram_matrix_from_one():
    w = randn(7, 5)
    slow = (w.mT @ w - torch.eye(5)).square().sum()
    assert defect(w) == pytest.approx(float(slow))
    assert defect(w.mT) == pytest.approx(float(slow))
    assert defect(svd_factor(w)) < 1e-20


def test_the_relative_defect_ignores_scale_and_lies_between_zero_and_one():
    w = randn(64, 64)
    assert relative_defect(3 * w) == pytest.approx(relative_defect(w), rel=1e-5)
    assert relative_defect(w) == pytest.approx(0.5, abs=0.05)  # Marchenko-Pastur, square
    assert relative_defect(0.1 * isometric(w)) < 1e-6
    one = torch.zeros(8, 8)
    one[0, 0] = 1.0
    assert relative_defect(one) == pytest.approx(7 / 8)
    assert relative_defect(torch.zeros(4, 4)) <= 1.0


@pytest.mark.parametrize("shape", SHAPES)
def test_a_ternary_layer_keeps_its_scale_and_gets_an_isometrys_codes(shape):
    u, s, vh = torch.linalg.svd(randn(*shape), full_matrices=False)
    master = 0.02 * u * s**3 @ vh  # a spectrum that has lost its evenness
    new = isometric_ternary(master)
    before, after = quantise(master), quantise(new)
    torch.testing.assert_close(after.scale, before.scale, rtol=1e-5, atol=0)
    plain = quantise(polar(master))
    assert float((after.codes != plain.codes).float().mean()) < 1e-3
    assert relative_defect(new) < 1e-5
    # Forward sees codes: not those of an isometry, but nearer to one.
    seen = [relative_defect(codes.float()) for codes in (before.codes, after.codes)]
    assert seen[1] < 0.7 * seen[0]


def test_an_all_zero_weight_stays_zero():
    for function in (polar, isometric, isometric_ternary):
        assert torch.equal(function(torch.zeros(4, 6)), torch.zeros(4, 6))


def test_a_lost_direction_stays_lost_and_the_iteration_ends():
    w = randn(20, 30)
    w[3] = w[4]
    values = torch.linalg.svdvals(polar(w.double()))
    assert float(values[-1]) < 0.1
    assert float(values[-2]) > 0.999
    assert MOST_ITERATIONS <= 100


def test_weights_that_are_not_finite_are_refused():
    w = randn(4, 4)
    w[0, 0] = torch.inf
    with pytest.raises(ValueError, match="not finite"):
        polar(w)


def test_only_hidden_matrices_are_projected_unless_asked():
    assert is_projected("layers.3.attention.q.weight", (64, 64))
    assert is_projected("layers.0.ffn.down.weight", (64, 176))
    assert not is_projected("embedding.weight", (4096, 64))
    assert not is_projected("head.weight", (4096, 64))
    assert not is_projected("exit_gate.weight", (1, 64))
    assert not is_projected("layers.0.attention_norm_in.weight", (64,))
    assert is_projected("head.weight", (4096, 64), exclude=())
    assert not is_projected("layers.0.attention.o.weight", (64, 64), exclude=("*.o.weight",))


def test_the_same_weight_gives_the_same_bits():
    assert torch.equal(polar(randn(50, 70)), polar(randn(50, 70)))
