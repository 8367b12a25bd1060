"""Linear maps in few bits: what their gradients are, and what they are on average."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from kernels.optimizers import draws
from kernels.precision.fp4 import Blocks, exact, nvfp4
from kernels.precision.hadamard import padded
from kernels.precision.low_precision import low_precision_project
from kernels.precision.recipes import Dge, Fp8, Mxfp4Backward, Nvfp4, Recipe
from kernels.precision.ternary import carrier, quantise, ternary_project


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def unrounded(x: Tensor, uniform: Tensor | None = None, *, square: bool = False) -> Blocks:
    """A quantiser that quantises nothing."""
    values = padded(x, 16)
    values = padded(values.mT, 16).mT if square else values
    if uniform is not None:
        assert uniform.shape == values.shape
    scales = values.new_ones(values.shape[0], values.shape[1] // 16)
    return Blocks(values.contiguous(), scales, values.new_ones(()))


def settled(x: Tensor) -> Tensor:
    return x


Three = tuple[Tensor, Tensor, Tensor]


def through(recipe: Recipe, x: Tensor, w: Tensor, dy: Tensor, key: int = 1) -> Three:
    """y, dx and dw of one full-precision weight."""
    x, w = x.detach().requires_grad_(), w.detach().requires_grad_()
    (y,) = low_precision_project(x, [w], None, recipe, [key])
    dx, dw = torch.autograd.grad(y, (x, w), dy)
    return y, dx, dw


def plain(x: Tensor, w: Tensor, dy: Tensor) -> Three:
    return x @ w.mT, dy @ w, dy.mT @ x


# Neither tokens nor columns nor rows fill whole blocks.
X, W, DY = normal(70, 40), normal(24, 40, seed=1) * 0.1, normal(70, 24, seed=2)


@pytest.mark.parametrize(
    "recipe",
    [Recipe(), Nvfp4(unrounded, settled), Mxfp4Backward(unrounded)],
    ids=["high", "nvfp4", "mxfp4"],
)
def test_without_rounding_everything_equals_a_plain_linear_map(recipe: Recipe):
    x, w, dy = (t.double() for t in (X, W, DY))
    for got, wanted in zip(through(recipe, x, w, dy), plain(x, w, dy), strict=True):
        torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize(
    ("recipe", "errors"),
    [
        (Fp8(), (0.04, 0.04, 0.04)),
        (Nvfp4(), (0.16, 0.19, 0.18)),
        (Mxfp4Backward(), (1e-6, 0.27, 0.27)),
        (Dge(), (0.18, 0.14, 2.0)),
    ],
)
def test_errors_are_of_the_size_of_the_format(recipe: Recipe, errors: tuple[float, ...]):
    got = through(recipe, X, W, DY)
    for value, wanted, error in zip(got, plain(X, W, DY), errors, strict=True):
        assert (value - wanted).norm() < error * wanted.norm()
        assert value.dtype == torch.float32


def averages(recipe: Recipe, count: int) -> tuple[list[Tensor], list[Tensor]]:
    """Mean and standard error of dx and dw over keys."""
    runs = [through(recipe, X, W, DY, key)[1:] for key in range(count)]
    stacks = [torch.stack(parts) for parts in zip(*runs, strict=True)]
    return [s.mean(0) for s in stacks], [s.std(0) / count**0.5 for s in stacks]


def test_mxfp4s_gradients_are_the_exact_ones_on_average():
    means, errors = averages(Mxfp4Backward(), 400)
    for mean, error, wanted in zip(means, errors, plain(X, W, DY)[1:], strict=True):
        off = ((mean - wanted) / error).square().mean().sqrt()
        assert off < 1.15  # in units of what chance explains


def test_nvfp4s_gradients_are_on_average_those_of_an_unrounded_dy():
    """But for the per cent or so that block scales, rounded down, clip off (notes, 5.1)."""

    def steady(x: Tensor, *, square: bool = False, uniform: Tensor | None = None) -> Blocks:
        return nvfp4(x, square=square) if uniform is None else unrounded(x, uniform)

    means, _ = averages(Nvfp4(), 300)
    wanted = through(Nvfp4(steady), X, W, DY)[1:]
    one = through(Nvfp4(), X, W, DY)[1:]
    for mean, exactly, single in zip(means, wanted, one, strict=True):
        bias = (mean - exactly).norm() / exactly.norm()
        assert bias < 0.02
        assert bias < 0.2 * (single - exactly).norm() / exactly.norm()


@pytest.mark.parametrize("recipe", [Nvfp4(), Mxfp4Backward()], ids=["nvfp4", "mxfp4"])
def test_draws_depend_on_the_key_alone(recipe: Recipe):
    first, again, other = (through(recipe, X, W, DY, key) for key in (5, 5, 6))
    assert torch.equal(first[0], other[0])  # only the backward pass draws
    for i in (1, 2):
        assert torch.equal(first[i], again[i])
        assert not torch.equal(first[i], other[i])


def test_both_directions_of_nvfp4_use_the_same_codes_of_a_weight():
    seen: list[tuple[str, Tensor]] = []

    def spy(x: Tensor, *, square: bool = False, uniform: Tensor | None = None) -> Blocks:
        blocks = nvfp4(x, square=square, uniform=uniform)
        kind = "W" if square else ("stochastic" if uniform is not None else "nearest")
        seen.append((kind, blocks.dequantised()))
        return blocks

    through(Nvfp4(spy), X, W, DY)
    assert [kind for kind, _ in seen] == [
        "nearest",
        "W",
        "stochastic",
        "W",
        "nearest",
        "stochastic",
    ]
    weights = [value for kind, value in seen if kind == "W"]
    assert torch.equal(weights[0], weights[1])


# --- Ternary weights ------------------------------------------------------------------------------


def ternary_run(
    project: Callable[..., tuple[Tensor, ...]], leaves: Sequence[Tensor], **arguments: Any
) -> list[Tensor]:
    """y and gradients of two ternary weights side by side."""
    x = X.detach().requires_grad_()
    out = project(x, leaves, **arguments)
    grads = torch.autograd.grad(out, [x, *leaves], [DY, normal(70, 32, seed=5)])
    return [*out, *grads]


def test_mxfp4_computes_the_very_bits_forward_that_ternary_layers_do():
    weights = [quantise(W), quantise(normal(32, 40, seed=4))]
    masters = [torch.zeros(24, 40, requires_grad=True), torch.zeros(32, 40, requires_grad=True)]
    plain_run = ternary_run(ternary_project, masters, weights=weights)
    got = ternary_run(
        low_precision_project,
        masters,
        ternary=weights,
        recipe=Mxfp4Backward(unrounded),
        keys=[1, 2],
    )
    assert torch.equal(got[0], plain_run[0])
    assert torch.equal(got[1], plain_run[1])
    for a, b in zip(got[2:], plain_run[2:], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("recipe", [Fp8(), Nvfp4(), Mxfp4Backward()])
def test_carriers_receive_the_gradients_that_masters_do(recipe: Recipe):
    weights = [quantise(W), quantise(normal(32, 40, seed=4))]
    masters = [torch.zeros(24, 40, requires_grad=True), torch.zeros(32, 40, requires_grad=True)]
    runs = [
        ternary_run(low_precision_project, leaves, ternary=weights, recipe=recipe, keys=[1, 2])
        for leaves in (masters, [carrier(24, 40), carrier(32, 40)])
    ]
    for a, b in zip(*runs, strict=True):
        assert torch.equal(a, b)


def test_a_ternary_weight_adds_no_error_to_an_nvfp4_product():
    weight = quantise(W)
    (y,) = low_precision_project(X, [carrier(24, 40)], [weight], Nvfp4(), [1])
    x_rounded = nvfp4(X).dequantised()[:, :40]
    torch.testing.assert_close(y, x_rounded @ weight.dequantised().mT, rtol=1e-5, atol=1e-6)
    assert torch.equal(exact(weight).dequantised()[:24, :40], weight.dequantised())


def test_random_rounding_without_a_key_is_refused_where_there_will_be_gradients():
    w = W.detach().requires_grad_()
    with pytest.raises(ValueError, match="give `objective` a `noise` key"):
        low_precision_project(X, [w], None, Nvfp4(), None)
    with torch.no_grad():
        low_precision_project(X, [w], None, Nvfp4(), None)
    low_precision_project(X, [w], None, Fp8(), None)


def test_draws_of_layers_steps_and_turns_are_independent():
    keys = {
        draws.key(draws.key(seed, turn), name)
        for seed in (1, 2)
        for turn in (0, 1)
        for name in "qk"
    }
    assert len(keys) == 8
