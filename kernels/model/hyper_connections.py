"""Manifold-constrained hyper-connections (mHC, arXiv 2512.24880): n residual streams, not one.

Around each sublayer F, for each token with streams X_1 .. X_n:

    u = sum_j pre_j X_j        X'_k = post_k F(u) + sum_j M_jk X_j

The weights pre (a sigmoid), post (twice a sigmoid) and M are made from the streams themselves: a
dynamic part alpha * (norm(vec X) phi) on top of a static part b. M is doubly stochastic, so that
however many layers are stacked, the streams' mean passes unchanged and nothing is amplified.

M comes from its logits in one of two ways. "sinkhorn": twenty times rows, then columns, are divided
by their sums (the row softmax is the first half of the first time). "permutation" (mHC-lite, arXiv
2601.05732): a softmax over all n! permutations weighs their matrices, which is exact.

Where a turn of the loop begins, every stream is the state; where it ends, a head like `pre` reads
one state out of them. So gate, logits and the next turn see what they see without streams.

How it starts is not in the papers, except for alpha = 0.01. Here the first step computes what a
plain residual computes: post is 1, pre sums to 1, and M, whatever it is, keeps equal streams equal.
But pre leans on another stream in each sublayer: with all streams treated alike, their gradients
would be alike for ever and n streams would do the work of one.

By its nature the first sublayer of a turn has no use for its M: there all streams are equal.
"""

import math
import re
from collections.abc import Sequence
from itertools import permutations
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

# Shapes: B rows, S positions, N tokens (in any arrangement), n streams, C width, R logits a token.

Mixing = Literal["sinkhorn", "permutation"]

# More streams than this were never reported to help.
MOST_STREAMS = 8
# n! weights per token and sublayer: 24 for four streams, 120 for five.
MOST_PERMUTED_STREAMS = 4

ITERATIONS = 20  # paper, appendix A.1; five are far from doubly stochastic
# Added to weights so that none, and no sum of them, is zero. Published code adds it to the sums of
# the iterations as well, which loses a millionth of the streams in every sublayer: 5e-5 of a state
# after 12 layers, measured. Here columns sum to 1 as well as float32 can.
_EPS = 1e-6
_NORM_EPS = 1e-20
# Tokens whose twenty iterations are kept at once in the backward pass: 50 MB for four streams.
_CHUNK_TOKENS = 16384

ALPHA = 0.01  # paper, appendix A.1
PHI_STD = 0.02
OWN_SHARE = 0.7  # of `pre` at the start, for the stream that a sublayer leans on
OFF_DIAGONAL = -3.0  # logits of M at the start; at -8 their gradient is gone and M never moves
IDENTITY_SHARE = 0.8  # of the identity among permutations at the start, for the same reason


def logit_count(streams: int, mixing: Mixing) -> int:
    """Logits per token that one sublayer's maps are made of."""
    mix = streams * streams if mixing == "sinkhorn" else math.factorial(streams)
    return 2 * streams + mix


class Maps(NamedTuple):
    """One sublayer's weights for each token."""

    pre: Tensor  # (N, n)
    post: Tensor  # (N, n)
    mix: Tensor  # (N, n, n): from the first index to the second

    def read(self, x_NnC: Tensor) -> Tensor:
        """The sublayer's input (N, C)."""
        return _weighted(self.pre, x_NnC)

    def write(self, x_NnC: Tensor, y_NC: Tensor) -> Tensor:
        """The streams after the sublayer, whose output is `y_NC`: (N, n, C)."""
        n, C = x_NnC.shape[-2:]
        added = self.post.reshape(-1, n, 1) * y_NC.reshape(-1, 1, C)
        mixed = torch.baddbmm(added, self.mix.reshape(-1, n, n).mT, x_NnC.reshape(-1, n, C))
        return mixed.view(x_NnC.shape)


class HyperConnection(nn.Module):
    """What makes the `Maps` of one sublayer: its parameters are phi (R, n C), b (R), alpha (3)."""

    def __init__(self, streams: int, width: int, mixing: Mixing) -> None:
        super().__init__()
        self.streams = streams
        self.mixing: Mixing = mixing
        count = logit_count(streams, mixing)
        self.phi = nn.Parameter(torch.zeros(count, streams * width))
        self.b = nn.Parameter(torch.zeros(count))
        self.alpha = nn.Parameter(torch.zeros(3))  # of pre, post, mix
        self.permutations: Tensor | None
        table = permutation_table(streams) if mixing == "permutation" else None
        self.register_buffer("permutations", table, persistent=False)

    def forward(self, x_NnC: Tensor) -> Maps:
        """Maps for each token of (N, n, C)."""
        n = self.streams
        logits_NR = _logits(x_NnC, self.phi, self.b, self.alpha, (n, n, len(self.b) - 2 * n))
        pre, post, mix = logits_NR.split((n, n, len(self.b) - 2 * n), dim=-1)
        return Maps(pre.sigmoid() + _EPS, 2.0 * post.sigmoid(), self._mix(mix))

    def _mix(self, logits: Tensor) -> Tensor:
        shape = (*logits.shape[:-1], self.streams, self.streams)
        if self.permutations is None:
            return sinkhorn(logits.view(shape))
        return (logits.softmax(dim=-1) @ self.permutations.to(logits.dtype)).view(shape)


class StreamsHead(nn.Module):
    """One state out of n streams: `pre` alone, with phi (n, n C), b (n) and alpha (1)."""

    def __init__(self, streams: int, width: int) -> None:
        super().__init__()
        self.streams = streams
        self.phi = nn.Parameter(torch.zeros(streams, streams * width))
        self.b = nn.Parameter(torch.zeros(streams))
        self.alpha = nn.Parameter(torch.zeros(1))

    def forward(self, x_NnC: Tensor) -> Tensor:
        """(N, n, C) -> (N, C)."""
        logits = _logits(x_NnC, self.phi, self.b, self.alpha, (len(self.b),))
        return _weighted(logits.sigmoid() + _EPS, x_NnC)


def spread(h_BSC: Tensor, streams: int) -> Tensor:
    """Every stream is the state: (B, S, C) -> (B, S, n, C). A copy: products of views are slow."""
    return h_BSC.unsqueeze(-2).expand(*h_BSC.shape[:-1], streams, h_BSC.shape[-1]).contiguous()


def _logits(
    x_NnC: Tensor, phi_RD: Tensor, b_R: Tensor, alpha: Tensor, sizes: Sequence[int]
) -> Tensor:
    """alpha * (norm(vec X) phi) + b, (N, R): the norm has no gain and is divided by at the end."""
    x_ND = x_NnC.flatten(-2)
    inverse = (x_ND.square().mean(dim=-1, keepdim=True) + _NORM_EPS).rsqrt()
    per_logit = torch.cat([a.expand(size) for a, size in zip(alpha, sizes, strict=True)])
    return functional.linear(x_ND, phi_RD) * inverse * per_logit + b_R


def _weighted(weights_Nn: Tensor, x_NnC: Tensor) -> Tensor:
    """sum_j w_j X_j, (N, C)."""
    return (weights_Nn.unsqueeze(-2) @ x_NnC).squeeze(-2)


def permutation_table(streams: int) -> Tensor:
    """All permutation matrices of n streams, the identity first, flattened: (n!, n n)."""
    eye = torch.eye(streams)
    return torch.stack([eye[list(order)].flatten() for order in permutations(range(streams))])


def sinkhorn(logits_Nnn: Tensor) -> Tensor:
    """Nearly doubly stochastic matrices (..., n, n): columns (over the first index) sum to 1.

    Rows do so up to what twenty iterations leave, 1e-3 or less for logits of ordinary size.
    """
    out: Tensor = _Sinkhorn.apply(logits_Nnn)
    return out


class _Sinkhorn(torch.autograd.Function):
    """The iterations, recomputed in the backward pass rather than kept.

    Inside, tokens are the last dimension: sums over n rows or columns then add long vectors.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor) -> Tensor:
        ctx.save_for_backward(logits)
        n = logits.shape[-1]
        m_nnN = logits.reshape(-1, n, n).permute(1, 2, 0).softmax(dim=1).add_(_EPS)
        for dim in _half_steps():
            m_nnN.div_(m_nnN.sum(dim=dim, keepdim=True))
        # Contiguous, or each token would be a matrix product of its own.
        return m_nnN.permute(2, 0, 1).contiguous().view(logits.shape)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (logits,) = ctx.saved_tensors
        n = logits.shape[-1]
        parts = zip(
            logits.reshape(-1, n, n).split(_CHUNK_TOKENS),
            grads[0].reshape(-1, n, n).split(_CHUNK_TOKENS),
            strict=True,
        )
        out = [_sinkhorn_gradient(part.permute(1, 2, 0), dm.permute(1, 2, 0)) for part, dm in parts]
        return torch.cat([d.permute(2, 0, 1) for d in out]).view(logits.shape)


def _half_steps() -> list[int]:
    """Which dimension is summed over in each half iteration after the row softmax."""
    return [0, *([1, 0] * (ITERATIONS - 1))]


def _sinkhorn_gradient(logits_nnN: Tensor, dm_nnN: Tensor) -> Tensor:
    soft = logits_nnN.softmax(dim=1)
    m, kept = soft + _EPS, list[tuple[int, Tensor, Tensor]]()
    for dim in _half_steps():
        total = m.sum(dim=dim, keepdim=True)
        m = m / total
        kept.append((dim, m, total))
    d = dm_nnN
    for dim, m, total in reversed(kept):  # y = x / sum x: dx = (dy - sum(dy y)) / sum x
        d = (d - (d * m).sum(dim=dim, keepdim=True)).div_(total)
    return (d - (d * soft).sum(dim=1, keepdim=True)).mul_(soft)


# --- How it starts --------------------------------------------------------------------------------

_SUBLAYER = re.compile(r"layers\.(\d+)\.(attention|ffn)_streams\.(phi|b|alpha)")
_HEAD = re.compile(r"streams_head\.(phi|b|alpha)")


def initial(name: str, shape: Sequence[int], noise: torch.Generator) -> Tensor | None:
    """Float32 value of a parameter of this file at the start; None for any other name."""
    if match := _HEAD.fullmatch(name):
        return _head_value(match[1], shape)
    if match := _SUBLAYER.fullmatch(name):
        number = 2 * int(match[1]) + (match[2] == "ffn")
        return _sublayer_value(match[3], shape, number, noise)
    return None


def _leaning(streams: int, stream: int) -> Tensor:
    """Logits of weights that sum to 1, most of it on one stream."""
    share = torch.full((streams,), (1.0 - OWN_SHARE) / (streams - 1))
    share[stream] = OWN_SHARE
    return (share - _EPS).logit()


def _head_value(what: str, shape: Sequence[int]) -> Tensor:
    """It leans too: the plain mean of streams is what no mixing changes, so none would learn."""
    if what == "b":
        return _leaning(shape[0], 0)
    return torch.full(tuple(shape), ALPHA if what == "alpha" else 0.0)


def _sublayer_value(what: str, shape: Sequence[int], number: int, noise: torch.Generator) -> Tensor:
    """phi makes nothing of pre and post at first, which leaves the first step exactly plain."""
    if what == "alpha":
        return torch.full(tuple(shape), ALPHA)
    streams, mixing = _streams_of(shape[0])
    value = torch.zeros(tuple(shape))
    if what == "phi":
        value[2 * streams :].normal_(0.0, PHI_STD, generator=noise)
        return value
    value[:streams] = _leaning(streams, number % streams)
    if mixing == "sinkhorn":
        value[2 * streams :] = OFF_DIAGONAL * (1.0 - torch.eye(streams).flatten())
    else:
        others = len(value) - 2 * streams - 1
        value[2 * streams + 1 :] = math.log((1.0 - IDENTITY_SHARE) / IDENTITY_SHARE / others)
    return value


def _streams_of(count: int) -> tuple[int, Mixing]:
    """Number of streams and kind of mixing that have this many logits: no two share a count."""
    for streams in range(2, MOST_STREAMS + 1):
        for mixing in ("sinkhorn", "permutation"):
            if logit_count(streams, mixing) == count:
                return streams, mixing
    raise ValueError(f"{count} logits are those of no number of streams")
