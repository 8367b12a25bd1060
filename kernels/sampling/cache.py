"""Keys and values of past positions, for a looped model.

A position has other keys in every loop, so the cache has loops * layers slots. With `share_loops`
all loops of a layer use one slot, of which only the last loop's entries survive: exact while a
prompt is read, an approximation afterwards that costs little quality and takes a loops-th of the
memory (Ouro, arXiv 2510.25741, table 14).

Prompts of different lengths are filled up on the left; what was filled in is never attended to.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from kernels.model.config import ModelConfig

# Shapes: B sequences, H heads, D head width, L positions there is room for, S new positions.


class Slot:
    """The entries of one layer in one loop; see `kernels.model.layers.Memory`."""

    def __init__(self, cache: "KeyValueCache", k_BHLD: Tensor, v_BHLD: Tensor) -> None:
        self._cache = cache
        self._k_BHLD = k_BHLD
        self._v_BHLD = v_BHLD

    def extend(self, k_BHSD: Tensor, v_BHSD: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Store the new positions; all keys and values so far, and the mask of who sees whom."""
        start, stop = self._cache.length, self._cache.length + k_BHSD.shape[2]
        self._k_BHLD[:, :, start:stop] = k_BHSD
        self._v_BHLD[:, :, start:stop] = v_BHSD
        mask = self._cache.mask(start, stop)
        return self._k_BHLD[:, :, :stop], self._v_BHLD[:, :, :stop], mask


class KeyValueCache:
    """Room for `capacity` positions of each of `padding`'s sequences.

    `padding[b]` is how many of sequence b's first positions are filling. Raises `ValueError` when
    asked to hold more than its capacity.
    """

    def __init__(
        self,
        config: ModelConfig,
        padding: Sequence[int],
        capacity: int,
        *,
        share_loops: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self._layers = config.layers
        self._share = share_loops
        self._capacity = capacity
        self._padding_B = torch.tensor(padding, device=device)
        self._padded = any(padding)
        slots = config.layers * (1 if share_loops else config.loops)
        shape = (2, slots, len(padding), config.heads, capacity, config.head_dim)
        self._entries = torch.zeros(shape, device=device, dtype=dtype)
        self._mask: tuple[tuple[int, int], Tensor] | None = None
        self.length = 0  # positions stored so far

    @property
    def nbytes(self) -> int:
        """Memory the entries take."""
        return self._entries.numel() * self._entries.element_size()

    def slot(self, loop: int, layer: int) -> Slot:
        """Where `layer` keeps its entries in `loop`."""
        index = layer if self._share else loop * self._layers + layer
        return Slot(self, self._entries[0, index], self._entries[1, index])

    def positions(self, count: int) -> Tensor:
        """Positions (B, count) of the next tokens, counted from each sequence's own beginning."""
        if self.length + count > self._capacity:
            raise ValueError(
                f"the cache has room for {self._capacity} positions; "
                f"{self.length} are taken and {count} more were given"
            )
        columns = torch.arange(self.length, self.length + count, device=self._padding_B.device)
        return (columns - self._padding_B[:, None]).clamp_(min=0)

    def advance(self, count: int) -> None:
        """The `count` positions just stored in every slot are now the past."""
        self.length += count

    def rewind(self, length: int) -> None:
        """Forget all positions after the first `length`."""
        assert 0 <= length <= self.length
        self.length = length

    def mask(self, start: int, stop: int) -> Tensor | None:
        """Which keys 0 .. stop - 1 queries start .. stop - 1 may see, (B, 1, S, stop).

        None where plain causality (from an empty cache) or full sight (one query) says it all.
        """
        if not self._padded and (start == 0 or stop - start == 1):
            return None
        if self._mask is None or self._mask[0] != (start, stop):  # the same for every slot
            keys = torch.arange(stop, device=self._padding_B.device)
            queries = keys[start:, None]
            real = keys >= self._padding_B[:, None, None]
            # Filling sees itself, so that no row of the softmax is empty.
            seen = (keys <= queries) & (real | (keys == queries))
            self._mask = ((start, stop), seen[:, None])
        return self._mask[1]

    def repeated(self, times: int) -> None:
        """Every sequence becomes `times` neighbours with the same past."""
        self._entries = self._entries.repeat_interleave(times, dim=2)
        self._padding_B = self._padding_B.repeat_interleave(times)
        self._mask = None
