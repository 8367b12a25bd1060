"""Error feedback around any codec: what was not sent today is added tomorrow.

    delta = gradient + decay * error;  send encode(delta);  error = delta - decode(payload)

The sum of what was sent then follows the sum of the gradients, however coarse the codec (Seide et
al. 2014; Karimireddy et al., 1901.09847). The error is a full-size tensor per rank: it is state
the run owns, kept in the storage given (8-bit codes make it one byte an element; what that
rounding loses is lost, not fed back).
"""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from kernels.optimizers.codecs.base import Codec, Shape, Tensors
from kernels.optimizers.quantised_state import load, store
from kernels.optimizers.state import StateTensor, Storage, declare


@dataclass(frozen=True, slots=True, kw_only=True)
class Feedback:
    """`codec` with memory of its error."""

    codec: Codec
    decay: float = 1.0  # below 1 old errors fade
    kind: Literal["float32", "float16", "linear", "dynamic"] = "float32"
    block: int = 256

    def memory(self, shape: Shape) -> tuple[StateTensor, ...]:
        """The codec's own, and the error."""
        return (*self.codec.memory(shape), *declare("error", shape, self._storage))

    def payload(self, shape: Shape) -> tuple[StateTensor, ...]:
        """The codec's own."""
        return self.codec.payload(shape)

    def encode(self, gradient: Tensor, memory: Tensors, key: int) -> tuple[Tensors, Tensors]:
        """Payload of gradient and old error; memory with the new one."""
        shape = tuple(gradient.shape)
        delta = gradient + self.decay * load(memory, "error", self._storage, shape)
        payload, after = self.codec.encode(delta, memory, key)
        error = delta - self.codec.decode(payload, memory, shape, key)
        return payload, {**after, **store("error", error, self._storage)}

    def decode(self, payload: Tensors, memory: Tensors, shape: Shape, key: int) -> Tensor:
        """The codec's own."""
        return self.codec.decode(payload, memory, shape, key)

    @property
    def _storage(self) -> Storage:
        return Storage(self.kind, self.block)
