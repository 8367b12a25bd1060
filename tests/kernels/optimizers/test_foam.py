import pytest
import torch

from kernels.optimizers import foam
from kernels.optimizers.foam import FoamHyper, fold, unfold
from kernels.optimizers.quantised_state import zeros
from kernels.optimizers.state import nbytes


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def start(shape: tuple[int, ...], hyper: FoamHyper) -> dict[str, torch.Tensor]:
    return {name: t.double() for name, t in zeros(foam.declared(shape, hyper)).items()}


def slow_foam(w, grads, hyper: FoamHyper):
    """Element by element, with the fold written as sums."""
    c = 2**hyper.level
    rows, n = w.shape
    folds = -(-n // c)
    m = [[0.0] * folds for _ in range(rows)]
    v = [[0.0] * folds for _ in range(rows)]
    w = w.tolist()
    for t, g in enumerate((grad.tolist() for grad in grads), start=1):
        rate = hyper.lr * (1 - hyper.beta2**t) ** 0.5 / (1 - hyper.beta1**t) * hyper.alpha
        for i in range(rows):
            for k in range(folds):
                part = g[i][k * c : (k + 1) * c]
                mean = sum(part) / c
                s = sum(x * x for x in part) / c
                s = mean**2 if hyper.second == "square_of_mean" else s
                m[i][k] = hyper.beta1 * m[i][k] + (1 - hyper.beta1) * mean
                v[i][k] = hyper.beta2 * v[i][k] + (1 - hyper.beta2) * s
                for j, x in enumerate(part, start=k * c):
                    r = x - mean
                    top = m[i][k] + hyper.rho * r
                    bottom = (v[i][k] + hyper.rho**2 * r * r) ** 0.5 + hyper.eps
                    w[i][j] -= rate * top / bottom
                    w[i][j] -= hyper.lr * hyper.weight_decay * w[i][j]
    return torch.tensor(w, dtype=torch.float64)


@pytest.mark.parametrize("second", ["mean_of_squares", "square_of_mean"])
@pytest.mark.parametrize("level", [0, 1, 3])
@pytest.mark.parametrize("columns", [16, 13])
def test_it_agrees_with_a_slow_reference(second, level, columns):
    hyper = FoamHyper(lr=0.1, level=level, second=second, rho=0.7, weight_decay=0.05)
    w, grads = randn(4, columns), [randn(4, columns, seed=s) for s in (1, 2, 3)]
    ours, state = w, start((4, columns), hyper)
    for step, grad in enumerate(grads, start=1):
        ours, state = foam.update(ours, state, grad, hyper, step)
    torch.testing.assert_close(ours, slow_foam(w, grads, hyper), rtol=0, atol=1e-12)


def test_level_zero_is_hugging_face_adamw_times_alpha():
    hyper = FoamHyper(lr=0.1, level=0, alpha=0.25, weight_decay=0.1)
    w = ours = randn(5, 7)
    state = start((5, 7), hyper)
    m, v = torch.zeros_like(w), torch.zeros_like(w)
    for t in range(1, 5):
        g = randn(5, 7, seed=t)
        ours, state = foam.update(ours, state, g, hyper, t)
        m = 0.9 * m + 0.1 * g
        v = 0.999 * v + 0.001 * g * g
        size = 0.1 * (1 - 0.999**t) ** 0.5 / (1 - 0.9**t)
        w = w - 0.25 * size * m / (v.sqrt() + 1e-8)
        w = w - 0.1 * 0.1 * w
    torch.testing.assert_close(ours, w, rtol=0, atol=1e-13)


def test_folding_is_a_projection_and_the_residual_folds_to_nothing():
    g = randn(6, 32)
    once = unfold(fold(g, 8), 8, 32)
    torch.testing.assert_close(unfold(fold(once, 8), 8, 32), once, rtol=0, atol=1e-15)
    assert float(fold(g - once, 8).abs().max()) < 1e-15


def test_the_two_second_moments_differ_by_the_folded_residual():
    g = randn(6, 32)
    f = fold(g, 4)
    r = g - unfold(f, 4, 32)
    torch.testing.assert_close(
        fold(g.square(), 4), f.square() + fold(r.square(), 4), rtol=0, atol=1e-14
    )


def test_rows_may_be_updated_slab_by_slab_to_the_same_bits():
    hyper = FoamHyper(lr=0.1, level=2)
    w, g = randn(10, 30).float(), randn(10, 30, seed=1).float()
    state = zeros(foam.declared((10, 30), hyper))
    whole, after = foam.update(w, state, g, hyper, 1)
    for rows in (slice(0, 3), slice(3, 10)):
        part, kept = foam.update(
            w[rows], {name: t[rows] for name, t in state.items()}, g[rows], hyper, 1
        )
        assert torch.equal(part, whole[rows])
        assert all(torch.equal(kept[name], after[name][rows]) for name in kept)


def test_vectors_are_not_folded_and_follow_plain_adamw():
    hyper = FoamHyper(lr=0.1, level=3, rho=5.0)
    ours = w = randn(9)
    state = start((9,), hyper)
    assert state["mean"].shape == (9,)
    m, v = torch.zeros_like(w), torch.zeros_like(w)
    for t in range(1, 5):
        g = randn(9, seed=t)
        ours, state = foam.update(ours, state, g, hyper, t)
        m = 0.9 * m + 0.1 * g
        v = 0.999 * v + 0.001 * g * g
        w = w - 0.1 * (1 - 0.999**t) ** 0.5 / (1 - 0.9**t) * m / (v.sqrt() + 1e-8)
    torch.testing.assert_close(ours, w, rtol=0, atol=1e-13)


def test_the_same_arguments_give_the_same_bits_and_stay_as_they_are():
    hyper = FoamHyper(lr=0.1, weight_decay=0.1)
    w, g, state = randn(4, 16), randn(4, 16, seed=1), start((4, 16), hyper)
    first, second = (foam.update(w, state, g, hyper, 1) for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert torch.equal(w, randn(4, 16))
    assert not any(t.any() for t in state.values())


def test_an_absurd_level_is_refused():
    with pytest.raises(ValueError, match="level must be between 0 and 16"):
        FoamHyper(lr=0.1, level=17)


@pytest.mark.parametrize(("level", "bytes_each"), [(0, 8.0), (2, 2.0), (3, 1.0)])
def test_state_shrinks_by_the_fold(level, bytes_each):
    hyper = FoamHyper(lr=0.1, level=level)
    assert nbytes(foam.declared((4096, 512), hyper)) / (4096 * 512) == bytes_each
