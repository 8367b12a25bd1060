"""4-bit codes against torchao's, where it is installed: `pip install '.[oracles]'`."""

from types import ModuleType

import pytest
import torch

from kernels.precision import native
from kernels.precision.rounding import e2m1, e2m1_codes, e2m1_values, pack_nibbles


@pytest.fixture
def torchao_kernels(recwarn: pytest.WarningsRecorder) -> ModuleType:
    del recwarn  # torchao warns about its own extensions while it is imported
    return pytest.importorskip("torchao.prototype.mx_formats.kernels", exc_type=ImportError)


def test_codes_are_torchaos_with_every_tie(torchao_kernels):
    ties = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 6.0, 7.0, 0.0])
    generator = torch.Generator().manual_seed(0)
    x = torch.cat((ties, -ties, 3.0 * torch.randn(100_000, generator=generator)))
    theirs = torchao_kernels.f32_to_f4_unpacked(x)
    assert torch.equal(e2m1_codes(e2m1(x)), theirs)
    assert torch.equal(e2m1_values(theirs), torchao_kernels.f4_unpacked_to_f32(theirs))
    assert torch.equal(pack_nibbles(theirs), torchao_kernels.pack_uint4(theirs))


@pytest.mark.parametrize("shape", [(128, 4), (200, 6), (256, 16)])
def test_scales_lie_where_torchaos_lie(recwarn: pytest.WarningsRecorder, shape: tuple[int, int]):
    del recwarn
    utils = pytest.importorskip("torchao.prototype.mx_formats.utils", exc_type=ImportError)
    scales = torch.rand(shape, generator=torch.Generator().manual_seed(1)).to(torch.float8_e4m3fn)
    ours = native.swizzled(scales.float()).to(torch.float8_e4m3fn)
    assert torch.equal(ours.view(torch.uint8), utils.to_blocked(scales).flatten().view(torch.uint8))
