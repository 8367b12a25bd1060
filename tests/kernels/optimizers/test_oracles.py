"""Against independent implementations, where they are installed: `pip install '.[oracles]'`.

torchao's 8-bit codecs, and the projector of the GaLore authors (read from its own file, because the
package imports transformers and bitsandbytes, which nothing here needs).
"""

import importlib.util
import math
from pathlib import Path
from types import ModuleType

import pytest
import torch

from kernels.optimizers import galore, projection
from kernels.optimizers.galore import GaLoreHyper
from kernels.optimizers.projection import RefreshPlan
from kernels.optimizers.quantised_state import dynamic_values, quantise, zeros

SHAPES = [(24, 40), (32, 32), (40, 24)]


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def torchao_codes(recwarn: pytest.WarningsRecorder) -> ModuleType:
    del recwarn  # torchao warns about its own extensions while it is imported
    return pytest.importorskip("torchao.optim.quant_utils", exc_type=ImportError)


@pytest.fixture
def galore_projector() -> ModuleType:
    package = importlib.util.find_spec("galore_torch")
    if package is None or package.origin is None:
        pytest.skip("galore-torch is not installed")
    path = Path(package.origin).with_name("galore_projector.py")
    spec = importlib.util.spec_from_file_location("galore_projector", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("signed", [True, False])
def test_dynamic_maps_are_torchaos(torchao_codes, signed):
    theirs = torch.tensor(torchao_codes.create_dynamic_map(signed))
    ours = torch.tensor(dynamic_values(signed=signed))
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("block", [256, 2048])
def test_dynamic_codes_are_torchaos(torchao_codes, signed, block):
    x = randn(64, 256) * randn(64, 256, seed=1).exp()
    x = x if signed else x.abs()
    scaled, scale = torchao_codes.scale_tensor(x, block)
    qmap = torch.tensor(torchao_codes.create_dynamic_map(signed))
    theirs = torchao_codes.quantize_8bit_with_qmap(scaled.view(-1), qmap)
    ours, our_scale = quantise(x, "dynamic" if signed else "unsigned", block)
    assert torch.equal(our_scale, scale)
    difference = (ours.view(-1).int() - theirs.view(-1).int()).abs()
    assert int(difference.max()) <= 1
    assert int(difference.sum()) <= 2  # maps agree to the last bit but one, so near-ties may not


@pytest.mark.parametrize("shape", SHAPES)
def test_the_subspace_is_that_of_the_authors_svd(galore_projector, shape):
    low = randn(shape[0], 5, dtype=torch.float64) @ randn(5, shape[1], seed=1, dtype=torch.float64)
    g = low + 1e-3 * randn(*shape, seed=2, dtype=torch.float64)
    theirs = galore_projector.GaLoreProjector(rank=5)
    core = theirs.project(g, 0)
    basis = projection.find_basis(g, RefreshPlan(5, power_iterations=2), key=1)
    assert core.shape == projection.core_shape(shape, 5)
    back = projection.unproject(projection.project(g, basis), basis, shape)
    # Their SVD is in float32, whatever the gradient is.
    torch.testing.assert_close(back, theirs.project_back(core), rtol=0, atol=2e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_updates_within_a_period_are_the_authors(galore_projector, shape):
    """Their AdamW loop around their projector; signs of basis vectors cancel within a period."""
    theirs = galore_projector.GaLoreProjector(rank=5, update_proj_gap=100, scale=0.25)
    hyper = GaLoreHyper(
        lr=0.05,
        rank=5,
        base="adamw",
        alpha=0.25,
        weight_decay=0.1,
        eight_bit=False,
        basis="float32",
    )
    w = master = randn(*shape, seed=3, dtype=torch.float64)
    state = {n: t.double() for n, t in zeros(galore.declared(shape, hyper)).items()}
    m = v = torch.zeros(projection.core_shape(shape, 5), dtype=torch.float64)
    for t in range(1, 8):
        g = randn(*shape, seed=10 + t, dtype=torch.float64)
        r = theirs.project(g, t - 1)
        m, v = 0.9 * m + 0.1 * r, 0.999 * v + 0.001 * r * r
        size = 0.05 * math.sqrt(1 - 0.999**t) / (1 - 0.9**t)
        w = w - size * theirs.project_back(m / (v.sqrt() + 1e-6))  # times its scale
        w = w - 0.05 * 0.1 * w
        if t == 1:
            found = theirs.ortho_matrix if shape[0] < shape[1] else theirs.ortho_matrix.mT
            state = galore.adopt(state, projection.canonical(found), shape, hyper, version=1)
        core = projection.project(g, galore.basis(state, shape, hyper))
        master, state = galore.update(master, state, core, hyper, t)
    torch.testing.assert_close(master, w, rtol=0, atol=1e-12)
