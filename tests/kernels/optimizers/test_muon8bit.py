import pytest
import torch

from kernels.optimizers import muon, muon8bit
from kernels.optimizers.muon import MuonHyper
from kernels.optimizers.muon8bit import Muon8bitHyper
from kernels.optimizers.quantised_state import dequantise, quantise, zeros
from kernels.optimizers.state import nbytes


def sequence(shape: tuple[int, int], steps: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    steady = torch.randn(shape, generator=generator)
    return [steady + torch.randn(shape, generator=generator) for _ in range(steps)]


def run(hyper: Muon8bitHyper, shape: tuple[int, int], steps: int = 5):
    master = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 0.1
    state = zeros(muon8bit.declared(shape, hyper))
    for step, grad in enumerate(sequence(shape, steps), start=1):
        master, state = muon8bit.update(master, state, grad, hyper, step)
    return master, state


@pytest.mark.parametrize("shape", [(48, 100), (80, 80), (100, 48)])
@pytest.mark.parametrize("nesterov", [True, False])
def test_with_float32_state_it_is_muon_bit_for_bit(shape, nesterov):
    plain = MuonHyper(lr=0.02, weight_decay=0.1, nesterov=nesterov)
    master = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 0.1
    state = zeros(muon.declared(tuple(master.shape)))
    for step, grad in enumerate(sequence(shape, 5), start=1):
        master, state = muon.update(master, state, grad, plain, step)
    ours, after = run(Muon8bitHyper(muon=plain, kind="float32"), shape)
    assert torch.equal(ours, master)
    assert torch.equal(after["momentum"], state["momentum"])


@pytest.mark.parametrize("kind", ["linear", "dynamic"])
@pytest.mark.parametrize("block", [256, 2048])
def test_it_is_muon_with_rounding_after_each_momentum_update(kind, block):
    """The oracle: full precision Muon whose momentum passes the codec once per step."""
    shape = (72, 90)
    plain = MuonHyper(lr=0.02)
    master = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 0.1
    momentum = torch.zeros(shape)
    for grad in sequence(shape, 5):
        momentum = torch.lerp(momentum, grad, 1 - 0.95)
        o = muon.orthogonalise(torch.lerp(grad, momentum, 0.95))
        master = master - 0.02 * 0.2 * 90**0.5 * o
        momentum = dequantise(*quantise(momentum, kind, block), kind, block, shape)
    ours, _ = run(Muon8bitHyper(muon=plain, kind=kind, block=block), shape)
    torch.testing.assert_close(ours, master, rtol=0, atol=1e-6)


def test_eight_bits_stay_close_to_full_precision():
    shape, hyper = (96, 128), MuonHyper(lr=0.02)
    exact, _ = run(Muon8bitHyper(muon=hyper, kind="float32"), shape, steps=20)
    start = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 0.1
    for coded in (Muon8bitHyper(muon=hyper), Muon8bitHyper(muon=hyper, kind="dynamic")):
        master, _ = run(coded, shape, steps=20)
        assert float((master - exact).norm() / (exact - start).norm()) < 0.03


def test_the_first_step_sees_no_rounding():
    shape, plain = (64, 96), MuonHyper(lr=0.02)
    ours, _ = run(Muon8bitHyper(muon=plain), shape, steps=1)
    exact, _ = run(Muon8bitHyper(muon=plain, kind="float32"), shape, steps=1)
    assert torch.equal(ours, exact)


def test_small_matrices_keep_float32_momentum():
    _, state = run(Muon8bitHyper(muon=MuonHyper(lr=0.02)), (32, 100), steps=2)
    assert set(state) == {"momentum"}


def test_the_same_arguments_give_the_same_bits_and_stay_as_they_are():
    hyper = Muon8bitHyper(muon=MuonHyper(lr=0.02, weight_decay=0.1), neuron_beta2=0.95)
    shape = (64, 80)
    _, state = run(hyper, shape, steps=2)
    master, grad = torch.ones(shape), sequence(shape, 1)[0]
    copies = {name: tensor.clone() for name, tensor in state.items()}
    first = muon8bit.update(master, state, grad, hyper, 3)
    second = muon8bit.update(master, state, grad, hyper, 3)
    assert torch.equal(first[0], second[0])
    assert all(torch.equal(first[1][name], second[1][name]) for name in first[1])
    assert torch.equal(master, torch.ones(shape))
    assert all(torch.equal(state[name], copies[name]) for name in copies)


def test_normuon_evens_rows_and_keeps_the_norm():
    shape, steps = (64, 128), 4
    hyper = Muon8bitHyper(muon=MuonHyper(lr=1.0), kind="float32", neuron_beta2=0.9)
    scale = 0.2 * 128**0.5
    master, state = torch.zeros(shape), zeros(muon8bit.declared(shape, hyper))
    momentum, v = torch.zeros(shape).double(), torch.zeros(64).double()
    rows = torch.linspace(0.01, 1.0, 64)[:, None]
    for step, grad in enumerate((g * rows for g in sequence(shape, steps)), start=1):
        before = master
        master, state = muon8bit.update(master, state, grad, hyper, step)
        momentum = 0.95 * momentum + 0.05 * grad.double()
        direction = 0.05 * grad.double() + 0.95 * momentum
        o = muon.orthogonalise(direction, dtype=torch.float64)
        v = 0.9 * v + 0.1 * o.square().mean(dim=1)
        even = o / (v.sqrt()[:, None] + 1e-10)
        even = even * (o.norm() / even.norm())
        torch.testing.assert_close(((before - master) / scale).double(), even, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(state["neurons"][:, 0].double(), v, rtol=1e-3, atol=1e-6)


def test_a_zero_gradient_at_the_start_changes_nothing():
    hyper = Muon8bitHyper(muon=MuonHyper(lr=0.02), neuron_beta2=0.95)
    state = zeros(muon8bit.declared((64, 64), hyper))
    master, after = muon8bit.update(torch.ones(64, 64), state, torch.zeros(64, 64), hyper, 1)
    assert torch.equal(master, torch.ones(64, 64))
    assert all(torch.isfinite(tensor.float()).all() for tensor in after.values())


@pytest.mark.parametrize(("block", "bound"), [(2048, 1.002), (256, 1.016)])
def test_state_takes_a_byte_an_element(block, bound):
    hyper = Muon8bitHyper(muon=MuonHyper(lr=0.02), block=block)
    shape = (1024, 2736)
    assert nbytes(muon8bit.declared(shape, hyper)) / (1024 * 2736) <= bound + 1e-3
