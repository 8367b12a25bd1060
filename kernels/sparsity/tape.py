"""One pass over all tokens, then a backward pass over few: what the first leaves for the second.

The filter needs the loss, so which tokens are kept is known only after the whole forward pass. That
pass runs without autograd and records what it multiplied (`Recording`). Then the model runs again,
on the kept tokens, for autograd: every matrix product takes its result from the record instead of
computing it (`Replay`), and what remains is arithmetic per element. The backward pass of that
second run has as many rows as there are kept tokens, in every matrix product.

Where tokens are rounded relative to all others of their batch, that run is told what all were like.

With activation checkpointing the record holds keys, values and each layer's output only. The second
run then passes each layer hollow, with zeros for products, so that autograd sees its structure, and
takes its output from the record; products are computed when the backward pass arrives there.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from kernels.sparsity.attention import kept_attention
from kernels.sparsity.token_filter import Kept

# Shapes: B rows, S positions, H heads, D width of a head.

Known = tuple[Tensor, ...] | None
Whole = Tensor | None
Measure = Callable[[], Whole]
Products = Callable[[Known, Whole], tuple[Tensor, ...]]


class Filtering(Protocol):
    """How the two places of a layer that multiply large matrices take part in a token filter."""

    def products(
        self, x: Tensor, widths: Sequence[int], measure: Measure, compute: Products
    ) -> tuple[Tensor, ...]:
        """Results of linear maps of `x`, one of each width. `compute` takes them where known, and
        what `measure` finds out about `x` where this is only a part of it."""
        ...

    def attention(self, q_BSHD: Tensor, k_BSHD: Tensor, v_BSHD: Tensor) -> Tensor:
        """Causal attention, (B, S, H, D)."""
        ...


# What a layer is told, `layers.Call`, which cannot be imported here: it has a field `filtering`.
Call = Any


def causal_attention(q_BSHD: Tensor, k_BSHD: Tensor, v_BSHD: Tensor) -> Tensor:
    """(B, S, H, D), every position over itself and those before."""
    q, k, v = (x.transpose(1, 2) for x in (q_BSHD, k_BSHD, v_BSHD))
    y = functional.scaled_dot_product_attention(q, k, v, is_causal=q.shape[2] > 1)
    return y.transpose(1, 2)


class Detaching:
    """The reference: gradients stop at keys and values of dropped tokens, and nothing is saved."""

    def __init__(self, mask_BS: Tensor) -> None:
        self._mask = mask_BS[:, :, None, None]

    def products(
        self, x: Tensor, widths: Sequence[int], measure: Measure, compute: Products
    ) -> tuple[Tensor, ...]:
        """As without a filter."""
        del x, widths, measure
        return compute(None, None)

    def attention(self, q_BSHD: Tensor, k_BSHD: Tensor, v_BSHD: Tensor) -> Tensor:
        """Dropped keys and values are constants."""
        k, v = (torch.where(self._mask, x, x.detach()) for x in (k_BSHD, v_BSHD))
        return causal_attention(q_BSHD, k, v)

    def apply(self, layer: nn.Module, x: Tensor, call: Call) -> Tensor:
        """Call a layer in this way."""
        out: Tensor = layer(x, replace(call, filtering=self))
        return out


@dataclass(slots=True)
class _Record:
    """What one call of a layer leaves. Also the `Filtering` of that call."""

    thrifty: bool
    wholes: deque[Whole] = field(default_factory=deque[Whole])
    results: deque[tuple[Tensor, ...]] = field(default_factory=deque[tuple[Tensor, ...]])
    keys: Tensor | None = None
    values: Tensor | None = None
    attended: Tensor | None = None
    output: Tensor | None = None

    def products(
        self, x: Tensor, widths: Sequence[int], measure: Measure, compute: Products
    ) -> tuple[Tensor, ...]:
        """Compute and remember."""
        del x, widths
        self.wholes.append(measure())
        out = compute(None, self.wholes[-1])
        if not self.thrifty:
            self.results.append(out)
        return out

    def attention(self, q_BSHD: Tensor, k_BSHD: Tensor, v_BSHD: Tensor) -> Tensor:
        """Compute and remember."""
        y = causal_attention(q_BSHD, k_BSHD, v_BSHD)
        self.keys, self.values = k_BSHD, v_BSHD
        if not self.thrifty:
            self.attended = y
        return y


class Recording:
    """A pass over all tokens, under `no_grad`. `thrifty` where activations are checkpointed."""

    def __init__(self, *, thrifty: bool) -> None:
        self._thrifty = thrifty
        self._records: deque[_Record] = deque()

    def apply(self, layer: nn.Module, x: Tensor, call: Call) -> Tensor:
        """Call a layer in this way."""
        record = _Record(self._thrifty)
        out: Tensor = layer(x, replace(call, filtering=record))
        if self._thrifty:
            record.output = out
        self._records.append(record)
        return out

    def replay(self, kept: Kept) -> "Replay":
        """The pass over the kept tokens; it calls the same layers in the same order."""
        return Replay(self._records, kept, thrifty=self._thrifty)


class _Playing:
    """`Filtering` of the call of a layer on kept tokens: results from `record`, if it has them."""

    def __init__(self, record: _Record, kept: Kept) -> None:
        assert record.keys is not None
        assert record.values is not None
        self._kept = kept
        self._others = tuple(
            kept.take_rest(x).transpose(1, 2).contiguous() for x in (record.keys, record.values)
        )
        record.keys = record.values = None
        self._record = record
        self.hollow = False

    def products(
        self, x: Tensor, widths: Sequence[int], measure: Measure, compute: Products
    ) -> tuple[Tensor, ...]:
        """Known from the record, zeros in a hollow pass, or computed."""
        del measure
        if self.hollow:
            return compute(tuple(x.new_zeros(*x.shape[:-1], width) for width in widths), None)
        whole = self._record.wholes.popleft()
        if self._record.thrifty:
            return compute(None, whole)
        return compute(tuple(self._kept.take(t) for t in self._record.results.popleft()), whole)

    def attention(self, q_BSHD: Tensor, k_BSHD: Tensor, v_BSHD: Tensor) -> Tensor:
        """Of kept tokens over all."""
        q, k, v = (x.transpose(1, 2).contiguous() for x in (q_BSHD, k_BSHD, v_BSHD))
        y: Tensor | None = None
        if self.hollow:
            y = torch.zeros_like(q)
        elif self._record.attended is not None:
            y = self._kept.take(self._record.attended).transpose(1, 2).contiguous()
        other_k, other_v = self._others
        return kept_attention(q, k, v, (other_k, other_v), self._kept, y).transpose(1, 2)


class Replay:
    """The pass over the kept tokens."""

    def __init__(self, records: deque[_Record], kept: Kept, *, thrifty: bool) -> None:
        self._records, self._kept, self._thrifty = records, kept, thrifty

    def apply(self, layer: nn.Module, x: Tensor, call: Call) -> Tensor:
        """Call a layer in this way."""
        record = self._records.popleft()
        filtering = _Playing(record, self._kept)
        told = replace(call, filtering=filtering)
        if not self._thrifty:
            out: Tensor = layer(x, told)
            return out
        assert record.output is not None
        known, record.output = self._kept.take(record.output), None
        filtering.hollow = True
        made = checkpoint(layer, x, told, use_reentrant=False, preserve_rng_state=False)
        filtering.hollow = False  # from now on it is only called to compute in earnest
        result: Tensor = _Known.apply(made, known)
        return result


class _Known(torch.autograd.Function):
    """Values that are known, with the gradient of what was to compute them."""

    @staticmethod
    def forward(_ctx: object, made: Tensor, known: Tensor) -> Tensor:
        del made
        return known

    @staticmethod
    def backward(_ctx: object, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None
