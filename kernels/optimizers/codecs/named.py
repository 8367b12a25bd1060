"""The codecs a topology can name, and what each costs.

Bytes are per element of a square matrix of side d, against 2 for a bfloat16 gradient.

name            bytes up          memory per rank   unbiased
dense           4                 -                 exact
int8            1.03              -                 yes
int4            0.53              -                 yes
int4_rotated    0.53              -                 yes
int4_feedback   0.53              1.016             follows the sum
two_bit         0.258             1.016             follows the sum; rotated, 4 levels
ternary         0.208             1.016             follows the sum
ternary_rotated 0.208             1.016             follows the sum
two_bit_scaled  0.25 + 4 / d      1.016             follows the sum
ternary_scaled  0.2 + 4 / d       1.016             follows the sum
sign            0.133             1.016             follows the sum
sign_rotated    0.133             1.016             follows the sum
power           8 R/d             1.016 + 4 R/d     follows the sum
power_int8      2.03 R/d          1.016 + 4 R/d     follows the sum
power_int4      1.03 R/d          1.016 + 4 R/d     follows the sum

GaLore (projection.py) and GUM (gum.py) send cores, not gradients; a core may itself be sent with
any codec above that has no need of a matrix.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from kernels.optimizers.codecs.base import Codec, Shape, Tensors
from kernels.optimizers.codecs.blocks import Blocks
from kernels.optimizers.codecs.feedback import Feedback
from kernels.optimizers.codecs.grid import Grid
from kernels.optimizers.codecs.power import Power
from kernels.optimizers.codecs.scaled import Scaled
from kernels.optimizers.state import StateTensor


@dataclass(frozen=True, slots=True)
class Dense:
    """The gradient itself, in float32."""

    def memory(self, shape: Shape) -> tuple[StateTensor, ...]:
        """Nothing."""
        del shape
        return ()

    def payload(self, shape: Shape) -> tuple[StateTensor, ...]:
        """The gradient."""
        return (StateTensor("dense", "float32", shape),)

    def encode(self, gradient: Tensor, memory: Tensors, key: int) -> tuple[Tensors, Tensors]:
        """The gradient and `memory`, untouched."""
        del key
        return {"dense": gradient}, memory

    def decode(self, payload: Tensors, memory: Tensors, shape: Shape, key: int) -> Tensor:
        """The gradient."""
        del memory, shape, key
        return payload["dense"]


def _fed_back(codec: Codec) -> Codec:
    """Errors in 8-bit codes: a float32 error per rank would outweigh all other state."""
    return Feedback(codec=codec, kind="dynamic")


_NAMED: dict[str, Callable[[int], Codec]] = {
    "dense": lambda rank: Dense(),
    "int8": lambda rank: Blocks(bits=8),
    "int4": lambda rank: Blocks(),
    "int4_rotated": lambda rank: Blocks(rotation=64),
    "int4_feedback": lambda rank: _fed_back(Blocks(stochastic=False)),
    "two_bit": lambda rank: _fed_back(Grid(levels=4, rotation=256)),
    "ternary": lambda rank: _fed_back(Grid(levels=3)),
    "ternary_rotated": lambda rank: _fed_back(Grid(levels=3, rotation=256)),
    "two_bit_scaled": lambda rank: _fed_back(Scaled(levels=4)),
    "ternary_scaled": lambda rank: _fed_back(Scaled(levels=3)),
    "sign": lambda rank: _fed_back(Grid(levels=2)),
    "sign_rotated": lambda rank: _fed_back(Grid(levels=2, rotation=256)),
    "power": lambda rank: _fed_back(Power(rank=rank)),
    "power_int8": lambda rank: _fed_back(Power(rank=rank, factors="linear")),
    "power_int4": lambda rank: _fed_back(Power(rank=rank, factors="int4")),
}

NAMES = tuple(_NAMED)


def named(name: str, rank: int = 0) -> Codec:
    """The codec called `name`; `rank` is asked for by the power iterations only.

    Raises ValueError for an unknown name, or a power iteration without a rank.
    """
    if name not in _NAMED:
        raise ValueError(f"codec must be one of {', '.join(NAMES)}, got {name!r}")
    if name.startswith("power") and rank < 1:
        raise ValueError(f"codec {name!r} needs a rank of at least 1, got {rank}")
    return _NAMED[name](rank)
