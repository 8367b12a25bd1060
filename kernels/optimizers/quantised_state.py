"""Blockwise codes for optimizer state: 8 bits for moments, 4 for bases.

Dettmers et al. (2110.02861): cut the flattened tensor into blocks, divide each by its largest
magnitude, and replace every element by the nearest entry of a map. Blocks run over the flattened
FULL tensor, so a code never depends on how a parameter is sharded. The last block may be partial.

linear    -127..127 / 127. Enough for Muon's momentum: nothing is ever divided by it.
dynamic   densest at zero, seven decades deep. Adam's first moment.
unsigned  the same for values >= 0. Adam's second moment; a linear map would flush most of it to
          zero, and the update divides by its root.
int4      -7..7 / 7, two codes in a byte. For orthonormal bases only.

A block of zeros has scale 0 and decodes to zeros, whatever its codes: zeroed bytes are zeros.
Ties go to the even code in linear and int4 and to the larger in the dynamic maps (torchao's rule).

Not covered: values that are not finite. Callers refuse such gradients before they come here.
"""

from collections.abc import Iterable, Mapping
from functools import cache
from math import prod

import torch
from torch import Tensor

from kernels.optimizers.packing import pack, unpack
from kernels.optimizers.state import CODED, Kind, StateTensor, Storage

State = Mapping[str, Tensor]

_LEVELS = {"linear": 127, "int4": 7}


def quantise(values: Tensor, kind: Kind, block: int) -> tuple[Tensor, Tensor]:
    """Codes and one float32 scale per block of `values`, of any shape.

    Codes have the shape of `values`, but for int4: flat, two in a byte.
    """
    blocks = in_blocks(values.to(torch.float32), block)
    scale = blocks.abs().amax(dim=1)
    relative = blocks / torch.where(scale > 0, scale, 1.0)[:, None]
    if kind in _LEVELS:
        codes = (relative * _LEVELS[kind]).round_().to(torch.int8)
    else:
        codes = _nearest(relative, _dynamic_map(kind == "dynamic", relative.device))
    codes = codes.view(-1)[: values.numel()]
    return (pack(codes, 4) if kind == "int4" else codes.view(values.shape)), scale


def dequantise(
    codes: Tensor, scale: Tensor, kind: Kind, block: int, shape: tuple[int, ...]
) -> Tensor:
    """What `quantise` stored, as float32 of `shape`."""
    if kind == "int4":
        codes = unpack(codes, 4, prod(shape))
    blocks = in_blocks(codes, block)
    if kind in _LEVELS:
        relative = blocks.to(torch.float32) / _LEVELS[kind]
    else:
        relative = _dynamic_map(kind == "dynamic", codes.device)[blocks.to(torch.int32)]
    # Adding zero turns the -0 of a zero block into 0.
    return (relative * scale[:, None] + 0.0).view(-1)[: prod(shape)].view(shape)


def load(state: State, name: str, storage: Storage, shape: tuple[int, ...]) -> Tensor:
    """The tensor `name` of `state`, decoded when it is stored as codes."""
    storage = storage.of(shape)
    if storage.kind == "float16":
        return state[name].to(torch.float32)
    if storage.kind not in CODED:
        return state[name]
    codes, scale = state[f"{name}.codes"], state[f"{name}.scale"]
    return dequantise(codes, scale, storage.kind, storage.block, shape)


def store(name: str, values: Tensor, storage: Storage) -> dict[str, Tensor]:
    """`values` as the state tensors that `declare(name, values.shape, storage)` announces."""
    storage = storage.of(tuple(values.shape))
    if storage.kind == "float16":
        return {name: values.to(torch.float16)}
    if storage.kind not in CODED:
        return {name: values}
    codes, scale = quantise(values, storage.kind, storage.block)
    return {f"{name}.codes": codes, f"{name}.scale": scale}


def zeros(declared: Iterable[StateTensor], device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """The state before the first step."""
    return {
        tensor.name: torch.zeros(tensor.shape, dtype=getattr(torch, tensor.dtype), device=device)
        for tensor in declared
    }


def in_blocks(values: Tensor, block: int) -> Tensor:
    """Flattened and padded with zeros to whole blocks: (blocks, block)."""
    flat = values.reshape(-1)
    rest = -flat.numel() % block
    return (torch.nn.functional.pad(flat, (0, rest)) if rest else flat).view(-1, block)


def dynamic_values(*, signed: bool) -> tuple[float, ...]:
    """The 256 values of the dynamic map, ascending, in [-1, 1]: seven decades, 0 and 1.

    In decade i (10^(i-6)) lie the middles of 2^i (signed) or 2^(i+1) equal parts of [0.1, 1].
    The signed map has no -1: its least value is -0.99297.
    """
    values = [0.0, 1.0]
    for i in range(7):
        parts = 2 ** (i if signed else i + 1)
        for part in range(parts):
            middle = (0.1 + 0.9 * (part + 0.5) / parts) * 10.0 ** (i - 6)
            values += [middle, -middle] if signed else [middle]
    return tuple(sorted(values))


@cache
def _dynamic_map(signed: bool, device: torch.device) -> Tensor:
    return torch.tensor(dynamic_values(signed=signed), dtype=torch.float32, device=device)


def _nearest(relative: Tensor, values: Tensor) -> Tensor:
    """Index of the nearest of 256 ascending `values`, the upper one of two: uint8."""
    below = torch.searchsorted(values, relative, right=True, out_int32=True).sub_(1).clamp_(0, 255)
    above = (below + 1).clamp_(max=255)
    low = values[below]
    nearer_above = relative - low >= (values[above] - low) * 0.5
    return torch.where(nearer_above, above, below).to(torch.uint8)
