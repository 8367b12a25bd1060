from collections.abc import Iterable
from dataclasses import replace
from functools import reduce

import pytest
import torch

from kernels.optimizers import galore, projection
from kernels.optimizers.galore import GaLoreHyper
from kernels.optimizers.muon import orthogonalise
from kernels.optimizers.projection import RefreshPlan, Round
from kernels.optimizers.quantised_state import zeros
from kernels.optimizers.refresh_schedule import refreshes
from kernels.optimizers.state import nbytes

SHAPES = [(24, 40), (32, 32), (40, 24)]  # M < N, M = N, M > N
EXACT = GaLoreHyper(
    lr=0.05, rank=6, eight_bit=False, basis="float32", dtype=torch.float64, weight_decay=0.1
)
BASES = [EXACT, replace(EXACT, base="adamw", alpha=0.25)]


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def sum_of(tensors: Iterable[torch.Tensor]) -> torch.Tensor:
    return reduce(torch.add, tensors)


def weighted(weights: list[float], tensors: list[torch.Tensor]) -> torch.Tensor:
    """Summed in rank order."""
    return sum_of(w * t for w, t in zip(weights, tensors, strict=True))


def exact(hyper: GaLoreHyper) -> bool:
    return hyper.basis == "float32" and not hyper.eight_bit


def start(shape: tuple[int, ...], hyper: GaLoreHyper) -> dict[str, torch.Tensor]:
    """Zeros; float64 where nothing is rounded anyway."""
    return {
        name: tensor.double() if exact(hyper) and tensor.is_floating_point() else tensor
        for name, tensor in zeros(galore.declared(shape, hyper)).items()
    }


def gradient(shape: tuple[int, int], step: int, rank: int = 0) -> torch.Tensor:
    return randn(*shape, seed=99) + randn(*shape, seed=1000 * rank + step)


def train(shape, hyper: GaLoreHyper, steps: int, period: int, ranks: int):
    """What the process graph does, each part where it would be done."""
    plan = RefreshPlan(hyper.rank, 4, 1)
    weights = [(k + 1) / (ranks * (ranks + 1) / 2) for k in range(ranks)]
    dtype = torch.float64 if exact(hyper) else torch.float32
    hyper = replace(hyper, dtype=dtype)
    master, state = randn(*shape, seed=5).to(dtype), start(shape, hyper)
    for step in range(1, steps + 1):
        grads = [gradient(shape, step, k).to(dtype) for k in range(ranks)]
        if refreshes(step, 0, 1, period):
            asked = projection.first_round(shape, plan, step, dtype)
            while isinstance(asked, Round):
                summed = weighted(weights, [projection.contribution(asked, g) for g in grads])
                asked = projection.next_round(asked, summed, plan)
            state = galore.adopt(state, asked, shape, hyper, version=step)
        shared = galore.basis(state, shape, hyper)
        # Two micro-batches, added up in the small space.
        cores = [
            sum_of(projection.project(share * g, shared) for share in (0.25, 0.75)) for g in grads
        ]
        core = weighted(weights, cores)
        master, state = galore.update(master, state, core, hyper, step)
    return master, state


def reference(shape, hyper: GaLoreHyper, steps: int, period: int, ranks: int) -> torch.Tensor:
    """One process, full gradients, GaLore written out as in the paper's code."""
    weights = [(k + 1) / (ranks * (ranks + 1) / 2) for k in range(ranks)]
    w = randn(*shape, seed=5)
    m = v = torch.zeros(projection.core_shape(shape, hyper.rank), dtype=torch.float64)
    p = torch.zeros(())
    wide = shape[0] < shape[1]
    for t in range(steps):
        g = weighted(weights, [gradient(shape, t + 1, k) for k in range(ranks)])
        if t % period == 0:
            p = projection.find_basis(g, RefreshPlan(hyper.rank, 4, 1), key=t + 1)
        r = p.mT @ g if wide else g @ p
        if hyper.base == "adamw":
            m, v = 0.9 * m + 0.1 * r, 0.999 * v + 0.001 * r * r
            n = m / (v.sqrt() + 1e-6)
            size = hyper.lr * (1 - 0.999 ** (t + 1)) ** 0.5 / (1 - 0.9 ** (t + 1))
            w = w - size * hyper.alpha * (p @ n if wide else n @ p.mT)
            w = w - hyper.lr * hyper.weight_decay * w
        else:
            m = 0.95 * m + 0.05 * r
            n = orthogonalise(0.05 * r + 0.95 * m, dtype=torch.float64)
            scale = 0.2 * max(shape) ** 0.5 * (min(shape) / hyper.rank) ** 0.5
            w = w * (1 - hyper.lr * hyper.weight_decay)
            w = w - hyper.lr * scale * (p @ n if wide else n @ p.mT)
    return w


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("hyper", BASES, ids=["muon", "adamw"])
@pytest.mark.parametrize("ranks", [1, 4])
def test_trainers_with_a_shared_basis_equal_one_process(shape, hyper, ranks):
    master, _ = train(shape, hyper, steps=13, period=5, ranks=ranks)
    alone = reference(shape, hyper, steps=13, period=5, ranks=ranks)
    torch.testing.assert_close(master, alone, rtol=0, atol=1e-12)


@pytest.mark.parametrize("hyper", BASES, ids=["muon", "adamw"])
def test_the_same_run_gives_the_same_bits(hyper):
    hyper = replace(hyper, eight_bit=True, basis="int4", carry="rotate", dtype=torch.float32)
    (a, s), (b, t) = (train((96, 128), replace(hyper, rank=48), 4, 2, 2) for _ in range(2))
    assert torch.equal(a, b)
    assert s.keys() == t.keys()
    assert all(torch.equal(s[name], t[name]) for name in s)


@pytest.mark.parametrize("shape", [(40, 96), (96, 40)])
def test_muon_in_the_small_space_is_muon_on_the_projected_gradient(shape):
    hyper = replace(EXACT, match_rms=False, weight_decay=0.0)
    state = galore.adopt(
        start(shape, hyper), projection.random_basis(shape, 6, key=1).double(), shape, hyper, 1
    )
    p, g = galore.basis(state, shape, hyper), randn(*shape)
    new, _ = galore.update(torch.zeros(shape).double(), state, projection.project(g, p), hyper, 1)
    seen = projection.unproject(projection.project(g, p), p, shape)
    full = orthogonalise(seen, dtype=torch.float64)
    torch.testing.assert_close(new, -0.05 * 0.2 * 96**0.5 * full, rtol=0, atol=1e-7)


@pytest.mark.parametrize("hyper", BASES, ids=["muon", "adamw"])
@pytest.mark.parametrize("eight_bit", [False, True])
def test_a_reset_forgets_and_keeping_keeps(hyper, eight_bit):
    hyper = replace(hyper, rank=48, eight_bit=eight_bit, dtype=torch.float32)
    shape = (96, 128)
    _, before = train(shape, hyper, steps=3, period=100, ranks=1)
    new = projection.random_basis(shape, 48, key=8).to(galore.basis(before, shape, hyper).dtype)
    kept = galore.adopt(before, new, shape, replace(hyper, carry="keep"), version=4)
    fresh = galore.adopt(before, new, shape, replace(hyper, carry="reset"), version=4)
    for after in (kept, fresh):
        assert after["version"].tolist() == [4]
        assert torch.equal(galore.basis(after, shape, hyper), new)
    for name in before:
        if name not in ("basis", "version"):
            assert before[name].any()
            assert torch.equal(kept[name], before[name])
            assert not fresh[name].any()


@pytest.mark.parametrize("hyper", BASES, ids=["muon", "adamw"])
def test_rotation_undoes_a_permuted_basis(hyper):
    """The same subspace in another order of basis vectors must not change a single update."""
    hyper = replace(hyper, carry="rotate")
    shape = (24, 40)
    master, state = train(shape, hyper, steps=3, period=100, ranks=1)
    g = gradient(shape, 4)
    old = galore.basis(state, shape, hyper)
    new = old.flip(1) * torch.tensor([1.0, -1.0, 1.0, 1.0, -1.0, 1.0]).double()
    turned = galore.adopt(state, new, shape, hyper, version=4)
    here, _ = galore.update(master, state, projection.project(g, old), hyper, 4)
    there, _ = galore.update(master, turned, projection.project(g, new), hyper, 4)
    torch.testing.assert_close(there, here, rtol=0, atol=1e-10)
    kept = galore.adopt(state, new, shape, replace(hyper, carry="keep"), version=4)
    elsewhere, _ = galore.update(master, kept, projection.project(g, new), hyper, 4)
    assert float((elsewhere - here).abs().max()) > 1e-3


@pytest.mark.parametrize(("basis", "bound"), [("float16", 1e-3), ("linear", 0.02), ("int4", 0.2)])
def test_a_stored_basis_is_nearly_orthonormal(basis, bound):
    shape, hyper = (256, 512), replace(EXACT, rank=64, basis=basis)
    exact = projection.random_basis(shape, 64, key=3)
    stored = galore.basis(
        galore.adopt(zeros(galore.declared(shape, hyper)), exact, shape, hyper, 1), shape, hyper
    )
    values = torch.linalg.svdvals(stored)
    assert float((values - 1).abs().max()) < bound
    assert stored.dtype == torch.float32


def test_eight_bit_moments_and_a_four_bit_basis_follow_the_exact_run():
    shape = (96, 128)
    hyper = replace(EXACT, rank=48, weight_decay=0.0)
    master, _ = train(shape, hyper, steps=10, period=5, ranks=1)
    begun = randn(*shape, seed=5)
    coded, _ = train(shape, replace(hyper, eight_bit=True), steps=10, period=5, ranks=1)
    assert float((coded - master).norm() / (master - begun).norm()) < 0.1
    coarse, _ = train(shape, replace(hyper, eight_bit=True, basis="int4"), 10, 5, 1)
    assert float((coarse - master).norm() / (master - begun).norm()) < 0.35


def test_arguments_stay_as_they_are():
    shape = (24, 40)
    for hyper in BASES:
        master, state = train(shape, hyper, 2, 5, 1)
        copies = {name: tensor.clone() for name, tensor in state.items()}
        kept = master.clone()
        galore.update(master, state, randn(6, 40), hyper, 3)
        galore.adopt(state, randn(24, 6), shape, replace(hyper, carry="reset"), 3)
        assert torch.equal(master, kept)
        assert all(torch.equal(state[name], copies[name]) for name in copies)


def test_state_is_what_was_declared():
    for base in ("muon", "adamw"):
        for basis in ("float32", "float16", "linear", "int4"):
            hyper = GaLoreHyper(lr=0.1, rank=70, base=base, basis=basis)
            shape = (90, 120)
            state = zeros(galore.declared(shape, hyper))
            after = galore.adopt(state, projection.random_basis(shape, 70, 1), shape, hyper, 1)
            _, after = galore.update(torch.zeros(shape), after, torch.ones(70, 120), hyper, 1)
            assert [(name, t.dtype, t.shape) for name, t in sorted(state.items())] == [
                (name, t.dtype, t.shape) for name, t in sorted(after.items())
            ]


def test_a_basis_of_version_zero_is_refused():
    with pytest.raises(ValueError, match="version of at least 1"):
        galore.adopt(start((24, 40), EXACT), randn(24, 6), (24, 40), EXACT, version=0)


def test_state_at_a_quarter_of_the_rank_takes_less_than_half_a_byte_an_element():
    """Moments and basis. Square matrices are the worst case; a 4-bit basis serves them too."""
    width, hidden = 2048, 5464
    shapes = [(width, width)] * 4 + [(hidden, width)] * 2 + [(width, hidden)]
    figures = {}
    for basis in ("float16", "linear", "int4"):
        hyper = GaLoreHyper(lr=0.1, rank=width // 4, basis=basis)
        total = sum(nbytes(galore.declared(shape, hyper)) for shape in shapes)
        square = nbytes(galore.declared(shapes[0], hyper)) / width**2
        figures[basis] = (total / sum(m * n for m, n in shapes), square)
    assert figures["int4"][1] <= 0.45  # every matrix
    assert figures["int4"][0] <= 0.35  # a transformer's mixture
    assert figures["linear"][0] <= 0.45
    assert figures["float16"][0] <= 0.55
