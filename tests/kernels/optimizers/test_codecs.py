import pytest
import torch

from kernels.optimizers import draws
from kernels.optimizers.codecs import power
from kernels.optimizers.codecs.blocks import Blocks, from_upper_half, upper_half
from kernels.optimizers.codecs.feedback import Feedback
from kernels.optimizers.codecs.grid import Grid
from kernels.optimizers.codecs.hadamard import hadamard, rotate, unrotate
from kernels.optimizers.codecs.named import NAMES, named
from kernels.optimizers.codecs.power import Power
from kernels.optimizers.codecs.scaled import Scaled
from kernels.optimizers.quantised_state import zeros
from kernels.optimizers.state import nbytes

SHAPES = [(24, 40), (32, 32), (40, 24)]
EVERY = [
    *(named(name, rank=4) for name in NAMES),
    Blocks(bits=2, block=32, rotation=128),
    Grid(levels=16, block=64),
    Scaled(levels=2),
    Feedback(codec=Power(rank=3, factors="float16")),
]


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def spiky(*shape: int, seed: int = 0) -> torch.Tensor:
    x = randn(*shape, seed=seed)
    return torch.where(randn(*shape, seed=seed + 1) > 2.0, 20 * x, x)


def mean(tensors: list[torch.Tensor]) -> torch.Tensor:
    return torch.stack(tensors).mean(dim=0)


def once(codec, gradient: torch.Tensor, key: int = 1, memory=None) -> torch.Tensor:
    shape = tuple(gradient.shape)
    memory = zeros(codec.memory(shape)) if memory is None else memory
    payload, _ = codec.encode(gradient, memory, key)
    return codec.decode(payload, memory, shape, key)


# --- What every codec promises ------------------------------------------------------------------


@pytest.mark.parametrize("codec", EVERY, ids=str)
@pytest.mark.parametrize("shape", [*SHAPES, (67, 129)])
def test_payload_and_memory_are_what_was_announced(codec, shape):
    memory = zeros(codec.memory(shape))
    payload, after = codec.encode(spiky(*shape), memory, 5)
    for announced, tensors in ((codec.payload(shape), payload), (codec.memory(shape), after)):
        assert sorted((d.name, d.dtype, d.shape) for d in announced) == sorted(
            (name, str(t.dtype).removeprefix("torch."), tuple(t.shape))
            for name, t in tensors.items()
        )
    back = codec.decode(payload, memory, shape, 5)
    assert back.shape == shape
    assert back.dtype == torch.float32
    assert torch.isfinite(back).all()


@pytest.mark.parametrize("codec", EVERY, ids=str)
def test_encoding_twice_gives_the_same_bits_and_changes_no_argument(codec):
    gradient, shape = spiky(40, 24), (40, 24)
    memory = zeros(codec.memory(shape))
    (one, first), (two, second) = (codec.encode(gradient, memory, 5) for _ in range(2))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert torch.equal(gradient, spiky(40, 24))
    assert not any(tensor.any() for tensor in memory.values())


@pytest.mark.parametrize("codec", EVERY, ids=str)
def test_nothing_sent_is_nothing_received(codec):
    back = once(codec, torch.zeros(32, 48))
    torch.testing.assert_close(back, torch.zeros(32, 48), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("name", "bound"),
    [
        ("dense", 4.0),
        ("int4", 0.532),
        ("int4_rotated", 0.532),
        ("int4_feedback", 0.532),
        ("two_bit", 0.258),
        ("ternary", 0.208),
        ("ternary_rotated", 0.208),
        ("two_bit_scaled", 0.254),
        ("ternary_scaled", 0.204),
        ("sign", 0.133),
        ("sign_rotated", 0.133),
        ("power", 1.0),
        ("power_int8", 0.254),
        ("power_int4", 0.129),
    ],
)
def test_bytes_are_what_the_table_says(name, bound):
    codec, shape = named(name, rank=128), (1024, 1024)  # rank d / 8
    assert nbytes(codec.payload(shape)) / 1024**2 <= bound
    memory = nbytes(codec.memory(shape)) / 1024**2
    assert memory <= {"dense": 0, "int4": 0, "int4_rotated": 0}.get(name, 1.0157 + 0.5)


def test_unknown_names_and_missing_ranks_are_refused():
    with pytest.raises(ValueError, match="codec must be one of dense, int8, int4"):
        named("zip")
    with pytest.raises(ValueError, match="needs a rank of at least 1"):
        named("power_int4")
    with pytest.raises(ValueError, match="multiple of block"):
        Blocks(block=64, rotation=32)
    with pytest.raises(ValueError, match="multiple of block"):
        Grid(levels=4, block=64, rotation=96)


# --- Blocks -------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", [Blocks(), Blocks(rotation=64), Blocks(bits=2, block=32)])
def test_stochastic_rounding_is_unbiased(codec):
    gradient = spiky(9, 37)
    rounds = 600
    decoded = torch.stack([once(codec, gradient, draws.key(1, i)) for i in range(rounds)])
    spread = decoded.std(dim=0)
    # Elements close to a code move so rarely that 600 rounds may not show it: hence the floor.
    deviation = (decoded.mean(dim=0) - gradient) / spread.clamp(min=0.1 * float(spread.max()))
    assert float(deviation.abs().max()) * rounds**0.5 < 4.5  # the largest of 333 normal deviates
    assert 0.5 < float(deviation.square().mean()) * rounds < 1.35


def test_rounding_to_nearest_is_closer_but_biased():
    gradient = randn(64, 64)
    errors = {
        stochastic: float((once(Blocks(stochastic=stochastic), gradient) - gradient).norm())
        for stochastic in (True, False)
    }
    assert errors[False] < 0.75 * errors[True]


def test_a_rotation_tames_outliers():
    gradient = spiky(64, 64)
    plain = float((once(Blocks(), gradient) - gradient).norm())
    rotated = float((once(Blocks(rotation=1024), gradient) - gradient).norm())
    assert rotated < 0.8 * plain


def test_no_code_overflows_its_bits():
    """Steps are rounded up: the largest magnitude of a block keeps its code and its sign."""
    gradient = randn(100, 64)
    back = once(Blocks(stochastic=False), gradient)
    largest = gradient.abs().argmax(dim=1, keepdim=True)
    ratio = back.gather(1, largest) / gradient.gather(1, largest)
    assert float(ratio.min()) > 0.999
    assert float(ratio.max()) < 1.009


def test_scales_are_rounded_up_to_sixteen_bits():
    x = torch.cat((randn(1000).abs(), torch.tensor([0.0, 1.0, 1e-38, 1e38])))
    up = from_upper_half(upper_half(x))
    assert (up >= x).all()
    assert (up <= x * (1 + 2**-7)).all()
    assert torch.equal(up, up.bfloat16().float())


# --- Hadamard -----------------------------------------------------------------------------------


def test_the_rotation_is_sylvesters_matrix_and_undoes_itself():
    matrix = torch.ones(1, 1)
    for _ in range(4):
        matrix = torch.kron(torch.tensor([[1.0, 1.0], [1.0, -1.0]]), matrix)
    x = randn(5, 16)
    torch.testing.assert_close(hadamard(x), x @ matrix / 4)
    torch.testing.assert_close(hadamard(hadamard(x)), x)
    torch.testing.assert_close(unrotate(rotate(x, 3), 3), x)
    torch.testing.assert_close(rotate(x, 3).norm(dim=1), x.norm(dim=1))
    with pytest.raises(ValueError, match="power of two, got 12"):
        hadamard(randn(5, 12))


# --- Grid and feedback --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("levels", "distortion"), [(2, 0.3634), (3, 0.1902), (4, 0.1175), (16, 0.0095)]
)
def test_grids_reach_the_published_distortion_on_gaussians(levels, distortion):
    """Max (1960): mean square error of the best quantiser of a unit Gaussian."""
    gradient = randn(256, 512)
    error = once(Grid(levels=levels), gradient) - gradient
    assert float(error.square().mean()) == pytest.approx(distortion, rel=0.05)


def test_two_levels_in_one_block_are_the_scaled_sign():
    gradient = spiky(8, 24)
    expected = gradient.sign() * gradient.abs().mean()
    torch.testing.assert_close(
        once(Grid(levels=2, block=192), gradient), expected, rtol=2**-7, atol=0
    )


@pytest.mark.parametrize("levels", [2, 3, 4, 16])
@pytest.mark.parametrize("shape", [(64, 64), (7, 37)])
def test_a_grid_always_sends_a_part_of_the_gradient(levels, shape):
    """|x - C(x)| < |x| for any x: what error feedback needs to converge."""
    for gradient in (spiky(*shape), randn(*shape) ** 3, torch.ones(shape), randn(*shape).abs()):
        error = once(Grid(levels=levels), gradient) - gradient
        assert float(error.norm()) < 0.99 * float(gradient.norm())


@pytest.mark.parametrize("levels", [2, 3, 4])
def test_scales_of_rows_and_columns_give_the_noise_the_gradients_own_profile(levels):
    rows, columns = randn(96, 1, seed=3).exp(), randn(1, 128, seed=4).exp()
    gradient = randn(96, 128) * rows * columns
    noise = {
        codec: float(((once(codec, gradient) - gradient) / rows / columns).square().mean())
        for codec in (Scaled(levels=levels), Grid(levels=levels), Grid(levels=levels, rotation=256))
    }
    scaled, flat, rotated = noise.values()
    assert scaled < 0.6
    assert flat > 1.5 * scaled
    assert rotated > 8 * scaled


@pytest.mark.parametrize("shape", [(64, 64), (7, 37), (3, 5, 16), (40,)])
def test_what_scales_leave_out_is_orthogonal_to_what_is_sent_row_by_row(shape):
    for gradient in (spiky(*shape), randn(*shape) ** 3, torch.ones(shape)):
        sent = once(Scaled(levels=3), gradient).view(-1, shape[-1])
        error = gradient.view(-1, shape[-1]) - sent
        products = (error * sent).sum(dim=1).abs()
        assert bool((products <= 0.01 * sent.square().sum(dim=1)).all())  # 16 bits of scale
        assert float(error.norm()) < 0.99 * float(gradient.norm())


@pytest.mark.parametrize("kind", ["float32", "dynamic"])
@pytest.mark.parametrize(
    "codec",
    [Grid(levels=2), Grid(levels=3), Scaled(levels=3), Blocks(stochastic=False), Power(rank=2)],
    ids=str,
)
def test_feedback_makes_what_was_sent_follow_what_was_meant(codec, kind):
    fed, shape = Feedback(codec=codec, kind=kind, block=64), (64, 80)
    memory, alone = zeros(fed.memory(shape)), zeros(codec.memory(shape))
    steady = randn(*shape, seed=99)
    meant, sent, careless = torch.zeros(shape), torch.zeros(shape), torch.zeros(shape)
    for step in range(60):
        gradient = steady + 0.3 * randn(*shape, seed=step)
        payload, after = fed.encode(gradient, memory, step)
        sent += fed.decode(payload, memory, shape, step)
        memory = after
        payload, after = codec.encode(gradient, alone, step)
        careless += codec.decode(payload, alone, shape, step)
        alone = after
        meant += gradient
    missing = float((meant - sent).norm() / meant.norm())
    assert missing < 0.5 * float((meant - careless).norm() / meant.norm())
    if kind == "float32":  # all that is missing is the error in memory
        torch.testing.assert_close(meant - sent, memory["error"], rtol=1e-3, atol=2e-3)


# --- Power iteration ----------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
def test_a_steady_gradient_of_low_rank_arrives_whole(shape):
    low = randn(shape[0], 3) @ randn(3, shape[1], seed=1)
    torch.testing.assert_close(once(Power(rank=3), low), low, rtol=1e-4, atol=1e-4)


def test_warm_starts_approach_the_best_approximation():
    gradient = randn(48, 64) * torch.linspace(3, 0.1, 48)[:, None]
    codec, memory = Power(rank=4), zeros(Power(rank=4).memory((48, 64)))
    misses = []
    for step in range(12):
        payload, after = codec.encode(gradient, memory, step)
        misses.append(float((codec.decode(payload, memory, (48, 64), step) - gradient).norm()))
        memory = after
    best = float(torch.linalg.svdvals(gradient)[4:].square().sum().sqrt())
    assert misses[-1] < 1.005 * best < misses[0]


@pytest.mark.parametrize("shape", SHAPES)
def test_many_ranks_that_share_an_iteration_equal_one(shape):
    """Sketch, agree, reply: exact for the average, in gradients and in the sum of errors."""
    ranks, rank = 3, 4
    warm = torch.zeros(max(shape), rank, dtype=torch.float64)
    errors = [torch.zeros(shape, dtype=torch.float64) for _ in range(ranks)]
    error, alone = torch.zeros(shape, dtype=torch.float64), warm
    codec = Power(rank=rank)
    for step in range(5):
        gradients = [randn(*shape, seed=10 * step + k).double() for k in range(ranks)]
        deltas = [g + e for g, e in zip(gradients, errors, strict=True)]
        left = power.agree(mean([power.sketch(d, warm, step) for d in deltas]))
        replies = [power.reply(d, left) for d in deltas]
        errors = [
            d - codec.decode({"left": left, "right": r}, {}, shape, step)
            for d, r in zip(deltas, replies, strict=True)
        ]
        warm = mean(replies)
        together = codec.decode({"left": left, "right": warm}, {}, shape, step)

        delta = mean(gradients) + error
        payload, after = codec.encode(delta, {"warm": alone}, step)
        single = codec.decode(payload, {}, shape, step)
        error, alone = delta - single, after["warm"]
        torch.testing.assert_close(together, single, rtol=0, atol=1e-12)
    torch.testing.assert_close(mean(errors), error, rtol=0, atol=1e-12)
