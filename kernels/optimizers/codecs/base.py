"""What every uplink codec promises.

    payload, memory = codec.encode(gradient, memory, key)
    gradient'       = codec.decode(payload, memory_before, shape, key)

`gradient` is (M, N) or of any shape where a codec says so, float32. `memory` and `payload` are
tensors by name, of the dtypes and shapes that `codec.memory(shape)` and `codec.payload(shape)`
announce; memory of zeros is a valid beginning. `key` is `draws.key(seed, parameter, step, rank)`:
the receiver knows it, so it does not travel. Encoding the same twice gives the same bits, which
is what lets a replaced trainer repeat a step.

Sums over ranks are taken of decoded gradients, in rank order. Payloads are not added: their
rounding differs per rank on purpose.
"""

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

from kernels.optimizers.state import StateTensor

Tensors = Mapping[str, Tensor]
Shape = tuple[int, ...]


class Codec(Protocol):
    """Encodes the gradients of one parameter on one rank."""

    def memory(self, shape: Shape) -> tuple[StateTensor, ...]:
        """What must be kept from step to step for a gradient of `shape`; often nothing."""
        ...

    def payload(self, shape: Shape) -> tuple[StateTensor, ...]:
        """What travels for a gradient of `shape`."""
        ...

    def encode(self, gradient: Tensor, memory: Tensors, key: int) -> tuple[Tensors, Tensors]:
        """Payload and next memory."""
        ...

    def decode(self, payload: Tensors, memory: Tensors, shape: Shape, key: int) -> Tensor:
        """The gradient as the receiver knows it. `memory` is the one `encode` was given."""
        ...
