"""The layers of a LoopLM: linear maps (ternary or not), norms, attention, feed-forward.

Shapes: B rows of a batch, S positions, C width (dim), H heads, D width of a head, F hidden width of
the feed-forward layer, L cached positions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from kernels.model.config import ModelConfig
from kernels.model.gathering import Sink, leaf
from kernels.model.hyper_connections import HyperConnection
from kernels.optimizers import draws
from kernels.precision.low_precision import low_precision_project
from kernels.precision.recipes import Recipe
from kernels.precision.ternary import Ternary, carrier, quantise, ternary_project
from kernels.sparsity.tape import Filtering, Known, causal_attention

Mode = Literal["master", "codes"]


class TernaryLinear(nn.Module):
    """A ternary weight (out, in), without bias. Both modes compute the same bits.

    "master": `weight` is the float master; `requantise` makes codes and scale from it.
    "codes": codes and scale are given (`load`); `weight` is a carrier of one element, which exists
    so that dW has somewhere to arrive: 1 byte a weight in all.
    """

    def __init__(self, inputs: int, outputs: int, mode: Mode) -> None:
        super().__init__()
        self.recipe: Recipe | None = (
            None  # how to multiply; None: 8-bit activations, all else exact
        )
        self.label = ""  # its name in the model, which its random draws depend on
        self.sink: Sink | None = None  # where dW goes instead of to `weight.grad`
        self.mode: Mode = mode
        if mode == "master":
            self.weight = nn.Parameter(torch.zeros(outputs, inputs))
        else:
            self.weight = carrier(outputs, inputs)
        self.codes: Tensor
        self.scale: Tensor
        codes = torch.zeros(outputs, inputs, dtype=torch.int8)
        self.register_buffer("codes", codes, persistent=False)
        self.register_buffer("scale", torch.ones(()), persistent=False)

    @property
    def ternary(self) -> Ternary:
        """Codes and scale as they are now."""
        return Ternary(self.codes, self.scale)

    @torch.no_grad()
    def load(self, codes: Tensor, scale: Tensor | float) -> None:
        """Take over codes (int8, this shape) and scale. Raises `ValueError` on another shape."""
        if codes.shape != self.weight.shape or codes.dtype != torch.int8:
            raise ValueError(
                f"codes are {codes.dtype} of shape {tuple(codes.shape)}; "
                f"this layer takes torch.int8 of shape {tuple(self.weight.shape)}"
            )
        self.codes.copy_(codes)
        self.scale.fill_(scale)

    @torch.no_grad()
    def requantise(self) -> None:
        """In master mode, bring codes and scale up to date with the master; else nothing."""
        if self.mode == "master":
            # New tensors rather than new contents: a graph of an earlier forward may hold the old.
            self.codes, self.scale = quantise(self.weight)

    def forward(self, x: Tensor, call: "Call | None" = None) -> Tensor:
        """(..., in) -> (..., out)."""
        return project(x, (self,), call)[0]


class DenseLinear(nn.Module):
    """A full-precision weight (out, in), without bias: for comparison."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.recipe: Recipe | None = None
        self.label = ""
        self.sink: Sink | None = None
        self.weight = nn.Parameter(torch.zeros(outputs, inputs))

    def forward(self, x: Tensor, call: "Call | None" = None) -> Tensor:
        """(..., in) -> (..., out)."""
        return project(x, (self,), call)[0]


Linear = TernaryLinear | DenseLinear


def linear(config: ModelConfig, inputs: int, outputs: int, mode: Mode) -> Linear:
    """The kind of linear layer `config` asks for."""
    return TernaryLinear(inputs, outputs, mode) if config.ternary else DenseLinear(inputs, outputs)


def project(x: Tensor, layers: Sequence[Linear], call: "Call | None" = None) -> tuple[Tensor, ...]:
    """`x` through several layers of one kind and recipe side by side; they share its rounding."""
    if call is None or call.filtering is None:
        return _project(x, layers, call)
    widths = [layer.weight.shape[0] for layer in layers]
    recipe = layers[0].recipe

    def measure() -> Tensor | None:
        return None if recipe is None else recipe.whole(x.reshape(-1, x.shape[-1]))

    def compute(known: Known, whole: Tensor | None) -> tuple[Tensor, ...]:
        return _project(x, layers, call, known, whole)

    return call.filtering.products(x, widths, measure, compute)


def _project(
    x: Tensor,
    layers: Sequence[Linear],
    call: "Call | None",
    known: Known = None,
    whole: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """`known` are results computed before; `whole`: see `Recipe.whole`."""
    ternary = [layer for layer in layers if isinstance(layer, TernaryLinear)]
    weights = [t.ternary for t in ternary]
    recipe, leaves = layers[0].recipe, [leaf(layer) for layer in layers]
    if recipe is None and ternary:
        return ternary_project(x, leaves, weights, known)
    if recipe is None and (call is None or call.filtering is None):
        return tuple(functional.linear(x, weight) for weight in leaves)
    noise = None if call is None else call.noise
    keys = None if noise is None else [draws.key(noise, layer.label) for layer in layers]
    return low_precision_project(x, leaves, weights or None, recipe or Recipe(), keys, known, whole)


class _RmsNorm(torch.autograd.Function):
    """x / rms(x) * w. By hand: a third of the time of autograd's decomposition on a CPU."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w_C: Tensor, eps: float) -> Tensor:
        inverse = x.square().mean(dim=-1, keepdim=True).add_(eps).rsqrt_()
        ctx.save_for_backward(x, w_C, inverse)
        return (x * inverse).mul_(w_C)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (dy,) = grads
        x, w_C, inverse = ctx.saved_tensors
        unit = x * inverse
        dw_C = (dy * unit).flatten(0, -2).sum(dim=0)
        dunit = dy * w_C
        along = (dunit * unit).mean(dim=-1, keepdim=True)
        return dunit.addcmul_(unit, along, value=-1.0).mul_(inverse), dw_C, None


class RmsNorm(nn.Module):
    """Root mean square norm over the last dimension, with a gain."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) -> the same shape."""
        out: Tensor = _RmsNorm.apply(x, self.weight, self.eps)
        return out


def rotary_tables(positions: Tensor, head_dim: int, base: float) -> tuple[Tensor, Tensor]:
    """cos and sin (..., S, 1, D) for integer `positions` (..., S): pairs are (i, i + D/2)."""
    exponents = torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float64)
    angles = positions.double()[..., None] * base ** (-exponents / head_dim)
    angles = torch.cat((angles, angles), dim=-1).unsqueeze(-2)
    return angles.cos().float(), angles.sin().float()


def rotate(x_BSHD: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding."""
    a, b = x_BSHD.chunk(2, dim=-1)
    return x_BSHD * cos + torch.cat((-b, a), dim=-1) * sin


class Memory(Protocol):
    """Keys and values of earlier positions, for one attention layer in one loop."""

    def extend(self, k_BHSD: Tensor, v_BHSD: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Append; returns all keys and values (B, H, L, D) and a mask (B, 1, S, L) or None."""
        ...


@dataclass(frozen=True, slots=True)
class Call:
    """What a layer is told besides its input."""

    cos: Tensor  # (S, 1, D) or (B, S, 1, D), of the positions; see `rotary_tables`
    sin: Tensor
    memory: Memory | None = None  # None: only the positions given, causally
    noise: int | None = None  # key of all random draws of this call
    filtering: Filtering | None = None  # how this call takes part in a token filter


class Attention(nn.Module):
    """Causal multi-head attention; SubLN before the output map (BitNet 2B4T)."""

    def __init__(self, config: ModelConfig, mode: Mode) -> None:
        super().__init__()
        C = config.dim
        self.heads = config.heads
        self.q = linear(config, C, C, mode)
        self.k = linear(config, C, C, mode)
        self.v = linear(config, C, C, mode)
        self.sub_norm = RmsNorm(C, config.norm_eps)
        self.o = linear(config, C, C, mode)

    def forward(self, x_BSC: Tensor, call: Call) -> Tensor:
        """(B, S, C) -> (B, S, C)."""
        B, S, C = x_BSC.shape
        q, k, v = project(x_BSC, (self.q, self.k, self.v), call)
        heads = (B, S, self.heads, C // self.heads)
        q_BSHD = rotate(q.view(heads), call.cos, call.sin)
        k_BSHD = rotate(k.view(heads), call.cos, call.sin)
        v_BSHD = v.view(heads)
        if call.filtering is not None:
            y_BSHD = call.filtering.attention(q_BSHD, k_BSHD, v_BSHD)
        elif call.memory is not None:
            y_BSHD = _remembered(q_BSHD, k_BSHD, v_BSHD, call.memory)
        else:
            y_BSHD = causal_attention(q_BSHD, k_BSHD, v_BSHD)
        return self.o(self.sub_norm(y_BSHD.reshape(B, S, C)), call)


def _remembered(q_BSHD: Tensor, k_BSHD: Tensor, v_BSHD: Tensor, memory: Memory) -> Tensor:
    """Attention over these and earlier positions, (B, S, H, D)."""
    q, k, v = (x.transpose(1, 2) for x in (q_BSHD, k_BSHD, v_BSHD))
    k, v, mask = memory.extend(k, v)
    # Without a mask: as many keys as queries are causal, a single query may see every key.
    causal = mask is None and q.shape[2] > 1
    y = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
    return y.transpose(1, 2)


class _ReluSquaredGate(torch.autograd.Function):
    """relu(gate)^2 * up, keeping only its two inputs."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return gate.relu().square_().mul_(up)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        (dy,) = grads
        gate, up = ctx.saved_tensors
        positive = gate.relu()
        dy_positive = dy * positive
        dup = dy_positive * positive
        return dy_positive.mul_(up).mul_(2.0), dup


class FeedForward(nn.Module):
    """down(norm(relu(gate x)^2 * up x)): squared ReLU gate and SubLN (BitNet 2B4T)."""

    def __init__(self, config: ModelConfig, mode: Mode) -> None:
        super().__init__()
        C, F = config.dim, config.hidden
        self.gate = linear(config, C, F, mode)
        self.up = linear(config, C, F, mode)
        self.sub_norm = RmsNorm(F, config.norm_eps)
        self.down = linear(config, F, C, mode)

    def forward(self, x_BSC: Tensor, call: Call) -> Tensor:
        """(B, S, C) -> (B, S, C)."""
        gate, up = project(x_BSC, (self.gate, self.up), call)
        hidden: Tensor = _ReluSquaredGate.apply(gate, up)
        return self.down(self.sub_norm(hidden), call)


class Layer(nn.Module):
    """Attention and feed-forward, each between two norms (sandwich; Ouro, section 1a).

    With `streams` above 1 what passes by is that many residual streams, see `hyper_connections`.
    """

    def __init__(self, config: ModelConfig, mode: Mode, *, streams: int = 1) -> None:
        super().__init__()
        C, eps = config.dim, config.norm_eps

        def connection() -> HyperConnection | None:
            if streams == 1:
                return None
            return HyperConnection(streams, C, config.stream_mixing)

        self.attention_streams = connection()
        self.attention_norm_in = RmsNorm(C, eps)
        self.attention = Attention(config, mode)
        self.attention_norm_out = RmsNorm(C, eps)
        self.ffn_streams = connection()
        self.ffn_norm_in = RmsNorm(C, eps)
        self.ffn = FeedForward(config, mode)
        self.ffn_norm_out = RmsNorm(C, eps)

    def forward(self, x: Tensor, call: Call) -> Tensor:
        """(B, S, C), or with streams (B, S, n, C), to the same."""
        if self.attention_streams is None or self.ffn_streams is None:
            x = x + self._attended(x, call)
            return x + self._fed(x, call)
        maps = self.attention_streams(x)
        x = maps.write(x, self._attended(maps.read(x), call))
        maps = self.ffn_streams(x)
        return maps.write(x, self._fed(maps.read(x), call))

    def multiply_by(self, attention: Recipe | None, ffn: Recipe | None) -> None:
        """How the linear maps of both sublayers multiply from now on."""
        for module in (self.attention.q, self.attention.k, self.attention.v, self.attention.o):
            module.recipe = attention
        for module in (self.ffn.gate, self.ffn.up, self.ffn.down):
            module.recipe = ffn

    def _attended(self, x_BSC: Tensor, call: Call) -> Tensor:
        return self.attention_norm_out(self.attention(self.attention_norm_in(x_BSC), call))

    def _fed(self, x_BSC: Tensor, call: Call) -> Tensor:
        return self.ffn_norm_out(self.ffn(self.ffn_norm_in(x_BSC), call))
