"""Causal attention of the kept tokens over all: forward as ever, backward over kept rows only.

Of the dropped tokens, keys and values are constants. So with P the softmax of kept queries over all
keys and dS its gradient,

    dQ = dS K        dK = dS[:, kept]^T Q        dV = P[:, kept]^T dY

and what would be the rows of dK and dV of dropped tokens is never computed. Filtering K and V for
dQ as well would corrupt it (59 % off, section 6a of the notes).

Keys are put in the order kept, dropped. Both parts ascend, so the first sees a plain triangle, and
queries taken in chunks leave out most keys of their future.
"""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kernels.sparsity.token_filter import CHUNK, Kept

# Shapes: B rows, S positions, k of them kept, d dropped, H heads, D width of a head, c queries of a
# chunk that sees e kept and f dropped keys.


# Elements of masks, bytes, that are kept over layers.
_KEPT_MASKS = 1 << 24


class _Chunk(NamedTuple):
    """Queries `start` .. `stop` see kept keys to `stop` and dropped ones to `dropped`, masked."""

    start: int
    stop: int
    dropped: int
    forbidden: Tensor  # bool (B, 1, c, e + f)


def kept_attention(
    q_BHkD: Tensor,
    k_BHkD: Tensor,
    v_BHkD: Tensor,
    others: tuple[Tensor, Tensor],
    kept: Kept,
    y_BHkD: Tensor | None = None,
) -> Tensor:
    """softmax(q K^T / sqrt(D)) V of the kept positions, (B, H, k, D).

    `others` are keys and values (B, H, d, D) of the dropped positions. `y_BHkD` is the result,
    where it is known already.
    """
    out: Tensor = _KeptAttention.apply(q_BHkD, k_BHkD, v_BHkD, *others, kept, y_BHkD)
    return out


class _KeptAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        other_k: Tensor,
        other_v: Tensor,
        kept: Kept,
        y: Tensor | None,
    ) -> Tensor:
        if y is None:
            y = torch.empty_like(q)
            for chunk in _chunks(kept):
                p_kept, p_other = _softmax(q, k, other_k, chunk)
                part = p_kept @ v[:, :, : chunk.stop]
                part += p_other @ other_v[:, :, : chunk.dropped]
                y[:, :, chunk.start : chunk.stop] = part
        ctx.save_for_backward(q, k, v, other_k, other_v, y)
        ctx.kept = kept
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (dy,) = grads
        q, k, v, other_k, other_v, y = ctx.saved_tensors
        dq, dk, dv = (torch.zeros_like(x) for x in (q, k, v))
        along = (dy * y).sum(dim=-1, keepdim=True)
        scale = q.shape[-1] ** -0.5
        for chunk in _chunks(ctx.kept):
            here, e, f = slice(chunk.start, chunk.stop), chunk.stop, chunk.dropped
            p_kept, p_other = _softmax(q, k, other_k, chunk)
            dy_c, along_c = dy[:, :, here], along[:, :, here]
            dv[:, :, :e] += p_kept.mT @ dy_c
            ds_kept = (dy_c @ v[:, :, :e].mT).sub_(along_c).mul_(p_kept).mul_(scale)
            ds_other = (dy_c @ other_v[:, :, :f].mT).sub_(along_c).mul_(p_other).mul_(scale)
            dq[:, :, here] = (ds_kept @ k[:, :, :e]).add_(ds_other @ other_k[:, :, :f])
            dk[:, :, :e] += ds_kept.mT @ q[:, :, here]
        return dq, dk, dv, None, None, None, None


def _softmax(q: Tensor, k: Tensor, other_k: Tensor, chunk: _Chunk) -> tuple[Tensor, Tensor]:
    """Of a chunk's queries over kept and over dropped keys: (B, H, c, e) and (B, H, c, f)."""
    q_c = q[:, :, chunk.start : chunk.stop] * q.shape[-1] ** -0.5
    over_kept = q_c @ k[:, :, : chunk.stop].mT
    over_other = q_c @ other_k[:, :, : chunk.dropped].mT
    scores = torch.cat((over_kept, over_other), dim=-1)
    p = scores.masked_fill_(chunk.forbidden, -torch.inf).softmax(dim=-1)
    p_kept, p_other = p.split((chunk.stop, chunk.dropped), dim=-1)
    return p_kept, p_other


def _chunks(kept: Kept) -> Iterable[_Chunk]:
    """The same for every layer, so masks are made once where they are small."""
    if kept.index.shape[0] * kept.index.shape[1] * kept.positions > _KEPT_MASKS:
        return _made_chunks(kept)
    if "chunks" not in kept.notes:
        kept.notes["chunks"] = list(_made_chunks(kept))
    return kept.notes["chunks"]


def _made_chunks(kept: Kept) -> Iterator[_Chunk]:
    B, k = kept.index.shape
    device = kept.index.device
    starts_B1 = torch.arange(B, device=device)[:, None] * kept.positions
    places_Bd = kept.flat_rest.view(B, -1) - starts_B1
    order_k = torch.arange(k, device=device)
    for start, f in zip(range(0, k, CHUNK), kept.before, strict=True):
        stop = min(start + CHUNK, k)
        later = (order_k[:stop] > order_k[start:stop, None]).expand(B, -1, -1)
        beyond = places_Bd[:, None, :f] > kept.index[:, start:stop, None]
        yield _Chunk(start, stop, f, torch.cat((later, beyond), dim=-1)[:, None])
