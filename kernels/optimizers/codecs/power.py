"""One warm-started power iteration: rank R factors of a gradient (PowerSGD, 1905.13727).

With X the gradient, shorter side first, (S, L), and `warm` (L, R) what the last step ended with:

    left = orth(X warm)   (S, R)      right = X^T left   (L, R)      X' = left right^T

What is missed must be fed back (feedback.py): alone, plain low rank is biased.

Two ways to play it with several ranks. `Power` is the one-message codec: every rank iterates for
itself and the owner adds up products of rank R each. The shared form needs one more exchange but
is exactly the power iteration of the averaged gradient, whatever the number of ranks:

    trainer k  sketch(X_k, warm) ->  owner  left = agree(sum)  ->  trainer  reply(X_k, left)
    owner      X' = decode({left, right = sum}), next warm = right for all
    trainer    error_k = X_k - decode({left, its own reply})

Factors may travel in 4 or 8 bits; under feedback their rounding is corrected later too.
"""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from kernels.optimizers import draws
from kernels.optimizers.codecs.base import Shape, Tensors
from kernels.optimizers.projection import basis_shape, is_wide, orthonormal
from kernels.optimizers.quantised_state import load, store
from kernels.optimizers.state import StateTensor, Storage, declare


@dataclass(frozen=True, slots=True, kw_only=True)
class Power:
    """Gradients (M, N) as two factors of `rank` columns."""

    rank: int
    factors: Literal["float32", "float16", "linear", "int4"] = "float32"  # how they travel
    block: int = 256  # of quantised factors

    def memory(self, shape: Shape) -> tuple[StateTensor, ...]:
        """The directions of the last step, in float32."""
        return (StateTensor("warm", "float32", (max(shape), self._rank(shape))),)

    def payload(self, shape: Shape) -> tuple[StateTensor, ...]:
        """Both factors."""
        rank, storage = self._rank(shape), self._storage
        left = declare("left", (min(shape), rank), storage)
        return left + declare("right", (max(shape), rank), storage)

    def encode(self, gradient: Tensor, memory: Tensors, key: int) -> tuple[Tensors, Tensors]:
        """Payload, and where to go on from."""
        left = agree(sketch(gradient, memory["warm"], key))
        right = reply(gradient, left)
        payload = store("left", left, self._storage) | store("right", right, self._storage)
        return payload, {**memory, "warm": right}

    def decode(self, payload: Tensors, memory: Tensors, shape: Shape, key: int) -> Tensor:
        """left right^T, turned to the gradient's orientation."""
        del memory, key
        rank, storage = self._rank(shape), self._storage
        left = load(payload, "left", storage, (min(shape), rank))
        right = load(payload, "right", storage, (max(shape), rank))
        return left @ right.mT if is_wide(shape) else right @ left.mT

    def _rank(self, shape: Shape) -> int:
        return basis_shape(shape, self.rank)[1]

    @property
    def _storage(self) -> Storage:
        return Storage(self.factors, self.block)


def sketch(g_MN: Tensor, warm_LR: Tensor, key: int) -> Tensor:
    """X warm, (S, R): linear in the gradient. Without a last step, random signs of `key`.

    Ranks that sketch together must use one key.
    """
    if not bool(warm_LR.any()):
        signs = draws.signs(draws.key(key, "sketch"), warm_LR.numel(), warm_LR.device)
        warm_LR = signs.view(warm_LR.shape).to(warm_LR.dtype)
    return _short_first(g_MN) @ warm_LR


def agree(summed_SR: Tensor) -> Tensor:
    """The shared left factor: orthonormal columns. Raises `NotFinite`."""
    return orthonormal(summed_SR)


def reply(g_MN: Tensor, left_SR: Tensor) -> Tensor:
    """X^T left, (L, R): linear in the gradient."""
    return _short_first(g_MN).mT @ left_SR


def _short_first(g_MN: Tensor) -> Tensor:
    return g_MN if is_wide(tuple(g_MN.shape)) else g_MN.mT
